"""Checks of a model/guide pair before training: what is wrong, at which site, and the line that fixes it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import pyro.infer
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn

from pyro_vae import elbo as elbos
from pyro_vae.evaluate.preflight.checks import (
    check_estimator,
    check_guide_density,
    check_plates,
    check_shapes,
    check_sites,
)
from pyro_vae.evaluate.preflight.gradients import Densities, check_gradients, lost_gradients
from pyro_vae.evaluate.preflight.names import check_names
from pyro_vae.evaluate.preflight.probe import (
    Program,
    Run,
    count_nonfinite,
    family,
    fresh_guide,
    nonfinite_parts,
    plate_frames,
    preserve_state,
    site_shapes,
)
from pyro_vae.evaluate.preflight.raised import Raised, check_devices
from pyro_vae.evaluate.preflight.repeats import (
    check_fixed_sizes,
    check_kept_graph,
    check_made_anew,
    next_node,
    saved_line,
)
from pyro_vae.evaluate.preflight.result import PreflightReport
from pyro_vae.evaluate.preflight.rows import on_rows
from pyro_vae.evaluate.preflight.training_checks import (
    check_finite,
    check_frozen,
    check_inverse,
    check_networks,
    check_vectorized,
    parameter_names,
)
from pyro_vae.evaluate.preflight.values import check_distributions, check_parameters, check_scales, check_support
from pyro_vae.pair.arguments import check_keywords, take
from pyro_vae.pair.forms import innermost
from pyro_vae.pair.networks import modules_of
from pyro_vae.pair.tracing import log_prob
from pyro_vae.support.arguments import checked
from pyro_vae.support.random import fork_rng, rng_state, set_rng_state

__all__ = [
    "find_nonfinite",
    "modules_of",
    "preflight",
]


@checked
def preflight(
    model: Program,
    guide: Program,
    *args: Any,
    elbo: elbos.Estimator = "mean_field",
    strict: bool = True,
    num_particles: int = 1,
    full_batch: bool | None = None,
    **kwargs: Any,
) -> PreflightReport:
    """Check any pair on a small batch `args[0]`, shape `(N, ...)`, before training.

    It finds latents of only one program, batch dimensions without a plate, plates of the wrong size, shapes that
    differ, values outside a support, parameters that a distribution does not allow, NaN and infinities in inputs,
    densities and gradients, networks that are not registered or share a name, parameters without a gradient, arguments
    changed in place, sizes that are written into the pair. It also finds what the estimator does not support: a
    relaxed guide of a discrete latent, a draw without a reparameterized gradient, latents in another order.

    The pair runs a few times in its current train or eval mode, once of them without the last datum. Random generators,
    gradients, weights, buffers, the parameter store and all arguments are restored.

    Args:
        model, guide: The pair.
        args, kwargs: The pair's arguments; the data come first. A few data are enough. Data along another axis, in
            containers or in packed sequences are found by the plates of the model; a dictionary of the model's
            keywords is given by keyword, as `fit` does; a pair that has its data itself is given none.
        elbo: The estimator that will train the pair: by name (`pv.elbo.names()`), as an object, by site as a
            dictionary, or as a loss function.
        strict: Raise on errors and issue warnings with `warnings.warn`; False only returns the report.
        num_particles: Number of particles to train with: for more than one, check that the networks accept a leading
            dimension.
        full_batch: Whether the data given are all data, in one batch, as they may be for a pair that is made for so
            many data. None: it is not known, and such a pair gets a warning; False: it gets an error.

    Raises:
        ValueError: With `strict`, if the report has errors. Always, if the model or the guide itself raises: chained to
            its error.
        TypeError: For a keyword that neither this call nor the pair knows.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     loc = pyro.param("loc", torch.zeros(len(x)))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(loc, 0.7))
        >>> print(preflight(model, guide, torch.tensor([2.0, -4.0])))
        preflight: the pair is sound
        <BLANKLINE>
        site  model   guide     batch  event  plates
        z     Normal  Normal    (2,)   ()     data
        x     Normal  observed  (2,)   ()     data
    """
    check_keywords(preflight, kwargs, model, guide)
    check_devices(model, guide, args, kwargs)
    model, guide, args, kwargs, is_held = on_rows(model, guide, args, kwargs)
    full_batch = True if is_held else full_batch
    ready = isinstance(elbo, pyro.infer.ELBO)
    outer: Any = elbo if ready else elbos.make(elbo, num_particles=num_particles if isinstance(elbo, str) else 1)
    estimator = outer
    while isinstance(estimator, elbos.WeightedKL):
        estimator = estimator.elbo
    vectorize = getattr(estimator, "vectorize_particles", None) is not False
    particles = max(num_particles, outer.num_particles) if vectorize else 1
    generators = rng_state()
    try:
        with fork_rng(), torch.enable_grad():
            check = _Check(model, guide, args, kwargs, estimator, particles, full_batch)
            run = check.everything()
    finally:
        set_rng_state(generators)
    report = PreflightReport(run.problems, site_rows(run))
    if run.raised:
        before = f"\n\nBefore that:\n\n{report}" if run.problems else ""
        raise ValueError(f"{Raised(*run.raised, model, guide, args, kwargs).message(run)}{before}") from run.raised[1]
    if strict:
        if not report.ok:
            raise ValueError(str(report))
        for problem in report.issues:
            warnings.warn(str(problem), stacklevel=2)
    return report


@dataclass
class _Check:
    """All checks of a pair on its arguments."""

    model: Program
    guide: Program
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    estimator: Any
    particles: int  # that run at once
    full_batch: bool | None

    def everything(self) -> Run:
        """The run with all that was found."""
        model, start, noise = self.model, next_node(), rng_state()
        guide = fresh_guide(self.guide)

        def again(values: Any = None) -> Run:
            set_rng_state(noise)
            return Run.record(len(self.args[0]), model, guide, self.args, self.kwargs, values)

        with preserve_state(model, self.guide):
            run = again()
            densities = self.sites(run)
            if not run.raised:
                line = partial(saved_line, again)
                check_gradients(run, densities, line)
                lost = lost_gradients(run, partial(again, run.latent_values))
                inputs, trained_beside = [*self.args, *self.kwargs.values()], baselines(run, self.estimator)
                names = parameter_names(model, self.guide)
                check_frozen(run, model, self.guide)
                check_networks(run, densities.log_probs, names, inputs, lost, trained_beside)
            if self.particles > 1 and run.sound:
                check_vectorized(run, model, guide, self.args, self.kwargs)
            if run.sound:
                check_inverse(run, model, guide, self.args, self.kwargs, self.estimator)
        if run.sound:
            self.second_run(run, start)
        return run

    def sites(self, run: Run) -> Densities:
        """The checks of a run's parameters, sites and values; its log-densities."""
        for text in run.params.stale.values():
            run.error("stale_parameter", None, text)
        check_distributions(run)
        for where, what in run.changed:
            text = (
                f"the {where} changes {what} in place, so that whatever runs after it, and the caller, has other data: "
            )
            run.error("inplace_input", None, f"{text}write `x = x - 0.5` in place of `x -= 0.5` or `x.sub_(0.5)`")
        check_plates(run)
        check_sites(run, self.estimator)
        check_guide_density(run)
        check_shapes(run, self.estimator)
        check_parameters(run)
        check_support(run)
        check_scales(run)
        check_names(run, self.model, self.guide)
        check_estimator(run, self.estimator)
        return check_finite(run, self.args, self.kwargs)

    @property
    def has_plain_arguments(self) -> bool:
        """Whether all rows of a datum can be left out: not those of a packed sequence, or inside of an object."""
        plain = Tensor | bool | int | float | str | None
        return all(isinstance(a, plain) for a in (*self.args, *self.kwargs.values()))

    def second_run(self, run: Run, start: int) -> None:
        """The checks of a second run, without the last datum."""
        n, stop = len(self.args[0]), next_node()
        args, kwargs = take(self.args, self.kwargs, 0, max(1, n - 1))
        guide = fresh_guide(self.guide)
        with preserve_state(self.model, self.guide):
            fewer = Run.record(len(args[0]), self.model, guide, args, kwargs)
            check_kept_graph(run, fewer, start, stop)
            if guide is self.guide:  # the copy of an autoguide has parameters of its own
                check_made_anew(run, fewer)
            set_up = guide is self.guide and isinstance(innermost(guide), AutoGuide)  # on other data, perhaps
            if fewer.n < n and not self.full_batch and not set_up and self.has_plain_arguments:
                raised = fewer.raised and Raised(*fewer.raised, self.model, guide, args, kwargs).message(
                    fewer, chained=False
                )
                check_fixed_sizes(run, fewer, self.estimator, self.full_batch, raised or "")


def baselines(run: Run, estimator: Any) -> list[Tensor]:
    """What an estimator trains beside the densities: the baselines of `TraceGraph_ELBO`."""
    found: list[Tensor] = []
    if isinstance(estimator, pyro.infer.TraceGraph_ELBO):
        for site in run.sites_of("guide").values():
            options = site["infer"].get("baseline", {})
            found += [v for v in (options.get("baseline_value"),) if isinstance(v, Tensor)]
            if isinstance(options.get("nn_baseline"), nn.Module):
                found += options["nn_baseline"].parameters()
    return found


def find_nonfinite(model: Program, guide: Program, *args: Any, **kwargs: Any) -> list[str]:
    """The sites of one run whose value, distribution parameters or log-probability are NaN or infinite, in order.

    The guide comes first. The noise of the run is that of the current state of the random generators. If the pair
    raises, the last entry is its error.
    """
    with torch.no_grad(), preserve_state(model, guide):
        run = Run.record(0, model, guide, args, kwargs)
        lines = []
        for where, name, site in run.sites():
            parts = nonfinite_parts(site)
            try:
                parts += count_nonfinite("log-probability", log_prob(name, site))
            except Exception as error:  # the report on a failure must not fail
                parts.append(f"log-probability fails with {type(error).__name__}: {error}")
            if parts:
                lines.append(f"{where} site {name!r}: {', '.join(parts)}")
    if run.raised:
        lines.append(f"{run.raised[0]} raised {type(run.raised[1]).__name__}: {run.raised[1]}")
    return lines


def site_rows(run: Run) -> list[tuple[str, ...]]:
    """A row per site: its name, its families in model and guide, its shapes and its plates."""
    guide, model = run.sites_of("guide"), run.sites_of("model")
    rows = []
    for name, site in (guide | model).items():
        absent = "observed" if site["is_observed"] else "-"
        families = [family(sites[name]) if name in sites else absent for sites in (model, guide)]
        plates = ", ".join(frame.name for frame in plate_frames(site).values()) or "-"
        rows.append((name, *families, *map(str, site_shapes(site)), plates))
    return rows
