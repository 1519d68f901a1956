"""Systems of the literature, each a module with the methods `model` and `guide`."""

from pyro_vae.models.autoencoder import Autoencoder
from pyro_vae.models.auxiliary import AuxiliaryVAE
from pyro_vae.models.auxiliary_labels import AuxiliaryDGM
from pyro_vae.models.conditional import ConditionalVAE, Quadrants
from pyro_vae.models.discrete import DiscreteVAE
from pyro_vae.models.gaussian_mixture import GaussianMixture
from pyro_vae.models.gmvae import GMVAE
from pyro_vae.models.hierarchical import HierarchicalVAE, LadderVAE
from pyro_vae.models.multimodal import MultimodalVAE
from pyro_vae.models.semi_supervised import SemiSupervisedVAE
from pyro_vae.models.state_space import DeepMarkovModel
from pyro_vae.models.tabular import TabularVAE
from pyro_vae.models.text import TextVAE
from pyro_vae.models.top_down import TopDownVAE
from pyro_vae.models.vae import VAE
from pyro_vae.models.vqvae import VQVAE
from pyro_vae.pair.protocol import Pair

__all__ = [
    "GMVAE",
    "VAE",
    "VQVAE",
    "Autoencoder",
    "AuxiliaryDGM",
    "AuxiliaryVAE",
    "ConditionalVAE",
    "DeepMarkovModel",
    "DiscreteVAE",
    "GaussianMixture",
    "HierarchicalVAE",
    "LadderVAE",
    "MultimodalVAE",
    "Pair",
    "TabularVAE",
    "TextVAE",
    "TopDownVAE",
    "Quadrants",
    "SemiSupervisedVAE",
]
