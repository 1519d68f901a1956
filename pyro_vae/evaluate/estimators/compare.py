"""ELBO estimators compared on one pair: bound, gradient bias, variance and signal, time and memory."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import pyro.infer
import torch
from torch import Tensor, nn

from pyro_vae import elbo as elbos
from pyro_vae.evaluate.deprecated import accepts_earlier_form
from pyro_vae.evaluate.estimators.blame import SiteStreams, variance_by_site
from pyro_vae.evaluate.estimators.defaults import default_estimators
from pyro_vae.evaluate.estimators.gradients import Gradients, Moments, timed_in_turns
from pyro_vae.evaluate.estimators.result import ElboComparison, EstimatorRow
from pyro_vae.evaluate.estimators.shared_runs import SharedRuns, may_share
from pyro_vae.evaluate.guide_density import density_guide
from pyro_vae.evaluate.marginal.likelihood import log_marginal
from pyro_vae.pair.arguments import check_keywords
from pyro_vae.pair.masks import guide_under_model_masks
from pyro_vae.pair.networks import eval_mode, modules_of, to_networks_device
from pyro_vae.pair.parameters import unconstrained
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.scale import Unscaled
from pyro_vae.pair.together import asked_pair
from pyro_vae.pair.tracing import log_prob, sample_sites, trace_pair
from pyro_vae.pair.untouched import kept_store
from pyro_vae.support.arguments import checked
from pyro_vae.support.memory import retain_memory
from pyro_vae.support.progress import progress_bar
from pyro_vae.support.random import fork_rng, seed_or_draw

__all__ = ["compare_elbos"]

Estimators = Sequence[elbos.Estimator] | Mapping[str, elbos.Estimator]
MOST_SITES = 6  # whose variance is told apart without being asked
TIMED, ENOUGH = 5, 0.5  # gradients taken alone of estimators that share their runs, at least, and seconds of them
PAIRS_BY_SITE = 20  # of gradients for that, or a fourth of the repeats


@accepts_earlier_form
@checked
def compare_elbos(
    model: Program,
    guide: Program,
    *args: Any,
    estimators: Sequence[elbos.Estimator] | Mapping[str, elbos.Estimator] | None = None,
    num_particles: Sequence[int] = (1, 5, 50),
    repeats: int = 100,
    num_samples: int = 5000,
    by_site: bool | None = None,
    memory: int | None = None,
    seed: int | None = None,
    progress: bool | None = False,
    **kwargs: Any,
) -> ElboComparison:
    """Compare ELBO estimators on any pair, at its current parameters, which are not changed.

    All numbers are of the pair in evaluation mode (no dropout, batch normalization by its running averages) and without
    scales (of a subsampled plate, of `poutine.scale`), and where one of the two masks a latent, the model's mask holds
    for both: so bounds and log p(x) are of one and the same density.
    Weights, running averages, baselines and Pyro's parameter store are left as they were. Gradients are those of the
    parameters on which a density of the pair depends, so without those of a baseline.

    Args:
        model, guide: The pair.
        *args, **kwargs: The data, `(N, ...)`, then whatever else the pair takes. A pair with latents that all data
            share has one number, of all data together, in nats: see `log_marginal`.
        estimators: Names (`pv.elbo.names()`), dictionaries by site (see `pv.elbo.BySite`), ELBO objects or loss
            functions; or a dictionary of these by the labels of the rows. An object has its own number of particles. A
            function says which bound it is by an attribute `bound`, "elbo", "iwae" or "own" (for another one, whose own
            gradients are the reference). None: what the latent sites allow. If all have pathwise gradients: trace,
            mean_field, stl, iwae and dreg. Else trace, vargrad and vimco; a sum over the discrete sites with at most 64
            states of a datum together; disarm and rebar, where bits or classes are read by nothing else in the guide.
        num_particles: Numbers of particles K for each name; a name that needs more than K is left out at that K.
        repeats: Gradients per row. Repeat r uses the same seed for every estimator, so that estimators of pathwise
            latents with one number of particles share their runs of the pair; times are of gradients taken alone.
        num_samples: Importance samples per datum for the reference log p(x).
        by_site: Also split the variance by the latent site whose draw it is of (`model_variance_by_site` and
            `guide_variance_by_site` of a row), from 20 pairs of gradients a site, or a fourth of the repeats if that is
            more. None: where the guide has 2 to 6 sites.
        memory: Approximate bytes for the intermediate tensors of the reference.
        seed: A number makes the call reproducible and leaves torch's generators as they were. None continues their
            stream.
        progress: Show a bar.

    Raises:
        ValueError: For unknown names, fewer than two repeats, or an estimator that does not support the pair.
        TypeError: For a keyword that neither this call nor the pair knows.
    """
    check_keywords(compare_elbos, kwargs, model, guide)
    given = to_networks_device(args, model, guide), kwargs
    if repeats < 2:
        raise ValueError(f"repeats must be at least 2 to estimate a variance, got {repeats}")
    first = seed_or_draw(seed)
    jobs = None if estimators is None else _expand_estimators(estimators, num_particles)
    with eval_mode(model, guide), kept_store(), _recurrent_gradients(model, guide):
        with torch.no_grad():
            asked = asked_pair(model, guide, given)
            model, data = asked.model, asked.data
            guide = density_guide(model, asked.guide, data)
            guide = _under_model_masks(model, guide, data)
            if jobs is None:
                jobs = _expand_estimators(default_estimators(model, guide, data), num_particles)
        options: dict[str, Any] = {
            "num_samples": num_samples,
            "memory": memory,
            "seed": first,
            "progress": progress,
            **data[1],
        }
        reference = log_marginal(model, guide, *data[0], **options)
        reference = replace(reference, is_joint=bool(asked.joint))
        run = _Comparison(Unscaled()(model), Unscaled()(guide), data, asked.num_data, reference.mean, first, repeats)
        run.split(by_site)
        with retain_memory(), progress_bar("gradients", len(jobs) * repeats, progress) as advance:
            run.share([objective for _, objective in jobs], advance)
            rows = [run.row(name, objective, advance) for name, objective in jobs]
    return ElboComparison(rows, reference, repeats)


def _under_model_masks(model: Program, guide: Program, data: Data) -> Program:
    """The guide with the model's masks, so that the estimators have the density whose log p(x) they are held to."""
    masked = guide_under_model_masks(model, guide, data)
    if masked is None:
        warnings.warn(
            "the model masks other elements of a latent than the guide, and others with each draw, so the values of "
            "the estimators have log q against nothing and may lie above log p(x): put the guide's statement under the "
            "same mask, `with poutine.mask(mask=...):`",
            stacklevel=3,
        )
        return guide
    return masked


class _Comparison:
    """The rows of estimators on one pair, each with the same noise, and unbiased gradients with other noise."""

    def __init__(
        self, model: Program, guide: Program, data: Data, n: int, log_prob: float, seed: int, repeats: int
    ) -> None:
        self.model, self.guide, self.data, self.n, self.log_prob, self.repeats = (
            model,
            guide,
            data,
            n,
            log_prob,
            repeats,
        )
        # not consecutive numbers, of which a call with the next seed would have all but one
        generator = torch.Generator().manual_seed(seed)
        self.seeds, self.others = torch.randint(2**62, (2, repeats), generator=generator).tolist()
        self.params_by_program, self.pathwise, self.sites = _parameters(model, guide, data)
        self.streams: SiteStreams | None = None
        self.references: dict[Any, dict[str, Moments]] = {}
        # by the objective's id: moments, values and seconds
        self.shared: dict[int, tuple[dict[str, Moments], Tensor, Tensor]] = {}

    def share(self, objectives: Sequence[pyro.infer.ELBO], advance: Callable[..., None]) -> None:
        """Take the gradients of estimators that have their draws in common from the same runs of the pair."""
        groups: dict[int, list[Gradients]] = {}
        for objective in objectives:
            if self.pathwise and may_share(objective):
                groups.setdefault(objective.num_particles, []).append(self._gradients(objective))
        for group in groups.values():
            runs = SharedRuns(group)
            if len(group) > 1 and runs.agree(self.seeds[0]):
                with pyro.validation_enabled(False):
                    found = runs.repeat(self.seeds, advance)
                seconds = timed_in_turns(group, self.seeds, TIMED, ENOUGH)
                self.shared |= {id(g.objective): (*f, s) for g, f, s in zip(group, found, seconds, strict=True)}

    def split(self, by_site: bool | None) -> None:
        """Tell the variance of sites apart, if it is asked or cheap."""
        if by_site or (by_site is None and 2 <= len(self.sites) <= MOST_SITES):
            self.streams = SiteStreams(self.sites)
            self.streamed = self.streams(self.guide)

    def by_site(self, objective: pyro.infer.ELBO) -> dict[str, dict[str, float]]:
        """The variance of each site's draw, by program."""
        if self.streams is None:
            return {"model": {}, "guide": {}}
        run = Gradients(self.model, self.streamed, self.data, objective, self.params_by_program, self.n)
        run.gradient(0)  # a first run plans, which visits sites as well
        with pyro.validation_enabled(False):
            return variance_by_site(run, self.streams, self.seeds[: max(PAIRS_BY_SITE, self.repeats // 4)])

    def row(self, name: str, objective: pyro.infer.ELBO, advance: Callable[..., None]) -> EstimatorRow:
        run = self._gradients(objective)
        known = self.shared.get(id(objective))
        ours, values, seconds = known if known is not None else run.repeat(self.seeds, advance)
        value, best = float(values.mean()), self._reference(objective)
        by_site = self.by_site(objective)
        (model_bias, model_error), (guide_bias, guide_error) = (ours[s].distance(best[s]) for s in ("model", "guide"))
        return EstimatorRow(
            estimator=name,
            num_particles=objective.num_particles,
            value=value,
            value_error=float(values.std()) / math.sqrt(self.repeats),
            gap=self.log_prob - value,
            model_bias=model_bias,
            guide_bias=guide_bias,
            model_variance=ours["model"].variance,
            guide_variance=ours["guide"].variance,
            model_snr=ours["model"].snr,
            guide_snr=ours["guide"].snr,
            seconds=float(seconds.median()),
            memory=run.peak_memory(self.seeds[0]),
            model_bias_error=model_error,
            guide_bias_error=guide_error,
            model_variance_error=ours["model"].variance_error,
            guide_variance_error=ours["guide"].variance_error,
            seconds_error=_error_of_median(seconds),
            bound=getattr(objective, "bound", "elbo"),
            model_variance_by_site=by_site["model"],
            guide_variance_by_site=by_site["guide"],
        )

    def _gradients(self, objective: pyro.infer.ELBO) -> Gradients:
        return Gradients(self.model, self.guide, self.data, objective, self.params_by_program, self.n)

    def _reference(self, objective: pyro.infer.ELBO) -> dict[str, Moments]:
        target, unbiased, draws = _unbiased(objective, self.pathwise)
        if target not in self.references:
            seeds = self.others[: max(2, draws * self.repeats // 100)]
            self.references[target] = self._gradients(unbiased).repeat(seeds)[0]
        return self.references[target]


@contextmanager
def _recurrent_gradients(*programs: Program) -> Iterator[None]:
    """Allow gradients of recurrent networks in evaluation mode, which cuDNN's have none of."""
    recurrent = any(isinstance(m, nn.RNNBase) for net in modules_of(*programs).values() for m in net.modules())
    with torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext():
        yield


def _error_of_median(values: Tensor) -> float:
    """The standard error of a median, from the quartiles, as if the values were normal but for some outliers."""
    quartiles = values.quantile(torch.tensor([0.25, 0.75], dtype=values.dtype))
    return 1.2533 * float(quartiles[1] - quartiles[0]) / 1.349 / math.sqrt(len(values))


def _expand_estimators(estimators: Estimators, num_particles: Iterable[int]) -> list[tuple[str, pyro.infer.ELBO]]:
    jobs: list[tuple[str, pyro.infer.ELBO]] = []
    counts = list(num_particles)
    if not counts or min(counts) < 1:
        raise ValueError(f"num_particles must be positive numbers, got {counts}")
    labels = list(estimators) if isinstance(estimators, Mapping) else [elbos.label(e) for e in estimators]
    given = estimators.values() if isinstance(estimators, Mapping) else estimators
    objects: list[Any] = [each if isinstance(each, str | Mapping) else elbos.make(each) for each in given]
    for label, estimator in zip(labels, objects, strict=True):
        named = isinstance(estimator, str | Mapping)
        bound = elbos.bound_of(estimator) if isinstance(estimator, str) else getattr(estimator, "bound", "elbo")
        if bound == "none":
            raise ValueError(
                f"the loss of {label!r} is not a bound on log p(x), by which estimators are compared: compare the "
                "pairs that it trains, by samples (pv.sample_quality) and log p(x); or if it is a function of yours "
                "and a bound, say which: function.bound = 'elbo'"
            )
        if named:
            least = elbos.min_particles(estimator) if isinstance(estimator, str) else 1
            jobs += [(label, elbos.make(estimator, num_particles=k)) for k in counts if k >= least]
        else:
            jobs.append((label, estimator))
    if not jobs:
        raise ValueError("no estimator to compare: give names or ELBO objects, and enough particles for them")
    return jobs


def _parameters(model: Program, guide: Program, data: Data) -> tuple[dict[str, list[Tensor]], bool, list[str]]:
    """The parameters of the model's and the guide's densities, whether every latent is pathwise, and the latents.

    A baseline's parameters are not among them: their gradient is that of a loss of their own.
    """
    with torch.enable_grad(), fork_rng():
        traces = trace_pair(model, guide, *data)
        total = sum((log_prob(name, site).sum() for name, site, _ in traces.sites()), start=torch.zeros(()))
        programs = {}
        for program, trace in (("model", traces.model), ("guide", traces.guide)):
            found = [unconstrained(s["value"]) for s in trace.nodes.values() if s["type"] == "param"]
            programs[program] = list({id(p): p for p in found if p is not None and p.requires_grad}.values())
        every = [p for params in programs.values() for p in params]
        slopes = torch.autograd.grad(total, every, allow_unused=True) if every and total.requires_grad else ()
        used = {id(p) for p, slope in zip(every, slopes, strict=bool(slopes)) if slope is not None}
    kept = {program: [p for p in params if id(p) in used] for program, params in programs.items()}
    latents = {name: site for name, site in sample_sites(traces.guide) if not site["is_observed"]}
    return kept, all(site["fn"].has_rsample for _, site in sample_sites(traces.guide)), list(latents)


def _unbiased(objective: pyro.infer.ELBO, pathwise: bool) -> tuple[Any, pyro.infer.ELBO, int]:
    """A key for the objective's bound, a low-variance estimator of its unbiased gradient, and the latter's repeats."""
    k, bound = objective.num_particles, getattr(objective, "bound", "elbo")
    if bound == "iwae" and k > 1:
        return ("iwae", k), elbos.make("dreg" if pathwise else "vimco", num_particles=k), 50
    if bound == "own":
        return objective, objective, 100
    if pathwise:
        return "elbo", elbos.make("stl", num_particles=50), 20
    return "elbo", elbos.make("reinforce", num_particles=50, baseline="leave_one_out"), 20
