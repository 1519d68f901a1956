"""The table of the collection in the documentation: program by question. `python -m tests.programs.table` writes it."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from tests.programs.entry import QUESTIONS, Entry, collection

__all__ = ["PAGE", "page"]

PAGE = Path(__file__).parents[2] / "docs" / "programs.md"

HEAD = """\
# Programs and questions

What the library answers for {count} Pyro programs of every kind, as its tests assert it (`tests/programs`); `python -m
tests.programs.table` writes this page. Each program is put to each question:

- **SVI**: with each of `Trace_ELBO`, `TraceMeanField_ELBO`, `TraceEnum_ELBO`, `TraceGraph_ELBO`, `RenyiELBO` and
  `ReweightedWakeSleep`, two steps of `pv.SVI` have the losses and the parameters of `pyro.infer.SVI` for the same seed,
  and what Pyro refuses is refused. The number is that of the objects that take the program.
- **`compile=True`**: the recorded graph of a step equals the eager step (other tests hand such graphs to the compiler),
  or steps run eagerly after a warning that names what is to blame.
- **`fit`** trains it, and **`preflight`** reports nothing but the warnings that the program is due.
- **`bound`** is Pyro's loss per datum, **`log_marginal`** the exact value or that of plain importance sampling, and
  **`compare_elbos`**, **`latent_report`**, **`fit_local`** and **`posterior_samples`** agree with them.

✓ works, per datum. **D** works, for all data together: a site stands outside the plate over the data, or the guide
draws the latents of all data as one vector. A number refers to the reason for which the question is refused (or for
which steps run eagerly), at the end of the page, in a part of the message.
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
    parts.append("\n## Reasons\n")
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
