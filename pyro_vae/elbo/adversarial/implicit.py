"""Objectives that do not evaluate the likelihood: GAN, ALI (BiGAN) and VEEGAN."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_vae.elbo.adversarial.base import Adversarial, total
from pyro_vae.elbo.adversarial.draws import Drawn, generate, infer, mean_log_q
from pyro_vae.elbo.adversarial.phases import Phase
from pyro_vae.pair.protocol import Program
from pyro_vae.support.arguments import checked

__all__ = ["ALI", "GAN", "VEEGAN"]


class GAN(Adversarial):
    r"""A generative adversarial network: the model alone, against a critic of its means.

    .. math:: \min_p \max_D E_{\mathrm{data}}[\log D(x)] + E_{p(z)}[\log(1 - D(G(z)))]

    G(z) is the mean of the observed sites given latents from the prior. The likelihood's noise is left out and the
    guide is not trained, so the ELBO, log p(x) and all that depends on them say nothing about the samples.

    Args:
        options: Further arguments of `Adversarial`.

    Reference: Goodfellow et al. 2014, arXiv 1406.2661.
    """

    @checked
    def __init__(self, num_particles: int = 1, **options: Any) -> None:
        super().__init__(num_particles, **options)
        self.phases = (self.critic_phase(self._critic), Phase("generate", self._generate, ("model",)))

    def _critic(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        with torch.no_grad():
            # the data as the model observes them
            real, fake = infer(model, guide, args, kwargs), generate(model, args, kwargs)
        return total(self.critic_loss("x", *(self.with_condition(d.x, args, kwargs) for d in (real, fake))), real)

    def _generate(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        fake = generate(model, args, kwargs)
        return total(self.game.up(self.critic_logits("x", self.with_condition(fake.x, args, kwargs))).mean(), fake)


class ALI(Adversarial):
    r"""Adversarially learned inference, or BiGAN: a critic on data and latents together.

    .. math:: \min_{p, q} \max_D E_{\mathrm{data},\, q(z|x)}[\log D(x, z)] + E_{p(z)}[\log(1 - D(G(z), z))]

    If an optimal critic finds no difference, model and guide have the same joint distribution, and each inverts the
    other.

    If the two joint distributions of x and z are concentrated on surfaces, the critic can tell them apart by z alone,
    and its gradient does not help the model. `noise` is added to the latents that the critic sees, on both sides, so
    that it has to use x. Joint distributions that are equal stay equal with the noise.

    Args:
        noise: Standard deviation of the noise; 1, as wide as a standard normal prior, is a good choice.
        options: Further arguments of `Adversarial`.

    Raises:
        ValueError: For `noise` below 0.

    Reference: Dumoulin et al. 2017, arXiv 1606.00704; Donahue et al. 2017, arXiv 1605.09782. The papers have no noise.
    """

    @checked
    def __init__(self, num_particles: int = 1, noise: float = 0.0, **options: Any) -> None:
        super().__init__(num_particles, **options)
        if not 0 <= noise < math.inf:
            raise ValueError(f"noise must be a standard deviation >= 0, got {noise}")
        self.noise = noise
        self.phases = (self.critic_phase(self._critic), Phase("pair", self._pair, ("model", "guide")))

    def _joint(self, drawn: Drawn, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        z = drawn.z + self.noise * torch.randn_like(drawn.z) if self.noise else drawn.z
        return self.with_condition(torch.cat([drawn.x.flatten(1), z], 1), args, kwargs)

    def _critic(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        with torch.no_grad():
            real, fake = infer(model, guide, args, kwargs), generate(model, args, kwargs)
        return total(self.critic_loss("xz", *(self._joint(d, args, kwargs) for d in (real, fake))), real)

    def _pair(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        real, fake = infer(model, guide, args, kwargs), generate(model, args, kwargs)
        lower = self.game.down(self.critic_logits("xz", self._joint(real, args, kwargs))).mean()
        return total(lower + self.game.up(self.critic_logits("xz", self._joint(fake, args, kwargs))).mean(), real)


class VEEGAN(ALI):
    r"""VEEGAN: a GAN whose guide has to recover the latents that its samples were made from.

    .. math:: \min_{p, q} \; E_{p(z)}[-\mathrm{logit} D(G(z), z)] - \lambda\, E_{p(z)}[\log q(z \mid G(z))]

    The critic tells (G(z), z), z from the prior, from (x, z), z from the guide, as in `ALI`; the guide learns from the
    second term alone. A guide that maps the data onto the prior maps a mode that the model leaves out to latents whose
    samples are elsewhere, which the critic sees. With a Gaussian guide of fixed scale the second term is the squared
    error of the paper. The guide is run on generated data instead of the pair's first argument.

    The guide never sees the data while it learns. For data unlike all samples it gives latents far outside the prior.
    The critic recognizes the data by these latents, so nothing pulls the model toward them, and its samples remain a
    drifting cloud. `noise=1` prevents this.

    Args:
        weight: lambda, the weight of the reconstruction of the latents.
        options: Further arguments of `ALI`, `noise` above all; the default `game` is "log_ratio", as in the paper.

    Raises:
        ValueError: For a weight that is not positive.

    Reference: Srivastava et al. 2017, arXiv 1705.07761, eq. 4 and algorithm 1.
    """

    @checked
    def __init__(self, num_particles: int = 1, weight: float = 1.0, **options: Any) -> None:
        super().__init__(num_particles, **{"game": "log_ratio", **options})
        if not weight > 0:
            raise ValueError(f"weight must be a number above 0, got {weight}")
        self.weight = weight

    def _pair(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        fake = generate(model, args, kwargs)
        judged = self.game.up(self.critic_logits("xz", self._joint(fake, args, kwargs))).mean()
        return total(judged - self.weight * mean_log_q(guide, fake, args, kwargs), fake)
