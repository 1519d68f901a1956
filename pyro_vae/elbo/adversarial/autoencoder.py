"""Adversarial autoencoders: a critic in place of the KL pulls the aggregate posterior to the prior."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_vae.elbo.adversarial.base import Adversarial, total
from pyro_vae.elbo.adversarial.draws import Drawn, generate, infer
from pyro_vae.elbo.adversarial.phases import Phase
from pyro_vae.elbo.estimators.bounds import observed_log_prob
from pyro_vae.pair.protocol import Program
from pyro_vae.support.arguments import checked

__all__ = ["AAE", "WAEGAN"]


class AAE(Adversarial):
    r"""Adversarial autoencoder: reconstruct, and make draws of q(z) indistinguishable from draws of p(z).

    .. math:: \min_{p, q} -E_q[\log p(x|z)], \qquad
        \min_q \max_D E_{p(z)}[\log D(z)] + E_{q(z)}[\log(1 - D(z))]

    The phases: the critic on the latents `(N, L)`, all sites concatenated; the guide against the critic; model and
    guide together on the reconstruction. No phase needs the density of the guide, so it may be a point mass (a
    deterministic encoder) or the output of a network that draws noise of its own (a universal approximator). Any prior
    that can be drawn from will do. With labels as an argument of the pair, `condition` shows them to the critic.

    Args:
        weight: Weight of the phase "regularize", the guide against the critic. It is a factor on the learning rate of
            that phase, which has an optimizer of its own: Adam ignores a factor on the loss.
        options: Further arguments of `Adversarial`.

    Raises:
        ValueError: For a weight that is not positive.

    Reference: Makhzani et al. 2015, arXiv 1511.05644, section 2.
    """

    @checked
    def __init__(self, num_particles: int = 1, weight: float = 1.0, **options: Any) -> None:
        super().__init__(num_particles, **options)
        if not 0 < weight < math.inf:
            raise ValueError(f"weight must be a number above 0, got {weight}")
        self.weight = weight
        self.phases = (
            self.critic_phase(self._critic),
            Phase("regularize", self._regularize, ("guide",), lr=weight),
            Phase("reconstruct", self._reconstruct, ("model", "guide")),
        )

    def _infer(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Drawn:
        return infer(model, guide, args, kwargs)

    def _codes(self, drawn: Drawn) -> dict[str, Tensor]:
        """The inputs of the critics, by the critics' names."""
        return {"z": drawn.z}

    def _critic(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        with torch.no_grad():
            inferred = self._infer(model, guide, args, kwargs)
            prior, fakes = self._codes(generate(model, args, kwargs)), self._codes(inferred)
        losses = [
            self.critic_loss(name, *(self.with_condition(value, args, kwargs) for value in (prior[name], fake)))
            for name, fake in fakes.items()
        ]
        return total(torch.stack(losses).sum(), inferred)

    def _fooling_loss(self, inferred: Drawn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The guide's loss against the critics, summed over the data."""
        means = [
            self.game.up(self.critic_logits(name, self.with_condition(value, args, kwargs))).mean()
            for name, value in self._codes(inferred).items()
        ]
        return total(torch.stack(means).sum(), inferred)

    def _regularize(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        return self._fooling_loss(self._infer(model, guide, args, kwargs), args, kwargs)

    def _reconstruct(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        return -observed_log_prob(self._infer(model, guide, args, kwargs).traces)


class WAEGAN(AAE):
    r"""Wasserstein autoencoder with a critic on the latents: an `AAE` with one loss for model and guide.

    .. math:: \min_{p, q} -E_q[\log p(x|z)] - \lambda\, E_{q(z)}[\log D(z)]

    With a Gaussian likelihood of fixed scale the first term is a squared error, the cost of the paper.

    Args:
        weight: lambda, the weight of the critic's term per datum.
        options: Further arguments of `Adversarial`.

    Raises:
        ValueError: For a weight that is not positive.

    Reference: Tolstikhin et al. 2018, arXiv 1711.01558, algorithm 1.
    """

    @checked
    def __init__(self, num_particles: int = 1, weight: float = 10.0, **options: Any) -> None:
        super().__init__(num_particles, weight, **options)
        self.phases = (self.phases[0], Phase("pair", self._pair, ("model", "guide")))

    def _pair(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        inferred = self._infer(model, guide, args, kwargs)
        return self.weight * self._fooling_loss(inferred, args, kwargs) - observed_log_prob(inferred.traces)
