"""Formulas of the documentation become MathML that is whole, without a script."""

from __future__ import annotations

import re
import sys
from xml.etree import ElementTree

import pytest

from tests.helpers.paths import ROOT

sys.path.insert(0, str(ROOT / "docs"))
mathml = pytest.importorskip("mathml", reason="the documentation's packages are not installed").mathml
sys.path.remove(str(ROOT / "docs"))


def formulas() -> list[str]:
    """Those of the pages and of the docstrings."""
    pages = "\n".join(path.read_text() for path in (ROOT / "docs").rglob("*.md"))
    pages = re.sub(r"```.*?```|`[^`\n]*`", "", pages, flags=re.DOTALL)
    found = re.findall(r"\$\$(.+?)\$\$", pages, re.DOTALL)
    found += re.findall(r"(?<![\$\\])\$([^$\n]+)\$(?!\$)", re.sub(r"\$\$.+?\$\$", "", pages, flags=re.DOTALL))
    for path in (ROOT / "pyro_vae").rglob("*.py"):
        found += re.findall(r":math:`([^`]+)`", path.read_text())
    return found


def test_all_formulas_are_whole() -> None:
    assert len(formulas()) > 50
    for formula in formulas():
        made = ElementTree.fromstring(mathml(formula))
        assert made.tag.endswith("math"), formula
        text = "".join(made.itertext())
        assert text, formula
        assert "\\" not in text, formula


def test_functions_have_a_space_after_their_name() -> None:
    assert "rspace" in mathml(r"\log p(x)")
    assert "log_likelihood" in mathml(r"\underbrace{x}_{\texttt{log\_likelihood}}")
