"""New estimates of log p(x) for data whose first estimate is unreliable."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from rich.table import Table
from torch import Tensor

from pyro_vae.evaluate.deprecated import accepts_earlier_form
from pyro_vae.evaluate.marginal.likelihood import log_marginal
from pyro_vae.evaluate.marginal.methods import BDMC, METHODS, Method, option_hints, resolve_method
from pyro_vae.evaluate.marginal.result import LogMarginal
from pyro_vae.pair.arguments import check_data, check_keywords, map_rows
from pyro_vae.pair.forms import InForm, in_rows
from pyro_vae.pair.networks import eval_mode
from pyro_vae.pair.protocol import Program
from pyro_vae.support.arguments import checked
from pyro_vae.support.pictures import drawable
from pyro_vae.support.random import seeded
from pyro_vae.support.results import PanelResult
from pyro_vae.support.statistics import standard_error
from pyro_vae.support.tables import new_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LogMarginalRepair", "repair"]


@dataclass(frozen=True, repr=False)
class LogMarginalRepair(PanelResult):
    """The result of `repair`: new estimates for the unreliable ones.

    Attributes:
        index: Which data were unreliable, `(M,)`.
        before, after: Their estimates; `after` is None if there were none to repair.
        result: The estimates of all data, the new ones in place of the old; its other figures are of the first look.
        control: A second look at a random sample of the other data, C of them, which changes no estimate; None if
            there are no others.
        control_moved: How their estimates moved, `(C,)`.
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
    control: LogMarginal | None = None
    control_moved: Tensor | None = None

    @property
    def bias_of_others(self) -> tuple[float, float]:
        """How far too low the estimates that were left are, by the control sample, and its standard error; or NaN."""
        if self.control_moved is None:
            return math.nan, math.nan
        return float(self.control_moved.double().mean()), standard_error(self.control_moved)

    def _values(self) -> dict[str, Any]:
        still = sum(row["unreliable_after"] for row in self._rows())
        moved, error = self.bias_of_others
        return {
            "log_prob": self.result.mean,
            "num_repaired": len(self.index),
            "num_unreliable": still,
            "bias_of_others": moved,
            "bias_of_others_error": error,
        }

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
        if self.control is not None:
            moved, error = self.bias_of_others
            title += f"; of the others {len(self.control)} were looked at again and moved by {moved:+.3f} ± {error:.3f}"
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

    def _size(self) -> tuple[float, float]:
        return 8, 3.8

    def _panel(self, ax: Axes) -> None:
        """Each repaired estimate with its standard error, before and after."""
        rows = self.to_dicts()
        for when, shift, color in (("before", -0.12, "C7"), ("after", 0.12, "C0")):
            value, error = ([row[f"{name}_{when}"] for row in rows] for name in ("log_prob", "std_error"))
            positions = [i + shift for i in range(len(rows))]
            ax.errorbar(positions, value, drawable(error), fmt="o", ms=4, capsize=2, color=color, label=when)
        shown = range(0, len(rows), len(rows) // 25 + 1)
        ax.set_xticks(list(shown), [str(rows[i]["index"]) for i in shown], fontsize=8)
        ax.set(xlabel="index of the datum", ylabel="log p(x) (nats)")
        ax.legend(fontsize=8)


@accepts_earlier_form
@checked
def repair(
    model: Program,
    guide: Program | None,
    *args: Any,
    result: LogMarginal,
    how: str | Method | Callable[..., Program] = "samples",
    rows: Literal["unreliable", "all"] = "unreliable",
    num_control: int = 10,
    num_samples: int | None = None,
    memory: int | None = None,
    seed: int | None = None,
    progress: bool | None = False,
    **kwargs: Any,
) -> LogMarginalRepair:
    """Estimate log p(x) again for the data whose estimate is unreliable.

    Under a guide that is too narrow the other estimates are no better: a datum whose tail was not drawn at all looks
    fine. So a few of the others are looked at again, too, and there is a warning if these have moved.

    Args:
        model, guide: The pair.
        *args, **kwargs: The data and the pair's other arguments, as they were given to `log_marginal`.
        result: What `log_marginal` found for the same arguments: its `unreliable` data are repaired.
        how: "samples", ten times as many samples from the guide; a method of `log_marginal`, by name or as an object,
            "ais" for one, which does not need the guide; or a function that takes the pair's arguments for the
            unreliable data and returns a better guide for them,
            `lambda x: pv.fit_local(model, guide, x, family="full_normal").guide` for one.
        rows: Which estimates to make anew: those that are "unreliable", or "all".
        num_control: How many of the others to look at again, at random; 0 for none.
        num_samples, memory, seed, progress: For `log_marginal`.

    Raises:
        ValueError: If `result` has another number of data, or `how` is unknown.
        TypeError: For a keyword that neither this call nor the pair knows.
    """
    with torch.no_grad(), eval_mode(model):
        program, proposal, (args, kwargs), form = in_rows(model, guide, (args, kwargs))
    n = check_data(args)
    if len(result) != n:
        raise ValueError(f"the result is of {len(result)} data, got {n} data: pass the data of the result")
    if rows not in ("unreliable", "all"):
        raise ValueError(f"rows must be 'unreliable' or 'all', got {rows!r}")
    if num_control < 0:
        raise ValueError(f"num_control must be at least 0, got {num_control}")
    method: str | Method = "importance"
    if not callable(how) and how != "samples":
        if (isinstance(how, str) and how not in METHODS) or how == "bdmc" or isinstance(how, BDMC):
            raise ValueError(
                f"how must be 'samples', 'ais' or a function that returns a guide, or another method of log_marginal "
                f"for given data, got {how!r}"
            )
        method = how
    check_keywords(repair, kwargs, model, guide, hints=option_hints(resolve_method(method)))
    index = torch.arange(n, device=result.log_prob.device) if rows == "all" else result.unreliable
    before = _select(result, index)
    if not len(index):
        return LogMarginalRepair(index, before, None, result)
    if how == "samples" and num_samples is None:
        num_samples = 10 * int(before.counts.max())

    def again(index: Tensor) -> LogMarginal:
        some, named = map_rows(lambda a: a[index.to(a.device)], args, kwargs)
        better: Program = proposal
        if callable(how):
            better = how(*some, **named) if form is None else InForm(form.call(how, some), form)
        options: dict[str, Any] = {"num_samples": num_samples, "memory": memory, "seed": seed, "progress": progress}
        return log_marginal(program, better, *some, method=method, **options, **named)

    after = again(index)
    new = {name: getattr(result, name).clone() for name in ("log_prob", "std_error", "ess", "khat")}
    for name, value in new.items():
        value[index] = getattr(after, name).to(value)
    counts = result.counts.clone()
    counts[index] = after.counts
    merged = dataclasses.replace(result, num_samples=counts, bounds=None, **new)
    control, moved = None, None
    others = _sample_of_others(index, n, num_control, seed)
    if len(others):
        control = again(others)
        moved = control.log_prob - result.log_prob[others].to(control.log_prob)
        _warn_of_others(moved, n - len(index))
    return LogMarginalRepair(index, before, after, merged, control, moved)


def _sample_of_others(index: Tensor, n: int, count: int, seed: int | None) -> Tensor:
    """Some of the data that are not among the index, at random."""
    others = torch.ones(n, dtype=torch.bool, device=index.device)
    others[index] = False
    found = others.nonzero().squeeze(-1)
    with seeded(seed):
        return found[torch.randperm(len(found))[:count].sort().values.to(found.device)]


def _warn_of_others(moved: Tensor, total: int) -> None:
    mean, error = float(moved.double().mean()), standard_error(moved)
    if mean > 3 * error:
        warnings.warn(
            f"the data that k-hat does not flag have moved as well, by {mean:+.3f} ± {error:.3f} nats in a sample of "
            f"{len(moved)} of {total}: a datum whose tail was not drawn looks fine. Their estimates were left, so that "
            "the mean is too low by about as much times their share: repair(..., rows='all') makes all anew",
            stacklevel=4,
        )


def _select(result: LogMarginal, index: Tensor) -> LogMarginal:
    """The estimates of some of the data."""
    fields: dict[str, Any] = {"num_samples": result.counts[index], "bounds": None}
    for name in ("log_prob", "std_error", "ess", "khat"):
        fields[name] = getattr(result, name)[index]
    if result.acceptance is not None:
        fields["acceptance"] = result.acceptance[index]
    return dataclasses.replace(result, **fields)
