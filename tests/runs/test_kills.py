"""Commands that change a run are killed at their changes of files: what is left is the old state or the new one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pyro_vae.support.files import write_file
from tests.helpers.dying import DIED, die_at, in_a_child
from tests.helpers.kill_loop import kill_everywhere

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="changes are counted as Linux names them")


def test_all_changes_of_a_saved_pair(tmp_path: Path) -> None:
    assert kill_everywhere("save_pair", tmp_path) == (5, 1)  # make, write, sync, move; sync the folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "start", "stride"),
    [("train", 5, 47), ("resume", 9, 37), ("overwrite", 7, 53), ("evaluate", 2, 2), ("quality", 3, 11)],
)
def test_some_changes_of_each_command(tmp_path: Path, name: str, start: int, stride: int) -> None:
    """`make kills` tries them all."""
    kills, _ = kill_everywhere(name, tmp_path, start=start, stride=stride)
    assert kills >= 2


def test_the_loop_sees_each_change(tmp_path: Path) -> None:
    """A writer that writes in place is caught: the file is torn or empty after one of the kills."""
    file = tmp_path / "a"

    def in_place() -> None:
        out = os.open(file, os.O_WRONLY | os.O_TRUNC)
        os.write(out, b"new content")
        os.fsync(out)

    found = []
    for number in range(1, 4):
        write_file(file, b"old")

        def dying(number: int = number) -> None:
            die_at(number, tmp_path)
            in_place()

        assert in_a_child(dying) == DIED
        found.append(file.read_bytes())
    assert found == [b"old", b"new c", b"new content"]
