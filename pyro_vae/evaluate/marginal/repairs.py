"""New estimates of log p(x) for data whose first estimate is unreliable."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rich.table import Table
from torch import Tensor

from pyro_vae.evaluate.deprecated import accepts_earlier_form
from pyro_vae.evaluate.marginal.likelihood import log_marginal
from pyro_vae.evaluate.marginal.methods import BDMC, METHODS, Method, option_hints, resolve_method
from pyro_vae.evaluate.marginal.result import LogMarginal
from pyro_vae.pair.arguments import check_data, check_keywords, map_rows
from pyro_vae.pair.protocol import Program
from pyro_vae.support.pictures import drawable
from pyro_vae.support.results import Result
from pyro_vae.support.tables import new_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LogMarginalRepair", "repair"]


@dataclass(frozen=True, repr=False)
class LogMarginalRepair(Result):
    """The result of `repair`: new estimates for the unreliable ones.

    Attributes:
        index: Indices of the data with unreliable estimates, `(M,)`.
        before, after: Their old and new estimates; `after` is None if M is 0.
        result: The estimates of all data, with the new ones in place of the old; its other values are the old ones.
    """

    title: ClassVar[str] = "repaired estimates of log p(x)"
    _rows_name: ClassVar[str] = "data"
    _columns: ClassVar[tuple[str, ...]] = (
        "index",
        *(f"{key}_{when}" for when in ("before", "after") for key in ("log_prob", "std_error", "khat", "unreliable")),
    )

    index: Tensor
    before: LogMarginal
    after: LogMarginal | None
    result: LogMarginal

    def _values(self) -> dict[str, Any]:
        still = sum(row["unreliable_after"] for row in self._rows())
        return {"log_prob": self.result.mean, "num_repaired": len(self.index), "num_unreliable": still}

    def _rows(self) -> list[dict[str, Any]]:
        if self.after is None:
            return []
        rows = zip(self.index.tolist(), self.before.to_dicts(), self.after.to_dicts(), strict=True)
        keys = ("log_prob", "std_error", "khat", "unreliable")
        return [
            {"index": i, **{f"{key}_before": old[key] for key in keys}, **{f"{key}_after": new[key] for key in keys}}
            for i, old, new in rows
        ]

    def table(self) -> Table:
        """The changes of the repaired estimates, as a rich table."""
        rows = self.to_dicts()
        still = sum(row["unreliable_after"] for row in rows)
        title = (
            f"{len(rows)} of {len(self.result)} estimates repaired, {still} still unreliable; mean log p(x) "
            f"{self.result.mean:.3f} nats per datum"
        )
        table = new_table(title, "datum", "before", "k-hat", "after", "k-hat", "moved")
        for row in rows:
            old, new = row["log_prob_before"], row["log_prob_after"]
            table.add_row(
                str(row["index"]),
                f"{old:.3f} ± {row['std_error_before']:.3f}",
                f"{row['khat_before']:.2f}",
                f"{new:.3f} ± {row['std_error_after']:.3f}",
                f"{row['khat_after']:.2f}",
                f"{new - old:+.3f}",
            )
        return table

    def _draw(self) -> Figure:
        """Each repaired estimate with its standard error, before and after."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 3.8), layout="constrained")
        ax = figure.subplots()
        rows = self.to_dicts()
        for when, shift, color in (("before", -0.12, "C7"), ("after", 0.12, "C0")):
            value, error = ([row[f"{name}_{when}"] for row in rows] for name in ("log_prob", "std_error"))
            positions = [i + shift for i in range(len(rows))]
            ax.errorbar(positions, value, drawable(error), fmt="o", ms=4, capsize=2, color=color, label=when)
        shown = range(0, len(rows), len(rows) // 25 + 1)
        ax.set_xticks(list(shown), [str(rows[i]["index"]) for i in shown], fontsize=8)
        ax.set(xlabel="index of the datum", ylabel="log p(x) (nats)")
        ax.legend(fontsize=8)
        return figure


@accepts_earlier_form
def repair(
    model: Program,
    guide: Program | None,
    *args: Any,
    result: LogMarginal,
    how: str | Method | Callable[..., Program] = "samples",
    num_samples: int | None = None,
    memory: int | None = None,
    seed: int | None = None,
    progress: bool | None = False,
    **kwargs: Any,
) -> LogMarginalRepair:
    """Estimate log p(x) again for the data whose estimate is unreliable.

    Args:
        model, guide: The pair.
        *args, **kwargs: The data and the pair's other arguments, as passed to `log_marginal`.
        result: The result of `log_marginal` for the same arguments; its `unreliable` data are estimated again.
        how: "samples", ten times as many samples from the guide; or a method of `log_marginal`, by name or as an
            object, for example "ais", which does not need the guide; or a function from the pair's arguments for the
            unreliable data to a better guide for them, for example `lambda x: pv.fit_local(model, guide, x,
            family="full_normal").guide`.
        num_samples, memory, seed, progress: Options of `log_marginal`.

    Raises:
        ValueError: If `result` has another number of data, or `how` is unknown.
        TypeError: For a keyword that neither this call nor the pair knows.
    """
    n = check_data(args)
    if len(result) != n:
        raise ValueError(f"the result is of {len(result)} data, got {n} data: pass the data of the result")
    method: str | Method = "importance"
    if not callable(how) and how != "samples":
        if (isinstance(how, str) and how not in METHODS) or how == "bdmc" or isinstance(how, BDMC):
            raise ValueError(
                f"how must be 'samples', 'ais' or a function that returns a guide, or another method of log_marginal "
                f"for given data, got {how!r}"
            )
        method = how
    check_keywords(repair, kwargs, model, guide, hints=option_hints(resolve_method(method)))
    index = result.unreliable
    before = _select(result, index)
    if not len(index):
        return LogMarginalRepair(index, before, None, result)
    rows, named = map_rows(lambda a: a[index.to(a.device)], args, kwargs)
    if how == "samples" and num_samples is None:
        num_samples = 10 * int(before.counts.max())
    after = log_marginal(
        model,
        how(*rows, **named) if callable(how) else guide,
        *rows,
        method=method,
        num_samples=num_samples,
        memory=memory,
        seed=seed,
        progress=progress,
        **named,
    )
    new = {name: getattr(result, name).clone() for name in ("log_prob", "std_error", "ess", "khat")}
    for name, value in new.items():
        value[index] = getattr(after, name).to(value)
    counts = result.counts.clone()
    counts[index] = after.counts
    merged = dataclasses.replace(result, num_samples=counts, bounds=None, **new)
    return LogMarginalRepair(index, before, after, merged)


def _select(result: LogMarginal, index: Tensor) -> LogMarginal:
    """The estimates of some of the data."""
    fields: dict[str, Any] = {"num_samples": result.counts[index], "bounds": None}
    for name in ("log_prob", "std_error", "ess", "khat"):
        fields[name] = getattr(result, name)[index]
    if result.acceptance is not None:
        fields["acceptance"] = result.acceptance[index]
    return dataclasses.replace(result, **fields)
