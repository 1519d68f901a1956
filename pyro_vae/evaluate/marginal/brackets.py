"""Bounds on log p(x) from both sides, on data simulated from the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from rich.table import Table
from torch import Tensor

from pyro_vae.evaluate.marginal.annealing import pilot_temperatures, prepared
from pyro_vae.evaluate.marginal.importance_sampling import check_finite
from pyro_vae.evaluate.marginal.latent_space import LatentSpace
from pyro_vae.evaluate.marginal.methods import BDMC
from pyro_vae.evaluate.marginal.result import LogMarginal, concatenate, estimate_from_weights
from pyro_vae.evaluate.marginal.weights import Weights
from pyro_vae.pair.arguments import take
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.tracing import log_prob, sample_sites
from pyro_vae.support.pictures import histogram
from pyro_vae.support.progress import Advance, progress_bar, until_interrupted
from pyro_vae.support.statistics import standard_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["BidirectionalBounds", "bidirectional", "simulate"]


@dataclass(frozen=True, repr=False)
class BidirectionalBounds(LogMarginal):
    """Estimates of log p(x) from below (`lower`, the same as `log_prob`) and from above, for simulated data.

    Attributes:
        upper: Minus the log of the mean weight of the reversed chains, `(N,)`, nats. Its expectation is above log p(x).
        upper_error: Monte Carlo standard error of `upper`, `(N,)`, over chains from the same posterior draw; it
            excludes the noise of that draw.
        args, kwargs: The simulated data, in place of the given data, and the pair's other arguments.
    """

    title: ClassVar[str] = "log p(x) from both sides"

    upper: Tensor = field(default_factory=lambda: torch.empty(0))
    upper_error: Tensor = field(default_factory=lambda: torch.empty(0))
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def lower(self) -> Tensor:
        """Estimates from below, `(N,)`, nats."""
        return self.log_prob

    @property
    def gap(self) -> float:
        """Mean of `upper - lower` over the data, nats per datum: it bounds the error of either mean in expectation."""
        return float((self.upper - self.lower).double().mean())

    @property
    def gap_error(self) -> float:
        """Standard error of `gap` over the data."""
        return standard_error(self.upper - self.lower)

    def __repr__(self) -> str:
        return (
            f"{self.mean:.3f} ± {self.mean_error:.3f} <= log p(x) <= {float(self.upper.double().mean()):.3f} nats per "
            f"datum (gap {self.gap:.3f} ± {self.gap_error:.3f}; {len(self)} simulated data, {self.num_samples} chains "
            "each)" + (", interrupted" if self.interrupted else "")
        )

    def _values(self) -> dict[str, Any]:
        upper = float(self.upper.double().mean())
        return {**super()._values(), "upper": upper, "gap": self.gap, "gap_error": self.gap_error}

    def table(self) -> Table:
        """Values of the data set, in nats per datum."""
        table = super().table()
        table.add_row("mean from above", f"{float(self.upper.double().mean()):.3f}")
        table.add_row("gap between the two", f"{self.gap:.3f} ± {self.gap_error:.3f}")
        return table

    def _draw(self) -> Figure:
        """The bounds of each datum, and a histogram of their differences."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.6), layout="constrained")
        both, gaps = figure.subplots(1, 2)
        order = self.lower.argsort()
        lower, upper = (values[order].cpu().tolist() for values in (self.lower, self.upper))
        both.vlines(range(len(self)), lower, upper, color="C0", lw=1, alpha=0.6)
        for values, marker, label in ((upper, "v", "from above"), (lower, "^", "from below")):
            both.plot(range(len(self)), values, marker, ms=3, color="C0" if marker == "^" else "C1", label=label)
        both.set(xlabel="simulated data, by their lower bound", ylabel="log p(x) (nats)")
        both.legend(fontsize=8)
        histogram(gaps, self.upper - self.lower, "upper - lower (nats)")
        gaps.axvline(self.gap, color="black", lw=0.8, ls=":")
        return figure


def simulate(model: Program, data: Data) -> tuple[Data, Any]:
    """Simulate a model; returns its arguments with simulated data, and its trace on them with the true latents.

    Raises:
        ValueError: If the model cannot be simulated: it observes a value that is not an argument, has a factor, or the
            distribution of the observations depends on the observations themselves.
    """
    args, kwargs = data
    with poutine.block():
        seen: Any = traced(model, args, kwargs)
        for name, site in sample_sites(seen):
            if site["is_observed"] and isinstance(site["fn"], dist.Unit):
                raise ValueError(
                    f"site {name!r} is a pyro.factor, from which no data can be drawn: bdmc needs a distribution"
                )
        drawn: Any = traced(poutine.uncondition(model), args, kwargs)
    named: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
    observed = [name for name, site in sample_sites(seen) if site["is_observed"]]
    for name in observed:
        old, new = seen.nodes[name]["value"], drawn.nodes[name]["value"]
        places = [key for key, a in named.items() if isinstance(a, Tensor) and _same(a, old)]
        if not places:
            raise ValueError(
                f"the value of the observed site {name!r} is not one of the arguments, so it cannot be replaced "
                "by simulated data: pass the observed tensor itself to the model"
            )
        named[places[0]] = new.to(named[places[0]].dtype)
    result = tuple(named[i] for i in range(len(args))), {key: named[key] for key in kwargs}
    with poutine.block():
        again: Any = traced(model, *result, on=drawn)
    for name in observed:
        before, after = (log_prob(name, {**t.nodes[name], "value": again.nodes[name]["value"]}) for t in (drawn, again))
        if not torch.allclose(before, after, rtol=1e-3, atol=1e-3):
            raise ValueError(
                f"the distribution of the observed site {name!r} depends on the observations themselves, so they "
                "cannot be simulated in one run: use method='ais'"
            )
    return result, prune_subsample_sites(again)


def _same(a: Tensor, value: Tensor) -> bool:
    return a.shape == value.shape and torch.equal(a.to(value), value)


def bidirectional(
    model: Program, guide: Program | None, data: Data, method: BDMC, *, memory: int | None, progress: bool | None
) -> BidirectionalBounds:
    """`log_marginal` from both sides.

    The caller disables gradients and puts the networks in evaluation mode.
    """
    guide = guide if method.start == "guide" else None
    data, run = simulate(model, data)
    x, n = data[0][0], len(data[0][0])
    posterior = LatentSpace(model, guide, data, 1).row_of(run)  # one exact draw from p(z|x) for each datum

    def parts(advance: Advance) -> Iterator[BidirectionalBounds]:
        for start, stop, chains in prepared(model, guide, data, method, memory, advance):
            forward, accepted = chains.run(chains.space.draw(), advance)
            backward, _ = chains.run(posterior[start:stop].repeat(method.num_chains, 1), advance, backward=True)
            weights, inverse = (Weights(stop - start, method.num_chains, x.device) for _ in range(2))
            weights.add(forward)
            inverse.add(backward)
            check_finite(weights, start)
            lower = estimate_from_weights(weights, x.dtype, method=method.name, acceptance=accepted.mean(0))
            upper, error = -inverse.log_mean.to(lower.log_prob), inverse.std_error.to(lower.log_prob)
            yield BidirectionalBounds(**vars(lower), upper=upper, upper_error=error)

    with progress_bar("BDMC", n * (2 * method.num_temperatures + pilot_temperatures(method) - 1), progress) as advance:
        found, interrupted = until_interrupted(parts(advance))
    result = concatenate(found)
    args, kwargs = take(*data, 0, len(result))
    return dataclasses.replace(result, args=args, kwargs=kwargs, interrupted=interrupted)
