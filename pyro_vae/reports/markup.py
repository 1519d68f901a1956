"""HTML that is escaped by construction, and pages that load nothing and run only their own script."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any

from pyro_vae.support.serialization import finite
from pyro_vae.support.tables import printable

__all__ = ["Markup", "asset", "join", "page", "table", "tag", "text"]

_VOID = ("img", "input", "br")
_EMPTY = ("line", "rect", "path", "polyline")  # of SVG, which need their end


class Markup(str):
    """HTML that has been escaped already. All other text is escaped where it is put into a page."""


def text(value: Any) -> Markup:
    """A value as escaped text, without control characters: it may come from a stranger's run."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape("\n".join(map(printable, str(value).split("\n")))))


def join(parts: Iterable[Any], between: str = "") -> Markup:
    """Several parts as one, each escaped unless it is HTML."""
    return Markup(between.join(text(part) for part in parts if part is not None))


def tag(name: str, *children: Any, **attributes: Any) -> Markup:
    """An element. Attributes whose value is None or False are left out; `class_` is `class`, `_` becomes `-`."""
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{text(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID or (name in _EMPTY and not children):
        return Markup(f"<{name}{written}{'/' * (name in _EMPTY)}>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def table(head: Iterable[Any], rows: Iterable[Iterable[Any]], *, numbers: bool = True) -> Markup:
    """A table whose first column holds text and whose other columns hold numbers, or text."""
    kind = "number" if numbers else None
    names = list(head)
    lines = [tag("tr", *(tag("th", name, scope="col", class_=kind if i else None) for i, name in enumerate(names)))]
    body = [
        tag("tr", *(tag("td" if i else "th", cell, class_=kind if i else None) for i, cell in enumerate(row)))
        for row in rows
    ]
    header = [tag("thead", *lines)] if any(names) else []
    return tag("div", tag("table", *header, tag("tbody", *body)), class_="scroll", tabindex=0)


@cache
def asset(name: str) -> str:
    """The content of a file that comes with this room: a style, a script, a license."""
    return (files("pyro_vae.reports") / "assets" / name).read_text(encoding="utf-8")


def page(title: str, body: Markup, *, styles: str, script: str, data: Any = None, connect: str = "'none'") -> str:
    """A whole page that loads nothing from elsewhere.

    A Content-Security-Policy allows this style, this script and pictures in the page, by their hashes, and nothing
    else: were a text of a run not escaped, a browser would still not run it.

    Args:
        title: The title.
        body: The content of the body.
        styles, script: CSS and JavaScript.
        data: What the script reads, as JSON, from the element with the id `data`.
        connect: What the script may connect to.
    """
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hash(script)}",
            f"style-src {_hash(styles)}",
            "img-src data:",
            f"connect-src {connect}",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    # "<" would let a text in the data end the element
    content = json.dumps(finite(data), separators=(",", ":")).replace("<", "\\u003c")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{text(title)}</title>
<style>{styles}</style>
</head>
<body>
{body}
<script type="application/json" id="data">{content}</script>
<script>{script}</script>
</body>
</html>
"""


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
