"""Whether a guide is right: simulation-based calibration of any pair."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.evaluate.calibration.bands import adjusted, uniformity
from pyro_vae.evaluate.calibration.classes import Reliability, reliability
from pyro_vae.evaluate.calibration.collecting import Collected
from pyro_vae.evaluate.calibration.drawing import POOL, Drawer
from pyro_vae.evaluate.calibration.joint import two_sample
from pyro_vae.evaluate.calibration.predictive import Statistic, predictive_checks
from pyro_vae.evaluate.calibration.ranking import JOINT, Quantity
from pyro_vae.evaluate.calibration.result import Calibration, CalibrationRow
from pyro_vae.evaluate.calibration.setting import Setting, setting_of
from pyro_vae.evaluate.calibration.simulating import simulate
from pyro_vae.evaluate.calibration.verdicts import ball_coverage, central_coverage, shape_verdict, shift_and_scale
from pyro_vae.evaluate.guide_density import density_guide
from pyro_vae.pair.arguments import check_data, check_keywords
from pyro_vae.pair.enumeration import completed, summed_out
from pyro_vae.pair.networks import eval_mode, to_networks_device
from pyro_vae.pair.protocol import Program
from pyro_vae.support.arguments import checked_from, shown
from pyro_vae.support.progress import progress_bar
from pyro_vae.support.random import fork_rng, seed_or_draw, seeded

__all__ = ["calibration"]

TESTS = ("ranks", "tarp", "reliability", "predictive", "classifier")
LEAST_RANKS = 20  # below which no verdict is given


@checked_from(num_simulations=2, tests=None)
def calibration(
    model: Program,
    guide: Program,
    x: Tensor,
    *args: Any,
    num_simulations: int = 1000,
    num_samples: int = 100,
    quantities: Mapping[str, Quantity] | None = None,
    statistics: Mapping[str, Statistic] | None = None,
    reweight: bool = False,
    tests: Collection[str] = ("ranks", "tarp", "reliability", "predictive"),
    alpha: float = 0.05,
    memory: int | None = None,
    seed: int | None = None,
    progress: bool | None = False,
    **kwargs: Any,
) -> Calibration:
    r"""Ask whether a guide is right: draw latents and data from the model, and rank the truth among the guide's draws.

    .. math:: z^* \sim p(z), \quad x^* \sim p(x|z^*), \quad z_1, \dots, z_L \sim q(z|x^*), \quad
        r_f = \#\{l : f(z_l, x^*) < f(z^*, x^*)\}

    If q is the exact posterior, each rank is uniform on 0, ..., L, whatever f is. The guide needs no fit for this,
    since it is a function of the data. What comes out is about the guide under the model as it is; of a model that is
    wrong about the given data the predictive checks tell. Networks are put in evaluation mode for the call.

    - "ranks": of each scalar latent, of `quantities`, and of log p(x|z), which sees what latents alone do not, such as
      a guide that is the prior. The test is by simultaneous bands of the distribution function. The verdict is "too
      narrow", "too wide", "biased up" or "biased down" (of the guide against the truth), "misses a mode" (the truth is
      often outside all draws, and evenly spread among them otherwise) or "misshapen". Ties fall at random.
    - "tarp": ranks of distances from a random point, of all latents jointly, as in TARP. The point is one more draw
      from the guide, which is independent of the truth given x, so that the ranks of an exact guide are uniform. The
      verdict is "wrong jointly".
    - "reliability": of Bernoulli, categorical and one-hot latents, in place of ranks: do the probabilities hold?
    - "predictive": are the given data, `x`, as those that the pair generates from their own posteriors? These p-values
      use the data twice and lean towards 1/2 where nothing is wrong. They judge model and guide together, so they
      stand beside the verdict on the guide.
    - "classifier", on request: can a network that sees the data tell truth and draw apart?

    All tests of the guide count as one family (Holm): some verdict on a right guide is not "fine" with probability
    `alpha` at most.

    **Latents outside the plate over the data.** If the guide computes their posterior from the data, one simulation is
    a whole data set of the size of `x`, with global latents from their prior, and all latents in it are ranked. If the
    guide draws them without reading the data, as `pv.AmortizedGuide` does, its parameters belong to the data of the
    fit: ranks of draws from the prior among them would say nothing. Then they are drawn from the guide, data are
    simulated given them, and what is asked is whether the posterior of the *local* latents given these is right, for
    global latents that the guide finds plausible. Without local latents such a guide is refused.

    Latents that the model enumerates and the guide does not sample are left out, and log p(x|z) with them.

    Args:
        model, guide: The pair.
        x: The data, `(N, ...)`. Observed values are replaced by draws from the model; their shape, and what a mask
            leaves out, stay. The predictive checks are of `x` itself.
        *args: Whatever else the pair takes, also by keyword; tensors with N rows are per-datum, and are used again
            from the first where there are more simulations.
        num_simulations: Simulated data S (data sets, for global latents).
        num_samples: Draws L of the guide for each, among which the truth is ranked.
        quantities: Functions of the latents by name: from a dictionary of latents by site, each `(R, ...)`, to `(R,)`.
        statistics: Further statistics for the predictive checks: functions of the values of an observed site,
            `(N, ...)`, that return one number.
        reweight: Draw ten times as many, and rank the truth by their importance weights: whether these mend what the
            guide gets wrong.
        tests: Which of the tests above.
        alpha: The probability of a false alarm.
        memory: Approximate bytes for intermediate tensors.
        seed: A number makes the call reproducible and leaves torch's generators as they were. None continues their
            stream.
        progress: Show a bar: True, False, or None (in a terminal or a notebook).

    Raises:
        ValueError: If what the model observes is no argument or a function of one, if the model has a factor, or uses
            its data in more than `obs=`; for a guide with parameters for each datum; for importance weights of a guide
            without a density; if latent sites differ between model and guide; or for an option out of its range.
        TypeError: For a keyword that neither this call nor the pair knows.

    Reference: Talts et al. 2018, arXiv 1804.06788 (ranks); Modrák et al. 2023, arXiv 2211.02383 (the log-likelihood);
    Säilynoja, Bürkner and Vehtari 2022, arXiv 2103.10522 (bands); Lemos et al. 2023, arXiv 2302.03026 (TARP).

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.4))  # the posterior has the deviation 0.71
        >>> calibration(model, guide, torch.zeros(10), num_simulations=200, seed=0)["z"].verdict
        'too narrow'
    """
    check_data((x,))
    check_keywords(calibration, kwargs, model, guide)
    _check_options(num_simulations, num_samples, tests, alpha, memory)
    data = to_networks_device((x, *args), model, guide), kwargs
    with torch.no_grad(), eval_mode(model, guide), seeded(seed):
        # ranks need draws alone: what else a guide adds to its density, and noise of its own, does not matter to them
        guide = density_guide(model, guide, data) if reweight else poutine.block(guide, hide_fn=_is_observed)
        with fork_rng():
            simulate(model, data)  # raises for a model that is no generator
        summed = summed_out(partial(model, **kwargs), partial(guide, **kwargs), data[0])
        if summed:
            guide = completed(model, guide, summed)
        setting = setting_of(model, guide, data, reweight, memory)
        drawer = Drawer(num_samples + 1, reweight, setting.vectorize, setting.rows)
        found = Collected(quantities or {}, "classifier" in tests, num_samples, summed)
        if set(tests) - {"predictive"}:
            _simulate(found, setting, drawer, num_simulations, progress)
        rows, sites = _tests(found, num_samples, tests)
        if "predictive" in tests:
            some = setting.some(num_simulations)
            checks = predictive_checks(model, guide, some, num_samples, statistics or {}, alpha, not summed)
            rows += [
                CalibrationRow(
                    name,
                    "predictive",
                    each.num,
                    each.p_value,
                    math.nan,
                    "",
                    statistic=each.data,
                    expected=each.replications,
                )
                for name, each in checks.items()
            ]
    rows, sites = _judged(rows, sites, alpha)
    ranks = {name: torch.from_numpy(each) for name, each in found.ranks.items()}
    unit = "datum" if setting.units.plate else "data set"
    notes = _notes(setting, found, num_samples)
    return Calibration(rows, sites, ranks, num_simulations, num_samples, unit, alpha, found.ess, notes)


def _is_observed(site: Any) -> bool:
    return site["type"] == "sample" and bool(site["is_observed"])


def _check_options(
    num_simulations: int, num_samples: int, tests: Collection[str], alpha: float, memory: int | None
) -> None:
    if num_simulations < LEAST_RANKS:
        raise ValueError(f"num_simulations must be at least {LEAST_RANKS}, got {num_simulations}")
    if num_samples < 4:
        raise ValueError(f"num_samples must be at least 4, so that there are ranks, got {num_samples}")
    is_list = isinstance(tests, Collection) and not isinstance(tests, str)
    if not is_list or (unknown := [name for name in tests if name not in TESTS]):
        came = ", ".join(map(repr, unknown)) if is_list else shown(tests)
        raise ValueError(f"tests must be a list of some of {', '.join(TESTS)}, got {came}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha}")
    if memory is not None and memory < 1:
        raise ValueError(f"memory must be a positive number of bytes, got {memory}")


def _simulate(found: Collected, setting: Setting, drawer: Drawer, num_simulations: int, progress: bool | None) -> None:
    """Collect ranks and discrete draws of all simulations."""
    count = drawer.num_samples
    # a first run sets the scale of distances, so that it depends on no truth and no draw that is ranked
    data, _, _ = next(setting.pieces(num_simulations, count))
    model, guide = setting.pair()
    simulated = simulate(model, data)
    found.prepare(drawer(model, guide, simulated, setting.units.of_size(len(data[0][0]))))
    with progress_bar("calibration", num_simulations, progress) as advance:
        for data, start, counted in setting.pieces(num_simulations, count):
            if setting.given:
                model, guide = setting.pair()
            simulated = simulate(model, data)
            units = setting.units.of_size(len(data[0][0]))
            found.add(drawer(model, guide, simulated, units), simulated, start, counted)
            advance(counted)
    found.finish()


def _tests(
    found: Collected, num_samples: int, tests: Collection[str]
) -> tuple[list[CalibrationRow], list[Reliability]]:
    """The tests of the guide, not yet adjusted."""
    rows, sites = [], []
    for name, ranks in found.ranks.items():
        kind = "tarp" if name == JOINT else "ranks"
        if kind in tests:
            rows.append(_rank_row(name, kind, ranks[ranks >= 0], num_samples))
    if "reliability" in tests:
        for name in found.probabilities:
            if found.counted(name) >= LEAST_RANKS:
                sites.append(reliability(name, *found.classes(name), seed=seed_or_draw(None)))  # noqa: PERF401
    for site in sites:
        values = {"statistic": site.ece, "expected": site.ece_of_right}
        rows.append(
            CalibrationRow(site.site, "reliability", sum(site.count), site.p_value, math.nan, site.verdict, **values)
        )
    if "classifier" in tests:
        both = two_sample(*found.latents(), seed=seed_or_draw(None))
        rows.append(
            CalibrationRow(
                JOINT,
                "classifier",
                len(found.latents()[0]),
                both.p_value,
                math.nan,
                "told apart",
                statistic=both.accuracy,
                expected=0.5,
            )
        )
    return rows, sites


def _rank_row(name: str, kind: str, ranks: np.ndarray, num_samples: int) -> CalibrationRow:
    if len(ranks) < LEAST_RANKS:
        return CalibrationRow(name, kind, len(ranks), math.nan, math.nan, "too few")
    p_value = uniformity(ranks, num_samples)
    coverage = ball_coverage if kind == "tarp" else central_coverage
    held = [coverage(ranks, num_samples, level)[1] for level in (0.5, 0.9)]
    words, shift, scale = "wrong jointly", math.nan, math.nan
    if kind == "ranks":
        words = shape_verdict(ranks, num_samples)
        shift, scale, _, _ = shift_and_scale(ranks, num_samples)
    return CalibrationRow(name, kind, len(ranks), p_value, math.nan, words, shift, scale, *held)


def _judged(
    rows: list[CalibrationRow], sites: list[Reliability], alpha: float
) -> tuple[list[CalibrationRow], list[Reliability]]:
    """The tests with adjusted p-values and verdicts: those of the guide one family, those of the data another."""
    p_values = np.array([row.p_value for row in rows])
    data = np.array([row.test == "predictive" for row in rows], dtype=bool)
    holm = np.where(data, adjusted(np.where(data, p_values, np.nan)), adjusted(np.where(data, np.nan, p_values)))
    judged = []
    for row, p in zip(rows, holm.tolist(), strict=True):
        verdict = row.verdict
        if row.test == "predictive":
            verdict = "too great" if row.statistic > row.expected else "too small"
        if p > alpha:
            verdict = "fine"
        judged.append(replace(row, p_adjusted=p, verdict=verdict))
    words = {row.quantity: row.verdict for row in judged if row.test == "reliability"}
    return judged, [replace(site, verdict=words[site.site]) for site in sites]


def _notes(setting: Setting, found: Collected, num_samples: int) -> list[str]:
    notes = []
    if found.left_out:
        names = ", ".join(found.left_out)
        notes.append(
            f"{names}: enumerated by the model and not sampled by the guide; the other latents are ranked, and log "
            "p(x|z), which needs all of them, is not"
        )
    if setting.given:
        names = ", ".join(setting.given_latents)
        notes.append(
            f"{names}: the guide draws them without reading the data, so they are drawn from it, and the ranks are of "
            "the other latents given these"
        )
    if not math.isnan(found.ess):
        total, few = POOL * (num_samples + 1), 100 * found.too_few()
        notes.append(
            f"draws are re-weighted: the median effective sample size is {found.ess:.0f} of {total}; in {few:.0f} % of "
            f"the simulations it is below {num_samples}, too small for ranks that fine"
        )
    return notes
