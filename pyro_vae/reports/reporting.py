"""`report`: runs as one page to look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor

from pyro_vae.reports.findings import findings_of
from pyro_vae.reports.gathering import Options, RunFacts, gather
from pyro_vae.reports.markup import Markup, asset, join, page, tag
from pyro_vae.reports.overview import comparison, findings, is_joint, numbers, protocol, value_of
from pyro_vae.reports.sections import SECTIONS
from pyro_vae.reports.training_curves import charts_of, training
from pyro_vae.runs import LoadedRun
from pyro_vae.support import arguments
from pyro_vae.support.arguments import checked_from
from pyro_vae.support.formats import one_line
from pyro_vae.support.random import seed_or_draw
from pyro_vae.support.results import PanelResult
from pyro_vae.support.tables import new_table, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Report", "report"]

Source = str | Path | LoadedRun


@dataclass(frozen=True, repr=False)
class Report(PanelResult):
    """A report: the page, and the numbers and findings in it.

    Attributes:
        rows: For each run its name, its numbers in nats per datum (for all data together, if `is_joint`), and what to
            know of it.
        page: The HTML page.
        refusals: For each run, the questions that its pair did not answer, and why.
    """

    title: ClassVar[str] = "report"
    _rows_name: ClassVar[str] = "runs"

    rows: list[dict[str, Any]]
    page: str = field(compare=False)
    refusals: dict[str, dict[str, str]]

    def _values(self) -> dict[str, Any]:
        return {"refusals": self.refusals}

    def _rows(self) -> list[dict[str, Any]]:
        return self.rows

    def table(self) -> Any:
        """The numbers of each run as a rich table."""
        found = new_table(
            f"report of {len(self.rows)} run{'s' * (len(self.rows) != 1)}", "run", "ELBO", "log p(x)", "±"
        )
        for row in self.rows:
            cells = ("-" if row[k] is None else f"{row[k]:.3f}" for k in ("elbo", "log_prob", "log_prob_error"))
            found.add_row(printable(row["name"]).replace("[", r"\["), *cells)
        return found

    def _as_page(self) -> str:
        return self.page

    def _size(self) -> tuple[float, float]:
        return 6, 1.2 + 0.5 * len(self.rows)

    def _panel(self, ax: Axes) -> None:
        """ELBO and log p(x) of the runs."""
        from pyro_vae.support.pictures import drawable, without_math

        places = range(len(self.rows))
        for key, label, marker in (("elbo", "ELBO", "o"), ("log_prob", "log p(x)", "D")):
            values = drawable((row[key] if row[key] is not None else float("nan") for row in self.rows), float("nan"))
            errors = drawable(row[f"{key}_error"] if row[f"{key}_error"] is not None else 0.0 for row in self.rows)
            ax.errorbar(values, places, xerr=errors, fmt=marker, capsize=3, label=label)
        ax.set_yticks(places, [without_math(printable(row["name"], 40)) for row in self.rows])
        ax.set_ylim(len(self.rows) - 0.5, -0.5)
        ax.set(xlabel="nats per datum")
        ax.legend()


@checked_from(num_data=1, num_samples=1, num_simulations=1)
def report(
    runs: Source | Sequence[Source],
    out: str | Path | None = None,
    *,
    split: Literal["train", "valid", "test"] = "test",
    num_data: int = 500,
    num_samples: int = 1000,
    num_simulations: int = 200,
    text: Callable[[Tensor], list[str]] | None = None,
    root: str | None = None,
    device: str = "cpu",
    trust: bool = False,
    seed: int | None = None,
) -> Report:
    """One page about a run, or about several side by side, to open in any browser and to send to anybody.

    The page holds everything itself: it loads nothing, and runs no script but its own. It shows the protocol, the
    findings in words, the training, ELBO and log p(x) with their errors, reconstructions, samples, traversals, a map of
    the codes, the KL by dimension, calibration, and the quality of samples. Several runs on the same data get paired
    differences. A question that a pair does not answer is listed with the reason.

    Images are shown as images. Of counts and other columns the page shows distributions beside those of samples.

    Args:
        runs: A run directory, what `pv.train` or `pv.load_run` returned, or a list of these.
        out: The file to write, ending in `.html`. None: none is written; the page is the attribute `page`.
        split: The data that the questions are put to; another split where a run has none of this name.
        num_data: How many of them, the first ones.
        num_samples: Importance samples of each for log p(x).
        num_simulations: Simulations for the calibration of the guide.
        text: A function from observations `(N, ...)` to N texts, such as `vocabulary.decode`, for pairs of sentences.
        root: The folder of the data, if they have moved.
        device: The device of the networks.
        trust: Allow the runs to name classes of your own, as in `pv.load_run`. Without it a page about a run of such a
            class shows what is recorded, and no more.
        seed: Seed of all noise, which the page names; torch's generators stay as they were. None draws one from them.

    Raises:
        FileNotFoundError, ValueError: If a run cannot be read, if there is none, or for another ending of `out`.

    Example:
        >>> import tempfile
        >>> import pyro_vae as pv
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     digits = {"flatten": True, "binarize": "dynamic"}
        ...     run = pv.train(pv.VAE, "digits", data_args=digits, out=f"{folder}/run", epochs=1, seed=0)
        ...     found = report(run, f"{folder}/report.html", num_data=30, num_samples=20, num_simulations=20)
        >>> "<h2>Protocol</h2>" in found.page
        True
    """
    arguments.choice("split", split, ("train", "valid", "test"))
    sources = [runs] if isinstance(runs, str | Path | LoadedRun) else list(runs)
    if not sources:
        raise ValueError("there is no run to report on: give a run directory, or a list of them")
    if out is not None and Path(out).suffix != ".html":
        raise ValueError(f"a report is a page, so that out must end in .html, got {str(out)!r}")
    started = datetime.now().astimezone()
    options = Options(split, num_data, num_samples, num_simulations, seed_or_draw(seed), root, text)
    names = _names(sources)
    gathered = [gather(s, n, options, trust=trust, device=device) for s, n in zip(sources, names, strict=True)]
    shown = _page(gathered, options, started)
    made = Report([_row(facts) for facts in gathered], shown, _refusals(gathered))
    if out is not None:
        made.save(out)
    return made


def _names(sources: Sequence[Source]) -> list[str]:
    """Short names that differ: those of the directories, with those above them as far as needed."""
    paths = [Path(s.path if isinstance(s, LoadedRun) else s).absolute().parts for s in sources]
    depth = 1
    while depth < 5 and len({p[-depth:] for p in paths}) < len(paths):
        depth += 1
    found = ["/".join(p[-depth:]) for p in paths]
    return [f"{name} ({found[: i + 1].count(name)})" if found.count(name) > 1 else name for i, name in enumerate(found)]


def _row(facts: RunFacts) -> dict[str, Any]:
    row: dict[str, Any] = {"name": facts.name}
    for name in ("elbo", "log_prob", "kl"):
        row[name], row[f"{name}_error"] = value_of(facts, name)
    row["is_joint"] = is_joint(facts)
    row["num_data"] = len(facts.x) if facts.args else 0
    row["findings"] = [f"{finding.level}: {finding.text}" for finding in findings_of(facts)]
    return row


def _refusals(gathered: Sequence[RunFacts]) -> dict[str, dict[str, str]]:
    return {facts.name: dict(facts.refusals) for facts in gathered}


def _page(runs: Sequence[RunFacts], options: Options, started: datetime) -> str:
    many = len(runs) > 1
    title = f"{len(runs)} runs compared" if many else runs[0].name
    parts = [
        ("findings", "Findings", findings(runs)),
        ("numbers", "Numbers", comparison(runs) if many else numbers(runs[0])),
        ("training", "Training", training(runs)),
    ]
    for anchor, name, draw, questions in SECTIONS:
        content = [(facts, _drawn(facts, draw, questions, options)) for facts in runs]
        if any(html_ for _, html_ in content):
            parts.append((anchor, name, _columns(content) if many else content[0][1]))
    asked = [
        ("data", "; ".join(f"{facts.name}: {_asked(facts)}" if many else _asked(facts) for facts in runs)),
        ("log p(x)", f"importance sampling from the guide, {options.num_samples} samples each"),
        ("calibration", f"{options.num_simulations} simulations"),
        ("seed", str(options.seed)),
        ("made", f"{started:%Y-%m-%d %H:%M %Z} with pyro_vae {version('pyro-vae')}"),
    ]
    parts.append(("protocol", "Protocol", protocol(runs, asked)))
    links = tag("nav", *(tag("a", name, href=f"#{anchor}") for anchor, name, _ in parts), aria_label="Sections")
    header = tag("header", tag("p", "pyro_vae report", class_="kind"), tag("h1", title))
    sections = [tag("section", tag("h2", name), content, id=anchor) for anchor, name, content in parts]
    body = tag("main", header, links, *sections)
    styles = asset("page.css") + asset("report.css") + asset("uPlot.min.css")
    script = asset("uPlot.iife.min.js") + asset("report.js")
    return page(f"{title} · pyro_vae", body, styles=styles, script=script, data={"charts": charts_of(runs)})


def _asked(facts: RunFacts) -> str:
    return f"the first {len(facts.x)} data of the {facts.split} split" if facts.args else "none"


def _drawn(facts: RunFacts, draw: Callable[..., Markup], questions: Sequence[str], options: Options) -> Markup:
    """A section of a run, and why a question in it has no answer."""
    takes_text = draw.__name__ in ("samples", "traversals")
    try:
        content = draw(facts, options.text) if takes_text else draw(facts)
    except Exception as error:  # of data of a shape that nobody thought of: the rest of the page is of use without it
        facts.refusals[draw.__name__] = f"{type(error).__name__}: {one_line(error)}"
        content, questions = join([]), [*questions, draw.__name__]
    if not content and draw.__name__ == "quality" and facts.kind != "images":
        return content
    why = [facts.refusals[question] for question in questions if question in facts.refusals]
    notes = [tag("p", tag("b", "Not answered: "), reason, class_="refusal") for reason in dict.fromkeys(why)]
    return join([content, *notes])


def _columns(content: Sequence[tuple[RunFacts, Markup]]) -> Markup:
    cells = [tag("div", tag("h3", facts.name), each or tag("p", "–")) for facts, each in content]
    return tag("div", *cells, class_="columns")
