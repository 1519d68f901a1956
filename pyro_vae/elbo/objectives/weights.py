"""A weight on the KL of any pair under any ELBO, constant or scheduled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro.infer
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.elbo.estimators.bounds import KL_WEIGHTS
from pyro_vae.pair.protocol import Program
from pyro_vae.support.arguments import checked, checked_from

__all__ = ["Cyclical", "Schedule", "Warmup", "WeightedKL"]


class _ScaleLatents(Messenger):
    """Multiplies the log-density of every latent site, in the model and in the guide, by one weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"]:
            base, weights = msg.get(KL_WEIGHTS, (msg["scale"], ()))
            msg[KL_WEIGHTS] = (base, (*weights, self.weight))
            msg["scale"] = msg["scale"] * self.weight


class WeightedKL(pyro.infer.ELBO):
    r"""Any ELBO with its KL term multiplied by `weight`: the beta-VAE objective, or one step of a warm-up.

    .. math:: L_\beta = E_q[\log p(x|z)] - \beta \, KL(q(z|x) \| p(z))

    For `weight > 1` still a lower bound on log p(x), for `weight < 1` not. For a multi-sample objective the weight
    multiplies `log p(z) - log q(z|x)` inside each importance weight. A score function is that of q as it is: the weight
    is in what multiplies it. Only what is minimized changes: every ELBO and likelihood that the library reports is
    computed without it.

    Args:
        elbo: The ELBO to wrap, of this library, of Pyro or your own.
        weight: beta >= 0. Assign `.weight` between steps to change it; it is stored in a tensor, so a compiled
            step need not be rebuilt.

    Raises:
        TypeError: If `elbo` is not an ELBO object.
        ValueError: For a negative weight.

    Reference: Higgins et al. 2017, ICLR (beta-VAE), eq. 4; Bowman et al. 2016, arXiv 1511.06349 (warm-up).
    """

    bound: ClassVar[str] = "own"

    @checked_from(elbo=None)
    def __init__(self, elbo: pyro.infer.ELBO, weight: float = 1.0) -> None:
        if not isinstance(elbo, pyro.infer.ELBO):
            raise TypeError(f"elbo must be a pyro.infer.ELBO object, got {elbo!r}: use pv.elbo.make(name)")
        super().__init__(num_particles=elbo.num_particles)
        self.elbo: Any = elbo
        self._weight = torch.ones(())
        self._wrapped: tuple[Program, Program, Program, Program] | None = None
        self.weight = weight

    @property
    def weight(self) -> float:
        """The current weight."""
        return float(self._weight)

    @weight.setter
    def weight(self, value: float) -> None:
        if not value >= 0:
            raise ValueError(f"the KL weight must be a number >= 0, got {value}")
        self._weight.fill_(value)

    def _scaled(self, model: Program, guide: Program) -> tuple[Program, Program]:
        # one wrapper for a pair, so that the wrapped ELBO can recognize the pair from step to step
        if self._wrapped is None or self._wrapped[:2] != (model, guide):
            scale = _ScaleLatents(self._weight)
            self._wrapped = (model, guide, scale(model), scale(guide))
        return self._wrapped[2:]

    def advance(self) -> None:
        """Let the wrapped ELBO move on in its own schedule, if it has one."""
        getattr(self.elbo, "advance", lambda: None)()

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Any:
        """The wrapped ELBO's loss of the weighted pair."""
        return self.elbo.loss(*self._scaled(model, guide), *args, **kwargs)

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Any:
        """The wrapped ELBO's loss and gradients of the weighted pair."""
        return self.elbo.loss_and_grads(*self._scaled(model, guide), *args, **kwargs)

    @property
    def differentiable_loss(self) -> Callable[..., Any]:
        """The wrapped ELBO's differentiable loss of the weighted pair.

        Raises:
            AttributeError: If the wrapped ELBO has none, as Pyro's RenyiELBO and TraceGraph_ELBO.
        """
        loss = self.elbo.differentiable_loss
        return lambda model, guide, *args, **kwargs: loss(*self._scaled(model, guide), *args, **kwargs)

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        return self.elbo._get_trace(*self._scaled(model, guide), args, kwargs)


@checked
@dataclass(frozen=True)
class Warmup:
    """Linear warm-up of the KL weight from `start` to `end` over the first `epochs`, then `end`.

    Args:
        epochs: Length of the warm-up, above 0; may be fractional.
        start, end: Weights at its start and at its end, at least 0.

    Reference: Bowman et al. 2016, arXiv 1511.06349; Sønderby et al. 2016, arXiv 1602.02282.

    >>> schedule = Warmup(10)
    >>> [schedule(epoch) for epoch in (0, 5, 10, 20)]
    [0.0, 0.5, 1.0, 1.0]
    """

    epochs: float
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if not (self.epochs > 0 and self.start >= 0 and self.end >= 0):
            raise ValueError(f"a warm-up needs epochs > 0 and weights >= 0, got {self}")

    def __call__(self, epoch: float) -> float:
        """The weight at a (fractional) epoch."""
        return self.start + (self.end - self.start) * min(1.0, epoch / self.epochs)

    @property
    def settles(self) -> float:
        """The epoch from which the weight no longer changes."""
        return self.epochs


@checked
@dataclass(frozen=True)
class Cyclical:
    """Repeated warm-ups from 0 to `end`, each of which rises linearly over the first part of its cycle.

    Args:
        period: Epochs in a cycle.
        cycles: Number of cycles; after them the weight is `end`.
        rise: Fraction of a cycle in which the weight rises, in (0, 1].
        end: Weight in the rest of a cycle.

    Reference: Fu et al. 2019, arXiv 1903.10145.

    >>> schedule = Cyclical(period=10, cycles=2)
    >>> [schedule(epoch) for epoch in (0, 2.5, 5, 10, 15, 20)]
    [0.0, 0.5, 1.0, 0.0, 1.0, 1.0]
    """

    period: float
    cycles: int = 4
    rise: float = 0.5
    end: float = 1.0

    def __post_init__(self) -> None:
        if not (self.period > 0 and self.cycles >= 1 and 0 < self.rise <= 1 and self.end >= 0):
            raise ValueError(f"a cyclical schedule needs period > 0, cycles >= 1, 0 < rise <= 1, got {self}")

    def __call__(self, epoch: float) -> float:
        """The weight at a (fractional) epoch."""
        if epoch >= self.period * self.cycles:
            return self.end
        return self.end * min(1.0, (epoch % self.period) / (self.rise * self.period))

    @property
    def settles(self) -> float:
        """The epoch from which the weight no longer changes."""
        return self.period * (self.cycles - 1 + self.rise)


Schedule = Warmup | Cyclical
