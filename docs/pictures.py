"""Write the pictures of the pages anew: `python docs/pictures.py [NAME ...]`, where NAME is a part of a picture's name.

`docs/images/commands.txt` has a line for each picture that an example makes: the picture in `docs/images`, its width in
pixels, the file that the example writes, and the example with its arguments. A picture wider than that is made smaller,
and all have at most 256 colors.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
COMMANDS = IMAGES / "commands.txt"


class Picture(NamedTuple):
    """A picture of the pages: its name, its width, the file that an example writes, and the example's arguments."""

    name: str
    width: int
    written: str
    command: str


def listed() -> Iterator[Picture]:
    """The lines of the table; those that begin with `#` are comments."""
    for line in COMMANDS.read_text().splitlines():
        if line and not line.startswith("#"):
            name, width, written, command = line.split(maxsplit=3)
            yield Picture(name, int(width), written, command)


def shrink(source: Path, target: Path, width: int) -> None:
    """Write a picture at this width, or its own if that is less, with a palette of 256 colors."""
    from PIL import Image

    with Image.open(source) as picture:
        smaller = picture.convert("RGB")
        if picture.width > width:
            smaller = smaller.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)
        target.parent.mkdir(parents=True, exist_ok=True)
        smaller.quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)


def make(pictures: Iterable[Picture]) -> None:
    """Run each command once, in a folder of its own, and keep the pictures that are asked for."""
    by_command: dict[str, list[Picture]] = {}
    for picture in pictures:
        by_command.setdefault(picture.command, []).append(picture)
    for command, asked in by_command.items():
        print(f"python examples/{command}", flush=True)
        example, *words = shlex.split(command)
        with TemporaryDirectory() as folder:
            subprocess.run([sys.executable, ROOT / "examples" / example, *words], cwd=folder, check=True)
            for picture in asked:
                shrink(Path(folder) / "pictures" / picture.written, IMAGES / picture.name, picture.width)


if __name__ == "__main__":
    parts = sys.argv[1:]
    make(p for p in listed() if not parts or any(part in p.name for part in parts))
