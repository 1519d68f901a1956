"""Sphinx configuration; build with `make docs`."""

import sys
from importlib.metadata import version as installed
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))  # for mathml

project = "pyro_vae"
author = "the pyro_vae authors"
version = release = installed("pyro-vae")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "mathml",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
html_math_renderer = "mathml"
exclude_patterns = ["_build"]
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3

# docstrings write `code` with single backticks
default_role = "code"
# overrides that say nothing new are left out
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = True
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"pyro_vae {release}"
html_static_path = ["_static"]
html_css_files = ["wrap.css"]


def tidy(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Say to napoleon what it would otherwise misread."""
    if what == "property" and lines:
        # it takes the words before a colon for a type
        lines[0] = lines[0].replace(": ", ", ", 1)
    for i, line in enumerate(lines):
        # it escapes these stars one by one only
        lines[i] = line.replace("*args, **kwargs:", "args, kwargs:").replace("x, *args:", "x, args:")
        if line.startswith("Reference: "):
            # it takes a paragraph after a section for part of it
            lines[i : i + 1] = ["References", "----------", line.removeprefix("Reference: ")]


def setup(app: Sphinx) -> None:
    # before napoleon, whose priority is 500
    app.connect("autodoc-process-docstring", tidy, priority=400)
