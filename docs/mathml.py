"""Formulas as MathML, which browsers draw themselves: no script and no network, and text that can be copied."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx

__all__ = ["mathml", "setup"]

# the converter writes them as identifiers, without the space that a function has after its name
_FUNCTION = re.compile(r"<mi>(log|exp|max|min|arg|sin|cos|tanh|det)</mi>")
_OPERATOR = r'<mo form="prefix" lspace="0.1em" rspace="0.17em" movablelimits="false">\1</mo>'


def mathml(formula: str, display: str = "inline") -> str:
    """A formula in LaTeX as a `math` element."""
    # in words, an underscore stands for itself
    formula = re.sub(r"\\text\w*\{[^}]*\}", lambda words: words[0].replace(r"\_", "_"), formula)
    formula = re.sub(r"\\[Bb]ig+[lr]?(?=\\\|)", "", formula)  # which the converter does not know before a double bar
    return _FUNCTION.sub(_OPERATOR, convert(formula, display=display))


def _inline(self: Any, node: nodes.math) -> None:
    self.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def _block(self: Any, node: nodes.math_block) -> None:
    # Sphinx writes several formulas in one directive with empty lines between them
    parts = [part for part in node.astext().split("\n\n") if part.strip()]
    formulas = "".join(mathml(part, "block") for part in parts)
    self.body.append(self.starttag(node, "div", formulas, CLASS="math-block") + "</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer under the name that `html_math_renderer` has."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
