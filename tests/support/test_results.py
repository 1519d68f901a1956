"""The contract of all results: text, HTML, rows, a picture, and files of four kinds."""

from __future__ import annotations

import csv
import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.table import Table
from torch import Tensor

import pyro_vae as pv
from pyro_vae.evaluate import (
    BidirectionalBounds,
    Bound,
    Calibration,
    CalibrationRow,
    CheckLine,
    Coherence,
    ColumnDistance,
    ColumnScore,
    Disentanglement,
    ElboComparison,
    EstimatorCheck,
    EstimatorRow,
    Forecast,
    Imputation,
    ImputationScores,
    InferenceGaps,
    LatentDimension,
    LatentReport,
    LatentSite,
    LocalGuide,
    LogConditional,
    LogMarginal,
    LogMarginalRepair,
    ModelComparison,
    PreflightIssue,
    PreflightReport,
    Reliability,
    SampleQuality,
    SampleQualityMetrics,
    Summary,
    TableFidelity,
    generalization,
)
from pyro_vae.evaluate.disentanglement.report import SCORES
from pyro_vae.oracles import LinearGaussian
from pyro_vae.reports import Report
from pyro_vae.reports.markup import join, page, table, tag
from pyro_vae.runs.comparing import RunComparison
from pyro_vae.runs.listing import RunRow, RunTable
from pyro_vae.support.results import PanelResult, Result
from pyro_vae.support.tables import as_html, as_text
from pyro_vae.training.comparison.result import TrainingComparison, TrainingRun
from pyro_vae.training.history import Epoch, History
from pyro_vae.training.together.result import SeedRuns
from pyro_vae.training.what_is_compiled import CompiledReport, CompiledSteps

NAN, INF = math.nan, math.inf
EVIL = "<script>alert('x')</script> [red] $a$"  # a name that must be shown as it is


def numbers(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 5


def bound(n: int = 8) -> Bound:
    kl = {"z": numbers(n, 1).abs(), EVIL: numbers(n, 2).abs()}
    likelihood, total = numbers(n), sum(kl.values(), start=torch.zeros(n))
    return Bound(likelihood - total, likelihood, total, kl)


def marginal(n: int = 8) -> LogMarginal:
    return LogMarginal(
        numbers(n), torch.full((n,), 0.1), torch.full((n,), 9.0), 50, numbers(n, 1) + 5, numbers(3 * n).view(3, n)
    )


def unknown_marginal() -> LogMarginal:
    one = torch.tensor([NAN, -INF, -3.0])
    return LogMarginal(one, one, one.abs(), 10, torch.full((3,), NAN), one.expand(2, 3), acceptance=torch.rand(3))


def bounds_on_both_sides(n: int = 8) -> BidirectionalBounds:
    return BidirectionalBounds(**vars(marginal(n)), upper=numbers(n) + 0.5, upper_error=torch.full((n,), 0.1))


def repaired(index: Tensor) -> LogMarginalRepair:
    n = len(index)
    return LogMarginalRepair(index, marginal(n), marginal(n) if n else None, marginal())


def imputation(shape: tuple[int, ...], *, mean: bool = True) -> Imputation:
    x = torch.rand(3, *shape)
    mask = torch.rand(3, *shape) < 0.5
    return Imputation(
        x if mean else None, x if mean else None, x.expand(2, *x.shape)[: 2 * mean], mask, torch.rand(3) * 9, 10
    )


def estimators(value: float = -4.0) -> ElboComparison:
    row = EstimatorRow("trace", 1, value, 0.1, 0.2, 0.0, 0.1, 2.0, 3.0, value, 0.5, 1e-3, 2**20)
    rows = [replace(row, estimator=name, num_particles=k) for name in ("trace", EVIL) for k in (1, 5)]
    return ElboComparison(rows, marginal(), 10)


def check(*lines: CheckLine) -> EstimatorCheck:
    return EstimatorCheck(EVIL, "LinearGaussian", list(lines))


def disentangled(score: float = 0.5) -> Disentanglement:
    matrix = torch.rand(4, 2)
    scores: dict[str, Any] = dict.fromkeys(SCORES, score)
    return Disentanglement(**scores, names=("shape", EVIL), num_data=20, information=matrix, importance=matrix)


def latent_report(value: float = 0.3) -> LatentReport:
    statuses = ("active", "collapsed", "idle")
    dimensions = [LatentDimension(f"z[{i}]", "z", value, 0.1, value, 0.0, 1.0, NAN, s) for i, s in enumerate(statuses)]
    draws = {"z": torch.randn(6, 3)}
    sites = [LatentSite("z", 3, value, 0.1, EVIL)]
    return LatentReport(dimensions, sites, value, 0.1, value, 0.1, value, 0.1, 6, 2, ["a note"], draws, draws)


@cache
def gaps(n: int = 4) -> InferenceGaps:
    pair = LinearGaussian()
    return pv.inference_gaps(pair.model, pair.guide, pair.simulate(n), num_samples=30, seed=0)


def local_guide() -> LocalGuide:
    return gaps().fits["diagonal_normal"]


def quality(value: float = 0.5) -> SampleQuality:
    metrics = SampleQualityMetrics(*[value] * 10)
    return SampleQuality(metrics, SampleQualityMetrics(*[0.9] * 10), 9, 9, 0, torch.rand(9, 1, 6, 6))


def summary(value: float = -9.0) -> Summary:
    return Summary(value - 1, value, 1.0, value, 0.1, 0.2, 4, True, 3.0, 10, 20, EVIL, "none")


def history(*losses: float, valid: float | None = -3.0) -> History:
    epochs = [Epoch(i + 1, i + 1, loss, -loss, valid, -loss, 0.5, 1.0, 1e-3, 0.1 * i) for i, loss in enumerate(losses)]
    return History(epochs, best=1 if epochs else None, elbo=EVIL)


def trainings(value: float = -3.0) -> TrainingComparison:
    run = TrainingRun("elbo", 0, value, value, value, 0.1, 2, 0.5, history(3.0, -value))
    return TrainingComparison([replace(run, estimator=name, seed=seed) for name in ("elbo", EVIL) for seed in (0, 1)])


def seed_runs(*losses: float) -> SeedRuns:
    return SeedRuns([0, 1], [history(*losses), history(*losses, valid=None)], [], EVIL)


def runs(*rows: RunRow) -> RunTable:
    return RunTable(list(rows))


def two_runs(elbo: float | None = -4.0) -> RunComparison:
    results: dict[str, tuple[float | None, float | None]] = {"elbo": (elbo, -3.0), "log_prob": (None, -2.5)}
    results |= {"loss": (NAN, 3.0), "seconds": (1.0, 2.0)}
    return RunComparison((EVIL, "b"), {"elbo": ("iwae", None)}, {}, results)


def calibration(p: float = 0.001, num: int = 30) -> Calibration:
    rows = [CalibrationRow(name, "ranks", num, p, p, EVIL, 0.1, 0.9, 0.5, p) for name in ("z", EVIL)]
    rows += [CalibrationRow("c", "reliability", num, p, p, EVIL), CalibrationRow("mean", "predictive", 9, p, p, "fine")]
    ranks = {name: torch.arange(num) % 11 - 1 for name in ("z", EVIL)}
    sites = [Reliability("c", p, 0.1, p, p, [0.2, 0.7], [0.3, 0.6], [num, num], EVIL)] if num else []
    return Calibration(rows if num else [], sites, ranks, num, 9, "datum", 0.05, p, [EVIL])


def preflight(*issues: PreflightIssue) -> PreflightReport:
    return PreflightReport(list(issues), [(EVIL, "Normal", "Normal", "(6,)", "()", "data")])


def reported(value: float | None = -9.0) -> Report:
    row = {"name": EVIL, "elbo": value, "elbo_error": value and 0.1, "log_prob": value, "log_prob_error": value and 0.1}
    content = join([tag("h1", "Report"), table(["run", "ELBO"], [[EVIL, value]]), tag("img", src="data:", alt=EVIL)])
    return Report([row], page("Report", content, styles="", script=""), {EVIL: {"bound": EVIL}})


# as they mostly are; with values that do not exist; of nothing
def compiled_steps() -> CompiledReport:
    """Steps of two kinds, one of which runs eagerly."""
    kinds = [
        CompiledSteps("steps", "(20, 4) float32", True, 130, 0.1, 4.0, ""),
        CompiledSteps("steps", "(7, 4) float32", False, 0, 0.0, 0.0, "the pair's control flow depends on values"),
    ]
    return CompiledReport(kinds, {"steps of the phase 'critic'": "it was not recorded"})


RESULTS: dict[str, Callable[[], Result]] = {
    "CompiledReport": compiled_steps,
    "CompiledReport of nothing": lambda: CompiledReport([], {}),
    "Bound": bound,
    "Bound of one datum": lambda: bound(1),
    "Bound of infinities": lambda: replace(bound(3), kl=torch.full((3,), INF)),
    "LogMarginal": marginal,
    "LogMarginal of NaN": unknown_marginal,
    "LogMarginal of nothing": lambda: marginal(0),
    "BidirectionalBounds": bounds_on_both_sides,
    "BidirectionalBounds of one datum": lambda: bounds_on_both_sides(1),
    "LogConditional": lambda: LogConditional(marginal(), marginal()),
    "LogConditional of one datum": lambda: LogConditional(marginal(1), marginal(1)),
    "LogConditional of NaN": lambda: LogConditional(unknown_marginal(), marginal(3)),
    "Coherence": lambda: Coherence({EVIL: torch.rand(5).double(), "all alike": torch.rand(5).double()}, 2),
    "Coherence of one datum": lambda: Coherence({"all alike": torch.ones(1).double()}, 1),
    "Forecast": lambda: Forecast(torch.randn(9, 3, 4, 2), torch.randn(3, 5, 2), torch.tensor([5, 2, 3])),
    "Forecast of NaN": lambda: Forecast(torch.full((2, 1, 1, 1), NAN), torch.randn(1, 5, 1), torch.tensor([5])),
    "LogMarginalRepair": lambda: repaired(torch.tensor([1, 3])),
    "LogMarginalRepair of nothing": lambda: repaired(torch.tensor([], dtype=torch.long)),
    "Imputation of images": lambda: imputation((4, 4)),
    "Imputation of vectors": lambda: imputation((5,)),
    "Imputation of nothing": lambda: imputation((4, 4), mean=False),
    "ImputationScores": lambda: ImputationScores(
        0.5, NAN, [ColumnScore(EVIL, "real", 3, 1.0, 0.5, NAN), ColumnScore("b", "binary", 2, NAN, NAN, 0.5)]
    ),
    "TableFidelity": lambda: TableFidelity(0.1, NAN, 0.5, NAN, 0.7, EVIL, [ColumnDistance(EVIL, "real", 0.1)]),
    "ElboComparison": estimators,
    "ElboComparison of NaN": lambda: estimators(NAN),
    "ElboComparison of nothing": lambda: ElboComparison([], marginal(), 10),
    "Recommendation": lambda: estimators().recommend(),
    "Recommendation of NaN": lambda: estimators(NAN).recommend(),
    "Recommendation of nothing": lambda: ElboComparison([], marginal(), 10).recommend(),
    "ModelComparison": lambda: ModelComparison(("a", EVIL), (marginal(), marginal()), (bound(), bound())),
    "ModelComparison of one datum": lambda: ModelComparison(("a", "b"), (marginal(1), marginal(1)), (None, None)),
    "ModelComparison of NaN": lambda: ModelComparison(
        ("a", "b"), (unknown_marginal(), unknown_marginal()), (None, None)
    ),
    "EstimatorCheck": lambda: check(CheckLine("value", 1.0, 1.0, 0.1, 0.2, 4.0, True), CheckLine("snr", 1.0)),
    "EstimatorCheck of NaN": lambda: check(CheckLine("value", NAN, 1.0, 0.1, NAN, 4.0, False)),
    "EstimatorCheck of infinities": lambda: check(CheckLine("value", INF, 1.0, 0.1, INF, 4.0, False)),
    "EstimatorCheck of nothing": check,
    "Calibration": calibration,
    "Calibration of NaN": lambda: calibration(NAN),
    "Calibration of nothing": lambda: calibration(num=0),
    "Disentanglement": disentangled,
    "Disentanglement of NaN": lambda: disentangled(NAN),
    "LatentReport": latent_report,
    "LatentReport of NaN": lambda: latent_report(NAN),
    "LatentReport of infinities": lambda: latent_report(INF),
    "InferenceGaps": gaps,
    "InferenceGaps of one datum": lambda: gaps(1),
    "Generalization": lambda: generalization(gaps(), gaps(3)),
    "Generalization of one datum": lambda: generalization(gaps(), gaps(1)),
    "LocalGuide": local_guide,
    "SampleQuality": quality,
    "SampleQuality of NaN": lambda: quality(NAN),
    "SampleQuality of infinities": lambda: quality(INF),
    "Summary": summary,
    "Summary of NaN": lambda: summary(NAN),
    "Summary of infinities": lambda: summary(-INF),
    "SeedRuns": lambda: seed_runs(3.0, 2.0),
    "SeedRuns of NaN": lambda: seed_runs(NAN),
    "SeedRuns of nothing": lambda: SeedRuns([], [], []),
    "TrainingComparison": trainings,
    "TrainingComparison of NaN": lambda: trainings(NAN),
    "TrainingComparison of nothing": lambda: TrainingComparison([]),
    "RunTable": lambda: runs(RunRow(EVIL, model="VAE", data="digits", epochs=3, elbo=-9.0), RunRow("b", problem=EVIL)),
    "RunTable of nothing": runs,
    "RunComparison": two_runs,
    "RunComparison of infinities": lambda: two_runs(-INF),
    "RunComparison of nothing": lambda: two_runs(None),
    "Report": reported,
    "Report of nothing": lambda: reported(None),
    "History": lambda: history(3.0, 2.0),
    "History of NaN": lambda: history(3.0, NAN, valid=None),
    "History of nothing": history,
    "PreflightReport": lambda: preflight(
        PreflightIssue("error", "a", EVIL, EVIL), PreflightIssue("warning", "b", None, "c")
    ),
    "PreflightReport of a sound pair": preflight,
}

every_result = pytest.mark.parametrize("result", [pytest.param(make, id=name) for name, make in RESULTS.items()])


def refuse(constant: str) -> None:
    raise AssertionError(f"JSON knows no {constant}")


class Reader(HTMLParser):
    """What stands in a page: its tags in their order, its text, and what it loads from elsewhere."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.opened: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.loaded: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "br", "img", "link"):
            self.opened.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "data", "srcset")]

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_every_result_class_is_here() -> None:
    def below(parent: type[Any]) -> set[type[Any]]:
        return {parent, *(c for child in parent.__subclasses__() for c in below(child))}

    ours = {c for c in below(Result) - {Result, PanelResult} if c.__module__.startswith("pyro_vae")}
    assert {type(make()) for make in RESULTS.values()} == ours
    assert len(ours) == 30


@every_result
def test_a_result_is_text_and_html(result: Callable[[], Result]) -> None:
    found = result()
    assert "\x1b" not in repr(found)
    assert as_text(found.table()).strip()
    assert not repr(found).startswith("<pyro_vae")
    page = Reader(found._repr_html_())
    assert page.opened == []
    assert page.loaded == []
    assert "script" not in page.tags
    assert ".plot()" in page.texts


@every_result
def test_a_result_has_values_and_rows(result: Callable[[], Result], tmp_path: Path) -> None:
    found = result()
    assert found.to_dict()
    rows = found.to_dicts()
    assert all(row.keys() == rows[0].keys() for row in rows)
    path = found.save(tmp_path / "new" / "rows.csv")
    with path.open(newline="") as file:
        header, *lines = csv.reader(file)
    assert len(lines) == len(rows)
    assert header
    if rows:
        assert header == list(rows[0])
        assert lines[0] == ["" if value is None else str(value) for value in rows[0].values()]
    assert [p.name for p in path.parent.iterdir()] == ["rows.csv"]


@every_result
def test_json_holds_neither_nan_nor_infinity(result: Callable[[], Result], tmp_path: Path) -> None:
    path = result().save(tmp_path / "a.json")
    assert path == tmp_path / "a.json"
    assert isinstance(json.loads(path.read_text(), parse_constant=refuse), dict)


@every_result
def test_a_result_is_drawn(result: Callable[[], Result], tmp_path: Path) -> None:
    found = result()
    figure: Any = found.plot()
    assert figure.axes or figure.texts
    picture = figure._repr_png_()
    assert picture.startswith(b"\x89PNG")
    assert found.save(str(tmp_path / "a.png")).read_bytes().startswith(b"\x89PNG")
    for ax in figure.axes:  # what has a scale says of what
        if ax.axison and ax.lines + ax.patches and ax.get_label() != "<colorbar>":
            assert ax.get_xlabel() or ax.get_ylabel() or not ax.get_yticks().size


@pytest.mark.parametrize("result", [pytest.param(RESULTS[n], id=n) for n in RESULTS if not n.startswith("Report")])
def test_a_page_holds_the_table_and_the_picture(result: Callable[[], Result], tmp_path: Path) -> None:
    found = result()
    text = found.save(tmp_path / "a.html").read_text()
    page = Reader(text)
    assert page.opened == []
    assert {"title", "h1", "img"} <= set(page.tags)
    assert "script" not in page.tags
    assert [re.match(r"data:image/png;base64,iVBOR", source) is not None for source in page.loaded] == [True]
    assert "url(" not in text
    assert "@import" not in text
    assert as_html(found.table()) in text


@every_result
def test_another_suffix_is_refused(result: Callable[[], Result], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"saved as \.json, \.csv, \.png or \.html, got '\.txt'"):
        result().save(tmp_path / "a.txt")
    assert list(tmp_path.iterdir()) == []


@every_result
def test_rows_become_a_data_frame(result: Callable[[], Result], monkeypatch: pytest.MonkeyPatch) -> None:
    class Frame:
        def __init__(self, rows: Any, columns: Any) -> None:
            self.rows, self.columns = rows, columns

    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=Frame))
    found = result()
    frame = found.to_dataframe()
    assert len(frame.rows) == len(found.to_dicts())
    assert frame.columns
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        found.to_dataframe()


@every_result
def test_pandas_takes_the_rows(result: Callable[[], Result]) -> None:
    pytest.importorskip("pandas")
    found = result()
    frame = found.to_dataframe()
    assert len(frame) == len(found.to_dicts())
    assert len(frame.columns) > 0


def test_names_are_shown_as_they_are() -> None:
    text = "".join(Reader(preflight(PreflightIssue("error", "a", EVIL, "b"))._repr_html_()).texts)
    assert text.count(EVIL) == 2


def test_cells_of_a_table_are_escaped_and_markup_is_not_shown() -> None:
    table = Table(title="[b]bold[/b] & more", caption="two\nlines")
    table.add_column("name <i>")
    table.add_column("value", justify="right")
    table.add_row("[red]x[/red] < y", "1")
    page = Reader(as_html(table))
    assert [text for text in page.texts if text.strip()] == [
        "bold & more",
        "name <i>",
        "value",
        "x < y",
        "1",
        "two",
        "lines",
    ]
    with pytest.raises(TypeError, match="got int"):
        as_html(3)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    class Broken(History):
        def _draw(self) -> Any:
            raise RuntimeError("no picture today")

    path = history(3.0).save(tmp_path / "a.png")
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="no picture"):
        Broken(history(3.0).epochs).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@every_result
def test_one_panel_is_drawn_into_axes_that_are_there(result: Callable[[], Result]) -> None:
    from matplotlib.figure import Figure

    found = result()
    if isinstance(found, Imputation):  # whose plot has more arguments
        ax = Figure().subplots()
        assert found.plot(ax=ax) is ax.figure
        assert ax.has_data()
        return
    if not isinstance(found, PanelResult):
        assert len(found.plot().axes) != 1 or isinstance(found, Forecast)  # a panel for each series
        return
    left, right = Figure().subplots(1, 2)
    assert found.plot(left) is left.figure
    assert left.has_data() or left.texts
    assert not right.has_data()
    with pytest.raises(TypeError, match="ax must be matplotlib axes, got Figure"):
        found.plot(ax=left.figure)  # type: ignore[arg-type]
