"""The true ELBO of any pair on given data, whatever it was trained with."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.elbo.estimators.terms import elbo_terms
from pyro_vae.pair.arguments import check_data, slices, take
from pyro_vae.pair.networks import beside_networks, eval_mode
from pyro_vae.support.random import fork_rng

__all__ = ["Bound", "bound"]


@dataclass(frozen=True, repr=False)
class Bound:
    """The ELBO and its terms, per datum, tensors of shape `(N,)` in nats: `elbo = log_likelihood - kl`.

    `kl_sites` splits `kl` by latent site.
    """

    elbo: Tensor
    log_likelihood: Tensor
    kl: Tensor
    kl_sites: dict[str, Tensor]

    @property
    def mean(self) -> float:
        """Mean ELBO over the data, nats per datum."""
        return float(self.elbo.double().mean())

    def __len__(self) -> int:
        return len(self.elbo)

    def __repr__(self) -> str:
        return f"ELBO {self.mean:.3f} nats per datum ({len(self)} data)"

    def to_dict(self) -> dict[str, float]:
        """Means over the data, nats per datum."""
        means = {name: float(getattr(self, name).double().mean()) for name in ("elbo", "log_likelihood", "kl")}
        error = float(self.elbo.double().std() / math.sqrt(len(self))) if len(self) > 1 else math.inf
        return {**means, "elbo_sampling_error": error, "num_data": len(self)}


def bound(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    *args: Any,
    num_particles: int = 1,
    chunk: int = 1000,
    seed: int | None = None,
    **kwargs: Any,
) -> Bound:
    """The true ELBO of each datum: no KL weight, no free bits, no scale, analytic KL where that is right.

    Args:
        model, guide: The pair.
        *args: The data `x` of shape `(N, ...)`, then whatever else the pair takes, also by keyword; tensors with N rows
            are per-datum.
        num_particles: Draws from the guide to average over (one run of the pair each).
        chunk: Data per run. A pair with parameters of its own for each datum needs them all in one.
        seed: Draw the noise from this seed and leave torch's generators as they were, so that two calls share their
            noise.

    Raises:
        ValueError: If the pair has no ELBO per datum, because a site stands outside the plate over the data.
    """
    n = check_data(args)
    args = beside_networks(args, model, guide)
    if num_particles < 1 or chunk < 1:
        raise ValueError(f"num_particles and chunk must be at least 1, got {num_particles} and {chunk}")
    likelihoods: list[Tensor] = []
    kls: dict[str, list[Tensor]] = {}
    noise = nullcontext() if seed is None else fork_rng(seed)
    with torch.no_grad(), eval_mode(model, guide), noise:
        for start, stop in slices(n, chunk):
            rows, named = take(args, kwargs, start, stop)
            runs = [elbo_terms(model, guide, *rows, **named) for _ in range(num_particles)]
            likelihoods.append(torch.stack([r.log_likelihood for r in runs]).mean(0))
            for name in runs[0].kl:
                kls.setdefault(name, []).append(torch.stack([r.kl[name] for r in runs]).mean(0))
    log_likelihood = torch.cat(likelihoods)
    sites = {name: torch.cat(parts) for name, parts in kls.items()}
    kl = sum(sites.values(), start=torch.zeros_like(log_likelihood))
    return Bound(log_likelihood - kl, log_likelihood, kl, sites)
