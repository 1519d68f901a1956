"""How each site of a guide is treated: which estimator it has, and how many branches its draw makes of a particle."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyro.infer
import torch
from torch import Tensor

from pyro_vae.elbo.estimators.antithetic import DisARM, is_bernoulli
from pyro_vae.elbo.estimators.bounds import MeanField, Trace
from pyro_vae.elbo.estimators.enumeration import Enumeration
from pyro_vae.elbo.estimators.importance import StickingTheLanding
from pyro_vae.elbo.estimators.relaxed import Relaxed, is_relaxable
from pyro_vae.elbo.estimators.score import Reinforce, VarGrad
from pyro_vae.pair.plates import data_plate
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.site_masks import base_distribution
from pyro_vae.pair.tracing import PairTrace, Site, sample_sites, trace_pair
from pyro_vae.pair.untouched import kept_buffers
from pyro_vae.support.random import fork_rng

__all__ = ["Axis", "SiteEstimator", "SitePlan", "element_shape", "parse", "plan_of"]

SiteEstimator = str | pyro.infer.ELBO
CLASSES: dict[str, type[Any]] = {
    "trace": Trace,
    "mean_field": MeanField,
    "stl": StickingTheLanding,
    "reinforce": Reinforce,
    "vargrad": VarGrad,
    "enum": Enumeration,
    "disarm": DisARM,
    "gumbel": Relaxed,
}
PATHWISE = ("trace", "mean_field", "stl")
MOST_STATES = 4096


@dataclass(frozen=True)
class Treatment:
    """One of `CLASSES` by its name, and the object that has its options."""

    name: str
    options: Any

    @property
    def moves(self) -> bool:
        """Whether the gradient goes through the site's draws."""
        return self.name in (*PATHWISE, "gumbel")


@dataclass(frozen=True)
class Axis:
    """The branches that a site's draw makes of each particle: all states of a datum, or two antithetic draws."""

    site: str
    size: int


@dataclass(frozen=True)
class SitePlan:
    """The treatment of each latent site in the guide's order, with the axes of branches.

    A row is a particle on one branch of each axis, `(K, axis 0, axis 1, ...)` in row-major order. `before` says how
    many axes come before each site: its draw is the same on all branches of the others.
    """

    treatments: dict[str, Treatment]
    axes: tuple[Axis, ...]
    before: dict[str, int]
    data_dim: int

    @property
    def branches(self) -> int:
        """Rows of each particle."""
        return math.prod(axis.size for axis in self.axes)

    def after(self, first: int) -> int:
        """Branches of all axes from number `first` on."""
        return math.prod(axis.size for axis in self.axes[first:])

    def named(self, *names: str) -> list[str]:
        """The sites with one of these treatments."""
        return [site for site, treatment in self.treatments.items() if treatment.name in names]


def parse(site: str, spec: SiteEstimator, num_particles: int) -> Treatment:
    """The treatment that a name or an object stands for.

    Raises:
        ValueError: For a name or an object that treats a pair as a whole, or another number of particles.
        TypeError: For anything else.
    """
    if isinstance(spec, str):
        if spec not in CLASSES:
            near = difflib.get_close_matches(spec, CLASSES, n=1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{site}: {spec!r} is no estimator of one site{hint}. Known: {', '.join(CLASSES)}")
        options = CLASSES[spec](num_particles=num_particles)
        return Treatment("reinforce" if spec == "vargrad" else spec, options)
    if not isinstance(spec, pyro.infer.ELBO):
        raise TypeError(f"{site}: the estimator of a site must be a name or an ELBO object, got {spec!r}")
    found = [name for name, kind in CLASSES.items() if isinstance(spec, kind)]
    found = ["reinforce"] if "reinforce" in found else found
    if not found:
        raise ValueError(
            f"{site}: {type(spec).__name__} treats a pair as a whole. For one site there are {', '.join(CLASSES)}, and "
            "objects of their classes"
        )
    if spec.num_particles not in (1, num_particles):
        raise ValueError(
            f"{site}: {type(spec).__name__} has num_particles={spec.num_particles}, and the sites of a pair share "
            f"theirs, {num_particles}: give BySite the number"
        )
    return Treatment(found[0], spec)


def plan_of(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    sites: Mapping[str, Treatment],
    default: Treatment,
) -> SitePlan:
    """Read the guide's sites off one run, which leaves the random generators as they were.

    Raises:
        ValueError: For a name that is no latent site of the guide, a site that its estimator cannot treat, more than
            4096 states of a datum to sum over, and a pair with sites outside the plate over the data.
    """
    with torch.no_grad(), fork_rng(), kept_buffers(model, guide):
        traces = trace_pair(model, guide, args, kwargs)
    plate = data_plate(traces, len(args[0]))
    latents = {name: site for name, site in sample_sites(traces.guide) if not site["is_observed"]}
    for name in sites:
        if name not in latents:
            near = difflib.get_close_matches(name, latents, n=1)
            hint = f", did you mean {near[0]!r}?" if near else "."
            raise ValueError(f"the guide has no latent site {name!r}{hint} It has {', '.join(latents)}")
    treatments, before, axes = {}, {}, list[Axis]()
    for name, site in latents.items():
        treatments[name] = _resolved(name, site, sites.get(name, default), traces)
        before[name] = len(axes)
        if treatments[name].name == "enum":
            elements = math.prod(element_shape(site["fn"], plate.dim, None))
            axes.append(Axis(name, len(_support(name, site)) ** elements))
        elif treatments[name].name == "disarm":
            axes.append(Axis(name, 2))
        _check_states(axes)
    return SitePlan(treatments, tuple(axes), before, plate.dim)


def _check_states(axes: list[Axis]) -> None:
    branches = math.prod(axis.size for axis in axes)
    if branches > MOST_STATES:
        states = ", ".join(f"{axis.site!r}: {axis.size}" for axis in axes)
        raise ValueError(
            f"the branches of one datum are {branches} ({states}), and {MOST_STATES} are the most that are run: use "
            "'disarm', 'reinforce' or 'gumbel' for the largest site"
        )


def _resolved(name: str, site: Site, treatment: Treatment, traces: PairTrace) -> Treatment:
    """The treatment itself, once the site is known to allow it; "trace" of a discrete site is the score function."""
    fn, kind = site["fn"], type(base_distribution(site["fn"])).__name__
    if treatment.name == "trace" and not fn.has_rsample:
        return Treatment("reinforce", Reinforce())
    if treatment.name in PATHWISE and not fn.has_rsample:
        raise ValueError(
            f"site {name!r} is drawn from {kind}, which cannot be reparameterized, and {treatment.name!r} "
            "differentiates through the draw: use 'enum', 'reinforce', 'disarm' or 'gumbel' for it"
        )
    if treatment.name == "disarm" and not is_bernoulli(fn):
        raise ValueError(f"site {name!r} is drawn from {kind}, and 'disarm' draws Bernoulli sites: use 'enum'")
    if treatment.name == "gumbel":
        in_model = traces.model.nodes.get(name)
        if not is_relaxable(fn) or in_model is None or not is_relaxable(in_model["fn"]):
            raise ValueError(
                f"site {name!r} is drawn from {kind}, and 'gumbel' relaxes sites that are Bernoulli or "
                "OneHotCategorical in guide and model: use 'enum' or 'reinforce' for it"
            )
    if treatment.name == "enum":
        _support(name, site)
    return treatment


def _support(name: str, site: Site) -> Tensor:
    base = base_distribution(site["fn"])
    if not getattr(base, "has_enumerate_support", False):
        raise ValueError(
            f"site {name!r} is drawn from {type(base).__name__}, whose values cannot be listed to sum over them: use "
            "'reinforce' for it, or a pathwise estimator where it can be reparameterized"
        )
    support: Tensor = base.enumerate_support(expand=False)
    return support


def element_shape(fn: Any, data_dim: int, particle_dim: int | None) -> tuple[int, ...]:
    """The shape of a datum's elements, each with a value of its own: plates inside the data's, and event dimensions.

    Dimensions of the data and of the particles have size 1.
    """
    base = base_distribution(fn)
    batch = [1 if d in (data_dim, particle_dim) else n for d, n in enumerate(fn.batch_shape, -len(fn.batch_shape))]
    event = fn.event_shape[: fn.event_dim - base.event_dim]
    return (*batch, *event)
