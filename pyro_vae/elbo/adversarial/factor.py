"""FactorVAE: the ELBO with a penalty on the total correlation of the latents, estimated by a critic."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from pyro_vae.elbo.adversarial.base import Adversarial, total
from pyro_vae.elbo.adversarial.draws import infer, kl
from pyro_vae.elbo.adversarial.phases import Phase
from pyro_vae.elbo.estimators.bounds import observed_log_prob
from pyro_vae.pair.protocol import Program
from pyro_vae.support.arguments import checked

__all__ = ["FactorVAE"]


class FactorVAE(Adversarial):
    r"""The ELBO less `gamma` times the total correlation of the aggregate posterior, for latents that are independent.

    .. math:: L = E_q[\log p(x|z)] - KL(q(z|x) \| p(z))
        - \gamma\, KL\Big(q(z) \,\Big\|\, \prod_j q(z_j)\Big)

    A critic learns to tell draws of q(z) from draws whose dimensions were shuffled over the batch independently; its
    logit then is the log-ratio in the last term. All latent sites are concatenated.

    Args:
        gamma: Weight of the total correlation, in nats of the ELBO; 10 to 40 in the paper.
        options: Further arguments of `Adversarial`.

    Raises:
        ValueError: For a `gamma` below 0, or a `game` other than "log_ratio".

    Reference: Kim and Mnih 2018, arXiv 1802.05983, eq. 2 and algorithm 2.
    """

    watched: ClassVar[bool] = False

    @checked
    def __init__(self, num_particles: int = 1, gamma: float = 10.0, **options: Any) -> None:
        if not 0 <= gamma < math.inf:
            raise ValueError(f"gamma must be a number >= 0, got {gamma}")
        if options.setdefault("game", "log_ratio") != "log_ratio":
            raise ValueError(f"the total correlation is a log-ratio: game must be 'log_ratio', got {options['game']!r}")
        super().__init__(num_particles, **options)
        self.gamma = gamma
        self.phases = (self.critic_phase(self._critic), Phase("pair", self._pair, ("model", "guide")))

    def _critic(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        with torch.no_grad():
            drawn = infer(model, guide, args, kwargs)
            # a second draw, so that real and shuffled rows are independent
            other = infer(model, guide, args, kwargs).z
            shuffled = torch.stack([column[torch.randperm(len(column), device=other.device)] for column in other.T], 1)
        return total(self.critic_loss("total_correlation", drawn.z, shuffled), drawn)

    def _pair(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        drawn = infer(model, guide, args, kwargs)
        correlation = self.critic_logits("total_correlation", drawn.z).mean()
        return kl(drawn) - observed_log_prob(drawn.traces) + self.gamma * total(correlation, drawn)

    def total_correlation(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The critic's estimate of the total correlation of q(z) on a batch, in nats, a 0-d tensor."""
        with torch.no_grad():
            return self.critic_logits("total_correlation", infer(model, guide, args, kwargs).z).mean()
