"""The result of `log_marginal`: estimates of log p(x) with their errors and diagnostics."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import torch
from rich.table import Table
from torch import Tensor

from pyro_vae.evaluate.marginal.khat import khat_threshold
from pyro_vae.evaluate.marginal.weights import Weights
from pyro_vae.support.pictures import histogram
from pyro_vae.support.results import Result
from pyro_vae.support.statistics import standard_error
from pyro_vae.support.tables import indexed_rows, new_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LogMarginal", "caveats", "concatenate", "estimate_from_weights"]


FEW = 10  # effective samples below which the error of an estimate is a guess itself


def caveats(bad: int, total: int, ess: float, num_samples: float) -> list[str]:
    """What to know of a mean over estimates of log p(x), beside its error.

    Args:
        bad: How many estimates are unreliable.
        total: How many there are.
        ess: Their median effective sample size.
        num_samples: Their median number of samples.
    """
    notes = []
    if bad:
        notes.append(
            f"k-hat calls {bad} of {total} estimates of log p(x) unreliable: the mean may be too low by more than its "
            "error says"
        )
    return [*notes, *few_samples(ess, num_samples)]


def few_samples(ess: float, num_samples: float) -> list[str]:
    """What to know of an error from an effective sample size that is small, and smaller than the number of samples."""
    if ess >= min(FEW, num_samples / 2):
        return []
    return [
        f"the effective sample size is {ess:.1f} (median of the data), too few to tell an error: the mean may be too "
        "low by much more than it says; take more samples"
    ]


@dataclass(frozen=True, repr=False)
class LogMarginal(Result):
    """Per-datum estimates of log p(x) in nats, each a tensor of shape `(N,)`.

    Attributes:
        log_prob: Log of the mean weight. Its expectation is below log p(x), and approaches it with `num_samples`.
        std_error: Monte Carlo standard error of `log_prob` (delta method). It is itself unreliable if `ess` is small or
            `khat` is large.
        ess: Effective sample size (sum w)^2 / sum w^2, between 1 and `num_samples`.
        num_samples: Weights per datum, `(N,)` if they differ: importance samples, or chains of annealed importance
            sampling.
        khat: Pareto k-hat of the tail of the weights; above 0.7 more samples hardly help. -inf if all weights are
            equal, NaN for fewer than 25 samples.
        bounds: The bounds L_1, L_2, L_4, ..., `(J, N)`, each averaged over disjoint blocks of the same weights; NaN
            where a datum has too few.
        method: Name of the method.
        acceptance: Fraction of accepted proposals of the Markov chains, `(N,)`; None for independent samples.
        interrupted: Whether the computation was stopped; the result then holds only the first data.
        is_joint: Whether this is one number, for all data together.
    """

    title: ClassVar[str] = "log p(x)"
    _rows_name: ClassVar[str] = "data"
    _columns: ClassVar[tuple[str, ...]] = ("index", "log_prob", "std_error", "ess", "num_samples", "unreliable")

    log_prob: Tensor
    std_error: Tensor
    ess: Tensor
    num_samples: int | Tensor
    khat: Tensor | None = None
    bounds: Tensor | None = None
    method: str = "importance"
    acceptance: Tensor | None = None
    interrupted: bool = False
    is_joint: bool = False

    @property
    def mean(self) -> float:
        """Mean of `log_prob` over the data, nats per datum."""
        return float(self.log_prob.double().mean())

    @property
    def mean_error(self) -> float:
        """Monte Carlo standard error of `mean` for these data, which more samples reduce."""
        return float(self.std_error.double().square().sum().sqrt() / len(self.std_error))

    @property
    def sampling_error(self) -> float:
        """Standard error of `mean` as an estimate for the population, which more data reduce."""
        return standard_error(self.log_prob)

    @property
    def counts(self) -> Tensor:
        """`num_samples` of each datum, `(N,)`."""
        return torch.as_tensor(self.num_samples, device=self.log_prob.device).expand(len(self))

    @property
    def unreliable(self) -> Tensor:
        """Indices of the data with an unreliable estimate.

        A datum that is not among them is not thereby safe: under a proposal that is too narrow, the data whose tail was
        not drawn at all have a small k-hat, and are the worse ones. Where many are listed, mind the others, too:
        `pv.repair` looks at a sample of them.

        Those with a k-hat above `min(1 - 1/log10 K, 0.7)`, and those whose estimate is not a finite number. A k-hat
        that cannot be told (NaN, fewer than 25 samples) counts for nothing.
        """
        bad = ~self.log_prob.isfinite()
        if self.khat is not None:
            limits = {int(k): khat_threshold(int(k)) for k in self.counts.unique()}
            limit = torch.tensor([limits[int(k)] for k in self.counts.tolist()], device=bad.device)
            bad = bad | (self.khat > limit)
        return bad.nonzero().squeeze(-1)

    @property
    def caveats(self) -> list[str]:
        """What to know of `mean` beside its error, a sentence each; empty if there is nothing."""
        return caveats(len(self.unreliable), len(self), *self._medians) if len(self) else []

    @property
    def _medians(self) -> tuple[float, float]:
        """Of the effective sample sizes, and of the numbers of samples."""
        return float(self.ess.median()), float(self.counts.double().median())

    @property
    def convergence(self) -> dict[int, float]:
        """Mean over the data of L_k, nats per datum, for k = 1, 2, 4, ... and for all samples.

        If the curve still rises at its end, `log_prob` is below log p(x) by about its remaining rise.
        """
        found = {} if self.bounds is None else {2**j: float(level.mean()) for j, level in enumerate(self.bounds)}
        found = {k: value for k, value in found.items() if math.isfinite(value)}
        if len(self.counts.unique()) == 1:
            found[int(self.counts[0])] = self.mean
        return found if math.isfinite(self.mean) else {}

    def to(self, device: torch.device | str) -> Self:
        """The same result on another device."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        moved: dict[str, Any] = {k: v.to(device) for k, v in values.items() if isinstance(v, Tensor)}
        return dataclasses.replace(self, **moved)

    def __len__(self) -> int:
        return len(self.log_prob)

    def __repr__(self) -> str:
        if not len(self):
            return "log p(x) of no data"
        count, unit = self._samples
        per_datum = f"per datum ({len(self)} data, {count} {unit} each"
        text = (
            f"log p(x) = {self.mean:.3f} ± {self.mean_error:.3f} nats "
            f"{f'for all data together ({count} {unit}' if self.is_joint else per_datum}; "
            f"ESS median {float(self.ess.median()):.1f}, min {float(self.ess.min()):.1f})"
        )
        if self.khat is not None and not self.khat.isnan().all():
            text += (
                f"\nk-hat median {float(self.khat.nanmedian()):.2f}, max {float(self.khat.max()):.2f}; "
                f"{len(self.unreliable)} of {len(self)} estimates unreliable"
            )
        text += ", interrupted" if self.interrupted else ""
        return "\n".join([text, *few_samples(*self._medians)])

    @property
    def _samples(self) -> tuple[str, str]:
        least, most = int(self.counts.min()), int(self.counts.max())
        return (
            str(least) if least == most else f"{least} to {most}",
            "chains" if self.acceptance is not None else "filters" if self.method == "smc" else "samples",
        )

    def _values(self) -> dict[str, Any]:
        values = {
            "method": self.method,
            "log_prob": self.mean,
            "log_prob_error": self.mean_error,
            "log_prob_sampling_error": self.sampling_error,
            "ess_median": float(self.ess.median()),
            "ess_min": float(self.ess.min()) if len(self) else math.nan,
            "num_samples": self.num_samples if isinstance(self.num_samples, int) else float(self.counts.float().mean()),
            "num_data": len(self),
            "num_unreliable": len(self.unreliable),
        }
        if self.khat is not None:
            values |= {
                "khat_median": float(self.khat.median()),
                "khat_max": float(self.khat.max()) if len(self) else math.nan,
            }
        return values

    def _rows(self) -> list[dict[str, Any]]:
        columns = {
            field.name: value
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor) and value.shape == self.log_prob.shape
        }
        unreliable = torch.zeros_like(self.log_prob, dtype=torch.bool)
        unreliable[self.unreliable] = True
        return indexed_rows({**columns, "num_samples": self.counts, "unreliable": unreliable})

    def _content(self) -> dict[str, Any]:
        return {**self.to_dict(), "convergence": self.convergence, "data": self.to_dicts()}

    def table(self) -> Table:
        """Values of the data set, in nats per datum."""
        of = "all data together" if self.is_joint else f"{len(self)} data"
        table = new_table(f"{self.title} of {of}, {self.method}", "", "")
        table.add_row("nats" if self.is_joint else "mean, nats per datum", f"{self.mean:.3f} ± {self.mean_error:.3f}")
        if not self.is_joint:
            table.add_row("its error as an estimate for the population", f"{self.sampling_error:.3f}")
        if not len(self):
            return table
        count, unit = self._samples
        table.add_row(f"{unit} each", count)
        table.add_row("effective sample size, median", f"{float(self.ess.median()):.1f}")
        table.add_row("effective sample size, least", f"{float(self.ess.min()):.1f}")
        if self.khat is not None and not self.khat.isnan().all():
            table.add_row("k-hat, median", f"{float(self.khat.nanmedian()):.2f}")
            table.add_row("k-hat, greatest", f"{float(self.khat[~self.khat.isnan()].max()):.2f}")
        table.add_row("unreliable estimates", str(len(self.unreliable)))
        table.caption = "\n".join(few_samples(*self._medians)) or None
        if self.interrupted:
            table.add_row("interrupted", "yes")
        return table

    def _draw(self) -> Figure:
        """The mean bound against the number of samples, and the k-hats of the data."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.6), layout="constrained")
        bounds, tails = figure.subplots(1, 2)
        curve = self.convergence
        bounds.plot(list(curve), list(curve.values()), marker=".")
        if not curve:
            bounds.text(0.5, 0.5, "no finite bound", ha="center", transform=bounds.transAxes)
        bounds.set(xscale="log", xlabel="samples k", ylabel="mean bound L_k (nats per datum)")
        if self.khat is None or not self.khat.isfinite().any():
            histogram(tails, self.log_prob, "log p(x) (nats)")
        else:
            histogram(tails, self.khat, "k-hat (unreliable right of the line)")
            tails.axvline(khat_threshold(int(self.counts.max())), color="black", lw=0.8, ls=":")
        return figure


Estimate = TypeVar("Estimate", bound=LogMarginal)


def estimate_from_weights(weights: Weights, dtype: torch.dtype, **others: Any) -> LogMarginal:
    """The estimates from importance weights, for data of a dtype."""
    dtype = torch.promote_types(dtype, torch.float32)
    # about the rounding error of log-densities, which are sums over many elements
    rounding = math.sqrt(torch.finfo(dtype).eps)
    first = weights.count[0]
    same = bool((weights.count == first).all())
    return LogMarginal(
        weights.log_mean.to(dtype),
        weights.std_error.to(dtype),
        (1 / weights.inverse_ess).to(dtype),
        int(first) if same else weights.count,
        weights.khat(rounding).to(dtype),
        weights.bounds().to(dtype),
        **others,
    )


def concatenate(parts: Sequence[Estimate]) -> Estimate:
    """Join the results of several parts of the data."""
    levels = max((0 if p.bounds is None else len(p.bounds)) for p in parts)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(parts[0]):
        values = [getattr(part, field.name) for part in parts]
        if field.name == "num_samples":
            counts = torch.cat([part.counts for part in parts])
            fields["num_samples"] = int(counts[0]) if (counts == counts[0]).all() else counts
        elif field.name == "bounds" and levels:
            missing = [v.new_full((levels - len(v), v.shape[1]), math.nan) for v in values]
            fields["bounds"] = torch.cat([torch.cat(pair) for pair in zip(values, missing, strict=True)], dim=1)
        else:
            fields[field.name] = torch.cat(values) if isinstance(values[0], Tensor) else values[0]
    return dataclasses.replace(parts[0], **fields)
