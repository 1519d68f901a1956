"""The differences between two runs: settings, environment, and results where they were measured alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pyro_vae.runs.listing import finite_or_nan, number, printable, results_of
from pyro_vae.runs.run import RunFiles, read_run
from pyro_vae.support.pictures import without_math
from pyro_vae.support.results import Result
from pyro_vae.training.batches import HEAD

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["RunComparison", "compare_runs"]

_RESULTS = ("elbo", "log_prob", "loss", "seconds")


@dataclass(frozen=True, repr=False)
class RunComparison(Result):
    """The differences between two runs.

    Attributes:
        names: Their directories.
        config: Pairs of settings that differ, by their path in `config.yaml`; None where a run has no such setting.
        environment: Pairs of differing versions, machine, commit and data, by their path in `run.json`.
        results: Pairs of results, whether they differ or not.
        protocols: For each result what it was measured on, in both runs: split, number of data, samples.
    """

    title: ClassVar[str] = "comparison of two runs"
    _columns: ClassVar[tuple[str, ...]] = ("part", "name", "first", "second")
    _width: ClassVar[int] = 120

    names: tuple[str, str]
    config: dict[str, tuple[Any, Any]]
    environment: dict[str, tuple[Any, Any]]
    results: dict[str, tuple[float | None, float | None]]
    protocols: dict[str, tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=dict)

    @property
    def differences(self) -> dict[str, float | None]:
        """The second result minus the first, by name; None unless both were measured in the same way."""
        found = {}
        for name, (first, second) in self.results.items():
            one, other = self.protocols.get(name, ({}, {}))
            found[name] = None if first is None or second is None or one != other else second - first
        return found

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
            change = self.differences[name]
            table.add_row(name, number(first, 3), number(second, 3), "-" if change is None else f"{change:+.3f}")
        table.caption, table.caption_justify = "\n".join(map(escape, self._measured())), "left"
        return Group(*parts, table)

    def _measured(self) -> Iterator[str]:
        """What the results were measured on, and which are not compared."""
        for name, (one, other) in self.protocols.items():
            if None in self.results[name]:
                continue
            unequal = [key for key in {**one, **other} if one.get(key) != other.get(key)]
            if unequal:
                values = "; ".join(f"{key} {one.get(key)} and {other.get(key)}" for key in unequal)
                yield printable(f"{name}: not compared, {values}", 200)
            elif one:
                yield printable(f"{name}: {', '.join(f'{key} {value}' for key, value in one.items())}", 200)

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
                heights = [finite_or_nan(self.results[name][i]) for name in names]
                ax.bar(positions, heights, 0.38, label=without_math(printable(run, 40)))
            ax.set_xticks(range(len(names)), names)
            ax.axhline(0, color="black", lw=0.8)
        nats.set(ylabel="nats per datum")
        time.set(ylabel="seconds of training")
        figure.legend(*nats.get_legend_handles_labels(), loc="outside upper right", ncols=2, fontsize=8)
        return figure


def compare_runs(first: str | Path, second: str | Path) -> RunComparison:
    """The differences in settings and environment between two runs, and the results of both.

    Raises:
        FileNotFoundError, ValueError: If one of them cannot be read.
    """
    runs = [read_run(path, weights=False) for path in (first, second)]
    config = _differences(*(_flat(run.config) for run in runs))
    keys = ("data", "versions", "platform", "hardware", "git")
    environment = _differences(*(_flat({key: run.record.get(key) for key in keys}) for run in runs))
    values = [results_of(run) for run in runs]
    results = {name: (values[0][name], values[1][name]) for name in _RESULTS}
    measured = [_protocols(run, found) for run, found in zip(runs, values, strict=True)]
    protocols = {name: (measured[0][name], measured[1][name]) for name in _RESULTS}
    return RunComparison((str(first), str(second)), config, environment, results, protocols)


def _protocols(run: RunFiles, results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """On what each result was measured; two results are compared only if that is the same."""
    about = run.record["data"]
    counts = about.get("counts", {})
    source = {"data": about.get("name", run.config["data"]), "binarize": about.get("binarize", run.config["binarize"])}
    monitored = counts.get(results["elbo_split"])
    if results["elbo_split"] == "train" and monitored is not None:
        monitored = min(monitored, HEAD)
    return {
        "elbo": {"split": results["elbo_split"], "num_data": monitored, **source},
        "log_prob": {
            "split": "test",
            "num_data": results["num_test_data"],
            "num_samples": results["num_samples"],
            **source,
        },
        "loss": {"objective": run.record["elbo"], **source},
        "seconds": {},
    }


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
