"""How time series go on: draws given the past, with intervals and their coverage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pyro
import torch
from pyro import poutine
from rich.table import Table
from torch import Tensor

from pyro_vae.evaluate.generate import choose_observed
from pyro_vae.evaluate.guide_density import density_guide
from pyro_vae.evaluate.marginal.particle_filter import Filter, check_series, lengths_of, with_steps
from pyro_vae.pair.arguments import check_data, check_keywords, map_rows, take
from pyro_vae.pair.networks import eval_mode, to_networks_device
from pyro_vae.pair.planning import plan_for, rows_that_fit
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.tracing import PARTICLE_PLATE, sample_sites, trace_pair
from pyro_vae.support.arguments import checked_from
from pyro_vae.support.random import seeded
from pyro_vae.support.results import Result
from pyro_vae.support.tables import new_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Forecast", "forecast"]

SHOWN = 4  # series in a picture


@dataclass(frozen=True, repr=False)
class Forecast(Result):
    """Draws of the next H steps of N series.

    Attributes:
        draws: `(S, N, H, *step)`. Draws of one series have the same past, filtered together: their errors are a little
            larger than those of independent ones.
        past: The series that they continue, `(N, T, *step)`.
        lengths: Their lengths, `(N,)`.
    """

    title: ClassVar[str] = "forecast"
    _rows_name: ClassVar[str] = "steps"
    _columns: ClassVar[tuple[str, ...]] = ("step", "mean", "scale", "width")

    draws: Tensor
    past: Tensor
    lengths: Tensor

    @property
    def mean(self) -> Tensor:
        """The mean of the draws, `(N, H, *step)`."""
        return self.draws.mean(0)

    @property
    def scale(self) -> Tensor:
        """Their standard deviation, `(N, H, *step)`."""
        return self.draws.std(0)

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """The central interval of each step, `(N, H, *step)` each: quantiles of the draws.

        Raises:
            ValueError: For a level outside (0, 1).
        """
        if not 0 < level < 1:
            raise ValueError(f"level must be between 0 and 1, got {level}")
        # torch's own function takes no more than 16 million elements
        ordered = self.draws.sort(0).values
        last = len(ordered) - 1
        ends = [(1 - level) / 2 * last, (1 + level) / 2 * last]
        low, high = (torch.lerp(ordered[int(end)], ordered[min(int(end) + 1, last)], end % 1.0) for end in ends)
        return low, high

    def coverage(self, actual: Tensor, level: float = 0.9) -> Tensor:
        """The share of what came, `(N, H, *step)`, inside the central intervals, for each step, `(H,)`.

        For a right model it is `level` in the mean over series, up to the noise of the quantiles; for counts, at least.

        Raises:
            ValueError: For another shape, or NaN.
        """
        if actual.shape != self.draws.shape[1:]:
            raise ValueError(f"actual must have the shape {tuple(self.draws.shape[1:])}, got {tuple(actual.shape)}")
        if bool(actual.isnan().any()):
            raise ValueError("actual has NaN, which is inside no interval: give the series without missing values")
        low, high = self.interval(level)
        inside = (low <= actual) & (actual <= high)
        return inside.double().movedim(1, 0).flatten(1).mean(1)

    def _values(self) -> dict[str, Any]:
        num_draws, num_data, steps = self.draws.shape[:3]
        return {"num_draws": num_draws, "num_data": num_data, "steps": steps, "scale": float(self.scale.mean())}

    def _rows(self) -> list[dict[str, Any]]:
        low, high = self.interval()
        per_step = [each.movedim(1, 0).flatten(1).mean(1).tolist() for each in (self.mean, self.scale, high - low)]
        names = self._columns[1:]
        return [
            {"step": i + 1, **dict(zip(names, values, strict=True))}
            for i, values in enumerate(zip(*per_step, strict=True))
        ]

    def table(self) -> Table:
        """For each step the mean over all series of the mean, the scale, and the width of the 90 % interval."""
        num_draws, num_data = self.draws.shape[:2]
        table = new_table(f"forecast of {num_data} series, {num_draws} draws", "step", "mean", "scale", "90 % width")
        for row in self.to_dicts():
            table.add_row(str(row["step"]), *(f"{row[name]:.4g}" for name in self._columns[1:]))
        return table

    def _draw(self) -> Figure:
        """The first series and what may follow: mean, and intervals of 50 and 90 %; of each the first variable."""
        from matplotlib.figure import Figure

        shown = min(SHOWN, self.draws.shape[1])
        figure = Figure(figsize=(9, 1.2 + 1.5 * shown), layout="constrained")
        steps = self.draws.shape[2]
        bands = {level: self.interval(level) for level in (0.9, 0.5)}
        for i, ax in enumerate(figure.subplots(shown, 1, squeeze=False).flatten()):
            end = int(self.lengths[i])
            ax.plot(range(1, end + 1), self.past[i, :end].reshape(end, -1)[:, 0].cpu(), color="black", lw=1)
            after = range(end + 1, end + steps + 1)
            for level, (low, high) in bands.items():
                low, high = (each[i].reshape(steps, -1)[:, 0].cpu() for each in (low, high))
                ax.fill_between(after, low, high, alpha=0.25, lw=0, color="#0072B2", label=f"{level:.0%} interval")
            ax.plot(after, self.mean[i].reshape(steps, -1)[:, 0].cpu(), color="#0072B2", label="mean")
            ax.set(ylabel=f"series {i + 1}")
            if i == 0:
                ax.legend(ncols=3, loc="upper left")
        ax.set(xlabel="time")
        return figure


@checked_from(steps=1, num_samples=1, every=1, memory=1)
def forecast(
    model: Program,
    guide: Program,
    x: Tensor,
    *args: Any,
    steps: int = 1,
    num_samples: int = 500,
    every: int = 1,
    site: str | None = None,
    memory: int | None = None,
    seed: int | None = None,
    **kwargs: Any,
) -> Forecast:
    r"""Draw the next steps of time series, given their past.

    .. math:: p(x_{T+1:T+H} \mid x_{1:T}) = \int p(x_{T+1:T+H} \mid z_{1:T})\, p(z_{1:T} \mid x_{1:T})\, dz_{1:T}

    The latents of the past come from a particle filter with the guide as proposal (see `pv.SMC`), those of the future
    and then the data from the model. So a guide that is only roughly right does not bias the forecast as `num_samples`
    grows. For pairs of series with a latent site for each time, as `pv.models.DeepMarkovModel`, whose model runs for
    any number of steps.

    Args:
        model, guide: The pair.
        x: Series `(N, T, ...)`.
        *args, **kwargs: Whatever else the pair takes; tensors with N rows are per-datum. If it has an argument called
            `lengths`, `(N,)`, each series goes on from its own end.
        steps: H, the number of steps.
        num_samples: S, particles of the filter and draws for each series.
        every: As for `pv.SMC`.
        site: Which observed site the series is. Default: the first of the shape of x, else the first.
        memory: Approximate bytes for intermediate tensors, which set how many series run at once.
        seed: A number makes the call reproducible and leaves torch's generators as they were. None continues their
            stream.

    Raises:
        ValueError: If x is no series, if there is no such site, or if a particle filter cannot run the pair.
        TypeError: For a keyword that neither this call nor the pair knows.

    Example:
        >>> import pyro_vae as pv
        >>> pair = pv.models.DeepMarkovModel((10, 2), latent_dim=3)
        >>> found = forecast(pair.model, pair.guide, torch.zeros(4, 10, 2), steps=5, num_samples=20)
        >>> found.draws.shape
        torch.Size([20, 4, 5, 2])
    """
    check_data((x,))
    check_keywords(forecast, kwargs, model, guide)
    data = to_networks_device((x, *args), model, guide), kwargs
    with torch.no_grad(), eval_mode(model, guide), seeded(seed):
        guide = density_guide(model, guide, data)
        plan = plan_for(model, guide, data)
        check_series(plan, data)
        fit = rows_that_fit(
            lambda: trace_pair(model, guide, *plan.example_data, num_particles=2, nesting=plan.particles.nesting),
            2 * len(plan.example_data[0][0]),
            x.device,
            memory,
        )
        given = lengths_of(model, data)
        lengths = torch.full((len(x),), x.shape[1]) if given is None else given.cpu()
        drawn: list[Tensor] = []
        order: list[Tensor] = []
        for length in lengths.unique().tolist():  # series of one length together: their ends differ else
            rows = (lengths == length).nonzero().squeeze(-1)
            alike = with_steps(model, _select_rows(data, rows), length)
            for start in range(0, len(rows), at_once := plan.data_at_once(fit, num_samples)):
                part = take(*alike, start, start + at_once)
                drawn.append(_continued((model, guide), part, steps, num_samples, every, site))
            order.append(rows)
    draws = torch.cat(drawn, 1)[:, torch.cat(order).argsort().to(drawn[0].device)]
    return Forecast(draws.to(x.device), x, lengths)


def _select_rows(data: Data, rows: Tensor) -> Data:
    return map_rows(lambda a: a[rows.to(a.device)], *data)


def _continued(
    pair: tuple[Program, Program], data: Data, steps: int, num_samples: int, every: int, site: str | None
) -> Tensor:
    """Draws of the next steps of series of one length, `(S, n, H, ...)`."""
    model, guide = pair
    with pyro.validation_enabled(False):
        past = Filter(model, guide, data, num_samples, every=every).run().resample()
        had = data[0][0].shape[1]
        args, kwargs = with_steps(model, data, had + steps)
        plate = pyro.plate(PARTICLE_PLATE, num_samples, dim=-2)
        trace = traced(poutine.uncondition(plate(model)), args, kwargs, on=past)
    # `uncondition` turns observed sites into latent ones and marks them
    observed = {name: s for name, s in sample_sites(trace) if s["infer"].get("was_observed")}
    _, found = choose_observed(observed, site, args[0])
    value = found["value"]
    if value.dim() < 3 or value.shape[2] != had + steps:
        raise ValueError(
            f"the observed site has draws of shape {tuple(value.shape)}, expected (particles, series, {had + steps}, "
            "...): give the site of the series as site=..."
        )
    return value[:, :, had:]
