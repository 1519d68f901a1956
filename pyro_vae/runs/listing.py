"""The runs in a folder as a table; no code of a run is executed."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pyro_vae.runs.directory import RECORD, WEIGHTS
from pyro_vae.runs.evaluations import read_evaluation
from pyro_vae.runs.programs import name_of_pair
from pyro_vae.runs.run import RunFiles, read_run
from pyro_vae.support.formats import check_entries
from pyro_vae.support.pictures import without_math
from pyro_vae.support.results import PanelResult
from pyro_vae.support.tables import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["RunTable", "finite_or_nan", "list_runs", "number", "printable", "results_of"]

# Fields that are sorted from high to low; others are sorted from low to high. Runs without the value come last.
_DESCENDING = ("started", "elbo", "log_prob", "epochs")


@dataclass(frozen=True)
class RunRow:
    """One run in a table; None where the run has no such value.

    Attributes:
        name: The directory, relative to the folder that was listed.
        started: When training began, in ISO 8601.
        model: The name of the pair.
        data: The name of the training data.
        objective: The name of the objective.
        epochs: The number of completed epochs.
        elbo: ELBO of the saved weights on the data of `elbo_split`, in nats per datum.
        log_prob: log p(x) of the test data as reported by `train`, or by an `evaluate` on as many data and with as many
            samples, in nats per datum.
        loss: Mean loss of the last epoch, in nats per datum.
        seconds: Duration of training.
        problem: Why the run cannot be read; empty if it can.
        elbo_split: "valid", or "train" without validation data.
        num_test_data, num_samples: Test data and importance samples of `log_prob`.
        is_partial: Whether these are not all test data.
    """

    name: str
    started: str | None = None
    model: str | None = None
    data: str | None = None
    objective: str | None = None
    epochs: int | None = None
    elbo: float | None = None
    log_prob: float | None = None
    loss: float | None = None
    seconds: float | None = None
    problem: str = ""
    elbo_split: str | None = None
    num_test_data: int | None = None
    num_samples: int | None = None
    is_partial: bool = False


@dataclass(frozen=True, repr=False)
class RunTable(PanelResult):
    """Runs, one per row."""

    title: ClassVar[str] = "runs"
    _columns: ClassVar[list[str]] = list(RunRow.__dataclass_fields__)
    _width: ClassVar[int] = 140

    rows: list[RunRow]

    def _values(self) -> dict[str, Any]:
        return {"runs": [asdict(row) for row in self.rows]}

    def _rows(self) -> list[RunRow]:
        return self.rows

    def table(self) -> Group:
        """A rich table, and the problems of the runs that cannot be read."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("run", overflow="fold")
        for name in ("model", "data"):
            table.add_column(name, overflow="fold")
        for name in ("epochs", "ELBO\n(valid)", "log p(x)\n(test)", "seconds"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in (row for row in self.rows if not row.problem):
            texts = (row.name, row.model, row.data)
            elbo = number(row.elbo, 3) + (" (train)" if row.elbo_split == "train" else "")
            tested = number(row.log_prob, 3) + (f" ({row.num_test_data} data)" if row.is_partial else "")
            numbers = (elbo, tested, number(row.seconds, 1))
            table.add_row(*(escape(printable(text or "-")) for text in texts), str(row.epochs), *numbers)
        unreadable = [Text(f"cannot be read: {printable(row.problem, 300)}") for row in self.rows if row.problem]
        return Group(table, *unreadable)

    def _readable(self) -> list[RunRow]:
        return [row for row in self.rows if not row.problem]

    def _size(self) -> tuple[float, float]:
        return 7, 1.4 + 0.3 * len(self._readable())

    def _panel(self, ax: Axes) -> None:
        """ELBO and log p(x) of each run that can be read."""
        rows = self._readable()
        series = {"elbo": ("ELBO (validation, else training)", "o"), "log_prob": ("log p(x) (test)", "D")}
        for name, (label, marker) in series.items():
            ax.plot([finite_or_nan(getattr(row, name)) for row in rows], range(len(rows)), marker, label=label)
        ax.set_yticks(range(len(rows)), [without_math(printable(row.name, 40)) for row in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.grid(axis="y", lw=0.4)
        ax.set(xlabel="nats per datum")
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=8)


def list_runs(folder: str | Path = "runs", *, sort: str = "started") -> RunTable:
    """The runs in a folder and in the folders in it.

    Args:
        folder: The folder to search.
        sort: A field of the rows: "elbo", "log_prob" and "epochs" are sorted from high to low, "started" with the
            latest first, others from low to high.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: For a field that does not exist.
    """
    folder = Path(folder)
    known = [name for name in RunRow.__dataclass_fields__ if name != "problem"]
    if sort not in known:
        raise ValueError(f"runs cannot be sorted by {sort!r}: use one of {', '.join(known)}")
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder}")
    found = (file.parent for pattern in ("", "*/", "*/*/") for file in folder.glob(f"{pattern}{RECORD}"))
    rows = sorted((_row(path, folder) for path in found), key=lambda row: row.name)
    sortable = [row for row in rows if getattr(row, sort) is not None]
    sortable.sort(key=lambda row: getattr(row, sort), reverse=sort in _DESCENDING)
    return RunTable(sortable + [row for row in rows if getattr(row, sort) is None])


def _row(path: Path, folder: Path) -> RunRow:
    name = str(path.relative_to(folder))
    try:
        run = read_run(path, weights=False)
        model = _model(run.config["model"])
        data = Path(run.config["data"]).name
        objective = run.record["elbo"]
        row = RunRow(name, run.record["started"], model, data, objective, len(run.history))
        return replace(row, **results_of(run))
    except (ValueError, OSError) as error:
        return RunRow(name, problem=str(error))


def _model(spec: Any) -> str:
    """The name of a run's pair, from its configuration."""
    check_entries(
        spec, **({"functions": list} if isinstance(spec, dict) and "functions" in spec else {"class_path": str})
    )
    return name_of_pair(spec)


def results_of(run: RunFiles) -> dict[str, Any]:
    """The results of a run as in a `RunRow`, and what they were measured on."""
    epochs = run.history.epochs
    best = epochs[(run.history.best or len(epochs)) - 1] if epochs else None
    tested = read_evaluation(run.path / "evaluation-test.json") or {}
    weights = run.record["files"].get(WEIGHTS)
    if tested.get("weights", weights) != weights:  # earlier versions did not say of which weights an evaluation is
        tested = {}
    log_prob, count = tested.get("log_prob"), tested.get("num_data")
    return {
        "elbo": best.monitored if best else None,
        "log_prob": None if log_prob is None else float(log_prob),
        "loss": epochs[-1].loss if epochs else None,
        "seconds": epochs[-1].seconds if epochs else None,
        "elbo_split": None if best is None else "train" if best.valid_elbo is None else "valid",
        "num_test_data": count,
        "num_samples": tested.get("num_samples"),
        "is_partial": count is not None and count < run.record["data"].get("counts", {}).get("test", count),
    }


def finite_or_nan(value: float | None) -> float:
    """A number that can be drawn: NaN leaves a gap."""
    return math.nan if value is None or math.isinf(value) else value


def number(value: float | None, digits: int) -> str:
    """A number as text, a dash for none."""
    return "-" if value is None else f"{value:.{digits}f}"
