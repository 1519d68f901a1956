"""A report on a latent space: KL by dimension, active units, mutual information, posterior collapse."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_vae.evaluate.guide_density import density_guide
from pyro_vae.evaluate.latent.aggregate import AggregatePosterior
from pyro_vae.evaluate.latent.dimensions import LatentDimension, LatentSite
from pyro_vae.evaluate.latent.metrics import decompose_kl, mean_over_data, measure_dimensions
from pyro_vae.evaluate.latent.result import LatentReport
from pyro_vae.evaluate.latent.sites import Metrics, as_rows, element_names, latent_sites, measure_sites, site_note
from pyro_vae.pair.arguments import check_keywords
from pyro_vae.pair.masks import under_model_masks
from pyro_vae.pair.networks import eval_mode, to_networks_device
from pyro_vae.pair.particles import particles_agree, warn_not_vectorized
from pyro_vae.pair.planning import DATA_ROWS, plan_for
from pyro_vae.pair.plates import data_plate
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.together import asked_pair
from pyro_vae.pair.tracing import NoInverse, PairTrace, trace_pair
from pyro_vae.support.arguments import checked_from
from pyro_vae.support.progress import progress_bar
from pyro_vae.support.random import fork_rng, seeded

__all__ = ["latent_report"]


@checked_from(memory=1)
def latent_report(
    model: Program,
    guide: Program,
    *args: Any,
    num_samples: int = 4,
    memory: int | None = None,
    seed: int | None = None,
    progress: bool | None = False,
    **kwargs: Any,
) -> LatentReport:
    r"""Report which latent dimensions hold information about the data.

    The report gives the KL of each site and each of its dimensions, in closed form where that is exact, and the
    activity :math:`\mathrm{Var}_x\, E_q[z_j|x]` of each dimension. It splits the KL into the information of the latents
    about the data and the mismatch of the aggregate posterior with the prior:

    .. math:: \frac1N \sum_n KL(q(z|x_n) \| p(z)) = I(n; z) + KL(q(z) \| p(z)), \qquad
        q(z) = \frac1N \sum_n q(z|x_n)

    The mixture q(z) is exact for the N given data, which takes `num_samples` N^2 densities of the guide; a thousand
    data are usually enough. I(n; z) cannot exceed log N. Near this limit it is a lower bound on the information about
    x: with more data I(n; z) rises in expectation, and KL(q(z) || p(z)) falls.

    The sites of the pair must be inside a plate over the data. Networks are put in evaluation mode for the call.

    Args:
        model, guide: The pair.
        *args: The data `x` of shape `(N, ...)`, N at least 2, then whatever else the pair takes, also by keyword;
            tensors with N rows are per-datum.
        num_samples: Draws per datum, at least 2.
        memory: Approximate bytes for the densities of draws under the guide at other data.
        seed: A number makes the call reproducible and leaves torch's generators as they were. None continues their
            stream.
        progress: Show a bar: True, False, or None (in a terminal or a notebook).

    Raises:
        ValueError: If a site is outside the plate over the data, if latent sites differ between model and guide, if the
            pair has no latent site, if a density is NaN, or for fewer than two data or draws.
        TypeError: For a keyword that neither this call nor the pair knows.

    Reference: Hoffman and Johnson 2016, ELBO surgery (NIPS workshop on advances in approximate Bayesian inference), for
    the two parts of the KL; Burda et al. 2016, arXiv 1509.00519, section 5.2, for activity.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        ...         pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)
        >>> def guide(x):
        ...     loc = torch.stack([x / 2, 0 * x], -1)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(loc, torch.tensor([0.7, 1.0])).to_event(1))
        >>> [d.status for d in latent_report(model, guide, torch.linspace(-2, 2, 9)).dimensions]
        ['active', 'collapsed']
    """
    check_keywords(latent_report, kwargs, model, guide)
    args = to_networks_device(args, model, guide)
    if num_samples < 2:
        raise ValueError(f"num_samples must be at least 2, to estimate the noise of the draws, got {num_samples}")
    with torch.no_grad(), eval_mode(model, guide), seeded(seed):
        asked = asked_pair(model, guide, (args, kwargs))
        if asked.joint:
            raise ValueError(asked.joint)
        model, data, n = asked.model, asked.data, asked.num_data
        if n < 2:
            raise ValueError("activity and mutual information compare data, got one datum: give two or more")
        guide = density_guide(model, asked.guide, data)
        aggregate, notes = _aggregate(model, guide, data, memory)
        if aggregate.problem:
            notes.append(
                f"no mutual information: the guide has no density at another datum's draw ({aggregate.problem})"
            )
        rounds: list[Metrics] = []
        with progress_bar("latent health", n * num_samples, progress) as advance:
            for _ in range(num_samples):
                metrics, draws, traces = _draw(model, guide, aggregate)
                missing = torch.full_like(metrics["", "log_q"], math.nan)
                metrics["", "log_aggregate"] = missing if aggregate.problem else aggregate.log_prob(draws, advance)
                rounds.append(metrics)
        prior = _prior_draws(model, aggregate, traces)
    found = {key: torch.stack([r[key] for r in rounds]).double().cpu() for key in rounds[0]}  # (S, N) or (S, N, E)

    sites: list[LatentSite] = []
    dimensions: list[LatentDimension] = []
    for name, site in latent_sites(traces):
        kl, kl_error = map(float, mean_over_data(found[name, "kl"]))
        names = element_names(name, site, aggregate.plate)
        sites.append(LatentSite(name, len(names), kl, kl_error, site_note(name, traces)))
        dimensions += measure_dimensions(names, sites[-1], found, auxiliary=name not in traces.model.nodes)
    kl, kl_error = map(float, mean_over_data(found["", "kl"]))
    information, marginal = decompose_kl(found)
    if information[0] > 0.9 * math.log(n):
        notes.append(
            f"I(n; z) is near its limit, log N = {math.log(n):.2f}: the true information is at least "
            "this much, and KL(q(z) || p(z)) at most this much; give more data for tighter values"
        )
    return LatentReport(
        dimensions=dimensions,
        sites=sites,
        kl=kl,
        kl_error=kl_error,
        mutual_information=information[0],
        mutual_information_error=information[1],
        marginal_kl=marginal[0],
        marginal_kl_error=marginal[1],
        num_data=n,
        num_samples=num_samples,
        notes=notes,
        draws={site.name: found[site.name, "value"][0] for site in sites},
        prior_draws=prior,
    )


def _aggregate(model: Program, guide: Program, data: Data, memory: int | None) -> tuple[AggregatePosterior, list[str]]:
    """The aggregate posterior, tested on a few data, and notes about the pair."""
    plan = plan_for(model, guide, data, vectorize=False)
    example_data, traces = plan.example_data, plan.traces
    if not any(True for _ in latent_sites(traces)):
        raise ValueError("the guide samples no latent site: there is no latent space to report on")
    with fork_rng():
        # the guide twice: the density of the model is not needed
        vectorize = particles_agree(guide, guide, example_data[0], **example_data[1])
        aggregate = AggregatePosterior(guide, data, plan, vectorize=vectorize, rows=DATA_ROWS, memory=memory)
        draws = aggregate.as_draws(traces)
        try:
            aggregate.log_prob_of_draw(guide, draws, 0, example_data)
        except (NoInverse, KeyError, NotImplementedError, RuntimeError) as error:  # a flow that cannot be inverted
            aggregate.problem = f"{type(error).__name__}: {error}"
        if not (vectorize or aggregate.problem):
            warn_not_vectorized()
        draws = {name: value for name, value in draws.items() if name in traces.model.nodes}
        prior = aggregate.log_prob_of_draw(model, draws, 0, example_data) if draws else torch.zeros(1)
    if torch.allclose(prior, prior[0].expand_as(prior), rtol=1e-4, atol=1e-4):
        return aggregate, []
    return aggregate, [
        "the prior differs between data: KL(q(z) || p(z)) is then the mean of log q(z) - log p(z|x), which can be "
        "negative"
    ]


def _draw(
    model: Program, guide: Program, aggregate: AggregatePosterior
) -> tuple[Metrics, dict[str, Tensor], PairTrace]:
    """One draw for every datum: its metrics, the draws, and the last traces."""
    metrics: dict[Any, list[Tensor]] = {}
    draws: dict[str, list[Tensor]] = {}
    start = 0
    for args, kwargs in aggregate.data:
        traces = under_model_masks(trace_pair(model, guide, args, kwargs))
        found = measure_sites(traces, data_plate(traces, len(args[0])))
        bad = found["", "kl"].isnan() | found["", "log_q"].isnan()
        if bool(bad.any()):
            index = start + int(bad.nonzero()[0])
            raise ValueError(
                f"the latents of datum {index} have a NaN density: pv.preflight(model, guide, x[{index}:{index + 1}]) "
                "names the site"
            )
        for key, value in found.items():
            metrics.setdefault(key, []).append(value)
        for name, value in aggregate.as_draws(traces).items():
            draws.setdefault(name, []).append(value)
        start += len(args[0])
    return (
        {key: torch.cat(parts) for key, parts in metrics.items()},
        {name: torch.cat(parts) for name, parts in draws.items()},
        traces,
    )


def _prior_draws(model: Program, aggregate: AggregatePosterior, traces: PairTrace) -> dict[str, Tensor]:
    """One draw from the prior for every datum, `(N, E)`, for each latent site of the model."""
    parts: dict[str, list[Tensor]] = {}
    for args, kwargs in aggregate.data:
        drawn: Any = traced(model, args, kwargs)
        for name, _ in latent_sites(traces):
            if name in drawn.nodes:
                site = drawn.nodes[name]
                parts.setdefault(name, []).append(as_rows(site["value"], site, aggregate.plate))
    return {name: torch.cat(values).double().cpu() for name, values in parts.items()}
