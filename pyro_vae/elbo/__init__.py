"""What SVI optimizes: estimators and objectives by name, and weights on their KL."""

from pyro_vae.elbo import adversarial
from pyro_vae.elbo.adversarial import (
    AAE,
    ALI,
    GAN,
    VAEGAN,
    VEEGAN,
    VGH,
    WAEGAN,
    AlphaGAN,
    CategoricalAAE,
    FactorVAE,
    PhasedELBO,
)
from pyro_vae.elbo.estimators.antithetic import DisARM
from pyro_vae.elbo.estimators.bounds import MeanField, TensorELBO, Trace
from pyro_vae.elbo.estimators.by_site import BySite
from pyro_vae.elbo.estimators.control import REBAR
from pyro_vae.elbo.estimators.copula import ARMS
from pyro_vae.elbo.estimators.double_control import DoubleCV
from pyro_vae.elbo.estimators.importance import (
    CIWAE,
    IWAE,
    MIWAE,
    PIWAE,
    RWS,
    DReG,
    Renyi,
    StickingTheLanding,
    TailAdaptive,
)
from pyro_vae.elbo.estimators.relaxed import Cooling, Relaxed
from pyro_vae.elbo.estimators.score import OVIS, VIMCO, Reinforce, VarGrad
from pyro_vae.elbo.estimators.surrogate import Coefficients, SurrogateELBO
from pyro_vae.elbo.estimators.thermodynamic import TVO
from pyro_vae.elbo.estimators.trace_graph import TraceGraph
from pyro_vae.elbo.objectives.corruption import Denoising, GaussianNoise, MaskingNoise, SaltAndPepper
from pyro_vae.elbo.objectives.dip import DIP
from pyro_vae.elbo.objectives.free_bits import Capacity, FreeBits
from pyro_vae.elbo.objectives.labels import SemiSupervised
from pyro_vae.elbo.objectives.missing import with_missing
from pyro_vae.elbo.objectives.modalities import SubsampledModalities
from pyro_vae.elbo.objectives.penalty import WAE, InfoVAE, Sparse, mmd
from pyro_vae.elbo.objectives.quantized import VQ
from pyro_vae.elbo.objectives.total_correlation import BetaTC
from pyro_vae.elbo.objectives.weights import Cyclical, Schedule, Warmup, WeightedKL
from pyro_vae.elbo.registry import Estimator, bound_of, label, make, min_particles, names, register

__all__ = [
    "AAE",
    "ALI",
    "GAN",
    "VAEGAN",
    "VEEGAN",
    "VGH",
    "WAEGAN",
    "AlphaGAN",
    "CategoricalAAE",
    "Estimator",
    "FactorVAE",
    "PhasedELBO",
    "adversarial",
    "ARMS",
    "CIWAE",
    "IWAE",
    "MIWAE",
    "PIWAE",
    "OVIS",
    "RWS",
    "TVO",
    "VIMCO",
    "VQ",
    "BetaTC",
    "BySite",
    "Capacity",
    "Coefficients",
    "Cooling",
    "Cyclical",
    "Denoising",
    "DIP",
    "DReG",
    "DisARM",
    "DoubleCV",
    "FreeBits",
    "GaussianNoise",
    "InfoVAE",
    "MaskingNoise",
    "MeanField",
    "REBAR",
    "Reinforce",
    "Relaxed",
    "Renyi",
    "SaltAndPepper",
    "Schedule",
    "SemiSupervised",
    "Sparse",
    "StickingTheLanding",
    "SubsampledModalities",
    "SurrogateELBO",
    "TailAdaptive",
    "TensorELBO",
    "Trace",
    "TraceGraph",
    "VarGrad",
    "WAE",
    "Warmup",
    "WeightedKL",
    "bound_of",
    "min_particles",
    "label",
    "make",
    "mmd",
    "names",
    "register",
    "with_missing",
]
