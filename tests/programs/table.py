"""The table of the collection in the documentation: program by question. `python -m tests.programs.table` writes it."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from tests.programs.entry import QUESTIONS, Entry, collection

__all__ = ["PAGE", "page"]

PAGE = Path(__file__).parents[2] / "docs" / "programs.md"

HEAD = """\
# Programs and questions

Look up here what the library answers for your kind of Pyro program. The tables have {count} programs, one in each row.
The columns are the questions. Find the row that is most like your [pair](glossary.md#programs).

| cell | meaning |
|---|---|
| ✓ | The question works, per datum. |
| **D** | The question works, for all data together. A site stands outside the plate over the \
data, or the guide draws the latents of all data as one vector. |
| a number below SVI | The count of ELBO objects of Pyro that take the program, out of six. |
| a number below another question | The question is refused. Under `compile=True`, steps run eagerly. The \
[reasons](#reasons) at the end of the page have this number. |

The tests in `tests/programs` put each program to each question. This is what they assert:

| question | assertion |
|---|---|
| SVI | Two steps of `pv.SVI` give the losses and the parameters of `pyro.infer.SVI` for the same seed. This is \
tested with `Trace_ELBO`, `TraceMeanField_ELBO`, `TraceEnum_ELBO`, `TraceGraph_ELBO`, `RenyiELBO` and \
`ReweightedWakeSleep`. What Pyro refuses, `pv.SVI` refuses. |
| `compile=True` | The recorded graph of a step equals the eager step, or steps run eagerly after a warning that \
names the cause. Other tests hand such graphs to the compiler. |
| `fit` | The program trains, and its ELBO stays finite. |
| `preflight` | The report has exactly the warnings that the program deserves. |
| `bound` | The value is the ELBO of Pyro, up to sampling noise. |
| `log_marginal` | The value is exact log p(x) where that is known. Otherwise it is the estimate of plain importance \
sampling. |
| `compare_elbos`, `latent_report`, `fit_local`, `posterior_samples` | The values agree with `bound` and \
`log_marginal`. |
"""


def page() -> str:
    """The page."""
    entries = collection()
    reasons: dict[str, int] = {}
    parts = [HEAD.format(count=len(entries))]
    for subject, group in groupby(entries, key=lambda entry: entry.subject):
        title = subject.removeprefix("of_").capitalize()
        parts.append(f"\n## {title}\n\n| program | SVI | {' | '.join(QUESTIONS.values())} |")
        parts.append("|---|---|" + "---|" * len(QUESTIONS))
        parts += [_row(entry, reasons) for entry in group]
    parts.append("\n## Reasons\n\nEach reason is a part of the message that the library raises or warns with.\n")
    parts += [f"{number}. {_plain(reason)}" for reason, number in reasons.items()]
    return "\n".join(parts) + "\n"


def _row(entry: Entry, reasons: dict[str, int]) -> str:
    cells = []
    for question in QUESTIONS:
        reason = entry.refuses.get(question)
        if reason is not None:
            cells.append(str(reasons.setdefault(reason, len(reasons) + 1)))
        else:
            together = not entry.per_datum and question in ("bound", "log_marginal", "compare_elbos")
            cells.append("**D**" if together else "✓")
    return f"| {_plain(entry.text)} | {len(entry.elbos)} | {' | '.join(cells)} |"


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("__", "\\_\\_")


if __name__ == "__main__":
    PAGE.write_text(page())
