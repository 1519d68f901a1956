"""Objectives with critics: phases of their own parameters, stepped in turn."""

from pyro_vae.elbo.adversarial.autoencoder import AAE, WAEGAN
from pyro_vae.elbo.adversarial.base import Adversarial
from pyro_vae.elbo.adversarial.classes import CategoricalAAE
from pyro_vae.elbo.adversarial.critics import Critic, NoisyEncoder
from pyro_vae.elbo.adversarial.factor import FactorVAE
from pyro_vae.elbo.adversarial.hybrid import VGH, AlphaGAN
from pyro_vae.elbo.adversarial.implicit import ALI, GAN, VEEGAN
from pyro_vae.elbo.adversarial.losses import GAMES, Game, gradient_penalty, r1_penalty
from pyro_vae.elbo.adversarial.phases import Phase, PhasedELBO
from pyro_vae.elbo.adversarial.vae_gan import VAEGAN

__all__ = [
    "AAE",
    "ALI",
    "GAMES",
    "GAN",
    "VAEGAN",
    "VEEGAN",
    "VGH",
    "WAEGAN",
    "Adversarial",
    "AlphaGAN",
    "CategoricalAAE",
    "Critic",
    "FactorVAE",
    "Game",
    "NoisyEncoder",
    "Phase",
    "PhasedELBO",
    "gradient_penalty",
    "r1_penalty",
]
