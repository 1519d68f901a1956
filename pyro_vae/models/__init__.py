"""Systems of the literature, each a module with the methods `model` and `guide`."""

from pyro_vae.models.auxiliary import AuxiliaryVAE
from pyro_vae.models.pair import Pair
from pyro_vae.models.vae import VAE

__all__ = ["VAE", "AuxiliaryVAE", "Pair"]
