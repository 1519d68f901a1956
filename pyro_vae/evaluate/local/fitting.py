"""The best posterior of a family for each datum, found by gradient steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.evaluate.deprecated import accepts_earlier_form
from pyro_vae.evaluate.local.descent import Descent
from pyro_vae.evaluate.local.guide import LocalGuide
from pyro_vae.evaluate.local.posterior import Family, LocalPosterior
from pyro_vae.pair.arguments import check_data, check_keywords, slices
from pyro_vae.pair.elimination import without_enumerated
from pyro_vae.pair.forms import form_with, in_rows
from pyro_vae.pair.networks import eval_mode, to_networks_device
from pyro_vae.pair.particles import log_weights
from pyro_vae.pair.planning import CPU_ROWS
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.subsampling import on_all_data
from pyro_vae.pair.tracing import plate_nesting, sample_sites, trace_pair
from pyro_vae.support.arguments import checked_from
from pyro_vae.support.progress import progress_bar
from pyro_vae.support.random import seeded

__all__ = ["fit_local"]

MOMENT_DRAWS = 32
ELBO_SAMPLES = 1000


@accepts_earlier_form
@checked_from(guide=None)
def fit_local(
    model: Program,
    guide: Program | None,
    *args: Any,
    family: Family | Mapping[str, Family] = "diagonal_normal",
    num_particles: int = 8,
    lr: float = 0.05,
    max_steps: int = 20_000,
    patience: int = 5,
    memory: int | None = None,
    seed: int | None = None,
    progress: bool | None = False,
    **kwargs: Any,
) -> LocalGuide:
    r"""Fit one variational distribution to each datum, with the model as it is.

    .. math:: q^*_n = \arg\max_{q \in Q} E_{q(z)}[\log p(x_n, z) - \log q(z)]

    There is no encoder, so the result is the best that the family Q can do: a proposal for `log_marginal`, and a guide
    for models that were trained without one. All data are optimized together, but each has its own parameters, learning
    rate and stopping time: the rate is halved when the mean ELBO of 100 steps has not improved, and the fit of a datum
    ends after `patience` such checks in a row. The features of the family become free parameters, and so do the weights
    inside it (of a flow). Several latent sites are independent of each other under q.

    With a guide and `max_steps=k` the result is semi-amortized: the guide's distribution, refined by k steps. A
    diagonal family over real values starts exactly at the guide's locations and scales; other families start at the
    mean and scale of the unconstrained values.

    Args:
        model: The model. Its parameters stay as they are and get no gradients.
        guide: The start: the mean and scale of a guide's distributions, or None for those of the model's prior.
        *args, **kwargs: The data, `(N, ...)`, then whatever else the pair takes; tensors with N rows are per-datum.
            Data along another axis, in containers or in packed sequences are found by the plates of the model.
        family: A name in `pv.conditionals.POSTERIORS`; a function from the size D of a latent to a `Conditional`; a
            `Conditional`; or a dictionary from latent sites to any of these. A site is flattened, and mapped to
            unconstrained values if necessary. If a family has 2 D features or more, these should begin with D locations
            and D log-scales.
        num_particles: Draws per datum and step.
        lr: Initial learning rate of Adam, in units of a latent's standard deviation.
        max_steps: Maximum number of steps for one datum.
        patience: Checks without improvement after which the fit of a datum ends.
        memory: Approximate bytes for the gradients of one pass, which sets how many data are fitted at once.
            Default: 2048 data times particles on a CPU, 65536 on a GPU.
        seed: A number makes the call reproducible and leaves torch's generators as they were. None continues their
            stream.
        progress: Show a bar: True, False, or None (in a terminal or a notebook).

    Returns:
        A `LocalGuide`; after Ctrl-C, with a warning, at its latest parameters.

    Raises:
        ValueError: For a discrete or masked latent, a family of another size, a guide that lacks a site, a site outside
            the plate over the data, or an ELBO that is not finite.
        TypeError: For a family instead of the guide, or a keyword that neither this call nor the pair knows.

    Reference: Cremer, Li and Duvenaud 2018, arXiv 1801.03558 (the stopping rule, here by datum and with a falling
    learning rate); Kim et al. 2018, arXiv 1802.02550 (semi-amortized).

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> x = torch.tensor([0.0, 1.0])
        >>> local = fit_local(model, None, x, family="diagonal_normal", seed=0)
        >>> log_p = dist.Normal(0.0, 2**0.5).log_prob(x)  # the family contains the posterior, so the bound is tight
        >>> torch.allclose(local.elbo, log_p, atol=1e-3)
        True
    """
    if guide is not None and not callable(guide):
        raise TypeError(f"the guide to start from must be a Pyro program, or None for the prior, got {guide!r}")
    check_keywords(fit_local, kwargs, model, guide)
    for name, value in {"num_particles": num_particles, "max_steps": max_steps, "patience": patience}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if memory is not None and memory < 1:
        raise ValueError(f"memory must be a positive number of bytes, got {memory}")
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be positive and finite, got {lr}")
    programs = (model,) if guide is None else (model, guide)
    args = to_networks_device(args, *programs)
    with torch.no_grad(), eval_mode(*programs), seeded(seed):
        given = args, kwargs
        model, guide, (args, kwargs), form = in_rows(model, guide, (args, kwargs))
        n = check_data(args)
        form = form_with((args, kwargs), n) if form is None else form
        model, guide = on_all_data(model), None if guide is None else on_all_data(guide)
        model = without_enumerated(model, guide, (args, kwargs))
        trace = traced(model, args, kwargs)
        posterior = LocalPosterior(trace, n, family)
        _initialize(posterior, model if guide is None else guide, args, kwargs)
        options = {"num_particles": num_particles, "max_steps": max_steps, "patience": patience}
        descent = Descent(posterior, model, args, kwargs, lr=lr, memory=memory, **options)
        with progress_bar("local posteriors", n, progress) as advance:
            interrupted = descent.run(advance)
        log_w = _draw_log_weights(model, posterior, args, kwargs, descent.plan.particles.vectorize)
    return LocalGuide(
        posterior,
        form.rows(*given),
        form,
        log_w.double().mean(0).to(log_w.dtype),
        log_w.std(0) / math.sqrt(len(log_w)),
        descent.steps,
        descent.converged,
        torch.stack(descent.elbo_history) if descent.elbo_history else torch.zeros(0, n),
        interrupted,
    )


def _initialize(posterior: LocalPosterior, program: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Start at the mean and the scale of a program's latents, in unconstrained space."""
    sums = {site.name: [torch.zeros(())] * 3 for site in posterior}
    for _ in range(MOMENT_DRAWS):
        drawn = dict(sample_sites(prune_subsample_sites(traced(program, args, kwargs))))
        for site in posterior:
            if site.name not in drawn:
                raise ValueError(
                    f"the guide to start from does not sample the site {site.name!r} (it has {list(drawn)}): start "
                    "from None, the prior, or from a guide of this model"
                )
            value = site.transform.inv(drawn[site.name]["value"])
            mean, variance = value, torch.zeros_like(value)
            if site.real:
                # exact if the distribution does not depend on other latents, less noisy otherwise
                with suppress(NotImplementedError):
                    mean, variance = drawn[site.name]["fn"].mean, drawn[site.name]["fn"].variance
            new = (mean, mean.square(), variance)
            sums[site.name] = [old + part / MOMENT_DRAWS for old, part in zip(sums[site.name], new, strict=True)]
    for site in posterior:
        mean, square, variance = sums[site.name]
        site.start_at(mean, (variance + (square - mean.square()).clamp(min=0)).sqrt())


def _draw_log_weights(
    model: Program, posterior: LocalPosterior, args: tuple[Any, ...], kwargs: dict[str, Any], vectorize: bool
) -> Tensor:
    """Log-weights of the posterior, `(ELBO_SAMPLES, N)`."""

    def guide(x: Tensor, *_: Any, **__: Any) -> None:
        posterior(x)

    traces = trace_pair(model, guide, args, kwargs)
    nesting = plate_nesting(traces.model, traces.guide)
    parts = [
        log_weights(
            model,
            guide,
            args,
            kwargs,
            num_particles=stop - start,
            vectorize=vectorize,
            nesting=nesting,
        )
        for start, stop in slices(ELBO_SAMPLES, max(1, CPU_ROWS // len(args[0])))
    ]
    return torch.cat(parts)
