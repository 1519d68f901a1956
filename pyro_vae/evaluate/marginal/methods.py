"""The ways to estimate log p(x), with their options."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from pyro_vae.support.arguments import checked

__all__ = ["AIS", "BDMC", "METHODS", "SMC", "Importance", "Method", "resolve_method", "option_hints"]


@checked
@dataclass(frozen=True, kw_only=True)
class Importance:
    r"""Importance sampling with the weights :math:`w = p(x, z) / q(z|x)` for z from the guide.

    Args:
        proposal: "guide", or "prior", for which `w = p(x|z)`: unbiased for p(x), but useful only in one or two
            dimensions.
        defensive: Fraction a in [0, 1) of the samples that are drawn from the prior. All samples are weighted with the
            density of the mixture `(1 - a) q(z|x) + a p(z)`, so no weight exceeds `p(x|z) / a`, even if the guide is
            too narrow.
        target_error: Standard error per datum in nats: the number of samples is doubled for each datum with a larger
            error, up to `max_samples`. Start with at least a few hundred samples: an error estimated from few weights
            may be small by chance, and the estimates of data that stop early are then too low on average.
        max_samples: Maximum number of samples per datum with `target_error`.

    Raises:
        ValueError: If an option is out of its range.

    Reference: Rezende et al. 2014, arXiv 1401.4082, appendix E; Burda et al. 2016, arXiv 1509.00519.
    """

    proposal: Literal["guide", "prior"] = "guide"
    defensive: float = 0.0
    target_error: float | None = None
    max_samples: int = 1_000_000

    def __post_init__(self) -> None:
        if self.proposal not in ("guide", "prior"):
            raise ValueError(f"proposal must be 'guide' or 'prior', got {self.proposal!r}")
        if not 0 <= self.defensive < 1:
            raise ValueError(
                f"defensive must be in [0, 1), got {self.defensive}: for the prior alone use proposal='prior'"
            )
        if self.defensive and self.proposal == "prior":
            raise ValueError("defensive is for proposal='guide': with proposal='prior' the prior draws all samples")
        if self.target_error is not None and not self.target_error > 0:
            raise ValueError(f"target_error must be a positive number of nats, got {self.target_error}")
        if self.max_samples < 1:
            raise ValueError(f"max_samples must be at least 1, got {self.max_samples}")

    @property
    def name(self) -> str:
        """The name of the method in results."""
        return "importance" if self.proposal == "guide" else "prior"

    @property
    def needs_guide(self) -> bool:
        """Whether the method uses a guide."""
        return self.proposal == "guide"

    @property
    def prior_fraction(self) -> float:
        """The fraction of the samples that are drawn from the prior."""
        return 1.0 if self.proposal == "prior" else self.defensive


@checked
@dataclass(frozen=True, kw_only=True)
class AIS:
    """Annealed importance sampling: chains of Hamiltonian moves from the prior (or the guide) to the posterior.

    It does not depend on the guide unless it starts there, and needs continuous latents. It costs `num_chains *
    num_temperatures * leapfrog_steps` gradients per datum. A pilot run adapts the step sizes per datum and temperature
    to an acceptance of 0.65.

    Args:
        num_chains: Independent chains per datum.
        num_temperatures: Steps of the inverse temperature from 0 to 1.
        leapfrog_steps: Leapfrog steps in each move.
        start: Initial distribution of the chains, "prior" or "guide".
        schedule: Schedule of the inverse temperatures, "sigmoid" (finer at both ends) or "linear".

    Raises:
        ValueError: If an option is out of its range.

    Reference: Neal 2001, arXiv physics/9803008; Wu et al. 2017, arXiv 1611.04273.
    """

    num_chains: int = 16
    num_temperatures: int = 500
    leapfrog_steps: int = 10
    start: Literal["prior", "guide"] = "prior"
    schedule: Literal["sigmoid", "linear"] = "sigmoid"

    def __post_init__(self) -> None:
        for name in ("num_chains", "num_temperatures", "leapfrog_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.start not in ("prior", "guide"):
            raise ValueError(f"start must be 'prior' or 'guide', got {self.start!r}")
        if self.schedule not in ("sigmoid", "linear"):
            raise ValueError(f"schedule must be 'sigmoid' or 'linear', got {self.schedule!r}")

    @property
    def name(self) -> str:
        """The name of the method in results."""
        return "ais"

    @property
    def needs_guide(self) -> bool:
        """Whether the method uses a guide."""
        return self.start == "guide"


@checked
@dataclass(frozen=True, kw_only=True)
class BDMC(AIS):
    """Bidirectional Monte Carlo: bounds on log p(x) from both sides, by annealing on simulated data.

    Data are simulated from the model in place of the given ones, so one exact draw from each posterior is known. Chains
    from the prior bound log p(x) from below, reversed chains from the posterior draw bound it from above. The gap
    measures the accuracy of `AIS` with the same options on data like the simulated ones.

    Args: those of `AIS`.

    Reference: Grosse, Ghahramani and Adams 2015, arXiv 1511.02543.
    """

    @property
    def name(self) -> str:
        """The name of the method in results."""
        return "bdmc"


@checked
@dataclass(frozen=True, kw_only=True)
class SMC:
    r"""Sequential Monte Carlo for time series: a particle filter whose proposal is the guide.

    .. math:: \hat p(x_{1:T}) = \prod_t \frac1K \sum_k \frac{p(x_{1:t}, z_{1:t}^k)}{p(x_{1:t-1}, z_{1:t-1}^k)\,
        q(z_t^k \mid z_{1:t-1}^k, x_{1:t})}

    Unbiased for p(x), where importance sampling of whole series has weights whose variance grows exponentially with T.
    For pairs of series `(N, T, ...)` with a latent site for each time, such as `pv.models.DeepMarkovModel`: at time t
    the pair runs on the first t steps, and the guide draws the latents that are new. An argument of the pair called
    `lengths` is cut accordingly. A pass costs T / `every` runs of the pair.

    Args:
        num_particles: K, particles of each filter.
        num_runs: R, independent filters. Their estimates are the weights of the result, whose error is from their
            spread.
        every: Steps of time between two stages; T or more is importance sampling.
        threshold: Particles are resampled where the effective sample size is below this fraction of K.

    Raises:
        ValueError: If an option is out of its range.

    Reference: Gordon, Salmond and Smith 1993, IEE Proceedings F 140; Doucet and Johansen 2009, A tutorial on particle
    filtering and smoothing, sections 3 and 4.
    """

    num_particles: int = 500
    num_runs: int = 10
    every: int = 1
    threshold: float = 0.5

    def __post_init__(self) -> None:
        for name in ("num_particles", "num_runs", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], got {self.threshold}")

    @property
    def name(self) -> str:
        """The name of the method in results."""
        return "smc"

    @property
    def needs_guide(self) -> bool:
        """Whether the method uses a guide."""
        return True


Method = Importance | AIS | SMC
METHODS: dict[str, Method] = {
    "importance": Importance(),
    "prior": Importance(proposal="prior"),
    "ais": AIS(),
    "bdmc": BDMC(),
    "smc": SMC(),
}


def resolve_method(method: str | Method) -> Method:
    """The method of a name, with its defaults; a method is returned unchanged.

    Raises:
        ValueError: For an unknown name. There is no "harmonic" method.
        TypeError: For anything else.
    """
    if isinstance(method, Method):
        return method
    names = ", ".join(map(repr, METHODS))
    if not isinstance(method, str):
        raise TypeError(f"method must be one of {names}, or pv.Importance, pv.AIS, pv.BDMC or pv.SMC, got {method!r}")
    if "harmonic" in method.lower():
        raise ValueError(
            f"method={method!r}: the harmonic mean of likelihoods under the posterior has infinite variance for almost "
            "every model (Neal's comment on Newton and Raftery 1994), so its estimates are far too high for any "
            "number of samples: use 'ais', or 'bdmc' for a bound from above"
        )
    if method not in METHODS:
        raise ValueError(f"method must be one of {names}, got {method!r}")
    return METHODS[method]


def option_hints(method: Method) -> dict[str, str]:
    """Advice by keyword, where an option of a method is passed to the call itself."""
    hints: dict[str, str] = {}
    for kind in (SMC, AIS, Importance, type(method)):  # the chosen method overrides the others
        for field in fields(kind):
            hints[field.name] = f"it is an option of a method, method=pv.{kind.__name__}({field.name}=...)"
    return hints
