"""Formulas as MathML, which browsers draw themselves: no script and no network, and text that can be copied."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

__all__ = ["setup"]


def _inline(self: Any, node: nodes.math) -> None:
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block(self: Any, node: nodes.math_block) -> None:
    # Sphinx writes several formulas in one directive with empty lines between them
    parts = [part for part in node.astext().split("\n\n") if part.strip()]
    formulas = "".join(convert(part, display="block") for part in parts)
    self.body.append(self.starttag(node, "div", formulas, CLASS="math-block") + "</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer under the name that `html_math_renderer` has."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
