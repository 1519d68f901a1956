"""The runs below a folder in a table, and two of them side by side; no code of theirs is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pyro_vae.runs.directory import RECORD
from pyro_vae.runs.programs import name_of_pair
from pyro_vae.runs.reading import MB, damaged, entries, parse_json, read_plain
from pyro_vae.runs.run import RunFiles, read_run
from pyro_vae.support.tables import as_text, save_result

__all__ = ["RunComparison", "RunTable", "compare_runs", "list_runs"]

# Sorted from high to low; everything else from low to high, runs without the figure last.
_DESCENDING = ("started", "elbo", "log_prob", "epochs")
_FIGURES = ("elbo", "log_prob", "loss", "seconds")


@dataclass(frozen=True)
class RunRow:
    """What a table shows of one run; None where the run has no such figure.

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
class RunTable:
    """Runs, one row each."""

    rows: list[RunRow]

    def to_dicts(self) -> list[dict[str, Any]]:
        """One dictionary a run."""
        return [asdict(row) for row in self.rows]

    def save(self, path: str | Path) -> Path:
        """Write the runs as CSV or JSON, by the ending of the path."""
        names = list(RunRow.__dataclass_fields__)
        return save_result(path, "runs are", self.to_dicts(), {"runs": self.to_dicts()}, names)

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

    def __repr__(self) -> str:
        return as_text(self.table(), width=140)


@dataclass(frozen=True, repr=False)
class RunComparison:
    """Where two runs differ.

    Attributes:
        names: Their directories.
        config: Settings that differ, by their path in `config.yaml`, as a pair of values; None where a run has none.
        environment: The same for versions, machine, commit and data, from `run.json`.
        results: Figures of both, whether they differ or not.
    """

    names: tuple[str, str]
    config: dict[str, tuple[Any, Any]]
    environment: dict[str, tuple[Any, Any]]
    results: dict[str, tuple[float | None, float | None]]

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    def to_dicts(self) -> list[dict[str, Any]]:
        """One dictionary for each difference or figure."""
        parts = {"config": self.config, "environment": self.environment, "results": self.results}
        return [
            {"part": part, "name": name, "first": first, "second": second}
            for part, found in parts.items()
            for name, (first, second) in found.items()
        ]

    def save(self, path: str | Path) -> Path:
        """Write it as CSV or JSON, by the ending of the path."""
        columns = ["part", "name", "first", "second"]
        return save_result(path, "a comparison of runs is", self.to_dicts(), self.to_dict(), columns)

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

    def __repr__(self) -> str:
        return as_text(self.table(), width=120)


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


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def printable(text: str, length: int = 80) -> str:
    """Text of unknown origin without what would steer a terminal, and no longer than `length`."""
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean if len(clean) <= length else f"{clean[: length - 3]}..."
