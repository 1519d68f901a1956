"""Variational GAN hybrids, with critics for the KL and for the likelihood: alpha-GAN, VGH and VGH++."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_vae.elbo.adversarial.base import Adversarial, total
from pyro_vae.elbo.adversarial.draws import Drawn, generate, infer, reconstruct
from pyro_vae.elbo.adversarial.phases import Phase
from pyro_vae.elbo.estimators.bounds import observed_log_prob
from pyro_vae.pair.protocol import Program
from pyro_vae.support.arguments import checked

__all__ = ["AlphaGAN", "VGH"]


class AlphaGAN(Adversarial):
    r"""alpha-GAN: critics on latents and on data, and an explicit reconstruction term.

    .. math:: \min_{p, q} \; -\lambda E_q[\log p(x|z)] + E_q[r_x(G(z))] + E_{p(z)}[r_x(G(z))] + E_q[r_z(z)],
        \qquad r(\cdot) = -\mathrm{logit}\, D(\cdot)

    One critic tells data from reconstructions and samples, and gives the second and third term. The other tells draws
    of the prior from draws of the guide; its term replaces the KL and needs no density of the guide. With an optimal
    critic it is the KL of the aggregate posterior q(z), not that of each q(z|x). A Laplace likelihood of fixed scale
    gives the absolute error of the paper.

    Args:
        weight: lambda, the weight of the reconstruction; 0 leaves it out.
        samples: Whether the critic on data also sees samples from the prior.
        options: Further arguments of `Adversarial`, except `condition`; the default `game` is "log_ratio".

    Raises:
        ValueError: For a weight below 0, or with a `condition`.

    Reference: Rosca et al. 2017, arXiv 1706.04987, algorithm 1.
    """

    @checked
    def __init__(self, num_particles: int = 1, weight: float = 1.0, samples: bool = True, **options: Any) -> None:
        super().__init__(num_particles, **{"game": "log_ratio", **options})
        if weight < 0:
            raise ValueError(f"weight must be at least 0, got {weight}")
        if self.condition is not None:
            raise ValueError(f"{type(self).__name__} does not take a condition: leave it out")
        self.weight, self.samples = weight, samples
        self.phases = (self.critic_phase(self._critic), Phase("pair", self._pair, ("model", "guide")))

    def _fakes(self, model: Program, real: Drawn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        return [reconstruct(real), *([generate(model, args, kwargs).x] if self.samples else [])]

    def _critic(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        with torch.no_grad():
            real, prior = infer(model, guide, args, kwargs), generate(model, args, kwargs)
            fakes = self._fakes(model, real, args, kwargs)
        return total(self.critic_loss("x", real.x, *fakes) + self.critic_loss("z", prior.z, real.z), real)

    def _pair(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        real = infer(model, guide, args, kwargs)
        judged = self.game.up(self.critic_logits("z", real.z)).mean()
        for fake in self._fakes(model, real, args, kwargs):
            judged = judged + self.game.up(self.critic_logits("x", fake)).mean()
        loss = total(judged, real)
        return loss - self.weight * observed_log_prob(real.traces) if self.weight else loss


class VGH(AlphaGAN):
    r"""VGH, a variational GAN hybrid: the ELBO with both of its terms replaced by critics.

    .. math:: \min_{p, q} \; E_q[r_x(G(z))] + E_q[r_z(z)], \qquad r(\cdot) = -\mathrm{logit}\, D(\cdot)

    A critic of reconstructions replaces the likelihood, a critic of the latents the KL. Samples and the explicit
    reconstruction of `AlphaGAN` are left out; with both of them it is VGH++, the objective called "vgh++".

    Args:
        options: Further arguments of `Adversarial`, except `condition`.

    Reference: Rosca et al. 2018, arXiv 1802.06847, section 3.
    """

    @checked
    def __init__(self, num_particles: int = 1, **options: Any) -> None:
        super().__init__(num_particles, weight=0.0, samples=False, **options)
