"""The denoising criterion for any pair: the guide gets corrupted data, the model explains the clean ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro.infer
import torch
from torch import Tensor

from pyro_vae.elbo.estimators.bounds import MeanField
from pyro_vae.pair.protocol import Program
from pyro_vae.support.arguments import checked, checked_from

__all__ = ["Denoising", "GaussianNoise", "MaskingNoise", "SaltAndPepper"]


@checked
@dataclass(frozen=True)
class GaussianNoise:
    """Adds normal noise to every element: `x + scale e`, `e ~ N(0, 1)`.

    Args:
        scale: Standard deviation of the noise, at least 0.

    Reference: Im et al. 2017, arXiv 1511.06406.
    """

    scale: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"scale must be a number >= 0, got {self.scale}")

    def __call__(self, x: Tensor) -> Tensor:
        """A corrupted copy of `x`."""
        return x + self.scale * torch.randn_like(x)


@checked
@dataclass(frozen=True)
class MaskingNoise:
    """Sets each element to zero with probability `rate`.

    Args:
        rate: Probability in [0, 1].

    Reference: Vincent et al. 2008, ICML.
    """

    rate: float = 0.25

    def __post_init__(self) -> None:
        _check_rate(self.rate)

    def __call__(self, x: Tensor) -> Tensor:
        """A corrupted copy of `x`."""
        return torch.where(torch.rand_like(x) < self.rate, torch.zeros_like(x), x)


@checked
@dataclass(frozen=True)
class SaltAndPepper:
    """Sets each element, with probability `rate`, to `low` or to `high` with equal probability.

    Args:
        rate: Probability in [0, 1].
        low, high: The two values.

    Reference: Vincent et al. 2010, JMLR 11.
    """

    rate: float = 0.25
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        _check_rate(self.rate)

    def __call__(self, x: Tensor) -> Tensor:
        """A corrupted copy of `x`."""
        draw = torch.rand_like(x)
        x = torch.where(draw < self.rate, torch.full_like(x, self.high), x)
        return torch.where(draw < self.rate / 2, torch.full_like(x, self.low), x)


def _check_rate(rate: float) -> None:
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be a probability, got {rate}")


class _Corrupted:
    """A guide that runs on corrupted data in place of those it is called with."""

    def __init__(self, guide: Program) -> None:
        self.guide = guide
        self.x: Tensor | None = None

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.guide(x if self.x is None else self.x, *args, **kwargs)


class Denoising(pyro.infer.ELBO):
    r"""Any ELBO with the guide's data corrupted: the denoising autoencoder and the denoising VAE.

    .. math:: L = E_{c(\tilde x|x)} \, E_{q(z|\tilde x)} [\log p(x, z) - \log q(z|\tilde x)]

    This is a lower bound on log p(x) for any corruption, since each draw of it makes q another guide; usually it is a
    looser one. The first argument of the pair, x, is corrupted once for each loss, so all particles get the same data;
    further arguments are passed on. Only what is minimized changes: `pv.bound` gives the guide clean data. To remove
    noise, pass noisy data to `pv.reconstruct`.

    Args:
        elbo: The ELBO to wrap, of this library, of Pyro or your own; `MeanField(num_particles)` if None.
        corruption: A function from data to corrupted data of the same shape.
        num_particles: K of the default `elbo`; without effect on another one.

    Raises:
        TypeError: If `elbo` is not an ELBO object, or the first argument of the pair is not a tensor of floats.

    Reference: Vincent et al. 2008 (denoising autoencoders), ICML; Im et al. 2017 (denoising VAE), arXiv 1511.06406,
    eq. 8.
    """

    bound: ClassVar[str] = "own"

    @checked_from(elbo=None)
    def __init__(
        self,
        elbo: pyro.infer.ELBO | None = None,
        corruption: Callable[[Tensor], Tensor] = MaskingNoise(),
        num_particles: int = 1,
    ) -> None:
        if elbo is None:
            elbo = MeanField(num_particles)
        if not isinstance(elbo, pyro.infer.ELBO):
            raise TypeError(f"elbo must be a pyro.infer.ELBO object, got {elbo!r}: use pv.elbo.make(name)")
        super().__init__(num_particles=elbo.num_particles)
        self.elbo: Any = elbo
        self.corruption = corruption
        self.needs_path = getattr(elbo, "needs_path", False)
        self.for_discrete = getattr(elbo, "for_discrete", False)
        self._wrapped: tuple[Program, _Corrupted] | None = None

    def advance(self) -> None:
        """Let the wrapped ELBO move on in its own schedule, if it has one."""
        getattr(self.elbo, "advance", lambda: None)()

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Any:
        """The wrapped ELBO's loss with the guide's data corrupted."""
        return self._run(self.elbo.loss, model, guide, args, kwargs)

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Any:
        """The wrapped ELBO's loss and gradients with the guide's data corrupted."""
        return self._run(self.elbo.loss_and_grads, model, guide, args, kwargs)

    @property
    def differentiable_loss(self) -> Callable[..., Any]:
        """The wrapped ELBO's differentiable loss with the guide's data corrupted.

        Raises:
            AttributeError: If the wrapped ELBO has none, as Pyro's RenyiELBO and TraceGraph_ELBO.
        """
        loss = self.elbo.differentiable_loss
        return lambda model, guide, *args, **kwargs: self._run(loss, model, guide, args, kwargs)

    def _run(self, loss: Callable[..., Any], model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        if not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
            kind = f"{args[0].dtype}" if args and isinstance(args[0], Tensor) else f"{type((*args, None)[0]).__name__}"
            raise TypeError(f"Denoising corrupts the pair's first argument: expected a tensor of floats, got {kind}")
        # one wrapper for a guide, so that the wrapped ELBO can recognize the pair from step to step
        if self._wrapped is None or self._wrapped[0] != guide:
            self._wrapped = guide, _Corrupted(guide)
        corrupted = self._wrapped[1]
        # drawn here and not in the guide: all of the guide's runs, for particles and replays, need the same data
        corrupted.x = self.corruption(args[0])
        try:
            return loss(model, corrupted, *args, **kwargs)
        finally:
            corrupted.x = None

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("the denoising criterion has no single trace: use loss or loss_and_grads")
