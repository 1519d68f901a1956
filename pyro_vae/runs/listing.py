"""The runs in a folder as a table, and the differences between two runs; no code of a run is executed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pyro_vae.runs.directory import RECORD, WEIGHTS
from pyro_vae.runs.programs import name_of_pair
from pyro_vae.runs.reading import MB, read_plain
from pyro_vae.runs.run import RunFiles, read_run
from pyro_vae.support.formats import check_entries, parse_json, parsing
from pyro_vae.support.pictures import without_math
from pyro_vae.support.results import Result
from pyro_vae.support.tables import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["RunComparison", "RunTable", "compare_runs", "list_runs"]

# Fields that are sorted from high to low; others are sorted from low to high. Runs without the value come last.
_DESCENDING = ("started", "elbo", "log_prob", "epochs")
_RESULTS = ("elbo", "log_prob", "loss", "seconds")


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
        elbo: Validation ELBO of the saved weights (training ELBO without validation data), in nats per datum.
        log_prob: log p(x) of the test data as last reported by `train` or `evaluate`, in nats per datum.
        loss: Mean loss of the last epoch, in nats per datum.
        seconds: Duration of training.
        problem: Why the run cannot be read; empty if it can.
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


@dataclass(frozen=True, repr=False)
class RunTable(Result):
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
        for name in ("epochs", "ELBO", "log p(x)", "seconds"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in (row for row in self.rows if not row.problem):
            texts = (row.name, row.model, row.data)
            numbers = (_number(row.elbo, 3), _number(row.log_prob, 3), _number(row.seconds, 1))
            table.add_row(*(escape(printable(text or "-")) for text in texts), str(row.epochs), *numbers)
        unreadable = [Text(f"cannot be read: {printable(row.problem, 300)}") for row in self.rows if row.problem]
        return Group(table, *unreadable)

    def _draw(self) -> Figure:
        """ELBO and log p(x) of each run that can be read."""
        from matplotlib.figure import Figure

        rows = [row for row in self.rows if not row.problem]
        figure = Figure(figsize=(7, 1.4 + 0.3 * len(rows)), layout="constrained")
        ax = figure.subplots()
        series = {"elbo": ("ELBO (validation, else training)", "o"), "log_prob": ("log p(x) (test)", "D")}
        for name, (label, marker) in series.items():
            ax.plot([_finite_or_nan(getattr(row, name)) for row in rows], range(len(rows)), marker, label=label)
        ax.set_yticks(range(len(rows)), [without_math(printable(row.name, 40)) for row in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.grid(axis="y", lw=0.4)
        ax.set(xlabel="nats per datum")
        figure.legend(loc="outside upper right", ncols=2, fontsize=8)
        return figure


@dataclass(frozen=True, repr=False)
class RunComparison(Result):
    """The differences between two runs.

    Attributes:
        names: Their directories.
        config: Pairs of settings that differ, by their path in `config.yaml`; None where a run has no such setting.
        environment: Pairs of differing versions, machine, commit and data, by their path in `run.json`.
        results: Pairs of results, whether they differ or not.
    """

    title: ClassVar[str] = "comparison of two runs"
    _columns: ClassVar[tuple[str, ...]] = ("part", "name", "first", "second")
    _width: ClassVar[int] = 120

    names: tuple[str, str]
    config: dict[str, tuple[Any, Any]]
    environment: dict[str, tuple[Any, Any]]
    results: dict[str, tuple[float | None, float | None]]

    def _values(self) -> dict[str, Any]:
        return asdict(self)

    def _rows(self) -> list[dict[str, Any]]:
        parts = {"config": self.config, "environment": self.environment, "results": self.results}
        return [
            {"part": part, "name": name, "first": first, "second": second}
            for part, found in parts.items()
            for name, (first, second) in found.items()
        ]

    def table(self) -> Group:
        """Rich tables of settings, environment and results."""
        parts: list[Any] = []
        for title, found in (("settings", self.config), ("environment", self.environment)):
            if not found:
                parts.append(Text(f"{title}: no difference"))
                continue
            table = self._empty(title)
            for name, values in found.items():
                table.add_row(*(escape(printable(str(v))) for v in (name, *("-" if v is None else v for v in values))))
            parts.append(table)
        table = self._empty("results")
        table.add_column("difference", justify="right")
        for name, (first, second) in self.results.items():
            change = None if first is None or second is None else second - first
            table.add_row(name, _number(first, 3), _number(second, 3), "-" if change is None else f"{change:+.3f}")
        return Group(*parts, table)

    def _empty(self, title: str) -> Table:
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("")
        for name in self.names:
            table.add_column(escape(printable(name)), justify="right", overflow="fold")
        return table

    def _draw(self) -> Figure:
        """The results of both runs side by side: nats per datum on the left, seconds on the right."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 3.6), layout="constrained")
        nats, time = figure.subplots(1, 2, width_ratios=(3, 1))
        parts = {nats: [n for n in self.results if n != "seconds"], time: [n for n in self.results if n == "seconds"]}
        for ax, names in parts.items():
            for i, run in enumerate(self.names):
                positions = [j + 0.4 * i - 0.2 for j in range(len(names))]
                heights = [_finite_or_nan(self.results[name][i]) for name in names]
                ax.bar(positions, heights, 0.38, label=without_math(printable(run, 40)))
            ax.set_xticks(range(len(names)), names)
            ax.axhline(0, color="black", lw=0.8)
        nats.set(ylabel="nats per datum")
        time.set(ylabel="seconds of training")
        figure.legend(*nats.get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=8)
        return figure


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


def compare_runs(first: str | Path, second: str | Path) -> RunComparison:
    """The differences in settings and environment between two runs, and the results of both.

    Raises:
        FileNotFoundError, ValueError: If one of them cannot be read.
    """
    runs = [read_run(path, weights=False) for path in (first, second)]
    config = _differences(*(_flat(run.config) for run in runs))
    keys = ("data", "versions", "platform", "hardware", "git")
    environment = _differences(*(_flat({key: run.record.get(key) for key in keys}) for run in runs))
    values = [_results(run) for run in runs]
    results = {name: (values[0][name], values[1][name]) for name in _RESULTS}
    return RunComparison((str(first), str(second)), config, environment, results)


def _row(path: Path, folder: Path) -> RunRow:
    name = str(path.relative_to(folder))
    try:
        run = read_run(path, weights=False)
        model = _model(run.config["model"])
        data = Path(run.config["data"]).name
        objective = run.record["elbo"]
        row = RunRow(name, run.record["started"], model, data, objective, len(run.history))
        return replace(row, **_results(run))
    except (ValueError, OSError) as error:
        return RunRow(name, problem=str(error))


def _model(spec: Any) -> str:
    """The name of a run's pair, from its configuration."""
    check_entries(
        spec, **({"functions": list} if isinstance(spec, dict) and "functions" in spec else {"class_path": str})
    )
    return name_of_pair(spec)


def _results(run: RunFiles) -> dict[str, Any]:
    epochs = run.history.epochs
    best = epochs[(run.history.best or len(epochs)) - 1] if epochs else None
    return {
        "elbo": best.monitored if best else None,
        "log_prob": _log_prob(run.path / "evaluation-test.json", run.record["files"].get(WEIGHTS)),
        "loss": epochs[-1].loss if epochs else None,
        "seconds": epochs[-1].seconds if epochs else None,
    }


def _log_prob(file: Path, weights: str | None) -> float | None:
    """log p(x) of an evaluation, if it is one of these weights."""
    try:
        content = read_plain(file, MB)
    except FileNotFoundError:
        return None
    with parsing(file):
        found = check_entries(parse_json(content), log_prob=(int, float, type(None)))
        of_others = found.get("weights", weights) != weights  # earlier versions did not say of which weights they are
        return None if found["log_prob"] is None or of_others else float(found["log_prob"])


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = dict.fromkeys((*first, *second))
    return {name: (first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)}


def _finite_or_nan(value: float | None) -> float:
    return math.nan if value is None or math.isinf(value) else value


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
