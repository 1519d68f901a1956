"""The gallery names every example and every notebook with its question, and all pictures of the pages exist."""

from __future__ import annotations

import ast
import re

from tests.helpers.paths import EXAMPLES, ROOT

IMAGES = ROOT / "docs" / "images"
BY_HAND = {"report_mnist.png", "explore_mnist.png"}  # screenshots
SHARED = {"common.py", "games.py"}
GALLERY = (ROOT / "docs" / "gallery.md").read_text()


def test_every_example_is_in_the_gallery() -> None:
    examples = {path.name for path in EXAMPLES.glob("*.py")} - SHARED
    examples |= {f"notebooks/{path.name}" for path in (EXAMPLES / "notebooks").glob("*.py")}
    named = re.findall(r"\(\.\./examples/([\w/]+\.py)\)", GALLERY)
    assert sorted(named) == sorted(examples)


def test_the_question_is_that_of_the_example() -> None:
    rows = re.findall(r"\| \[`([\w/.]+)`\]\(\.\./examples/[\w/]+\.py\) \| (.+) \|\n", GALLERY)
    assert len(rows) > 40
    for name, question in rows:
        doc = ast.get_docstring(ast.parse((EXAMPLES / name).read_text())) or ""
        assert question.replace("\\|", "|") == doc.removeprefix("# ").split("\n")[0], name


def test_pictures_exist() -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        for name in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text()):
            assert (page.parent / name).is_file(), f"{page.name}: {name}"
            assert (page.parent / name).stat().st_size < 200_000


def test_pictures_are_made_by_commands_that_are_listed() -> None:
    """Each picture has a line in the table of `docs/pictures.py`, of an example that is there with these options."""
    lines = [line.split(maxsplit=3) for line in (IMAGES / "commands.txt").read_text().splitlines() if line[0] != "#"]
    made = {name for name, *_ in lines}
    assert made | BY_HAND == {str(path.relative_to(IMAGES)) for path in IMAGES.rglob("*.png")}
    assert len(made) == len(lines)
    for _, _, _, command in lines:
        example, *words = command.split()
        source = (EXAMPLES / example).read_text()
        for word in words:
            if word.startswith("--"):
                name = word.removeprefix("--")
                assert f'"--{name}"' in source or re.search(rf"make_parser\([^)]*\b{name}=", source), command
