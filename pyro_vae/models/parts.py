"""The parts of a system as its constructor takes them: by name, as a module, or as a factory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from pyro_vae import conditionals, priors
from pyro_vae.conditionals import Conditional, Likelihood
from pyro_vae.nets import MLP, as_sizes, lookup
from pyro_vae.priors import Prior

__all__ = ["NetworkFactory", "as_likelihood", "as_network", "as_posterior", "as_prior"]

_KINDS = {True: "shares that sum to one", False: "unrestricted elements"}

NetworkFactory = Callable[[Sequence[int], Sequence[int]], nn.Module]


def as_likelihood(part: str | Likelihood, data_shape: int | Sequence[int]) -> Likelihood:
    """p(x|z) by its name in `pv.conditionals.LIKELIHOODS`; a `Likelihood` passes through.

    Raises:
        ValueError: For an unknown name, or another event shape than `data_shape`.
    """
    shape = as_sizes(data_shape, "data_shape")
    made = conditionals.likelihood(part, shape) if isinstance(part, str) else part
    _check_shape("likelihood", made, shape)
    return made


def as_posterior(
    part: str | Conditional, latent_dim: int | Sequence[int], *, shares: bool | None = False
) -> Conditional:
    """q(z|x) by its name in `pv.conditionals.POSTERIORS`; a `Conditional` passes through.

    Raises:
        ValueError: For an unknown name, another event shape than that of the latent, or a posterior over shares that
            sum to one where `shares` does not allow it, or the reverse; None allows both.
    """
    shape = as_sizes(latent_dim, "latent_dim")
    if isinstance(part, str):
        known = {**conditionals.POSTERIORS, **conditionals.SHARE_POSTERIORS}
        made: Any = lookup(known, part, "posterior")(shape.numel())
    else:
        made = part
    _check_shape("posterior", made, shape)
    if shares is not None and getattr(made, "shares", False) != shares:
        raise ValueError(
            f"the posterior is over {_KINDS[not shares]}, but the latent of this system holds {_KINDS[shares]}: use "
            f"posterior={'logistic_normal' if shares else 'diagonal_normal'!r}, for example, or pyro_vae.VAE"
        )
    return made


def as_prior(
    part: str | Prior, latent_dim: int | Sequence[int], data_shape: Sequence[int], *, shares: bool = False
) -> Prior:
    """p(z) by its name in `pv.priors.PRIORS`; a `Prior` passes through. `data_shape` is for "vamp".

    Raises:
        ValueError: For an unknown name, another event shape than that of the latent, or a prior over shares that sum
            to one beside a posterior that is not, or the reverse.
    """
    shape = as_sizes(latent_dim, "latent_dim")
    made = priors.prior(part, shape.numel(), data_shape) if isinstance(part, str) else part
    _check_shape("prior", made, shape)
    if getattr(made, "shares", False) != shares and not getattr(made, "uses_encoder", False):
        raise ValueError(
            f"the prior is over {_KINDS[not shares]}, but the posterior over {_KINDS[shares]}: give both one kind, for "
            f"example prior={'logistic_normal' if shares else 'standard_normal'!r}"
        )
    return made


def as_network(
    network: nn.Module | NetworkFactory | None,
    in_shape: torch.Size,
    out_shape: torch.Size,
    hidden: Sequence[int],
    activation: str,
) -> nn.Module:
    """A network `(*, *in_shape) -> (*, *out_shape)`: a module, the output of a factory, or by default an MLP."""
    if network is None:
        return MLP(in_shape, hidden, out_shape, activation)
    return network if isinstance(network, nn.Module) else network(in_shape, out_shape)


def _check_shape(name: str, part: Any, shape: torch.Size) -> None:
    if part.event_shape != shape:
        raise ValueError(f"the {name} is over events of shape {tuple(part.event_shape)}, expected {tuple(shape)}")
