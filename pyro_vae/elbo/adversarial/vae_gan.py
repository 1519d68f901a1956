"""VAE/GAN: the reconstruction error is that of the features of a critic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_vae.elbo.adversarial.base import Adversarial, total
from pyro_vae.elbo.adversarial.draws import Drawn, generate, infer, kl, reconstruct
from pyro_vae.elbo.adversarial.phases import Phase
from pyro_vae.pair.protocol import Program
from pyro_vae.support.arguments import checked

__all__ = ["VAEGAN"]


class VAEGAN(Adversarial):
    r"""VAE/GAN: a VAE that reconstructs the features of a critic, and a GAN with the VAE's decoder.

    .. math::
        L_\mathrm{prior} &= KL(q(z|x) \| p(z)), \qquad
        L_\mathrm{like} = \tfrac12 E_q \| f(x) - f(G(z)) \|^2 \\
        \text{guide:} &\quad \min L_\mathrm{prior} + L_\mathrm{like} \\
        \text{model:} &\quad \min \gamma L_\mathrm{like} + L_\mathrm{GAN} \\
        \text{critic:} &\quad \text{data against } G(z),\; z \sim q(z|x) \text{ and } z \sim p(z)

    f is the critic's method `features`, `(N, *shape) -> (N, F)`: for the default critic the last convolution, or the
    last hidden layer.

    Args:
        gamma: Weight of the reconstruction against the GAN in the model's loss.
        scale: Standard deviation of the features around their reconstruction; 1 in the paper.
        options: Further arguments of `Adversarial`, except `condition`.

    Raises:
        ValueError: For a `gamma` or `scale` that is not positive, or with a `condition`.
        TypeError: For a critic without the method `features`.

    Reference: Larsen et al. 2016, arXiv 1512.09300, algorithm 1.
    """

    @checked
    def __init__(self, num_particles: int = 1, gamma: float = 0.01, scale: float = 1.0, **options: Any) -> None:
        super().__init__(num_particles, **options)
        if not (gamma > 0 and scale > 0):
            raise ValueError(f"gamma and scale must be above 0, got {gamma} and {scale}")
        if self.condition is not None:
            raise ValueError("VAEGAN does not take a condition, since its features are of the data alone: leave it out")
        self.gamma, self.scale = gamma, scale
        self.phases = (
            self.critic_phase(self._critic),
            Phase("model", self._model, ("model",)),
            Phase("guide", self._guide, ("guide",)),
        )

    def _critic(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        with torch.no_grad():
            real, fake = infer(model, guide, args, kwargs), generate(model, args, kwargs)
            rebuilt = reconstruct(real)
        return total(self.critic_loss("x", real.x, rebuilt, fake.x), real)

    def _model(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        real, fake = infer(model, guide, args, kwargs), generate(model, args, kwargs)
        rebuilt = reconstruct(real)
        losses = [self.game.up(self.critic_logits("x", x)).mean() for x in (rebuilt, fake.x)]
        return total(self.gamma * self._distance(real, rebuilt) + (losses[0] + losses[1]), real)

    def _guide(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        real = infer(model, guide, args, kwargs)
        return kl(real) + total(self._distance(real, reconstruct(real)), real)

    def _distance(self, real: Drawn, rebuilt: Tensor) -> Tensor:
        features = getattr(self.critic("x", real.x), "features", None)
        if features is None:
            raise TypeError(
                f"the critic {type(self.critics['x']).__name__} has no method features(x), by which VAEGAN "
                "measures the reconstruction: add one, or use pv.elbo.adversarial.Critic"
            )
        with torch.no_grad():
            target = features(real.x)
        return 0.5 * ((features(rebuilt) - target) / self.scale).flatten(1).square().sum(1).mean()
