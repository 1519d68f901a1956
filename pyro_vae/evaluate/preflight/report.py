"""Checks of a model/guide pair before training: what is wrong, at which site, and the line that fixes it."""

from __future__ import annotations

import warnings
from typing import Any

import pyro
import pyro.infer
import torch
from torch import Tensor

from pyro_vae import elbo as elbos
from pyro_vae.evaluate.preflight.checks import (
    check_estimator,
    check_guide_density,
    check_plates,
    check_shapes,
    check_sites,
    check_support,
)
from pyro_vae.evaluate.preflight.probe import (
    Program,
    Run,
    count_nonfinite,
    family,
    fresh_guide,
    nonfinite_parts,
    plate_frames,
    preserve_state,
    shape,
    site_shapes,
)
from pyro_vae.evaluate.preflight.result import PreflightReport
from pyro_vae.evaluate.preflight.training_checks import check_finite, check_networks, check_vectorized, parameter_names
from pyro_vae.pair.arguments import check_keywords
from pyro_vae.pair.networks import modules_of
from pyro_vae.pair.tracing import log_prob
from pyro_vae.support.arguments import checked
from pyro_vae.support.random import fork_rng

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
    elbo: str | pyro.infer.ELBO = "mean_field",
    strict: bool = True,
    num_particles: int = 1,
    **kwargs: Any,
) -> PreflightReport:
    """Check any pair on a small batch `args[0]`, shape `(N, ...)`, before training.

    It finds latents of only one program, batch dimensions without a plate, plates of the wrong size, shapes that
    differ, values outside a support, NaN and infinities in inputs, densities and gradients, networks that are not
    registered or share a name, and parameters without a gradient. It also finds what the estimator does not support: a
    relaxed guide of a discrete latent, a draw without a reparameterized gradient, latents in another order.

    The pair runs once, in its current train or eval mode. Random generators, gradients, weights, buffers and the
    parameter store are restored.

    Args:
        model, guide: The pair.
        args, kwargs: The pair's arguments; the data come first. A few data are enough.
        elbo: The estimator that will train the pair, by name (`pv.elbo.names()`) or as an object.
        strict: Raise on errors and issue warnings with `warnings.warn`; False only returns the report.
        num_particles: Number of particles to train with: for more than one, check that the networks accept a leading
            dimension.

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
    if not args or not hasattr(args[0], "__len__") or (isinstance(args[0], Tensor) and args[0].dim() == 0):
        came = type(args[0]).__name__ if args else "nothing"
        raise TypeError(
            f"preflight needs a batch of data with a length after the pair, got {came}: preflight(model, guide, x[:8])"
        )
    check_keywords(preflight, kwargs, model, guide)
    ready = isinstance(elbo, pyro.infer.ELBO)
    outer: Any = elbo if ready else elbos.make(elbo, num_particles=num_particles)
    estimator = outer
    while isinstance(estimator, elbos.WeightedKL):
        estimator = estimator.elbo
    with fork_rng(), torch.enable_grad(), preserve_state(model, guide):
        guide_once = fresh_guide(guide)
        run = Run.record(len(args[0]), model, guide_once, args, kwargs)
        for text in run.params.stale.values():
            run.error("stale_parameter", None, text)
        check_plates(run)
        check_sites(run, estimator)
        check_guide_density(run)
        check_shapes(run, estimator)
        check_support(run)
        check_estimator(run, estimator)
        log_probs = check_finite(run, args, kwargs)
        if not run.raised:
            check_networks(run, log_probs, parameter_names(model, guide), [*args, *kwargs.values()])
        vectorize = getattr(estimator, "vectorize_particles", None) is not False
        if vectorize and max(num_particles, outer.num_particles) > 1 and run.sound:
            check_vectorized(run, model, guide_once, args, kwargs)
    report = PreflightReport(run.problems, site_rows(run))
    if run.raised:
        where, error = run.raised
        shapes = ", ".join([shape(a) for a in args] + [f"{k}={shape(a)}" for k, a in kwargs.items()])
        before = f"\n\nBefore that:\n\n{report}" if run.problems else ""
        raise ValueError(f"{where} raised {type(error).__name__} on ({shapes}): {error}{before}") from error
    if strict:
        if not report.ok:
            raise ValueError(str(report))
        for problem in report.issues:
            warnings.warn(str(problem), stacklevel=2)
    return report


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
