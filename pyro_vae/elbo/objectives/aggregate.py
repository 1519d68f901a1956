"""The base of objectives with a penalty on the aggregate posterior, and the Gaussian posteriors of a batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import Independent as TorchIndependent
from torch.distributions import LowRankMultivariateNormal, MultivariateNormal, Normal

from pyro_vae.elbo.estimators.bounds import MeanField
from pyro_vae.pair.plates import DataPlate, data_plate
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.tracing import PairTrace, sample_sites
from pyro_vae.support.random import fork_rng

__all__ = ["AggregateELBO", "Posterior", "stacked_posterior"]


class Posterior(NamedTuple):
    """The Gaussian posteriors of a batch, all latents concatenated.

    `z` and `loc` are `(K, N, E)`; `covariance` is `(K, N, E, E)`, or the variances `(K, N, E)` where the elements of
    every posterior are independent.
    """

    z: Tensor
    loc: Tensor
    covariance: Tensor


class AggregateELBO(MeanField):
    r"""The mean-field ELBO less a penalty on the aggregate posterior q(z), which is estimated from the batch.

    .. math:: L = \mathrm{ELBO} - R(q(z)), \qquad q(z) = \frac1N \sum_n q(z|x_n)

    A subclass defines `penalty`. Latents must be Gaussian given the data, and independent of each other.
    """

    bound = "own"

    def penalty(self, posterior: Posterior, plate: DataPlate) -> Tensor:
        """What is subtracted from the ELBO, nats per datum, a 0-d tensor."""
        raise NotImplementedError(f"{type(self).__name__} must define penalty(posterior, plate)")

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Negative objective in nats, summed over the data, as a tensor whose gradient is the estimator's."""
        self._check_independent(model, guide, args, kwargs)
        loss = torch.zeros(())
        runs = list(self.traces(model, guide, args, kwargs))
        for run in runs:
            posterior, plate = stacked_posterior(run, len(args[0]), type(self).__name__)
            scale = plate.full_size / len(runs)
            loss = loss + self.particle_loss(run) / self.num_particles + scale * self.penalty(posterior, plate)
        return loss

    def _check_independent(self, model: Program, guide: Program, args: Any, kwargs: Any) -> None:
        """Raise for a guide in which one latent depends on the draw of another: q(z|x) is not a product then."""
        if getattr(self, "_checked", None) == (model, guide):
            return
        with torch.no_grad(), fork_rng():
            first, again = (
                {name: _posterior_mean(site["fn"], name, self) for name, site in _latent_sites(run)}
                for run in (prune_subsample_sites(traced(guide, args, kwargs)) for _ in range(2))
            )
        for name in first if len(first) > 1 else ():
            if not torch.equal(first[name], again[name]):
                raise ValueError(
                    f"site {name!r} has another posterior mean at other draws of {list(first)}: it depends on one of "
                    f"them (or on dropout), and {type(self).__name__} needs latents that are independent given the "
                    "data. Draw them as one site, or use 'mean_field'"
                )
        self._checked = (model, guide)


def _latent_sites(trace: Any) -> list[tuple[str, Any]]:
    return [(name, site) for name, site in sample_sites(trace) if not site["is_observed"]]


def _posterior_mean(fn: Any, name: str, elbo: Any) -> Tensor:
    try:
        return torch.as_tensor(fn.mean)
    except (NotImplementedError, AttributeError):
        raise _not_gaussian(name, fn, type(elbo).__name__) from None


def _not_gaussian(name: str, fn: Any, objective: str) -> ValueError:
    while isinstance(fn, TorchIndependent):
        fn = fn.base_dist
    return ValueError(
        f"site {name!r} is drawn from {type(fn).__name__} in the guide, and {objective} needs Gaussian posteriors: use "
        "dist.Normal or dist.MultivariateNormal there, posterior='diagonal_normal' in a VAE, or 'trace' or 'vimco'"
    )


def stacked_posterior(run: PairTrace, n: int, objective: str) -> tuple[Posterior, DataPlate]:
    """The posteriors of a run's latents, concatenated, and the plate over the data; `objective` is for errors.

    Raises:
        ValueError: If a latent is not Gaussian given the data, or there is none.
    """
    plate = data_plate(run, n)
    parts: list[Posterior] = []
    for name, site in _latent_sites(run.guide):
        fn, event_dims = site["fn"], 0
        while isinstance(fn, TorchIndependent):
            fn, event_dims = fn.base_dist, event_dims + fn.reinterpreted_batch_ndims
        if isinstance(fn, Normal):
            covariance = _rows(fn.variance, site, plate, run.particle_dim)
        elif isinstance(fn, MultivariateNormal | LowRankMultivariateNormal) and not event_dims:
            axes = [run.particle_dim, plate.dim] if run.particle_dim is not None else [plate.dim]
            full = fn.covariance_matrix.expand(*fn.batch_shape, *fn.event_shape, *fn.event_shape)
            covariance = full.movedim([axis - 2 for axis in axes], list(range(len(axes))))
            covariance = covariance.reshape(-1, plate.size, *full.shape[-2:])
        else:
            raise _not_gaussian(name, fn, objective)
        z, loc = (_rows(value, site, plate, run.particle_dim) for value in (site["value"], site["fn"].mean))
        parts.append(Posterior(z, loc, covariance))
    if not parts:
        raise ValueError(f"the guide samples no latent site, and {objective} needs one")
    if any(part.covariance.dim() == 4 for part in parts):
        matrices = [part.covariance if part.covariance.dim() == 4 else part.covariance.diag_embed() for part in parts]
        covariance = _block_diagonal(matrices)
    else:
        covariance = torch.cat([part.covariance for part in parts], -1)
    return Posterior(torch.cat([p.z for p in parts], -1), torch.cat([p.loc for p in parts], -1), covariance), plate


def _rows(value: Tensor, site: Any, plate: DataPlate, particle_dim: int | None) -> Tensor:
    """A tensor that broadcasts to the site's value as `(K, N, E)`."""
    event = site["fn"].event_dim
    value = value.expand(site["fn"].shape())
    if particle_dim is None:
        return value.movedim(plate.dim - event, 0).reshape(1, plate.size, -1)
    moved = value.movedim((particle_dim - event, plate.dim - event), (0, 1))
    return moved.reshape(len(moved), plate.size, -1)


def _block_diagonal(blocks: list[Tensor]) -> Tensor:
    total, start = sum(block.shape[-1] for block in blocks), 0
    result = blocks[0].new_zeros(*blocks[0].shape[:-2], total, total)
    for block in blocks:
        end = start + block.shape[-1]
        result[..., start:end, start:end] = block
        start = end
    return result
