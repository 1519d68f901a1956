"""Estimators and objectives by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import pyro.infer

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
)
from pyro_vae.elbo.estimators.antithetic import DisARM
from pyro_vae.elbo.estimators.bounds import MeanField, Trace
from pyro_vae.elbo.estimators.by_site import BySite
from pyro_vae.elbo.estimators.control import REBAR
from pyro_vae.elbo.estimators.copula import ARMS
from pyro_vae.elbo.estimators.double_control import DoubleCV
from pyro_vae.elbo.estimators.enumeration import Enumeration
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
from pyro_vae.elbo.estimators.relaxed import Relaxed
from pyro_vae.elbo.estimators.score import OVIS, VIMCO, Reinforce, VarGrad
from pyro_vae.elbo.estimators.thermodynamic import TVO
from pyro_vae.elbo.estimators.trace_graph import TraceGraph
from pyro_vae.elbo.objectives.corruption import Denoising
from pyro_vae.elbo.objectives.dip import DIP
from pyro_vae.elbo.objectives.free_bits import Capacity, FreeBits
from pyro_vae.elbo.objectives.function import loss_object
from pyro_vae.elbo.objectives.labels import SemiSupervised
from pyro_vae.elbo.objectives.modalities import SubsampledModalities
from pyro_vae.elbo.objectives.penalty import WAE, InfoVAE
from pyro_vae.elbo.objectives.quantized import VQ
from pyro_vae.elbo.objectives.total_correlation import BetaTC
from pyro_vae.support.arguments import checked, checked_from

__all__ = ["Estimator", "bound_of", "label", "min_particles", "make", "names", "register"]

Estimator = str | pyro.infer.ELBO | Mapping[str, str | pyro.infer.ELBO] | Callable[..., Any]

_REGISTRY: dict[str, Callable[..., pyro.infer.ELBO]] = {
    "mean_field": MeanField,
    "trace": Trace,
    "stl": StickingTheLanding,
    "iwae": IWAE,
    "dreg": DReG,
    "miwae": MIWAE,
    "piwae": PIWAE,
    "ciwae": CIWAE,
    "renyi": Renyi,
    "rws": RWS,
    "reinforce": Reinforce,
    "vargrad": VarGrad,
    "vimco": VIMCO,
    "ovis": OVIS,
    "tvo": TVO,
    "free_bits": FreeBits,
    "capacity": Capacity,
    "beta_tc": BetaTC,
    "dip": DIP,
    "gumbel": Relaxed,
    "disarm": DisARM,
    "arms": ARMS,
    "rebar": REBAR,
    "double_cv": DoubleCV,
    "trace_graph": TraceGraph,
    "enum": Enumeration,
    "tail_adaptive": TailAdaptive,
    "vq": VQ,
    "semi_supervised": SemiSupervised,
    "subsampled_modalities": SubsampledModalities,
    "factor_vae": FactorVAE,
    "aae": AAE,
    "categorical_aae": CategoricalAAE,
    "wae_gan": WAEGAN,
    "gan": GAN,
    "ali": ALI,
    "veegan": VEEGAN,
    "vae_gan": VAEGAN,
    "alpha_gan": AlphaGAN,
    "vgh": VGH,
    "vgh++": AlphaGAN,
    "denoising": Denoising,
    "info_vae": InfoVAE,
    "wae": WAE,
}


@checked
def names() -> tuple[str, ...]:
    """The names that `make` knows."""
    return tuple(_REGISTRY)


@checked
def min_particles(name: str) -> int:
    """The smallest number of particles that the estimator called `name` works with."""
    return getattr(_REGISTRY.get(name), "min_particles", 1)


@checked
def bound_of(name: str) -> str:
    """Which bound on log p(x) the estimator called `name` has: "elbo", "iwae", "own" for another one, or "none"."""
    return getattr(_REGISTRY.get(name), "bound", "elbo")


@checked
def label(elbo: Estimator) -> str:
    """What to call an estimator: its name, its class, its function, or its sites."""
    if isinstance(elbo, str):
        return elbo
    elbo = BySite(elbo) if isinstance(elbo, Mapping) else elbo
    return str(elbo) if isinstance(elbo, BySite) else getattr(elbo, "__name__", type(elbo).__name__)


@checked
def register(name: str, factory: Callable[..., pyro.infer.ELBO]) -> None:
    """Let `make(name, num_particles=..., **options)` build an ELBO of your own.

    Raises:
        ValueError: If the name is registered already.
    """
    if name in _REGISTRY:
        raise ValueError(f"an ELBO named {name!r} is registered already; known are {', '.join(_REGISTRY)}")
    _REGISTRY[name] = factory


@checked_from(name=None)
def make(name: Estimator, *, num_particles: int = 1, **options: Any) -> Any:
    """Build an estimator by name, by site from a dictionary (see `BySite`), or of a loss function.

    An ELBO object passes through. A function is called with `(model, guide, *args, **kwargs)`, and returns a loss to
    differentiate, in nats, summed over the data, as for `pyro.infer.SVI`.

    >>> make("mean_field", num_particles=5).num_particles
    5

    Raises:
        ValueError: For an unknown name, with the nearest known one; for fewer than one particle; for options of an ELBO
            that is an object already.
        TypeError: For anything that is not a name, a dictionary, an ELBO object or a function.
    """
    if callable(name) and not isinstance(name, pyro.infer.ELBO | type):
        name = loss_object(name)
    if isinstance(name, pyro.infer.ELBO):
        if num_particles not in (1, name.num_particles) or options:
            raise ValueError(
                f"elbo is an object, {type(name).__name__}(num_particles={name.num_particles}): give num_particles and "
                "options to its constructor, or pass its name"
            )
        return name
    if isinstance(name, Mapping):
        return BySite(name, num_particles=num_particles, **options)
    if not isinstance(name, str):
        raise TypeError(
            "elbo must be a name, a dictionary by site, a pyro.infer.ELBO object or a loss function, got "
            f"{type(name).__name__}"
        )
    if name not in _REGISTRY:
        near = difflib.get_close_matches(name, _REGISTRY, n=1)
        hint = f", did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"unknown ELBO {name!r}{hint} Known: {', '.join(_REGISTRY)}")
    if num_particles < 1:
        raise ValueError(f"num_particles must be at least 1, got {num_particles}")
    return _REGISTRY[name](num_particles=num_particles, **options)
