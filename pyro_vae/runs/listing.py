"""The runs below a folder in a table, and two of them side by side; no code of theirs is run."""

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

from pyro_vae.runs.directory import RECORD
from pyro_vae.runs.programs import name_of_pair
from pyro_vae.runs.reading import MB, damaged, entries, parse_json, read_plain
from pyro_vae.runs.run import RunFiles, read_run
from pyro_vae.support.pictures import without_math
from pyro_vae.support.results import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["RunComparison", "RunTable", "compare_runs", "list_runs"]

# Sorted from high to low; everything else from low to high, runs without the value last.
_DESCENDING = ("started", "elbo", "log_prob", "epochs")
_FIGURES = ("elbo", "log_prob", "loss", "seconds")


@dataclass(frozen=True)
class RunRow:
    """What a table shows of one run; None where the run has no such value.

    Attributes:
        name: The directory, as seen from the folder that was listed.
        started: When training began.
        model: The class of the pair.
        data: What it was trained on.
        objective: What was maximised.
        epochs: How many were completed.
        elbo: Validation ELBO of the weights kept (training ELBO without validation data), nats per datum.
        log_prob: log p(x) of the test data as last reported by `train` or `evaluate`, nats per datum.
        loss: Mean minimised objective of the last epoch.
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
    """Runs, one row each."""

    title: ClassVar[str] = "runs"
    _columns: ClassVar[list[str]] = list(RunRow.__dataclass_fields__)
    _width: ClassVar[int] = 140

    rows: list[RunRow]

    def _values(self) -> dict[str, Any]:
        return {"runs": [asdict(row) for row in self.rows]}

    def _rows(self) -> list[RunRow]:
        return self.rows

    def table(self) -> Group:
        """A rich table, and what is wrong with the runs that cannot be read."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("run", overflow="fold")
        for name in ("model", "data"):
            table.add_column(name, overflow="fold")
        for name in ("epochs", "ELBO", "log p(x)", "seconds"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in (row for row in self.rows if not row.problem):
            figures = (_number(row.elbo, 3), _number(row.log_prob, 3), _number(row.seconds, 1))
            words = (row.name, row.model, row.data)
            table.add_row(*(escape(printable(word or "-")) for word in words), str(row.epochs), *figures)
        broken = [Text(f"cannot be read: {printable(row.problem, 300)}") for row in self.rows if row.problem]
        return Group(table, *broken)

    def _draw(self) -> Figure:
        """ELBO and log p(x) of each run that can be read."""
        from matplotlib.figure import Figure

        rows = [row for row in self.rows if not row.problem]
        figure = Figure(figsize=(7, 1.4 + 0.3 * len(rows)), layout="constrained")
        ax = figure.subplots()
        shown = {"elbo": ("ELBO (validation, else training)", "o"), "log_prob": ("log p(x) (test)", "D")}
        for name, (label, marker) in shown.items():
            ax.plot([_drawn(getattr(row, name)) for row in rows], range(len(rows)), marker, label=label)
        ax.set_yticks(range(len(rows)), [without_math(printable(row.name, 40)) for row in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.grid(axis="y", lw=0.4)
        ax.set(xlabel="nats per datum")
        figure.legend(loc="outside upper right", ncols=2, fontsize=8)
        return figure


@dataclass(frozen=True, repr=False)
class RunComparison(Result):
    """Where two runs differ.

    Attributes:
        names: Their directories.
        config: Settings that differ, by their path in `config.yaml`, as a pair of values; None where a run has none.
        environment: The same for versions, machine, commit and data, from `run.json`.
        results: Values of both, whether they differ or not.
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
        """Rich tables: settings, circumstances and results."""
        parts: list[Any] = []
        for title, found in (("settings", self.config), ("circumstances", self.environment)):
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
                at = [j + 0.4 * i - 0.2 for j in range(len(names))]
                heights = [_drawn(self.results[name][i]) for name in names]
                ax.bar(at, heights, 0.38, label=without_math(printable(run, 40)))
            ax.set_xticks(range(len(names)), names)
            ax.axhline(0, color="black", lw=0.8)
        nats.set(ylabel="nats per datum")
        time.set(ylabel="seconds of training")
        figure.legend(*nats.get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=8)
        return figure


def list_runs(folder: str | Path = "runs", *, sort: str = "started") -> RunTable:
    """The runs in a folder and in the folders in it.

    Args:
        folder: Where to look.
        sort: A field of the rows: "elbo", "log_prob" and "epochs" from high to low, "started" with the latest first,
            others from low to high.

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
    there = [row for row in rows if getattr(row, sort) is not None]
    there.sort(key=lambda row: getattr(row, sort), reverse=sort in _DESCENDING)
    return RunTable(there + [row for row in rows if getattr(row, sort) is None])


def compare_runs(first: str | Path, second: str | Path) -> RunComparison:
    """Where the settings, the circumstances and the results of two runs differ.

    Raises:
        FileNotFoundError, ValueError: If one of them cannot be read.
    """
    runs = [read_run(path, weights=False) for path in (first, second)]
    config = _differences(*(_flat(run.config) for run in runs))
    kept = ("data", "versions", "platform", "hardware", "git")
    circumstances = _differences(*(_flat({key: run.record.get(key) for key in kept}) for run in runs))
    figures = [_figures(run) for run in runs]
    results = {name: (figures[0][name], figures[1][name]) for name in _FIGURES}
    return RunComparison((str(first), str(second)), config, circumstances, results)


def _row(path: Path, folder: Path) -> RunRow:
    name = str(path.relative_to(folder))
    try:
        run = read_run(path, weights=False)
        model = _model(run.config["model"])
        data = Path(run.config["data"]).name
        objective = run.record["elbo"]
        epochs, figures = len(run.history), _figures(run)
        return replace(RunRow(name, run.record["started"], model, data, objective, epochs), **figures)
    except (ValueError, OSError) as error:
        return RunRow(name, problem=str(error))


def _model(spec: Any) -> str:
    """What the pair of a run is called, by its configuration."""
    entries(spec, **({"functions": list} if isinstance(spec, dict) and "functions" in spec else {"class_path": str}))
    return name_of_pair(spec)


def _figures(run: RunFiles) -> dict[str, Any]:
    epochs = run.history.epochs
    kept = epochs[(run.history.best or len(epochs)) - 1] if epochs else None
    return {
        "elbo": kept.monitored if kept else None,
        "log_prob": _log_prob(run.path / "evaluation-test.json"),
        "loss": epochs[-1].loss if epochs else None,
        "seconds": epochs[-1].seconds if epochs else None,
    }


def _log_prob(file: Path) -> float | None:
    try:
        content = read_plain(file, MB)
    except FileNotFoundError:
        return None
    with damaged(file):
        found = entries(parse_json(content), log_prob=(int, float, type(None)))["log_prob"]
        return None if found is None else float(found)


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


def _drawn(value: float | None) -> float:
    return math.nan if value is None or math.isinf(value) else value


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def printable(text: str, length: int = 80) -> str:
    """Text of unknown origin without what would steer a terminal, and no longer than `length`."""
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean if len(clean) <= length else f"{clean[: length - 3]}..."
