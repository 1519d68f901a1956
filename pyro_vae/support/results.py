"""The base of all results: printing, display in a notebook, rows, plots and files."""

from __future__ import annotations

import base64
import html
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pyro_vae.support.files import write_file
from pyro_vae.support.pictures import as_png, displayable, empty_figure, styled
from pyro_vae.support.serialization import as_json
from pyro_vae.support.tables import as_csv, as_html, as_text, new_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PanelResult", "Result"]


class Result(ABC):
    """The base of all results. A subclass defines its title, values, rows and plot, and inherits the rest.

    Class attributes to set: `title`, a few words; `_rows_name`, the key of the rows in a JSON file ("" omits them);
    `_columns`, the columns of a CSV file without rows; `_width`, the width of the printed text. Methods to define:
    `_values`, `_draw`, and `_rows` if there is more than one row. Methods to override for a better display: `table` and
    `__repr__`.
    """

    title: ClassVar[str] = "result"
    _rows_name: ClassVar[str] = ""
    _columns: ClassVar[Sequence[str]] = ()
    _width: ClassVar[int] = 100

    @abstractmethod
    def _values(self) -> dict[str, Any]:
        """The values of the whole result by name, as plain Python objects."""

    def _rows(self) -> Sequence[Any]:
        """Mappings or dataclasses with the same keys, for example one per datum, estimator or epoch."""
        return [self._values()]

    @abstractmethod
    def _draw(self) -> Figure:
        """The matplotlib figure; called only if there is something to draw."""

    def _is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not len(self._rows())

    def _content(self) -> dict[str, Any]:
        """The content of a JSON file."""
        return {**self.to_dict(), **({self._rows_name: self.to_dicts()} if self._rows_name else {})}

    def to_dict(self) -> dict[str, Any]:
        """The values of the whole result by name."""
        return self._values()

    def to_dicts(self) -> list[dict[str, Any]]:
        """The rows, one dictionary each."""
        rows: list[Any] = list(self._rows())
        return [asdict(row) if is_dataclass(row) and not isinstance(row, type) else dict(row) for row in rows]

    def to_dataframe(self) -> Any:
        """The rows as a pandas data frame.

        Raises:
            ImportError: If pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_dataframe needs pandas, which is not installed: pip install pandas") from error
        rows = self.to_dicts()
        return pandas.DataFrame(rows, columns=self._names(rows))

    def table(self) -> Any:
        """A rich table or a group of them, for `rich.print`."""
        table = new_table(self.title, "", "")
        for name, value in self.to_dict().items():
            table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
        return table

    def plot(self) -> Figure:
        """A matplotlib figure, which a notebook shows; `save("x.png")` writes it."""
        with styled():
            return displayable(empty_figure(f"{self.title}: nothing to show") if self._is_empty() else self._draw())

    def save(self, path: str | Path) -> Path:
        """Write the result atomically, in the format of the path's suffix; returns the path.

        `.csv` holds the rows, `.json` the values and rows (null in place of NaN and infinities), `.png` the plot, and
        `.html` a page with the table and the plot.

        Raises:
            ValueError: For another suffix.
        """
        path = Path(path)
        content = self.encoded(path.suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content)
        return path

    def encoded(self, suffix: str) -> bytes | str:
        """The content of a file with this suffix, see `save`.

        Raises:
            ValueError: For another suffix.
        """
        ways: dict[str, Callable[[], bytes | str]] = {
            ".json": self._as_json,
            ".csv": self._as_csv,
            ".png": self._as_png,
            ".html": self._as_page,
        }
        if suffix not in ways:
            raise ValueError(
                f"{self.title}: a result is saved as .json, .csv, .png or .html, got {suffix!r}: give one of these "
                "suffixes"
            )
        return ways[suffix]()

    def __repr__(self) -> str:
        return as_text(self.table(), self._width)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        hint = "<p><small><code>.plot()</code> draws it, <code>.to_dataframe()</code> gives the rows</small></p>"
        return f"<div>\n{as_html(self.table())}\n{hint}\n</div>"

    def _names(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        return list(rows[0] if rows else self._columns)

    def _as_json(self) -> str:
        return as_json(self._content())

    def _as_csv(self) -> str:
        rows = self.to_dicts()
        return as_csv(self._names(rows), rows)

    def _as_png(self) -> bytes:
        return as_png(self.plot())

    def _as_page(self) -> str:
        title = html.escape(self.title[:1].upper() + self.title[1:])
        picture = base64.b64encode(as_png(self.plot())).decode()
        return _PAGE.format(title=title, table=as_html(self.table()), picture=picture)


class PanelResult(Result):
    """The base of results whose plot is one panel, which can also be drawn into axes of the user's.

    A subclass defines `_panel` in place of `_draw`, and `_size` for another size of the figure.
    """

    @abstractmethod
    def _panel(self, ax: Axes) -> None:
        """Draw into these axes; called only if there is something to draw."""

    def _size(self) -> tuple[float, float]:
        """Width and height of the figure in inches."""
        return 6, 4

    def _draw(self) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=self._size(), layout="constrained")
        self._panel(figure.subplots())
        return figure

    def plot(self, ax: Axes | None = None) -> Figure:
        """A matplotlib figure, which a notebook shows; `save("x.png")` writes it.

        Args:
            ax: Axes to draw into, in the style of their figure, which is returned. Default: a new figure.

        Raises:
            TypeError: If `ax` is not one panel of matplotlib axes.
        """
        if ax is None:
            return super().plot()
        from matplotlib.axes import Axes

        if not isinstance(ax, Axes):
            raise TypeError(
                f"ax must be matplotlib axes, got {type(ax).__name__}: this plot is one panel; give one of the axes "
                "that `figure.subplots()` returns"
            )
        if not self._is_empty():
            self._panel(ax)
        else:
            ax.text(0.5, 0.5, f"{self.title}: nothing to show", ha="center", va="center", transform=ax.transAxes)
        return ax.figure  # type: ignore[return-value]


_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem 1.25rem 3rem; }}
h1 {{ font-size: 1.5rem; }}
table {{ border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }}
caption {{ font-weight: 600; padding-bottom: 0.4rem; }}
th, td {{ padding: 0.25rem 0.75rem; border-bottom: 1px solid color-mix(in srgb, currentColor 20%, transparent); }}
td:first-child, th:first-child {{ padding-left: 0; }}
p {{ overflow-wrap: anywhere; }}
figure {{ margin: 1.5rem 0; overflow-x: auto; }}
img {{ max-width: 100%; min-width: 32rem; height: auto; background: white; border-radius: 0.5rem; }}
</style>
</head>
<body>
<h1>{title}</h1>
{table}
<figure><img src="data:image/png;base64,{picture}" alt="Plot: {title}"></figure>
</body>
</html>
"""
