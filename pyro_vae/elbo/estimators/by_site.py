"""The ELBO with an estimator of its own for each latent site."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from pyro.distributions.util import sum_rightmost
from torch import Tensor

from pyro_vae.compilation.mode import is_recording
from pyro_vae.elbo.estimators.bounds import scaled_kl
from pyro_vae.elbo.estimators.branches import DIRECTION, Branches, signs
from pyro_vae.elbo.estimators.densities import Densities, Weights
from pyro_vae.elbo.estimators.relaxed import as_discrete, discrete_kl
from pyro_vae.elbo.estimators.site_plan import SiteEstimator, SitePlan, parse, plan_of
from pyro_vae.elbo.estimators.surrogate import Factors, Run, SurrogateELBO, detached, surrogate_loss
from pyro_vae.elbo.estimators.terms import kl_sites
from pyro_vae.pair.particles import particles_of
from pyro_vae.pair.plates import DataPlate, data_plate
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.site_masks import base_distribution
from pyro_vae.pair.subsampling import SameIndices
from pyro_vae.pair.tracing import PairTrace, Site, sample_sites
from pyro_vae.support.arguments import checked

__all__ = ["BySite"]


class BySite(SurrogateELBO):
    r"""The ELBO, with the gradient of each latent site by an estimator of its own.

    .. math:: L = E_{q}[\log w], \qquad \log w = \log p(x, z) - \sum_i \log q(z_i | z_{<i}, x)

    with the sites in the guide's order. A particle is a set of branches c with masses `m_c`, which sum to one. Every
    branch is a run of the whole pair, in which sites are drawn given those before them. The gradient is

    .. math:: \nabla L = E\Big[\sum_c m_c \nabla \log w_c\big|_{z} + \sum_c m_c \sum_{i\ \text{moved}}
        \frac{\partial \log w_c}{\partial z_i} \nabla_\phi z_i + \sum_{i\ \text{not moved}} G_i\Big]

    and a site's estimator says what its branches are, whether its draw moves, and what its term is:

    - `"trace"`: pathwise where the site can be reparameterized, else "reinforce" without a baseline.
    - `"stl"`: pathwise; the score term of log q_i, of expectation zero, is left out.
    - `"mean_field"`: pathwise; the closed form of `E[log q_i - log p_i]` given the sites before stands in log w, where
      that is known (see `MeanField`).
    - `"reinforce"`: `G_i = sum_c m_c (log w_c - b) grad log q_i`, with any baseline b of `Reinforce` (an object of it;
      the name has none). Continuous sites may have it, too.
    - `"enum"`: a branch for each state of the site, `m_c` its probability, `G_i = sum_c m_c log w_c grad log q_i`: the
      sum over the states is exact. The states are those of all elements of a datum together, `C^E` of them, in plates
      inside that over the data and in event dimensions; so what reads several elements may read them in any way. Marks
      (`infer={"enumerate": ...}`) are not needed.
    - `"disarm"`: for Bernoulli sites, two branches with antithetic draws, 1/2 each, and the term of `DisARM`. Other
      sites of the guide may depend on the draw: they are drawn on each branch.
    - `"gumbel"`: the site is relaxed in guide and model, as by `Relaxed`, and pathwise. The bound then is one of the
      relaxed pair, and its gradient biased for the discrete one.

    Where a discrete site reads one that moves, the mass and the scored density of the former move with it. All but
    "gumbel" are unbiased for the ELBO, whatever the order of the sites, on either side: each branch is a draw of the
    guide given the states of the branch, so a site's term weighs what really follows from its draw.

    Args:
        sites: Estimators by site, names or objects (`{"y": "enum", "z": "stl"}`). Names that are identifiers can be
            keywords: `BySite(y=pv.elbo.Reinforce(baseline=net), z="stl")`. An object gives the options of its class.
        default: The estimator of all other latent sites.
        num_particles: K; every particle has all branches, so that K times their number of draws are run.
        vectorize_particles: As for `TensorELBO`.

    Raises:
        ValueError: For estimators of a pair as a whole (those of $L_K$ and "rebar" among them), a site that the guide
            does not have or that its estimator cannot treat, more than 4096 branches, and pairs with latents outside
            the plate over the data.
        TypeError: For a site's estimator that is neither a name nor an ELBO object.

    Reference: Schulman et al. 2015, arXiv 1506.05254 (which terms there are); Lew et al. 2023, arXiv 2302.12931, and
    Becker et al. 2024, PLDI, doi 10.1145/3656463 (composition by site); Roeder et al. 2017, arXiv 1703.09194; Dong,
    Mnih and Tucker 2020, arXiv 2006.10680.
    """

    for_discrete: ClassVar[bool] = True

    @checked
    def __init__(
        self,
        sites: Mapping[str, SiteEstimator] | None = None,
        *,
        default: SiteEstimator = "trace",
        num_particles: int = 1,
        vectorize_particles: bool | None = None,
        **named: Any,
    ) -> None:
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        if sites is not None and not isinstance(sites, Mapping):
            raise TypeError(f"sites must be a mapping from sites to estimators, got {sites!r}")
        twice = set(sites or ()) & set(named)
        if twice:
            raise ValueError(f"site {sorted(twice)[0]!r} is given twice, in the mapping and as a keyword")
        given = {**(sites or {}), **named}
        self.sites = {site: parse(site, spec, num_particles) for site, spec in given.items()}
        self.default = parse("default", default, num_particles)
        every = [*self.sites.values(), self.default]
        self.bound = "own" if any(t.name == "gumbel" for t in every) else "elbo"  # type: ignore[misc]
        self._relaxed = {id(t.options): t.options for t in every if t.name == "gumbel"}
        for site, treatment in (*self.sites.items(), ("default", self.default)):
            vars(self)[f"of_{site}"] = treatment.options  # attributes, whose state is that of the estimator
        self._of: tuple[Any, SitePlan, tuple[Program, Program], bool | None, int] | None = None

    def __str__(self) -> str:
        sites = {site: treatment.name for site, treatment in self.sites.items()}
        if self.default.name != "trace" or not sites:
            sites["others"] = self.default.name
        return ", ".join(f"{site}={name}" for site, name in sites.items())

    @property
    def rows(self) -> int:
        return self.num_particles * (self._of[1].branches if self._of is not None else 1)

    def advance(self) -> None:
        """Move relaxations on to their temperature of the next gradient."""
        for relaxed in self._relaxed.values():
            relaxed.advance()

    def plan(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SitePlan:
        """How the sites of a pair are treated; made once for a pair and the shapes of its arguments."""
        shapes = [tuple(getattr(a, "shape", ())) for a in (*args, *kwargs.values())]
        key = model, guide, shapes
        if self._of is None or self._of[0] != key:
            plan = plan_of(model, guide, args, kwargs, self.sites, self.default)
            relaxed = model, guide
            for options in self._relaxed.values():
                only = frozenset(site for site, t in plan.treatments.items() if t.options is options)
                relaxed = options.relaxing(*relaxed, only)
            rows = self.num_particles * plan.branches
            # planned for the pair itself: its densities are defined at its own draws, not at relaxed ones
            particles = particles_of(model, guide, (args, kwargs), self.vectorize_particles) if rows > 1 else None
            vectorize, nesting = (particles.vectorize, particles.nesting) if particles else (None, 0)
            self._of = key, plan, relaxed, vectorize, nesting
        return self._of[1]

    def layout(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: Any) -> tuple[int, int | None]:
        assert self._of is not None
        vectorize, nesting = self._of[3:]
        return (1, -1 - nesting) if vectorize else (self.rows, None)

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        if torch.is_grad_enabled() and not is_recording():
            self.advance()
        plan = self.plan(model, guide, args, kwargs)
        assert self._of is not None
        count, dim, model, guide = self.programs(*self._of[2], args, kwargs)
        branches, runs = Branches(plan, self.rows, dim), list[Run]()
        with SameIndices():
            for row in range(count):
                branches.row = row
                runs.append(_run(plan, model, guide, traced(branches(guide), args, kwargs), dim, args, kwargs))
        with torch.no_grad():
            factors, signals = _factors(plan, runs, self.num_particles, *args)
        extra: Any = sum(plan.treatments[site].options.extra_loss(s, *args) for site, s in signals.items())
        return runs[0].plate.subsampling * (surrogate_loss(runs, factors, dim) + extra)


@dataclass(frozen=True)
class SiteWeights(Weights):
    """Log-densities of a run, each site of the guide a group of its own.

    `log_mass` is that of each branch, `(K, N)` or less, without the even mass of particles and antithetic draws.
    """

    log_mass: Tensor


def _run(plan: SitePlan, model: Program, guide: Program, drawn: Any, dim: int | None, args: Any, kwargs: Any) -> Run:
    """The densities of one run, with the draws of sites that move as detached copies."""
    moved = {name for name, treatment in plan.treatments.items() if treatment.moves}
    traces, draws = detached(model, guide, drawn, dim, args, kwargs, moved)
    for name, site in sample_sites(traces.guide):
        if name not in plan.treatments and not site["is_observed"]:
            raise ValueError(f"site {name!r} was not in the guide's first run: estimators by site need the same sites")
    plate = data_plate(traces, len(args[0]))
    return Run(_weights(plan, traces, plate, drawn), plate, draws)


def _weights(plan: SitePlan, traces: PairTrace, plate: DataPlate, drawn: Any) -> SiteWeights:
    """Log-densities by site: a closed form takes the place of log q of its site, and of its log p."""
    densities = Densities(traces, plate)
    known = {name: densities.per_datum(kl) / plate.subsampling for name, kl in _closed_forms(plan, traces).items()}
    counted: Any = densities.counted
    log_p = counted([(name, site) for name, site in sample_sites(traces.model) if name not in known])
    log_q: dict[str, Tensor] = {}
    scored: dict[str, Callable[[], Any]] = {}
    for name, site in sample_sites(traces.guide):
        log_q[name] = known[name] if name in known else counted([(name, site)])
        if DIRECTION in drawn.nodes[name]:
            scored[name] = partial(_antithetic_score, densities, site, drawn.nodes[name][DIRECTION])
        else:
            scored[name] = partial(densities.drawn, [(name, site)], log_q[name])
    log_mass = torch.zeros(())
    summed = plan.named("enum")
    if summed:
        masses = {name: scored[name]() for name in summed}
        log_mass = torch.stack([mass.detach() for mass in masses.values()]).sum(0)
        keep = log_mass > -math.inf  # nothing is made of a state that cannot be, where its weight is infinite
        log_p = log_p.where(keep, 0.0)
        log_q = {name: term.where(keep, 0.0) for name, term in log_q.items()}
        scored |= {name: partial(torch.where, keep, mass, 0.0) for name, mass in masses.items()}
    return SiteWeights(log_p, log_q, scored, log_mass)


def _closed_forms(plan: SitePlan, traces: PairTrace) -> dict[str, Tensor]:
    """`E[a log q - b log p]` of sites for which it is asked and known, batch-shaped, scaled and masked."""
    relaxed = [name for name in plan.named("gumbel") if plan.treatments[name].options.prior == "discrete"]
    analytic = plan.named("mean_field")
    sites = dict(sample_sites(traces.guide))
    result: dict[str, Tensor] = {}
    if relaxed or analytic:
        known = kl_sites(as_discrete(traces, relaxed))
        for name in relaxed:
            result[name] = discrete_kl(name, sites[name], traces.model.nodes[name], known)
        for name in analytic:
            if name in known:
                result[name] = scaled_kl(name, sites[name], traces.model.nodes[name], known[name])
    return result


def _antithetic_score(densities: Densities, site: Site, direction: Tensor) -> Tensor:
    """What has the slope `(-1)^b~ 1[b != b~] sigmoid(|alpha|)` in the logits alpha, summed to `(K, N)`."""
    logits = base_distribution(site["fn"]).logits
    score = direction * logits.detach().abs().sigmoid() * logits
    return densities.per_datum(sum_rightmost(score, site["fn"].event_dim))


def _factors(plan: SitePlan, runs: list[Run], num_particles: int, *args: Any) -> tuple[Factors, dict[str, Tensor]]:
    """The factors of all rows, and the signals `(K, N)` that a score function's baseline is of."""

    def rows(of: Callable[[Any], Tensor]) -> Tensor:
        return torch.cat([of(run.weights) for run in runs])

    log_w = rows(lambda w: w.log_w)
    even = 0.5 ** len(plan.named("disarm")) / num_particles
    mass = even * rows(lambda w: w.log_mass.expand_as(w.log_w)).exp()
    guide: dict[str, Tensor | float] = {name: -mass for name in runs[0].weights.log_q if name not in plan.treatments}
    score: dict[str, Tensor | float] = {}
    signals: dict[str, Tensor] = {}
    for name, treatment in plan.treatments.items():
        if treatment.moves:
            guide[name] = 0.0 if treatment.name == "stl" else -mass
        elif treatment.name == "enum":
            score[name] = mass * log_w
        elif treatment.name == "disarm":
            score[name] = mass * log_w * signs(plan, name, len(log_w)).to(log_w)
        else:
            signals[name] = (num_particles * mass * log_w).unflatten(0, (num_particles, -1)).sum(1)
            baseline = treatment.options.baseline_of(signals[name], *args)
            if isinstance(baseline, Tensor) and baseline.dim() == 2:
                baseline = baseline.repeat_interleave(plan.branches, 0)
            score[name] = mass * (log_w - baseline)
    return Factors((mass * log_w).sum(0), mass, mass, guide, score, frozenset(score)), signals
