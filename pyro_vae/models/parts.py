"""What systems share: their base, and their parts as a constructor takes them, by name, as a module or a factory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import pyro
import torch
from torch import Tensor, nn

from pyro_vae import conditionals, priors
from pyro_vae.conditionals import Conditional, Likelihood
from pyro_vae.nets import MLP, as_sizes, lookup
from pyro_vae.pair.names import Named
from pyro_vae.pair.protocol import Pair
from pyro_vae.priors import Prior

__all__ = ["NetworkFactory", "System", "as_likelihood", "as_network", "as_posterior", "as_prior"]

_KINDS = {True: "shares that sum to one", False: "unrestricted elements"}

NetworkFactory = Callable[[Sequence[int], Sequence[int]], nn.Module]


class System(Named, nn.Module, Pair):
    """The base of systems: networks under a name of the instance's own, data of one shape.

    Args:
        data_shape: Shape of one datum.
    """

    likelihood: Any
    decoder: Any

    def __init__(self, data_shape: torch.Size) -> None:
        super().__init__()
        self.data_shape = data_shape

    @torch.no_grad()
    def start_at_mean(self, data_mean: Tensor) -> Self:
        """Set the decoder's output bias so that p(x|z) starts at the data's mean, `data_shape`; returns the VAE.

        As in Burda et al. 2016 (arXiv 1509.00519); the mean is clipped where the likelihood needs it.

        Raises:
            ValueError: If the decoder has no method `set_output_bias`; this library's networks have it.
        """
        setter = getattr(self.decoder, "set_output_bias", None)
        if setter is None:
            raise ValueError(f"{type(self.decoder).__name__} has no set_output_bias(features): set its bias yourself")
        features = self.likelihood.init_features(data_mean.to(next(self.decoder.parameters())))
        if features is not None:
            setter(features)
        return self

    def _register(self, *parts: str) -> None:
        for part in parts:
            pyro.module(f"{self.name}.{part}", getattr(self, part))

    def _check(self, x: Tensor, *, batch: bool = False) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(
                f"expected data as a tensor (N, ...), got a {type(x).__name__}: of data that pv.data made, give the "
                "arguments of a split, *data.test.args()"
            )
        lead = x.dim() - len(self.data_shape)
        if x.shape[max(lead, 0) :] != self.data_shape or (batch and lead != 1):
            expected = ", ".join(map(str, ("N" if batch else "*", *self.data_shape)))
            raise ValueError(
                f"expected data of shape ({expected}), got {tuple(x.shape)}: build the VAE with "
                "data_shape=data.shape, or load the data with or without flatten=True"
            )


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
