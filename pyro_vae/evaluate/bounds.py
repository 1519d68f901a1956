"""The true ELBO of any pair on given data, whatever it was trained with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.elbo.estimators.terms import ElboTerms, elbo_terms
from pyro_vae.pair.arguments import check_data, check_keywords, slices, take
from pyro_vae.pair.networks import beside_networks, eval_mode
from pyro_vae.pair.planning import data_that_fit
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.support.random import seeded

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
    model: Program,
    guide: Program,
    *args: Any,
    num_samples: int = 1,
    memory: int | None = None,
    seed: int | None = None,
    **kwargs: Any,
) -> Bound:
    """The true ELBO of each datum: no KL weight, no free bits, no scale, analytic KL where that is right.

    Args:
        model, guide: The pair.
        *args: The data `x` of shape `(N, ...)`, then whatever else the pair takes, also by keyword; tensors with N rows
            are per-datum.
        num_samples: Draws from the guide to average over (one run of the pair each).
        memory: Bytes that the intermediate tensors of a run may take, about, which sets how many data run at once.
            Default: a thousand data. A pair with parameters of its own for each datum gets them all in one run.
        seed: A number makes the call reproducible and leaves torch's generators as they were, so that two calls share
            their noise. None continues the generators' stream.

    Raises:
        ValueError: If the pair has no ELBO per datum, because a site stands outside the plate over the data.
        TypeError: For a keyword that neither this call nor the pair knows.
    """
    n = check_data(args)
    check_keywords(bound, kwargs, model, guide)
    args = beside_networks(args, model, guide)
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")

    def run(some: Data) -> ElboTerms:
        return elbo_terms(model, guide, *some[0], **some[1])

    data = args, kwargs
    likelihoods: list[Tensor] = []
    kls: dict[str, list[Tensor]] = {}
    with torch.no_grad(), eval_mode(model, guide), seeded(seed):
        for start, stop in slices(n, data_that_fit(run, data, memory)):
            runs = [run(take(*data, start, stop)) for _ in range(num_samples)]
            likelihoods.append(torch.stack([r.log_likelihood for r in runs]).mean(0))
            for name in runs[0].kl:
                kls.setdefault(name, []).append(torch.stack([r.kl[name] for r in runs]).mean(0))
    log_likelihood = torch.cat(likelihoods)
    sites = {name: torch.cat(parts) for name, parts in kls.items()}
    kl = sum(sites.values(), start=torch.zeros_like(log_likelihood))
    return Bound(log_likelihood - kl, log_likelihood, kl, sites)
