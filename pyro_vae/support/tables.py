"""Tables: as text in a terminal, as HTML in a notebook, as rows in a file."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group
from rich.segment import Segment
from rich.table import Table
from rich.text import Text
from torch import Tensor

__all__ = ["as_csv", "as_html", "as_text", "indexed_rows", "new_table", "printable", "Printable"]


def new_table(title: str, first: str, *columns: str) -> Table:
    """An empty rich table: the first column holds text, the others numbers."""
    # a Text: rich would read the brackets of E[z|x] as markup
    table = Table(title=Text(title, style="table.title") if title else None, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column(Text(first), no_wrap=True)
    for column in columns:
        table.add_column(Text(column), justify="right", no_wrap=True)
    return table


def as_text(table: Any, width: int = 100) -> str:
    """A rich table or group as plain text, without colors."""
    console = Console(width=width)
    with console.capture() as capture:
        console.print(Printable(table))
    return capture.get().rstrip()


def as_html(table: Any) -> str:
    """A rich table, text, or group of them as HTML; the cells are escaped.

    Raises:
        TypeError: For another renderable.
    """
    if isinstance(table, Group):
        return "\n".join(as_html(part) for part in table.renderables)
    if isinstance(table, str | Text):
        return f"<p>{_escaped(table)}</p>"
    if not isinstance(table, Table):
        raise TypeError(f"a rich Table, Text or Group was expected, got {type(table).__name__}")
    lines = ['<div style="overflow-x: auto">', "<table>"]
    if table.title:
        lines.append(f'<caption style="text-align: left">{_escaped(table.title)}</caption>')
    number, word = "text-align: right; white-space: nowrap", "text-align: left"
    styles = [f' style="{number if column.justify == "right" else word}"' for column in table.columns]
    if table.show_header and any(_escaped(column.header) for column in table.columns):
        lines.append(_row("th", styles, [column.header for column in table.columns]))
    cells = zip(*(column.cells for column in table.columns), strict=True) if table.columns else ()
    lines += [_row("td", styles, row) for row in cells]
    lines += ["</table>", "</div>"]
    if table.caption:
        lines.append(f"<p>{_escaped(table.caption)}</p>")
    return "\n".join(lines)


def _row(tag: str, styles: Sequence[str], cells: Sequence[Any]) -> str:
    return "<tr>" + "".join(f"<{tag}{s}>{_escaped(c)}</{tag}>" for s, c in zip(styles, cells, strict=True)) + "</tr>"


def _escaped(cell: Any) -> str:
    plain = cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain
    return html.escape(plain).replace("\n", "<br>")


def indexed_rows(columns: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Turn columns `(N,)` into one dictionary per datum, with its index."""
    values = zip(*(column.tolist() for column in columns.values()), strict=True)
    return [{"index": i, **dict(zip(columns, row, strict=True))} for i, row in enumerate(values)]


def as_csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV, with a header of column names."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class Printable:
    """A rich renderable without control characters: its text may come from a stranger's files."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for text, style, control in console.render(self.content, options):
            yield Segment("\n".join(map(printable, text.split("\n"))), style, control)


def printable(text: str, length: int | None = None) -> str:
    """Text in which "?" stands for control characters, line breaks among them; shortened to `length`."""
    clean = "".join(c if c.isprintable() else "?" for c in text)
    return clean if length is None or len(clean) <= length else f"{clean[: length - 3]}..."
