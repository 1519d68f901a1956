"""Documentation: every Python block runs, and prints what stands below it.

The blocks of a page run in order, in one namespace. A `text` or `none` block straight after a Python block is what that
block prints; numbers are not compared, since training gives slightly different ones elsewhere. To write the outputs
anew: `python -m tests.test_docs`, or with the pages to rewrite as arguments.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator
from contextlib import chdir, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FunctionType, ModuleType

import pyro
import pytest
import torch

import pyro_vae as pv
from pyro_vae.cli import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/systems").glob("*.md"))]
WITH_CODE = [page for page in PAGES if "\n```python\n" in page.read_text()]
BLOCK = re.compile(r"^```(?P<language>\w+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)


def outputs(page: Path) -> Iterator[tuple[re.Match[str], str]]:
    """Run the Python blocks of a page; yield each output block with what should stand in it."""
    text = page.read_text()
    namespace: dict[str, object] = {"__name__": "docs"}
    printed, end = "", -1
    for block in BLOCK.finditer(text):
        if block["language"] == "python":
            # padded, so that a traceback has the line number of the page
            source = "\n" * text.count("\n", 0, block.start("body")) + block["body"]
            with redirect_stdout(io.StringIO()) as stdout:
                exec(compile(source, page, "exec"), namespace)
            printed, end = stdout.getvalue(), block.end()
        elif block["language"] in ("text", "none") and end >= 0 and not text[end : block.start()].strip():
            yield block, "\n".join(line.rstrip() for line in printed.rstrip().splitlines()) + "\n"


def shape(text: str) -> str:
    """Text without its numbers, and without the widths that they give to tables."""
    text = re.sub(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", "#", text)
    return re.sub(r"[━─]+", "─", " ".join(text.split()))


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_python_blocks(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block, printed in outputs(page):
        assert shape(block["body"]) == shape(printed), f"{page.name} shows something else than\n{printed}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_know_their_options(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The options of each `pyro-vae` command that a page shows are in its help."""
    commands = "\n".join(b["body"] for b in BLOCK.finditer(page.read_text()) if b["language"] in ("bash", "console"))
    for command in re.findall(r"pyro-vae (.*)", commands.replace("\\\n", " ")):
        name, *words = command.split()
        with pytest.raises(SystemExit) as stopped:
            main([name, "--help"])
        known = capsys.readouterr().out
        assert stopped.value.code == 0, command
        for option in (word for word in words if word.startswith("--")):
            assert f"{option.split('.')[0]} " in f"{known} ", f"{page.name}: {option} in `pyro-vae {command}`"


def test_reference_is_complete() -> None:
    reference = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    public = [pv, *(getattr(pv, name) for name in pv.__all__)]  # first: it imports them
    modules = [module for name, module in sys.modules.items() if name.startswith("pyro_vae.")]
    whole = [m for m in modules if hasattr(m, "__all__") and f"automodule:: {m.__name__}\n" in reference]
    documented = set(re.findall(r"\.\. (?:auto|py:)\w+:: (?:[\w.]+\.)?(\w+)\n", reference))
    # automodule lists classes and functions, but not constants
    documented |= {n for m in whole for n in m.__all__ if isinstance(getattr(m, n), type | FunctionType)}
    for module in public:
        if isinstance(module, ModuleType):
            missing = {n for n in module.__all__ if not isinstance(getattr(module, n), ModuleType)} - documented
            assert not missing, f"add to docs/reference, from {module.__name__}: {', '.join(sorted(missing))}"


def rewrite(page: Path) -> None:
    """Put what the blocks print now into a page."""
    text, written, at = page.read_text(), "", 0
    for block, printed in outputs(page):
        written += text[at : block.start("body")] + printed
        at = block.end("body")
    page.write_text(written + text[at:])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for chosen in [Path(name).resolve() for name in sys.argv[1:]] or WITH_CODE:
        pyro.clear_param_store()
        with TemporaryDirectory() as folder, chdir(folder):
            rewrite(chosen)
