"""Adversarial autoencoders: the aggregate posterior held to the prior by a critic, in the place of the KL."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_vae.elbo.adversarial.base import Adversarial, total
from pyro_vae.elbo.adversarial.draws import generate, infer
from pyro_vae.elbo.adversarial.phases import Phase
from pyro_vae.elbo.bounds import observed_log_prob

__all__ = ["AAE", "WAEGAN"]

Program = Callable[..., Any]


class AAE(Adversarial):
    r"""Adversarial autoencoder: reconstruct, and make draws of q(z) indistinguishable from draws of p(z).

    .. math:: \min_{p, q} -E_q[\log p(x|z)], \qquad
        \min_q \max_D E_{p(z)}[\log D(z)] + E_{q(z)}[\log(1 - D(z))]

    The phases: the critic on the latents, all sites side by side; the guide against the critic; model and guide
    together on the reconstruction. Nothing asks for the density of the guide, so that it may be a point mass (a
    deterministic encoder) or the output of a network that draws noise of its own (a universal approximator). The prior
    is what the model draws from, of whatever form; with labels as an argument of the pair, `condition` shows them to
    the critic.

    Args:
        weight: Of the critic's judgement, per datum.
        options: Those of `Adversarial`.

    Raises:
        ValueError: For a weight that is not positive.

    Reference: Makhzani et al. 2015, arXiv 1511.05644, section 2.
    """

    def __init__(self, num_particles: int = 1, weight: float = 1.0, **options: Any) -> None:
        super().__init__(num_particles, **options)
        if not 0 < weight < math.inf:
            raise ValueError(f"weight must be a number above 0, got {weight}")
        self.weight = weight
        self.phases = (
            self.critic_phase(self._critic),
            Phase("regularise", self._regularise, ("guide",)),
            Phase("reconstruct", self._reconstruct, ("model", "guide")),
        )

    def _critic(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        with torch.no_grad():
            inferred = infer(model, guide, args, kwargs)
            prior = generate(model, args, kwargs)
        real, fake = (self.beside(drawn.z, args, kwargs) for drawn in (prior, inferred))
        return total(self.critic_loss("z", real, fake), inferred)

    def _regularise(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        inferred = infer(model, guide, args, kwargs)
        logits = self.judge("z", self.beside(inferred.z, args, kwargs))
        return total(self.weight * self.game.up(logits).mean(), inferred)

    def _reconstruct(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        return -observed_log_prob(infer(model, guide, args, kwargs).traces)


class WAEGAN(AAE):
    r"""Wasserstein autoencoder with a critic on the latents: an `AAE` of one loss for model and guide.

    .. math:: \min_{p, q} -E_q[\log p(x|z)] - \lambda\, E_{q(z)}[\log D(z)]

    With a Gaussian likelihood of fixed scale the first term is a squared error, the cost of the paper.

    Args:
        weight: Lambda.
        options: Those of `Adversarial`.

    Reference: Tolstikhin et al. 2018, arXiv 1711.01558, algorithm 1.
    """

    def __init__(self, num_particles: int = 1, weight: float = 10.0, **options: Any) -> None:
        super().__init__(num_particles, weight, **options)
        self.phases = (self.phases[0], Phase("pair", self._pair, ("model", "guide")))

    def _pair(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        inferred = infer(model, guide, args, kwargs)
        logits = self.judge("z", self.beside(inferred.z, args, kwargs))
        return total(self.weight * self.game.up(logits).mean(), inferred) - observed_log_prob(inferred.traces)
