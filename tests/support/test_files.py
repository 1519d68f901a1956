"""The one writer and the one reader of files."""

from __future__ import annotations

import ast
import os
import stat
from pathlib import Path

import pytest

import pyro_vae
from pyro_vae.support import files
from pyro_vae.support.files import PARTIAL, checksum, locked_folder, open_plain, read_file, write_file


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_has_the_permissions_of_the_umask_and_a_replaced_one_keeps_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a"
    before = os.umask(0o027)
    try:
        write_file(path, "one")
        assert mode_of(path) == 0o640
        for mode in (0o600, 0o664, 0o444):
            path.chmod(mode)
            write_file(path, b"two")
            assert (mode_of(path), path.read_bytes()) == (mode, b"two")
    finally:
        os.umask(before)


def test_the_incomplete_file_of_a_private_one_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    write_file(path, "one")
    path.chmod(0o600)
    seen = []
    real = os.fsync

    def look(file: int) -> None:
        seen.append(stat.S_IMODE(os.fstat(file).st_mode))
        real(file)

    monkeypatch.setattr(os, "fsync", look)
    write_file(path, "two")
    assert seen[0] == 0o600


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_after_an_error_the_old_file_is_there_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: type[BaseException]
) -> None:
    path = tmp_path / "a"
    write_file(path, "old")

    def fail(*args: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(error):
            write_file(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_write_in_pieces_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, content: real(file, memoryview(content)[:3]))
    write_file(tmp_path / "a", "0123456789")
    assert (tmp_path / "a").read_text() == "0123456789"


def test_links_that_lie_ready_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "a").symlink_to(precious)  # at the place itself: it is replaced
    names = iter(["0" * 16, "1" * 16])
    monkeypatch.setattr(files, "token_hex", lambda n: next(names))
    (tmp_path / f"{PARTIAL}a.{'0' * 16}").symlink_to(precious)  # at the name that somebody has guessed
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "a", "new")
    write_file(tmp_path / "a", "new")
    assert precious.read_text() == "mine"
    assert (tmp_path / "a").read_text() == "new"
    assert not (tmp_path / "a").is_symlink()


def test_what_a_killed_process_left_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    (tmp_path / f"{PARTIAL}a.dead").write_text("half")
    (tmp_path / f"{PARTIAL}b.dead").write_text("of another file")
    temporary, file = files._create_beside(tmp_path / "a")
    write_file(tmp_path / "a", "new")
    assert sorted(os.listdir(tmp_path)) == sorted([temporary.name, f"{PARTIAL}b.dead", "a"])
    os.close(file)  # it dies
    write_file(tmp_path / "a", "newer")
    assert sorted(os.listdir(tmp_path)) == sorted([f"{PARTIAL}b.dead", "a"])


def test_two_processes_write_one_file(tmp_path: Path) -> None:
    """Each content that is ever there is one that was written, and none is lost to the other's temporary file."""
    path = tmp_path / "a"
    write_file(path, "0" * 1000)
    children = []
    for letter in "12":
        child = os.fork()
        if not child:
            try:
                for _ in range(100):
                    write_file(path, letter * 1000)
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(child)
    for _ in range(300):
        content = path.read_text()
        assert len(content) == 1000
        assert len(set(content)) == 1
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert os.listdir(tmp_path) == ["a"]


def test_reading(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"content")
    assert read_file(path, 7) == b"content"
    assert read_file(path, 7, expected=checksum(b"content")) == b"content"
    with pytest.raises(ValueError, match="a has 7 bytes, more than the 6 expected there"):
        read_file(path, 6)
    with pytest.raises(ValueError, match=r"a is damaged: its checksum is not"):
        read_file(path, 7, expected=checksum(b"other"))
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "b", 7)


def test_only_plain_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    for name in ("file", "pipe"):
        (tmp_path / f"link to {name}").symlink_to(tmp_path / name)
    for name, links in (("folder", False), ("pipe", False), ("pipe", True), ("link to pipe", True)):
        with pytest.raises(ValueError, match=f"{name} is not a plain file"):
            read_file(tmp_path / name, 10, links=links)
    with pytest.raises(ValueError, match="is not a plain file"):
        read_file(Path("/dev/zero"), 10, links=True)
    with pytest.raises(ValueError, match="link to file is a link"):
        read_file(tmp_path / "link to file", 10)
    assert read_file(tmp_path / "link to file", 10, links=True) == b"x"


def test_a_file_that_is_exchanged_before_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check before opening does not help then; the one after does."""
    monkeypatch.setattr(files, "check_plain", lambda *args, **options: None)
    (tmp_path / "file").write_text("much too long")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    for name, message in (("pipe", "not a plain file"), ("link", "is a link"), ("file", "more than the 3")):
        with pytest.raises(ValueError, match=message), open_plain(tmp_path / name, 3):
            pass


def test_one_process_at_a_time_is_in_a_locked_folder(tmp_path: Path) -> None:
    inside, outside = os.pipe()
    with locked_folder(tmp_path):
        child = os.fork()
        if not child:
            with locked_folder(tmp_path):
                os.write(outside, b"x")
            os._exit(0)
        os.set_blocking(inside, False)
        with pytest.raises(BlockingIOError):
            os.read(inside, 1)
    os.waitpid(child, 0)
    assert os.read(inside, 1) == b"x"
    assert os.listdir(tmp_path) == []


# Who else changes files, and why: a log grows line by line, matplotlib chooses formats, checkpoints are taken away.
WRITERS = {
    "support/files.py": {"open", "write", "replace", "unlink"},
    "runs/directory.py": {"replace"},
    "training/checkpoints/directory.py": {"unlink"},
    "training/tracking.py": {"open"},
    "distributed/environment.py": {"rmtree"},  # of its own private folder
    "plots.py": {"savefig"},
    "training/together/processes.py": {"save"},  # into memory, for a pipe
}


def test_there_is_one_writer() -> None:
    """All else that is written goes through `write_file`, whose every step the tests can kill."""
    root = Path(pyro_vae.__file__).parent
    found: dict[str, set[str]] = {}
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            function = node.func
            owner = getattr(getattr(function, "value", None), "id", None)
            name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            writes = name in ("write_text", "write_bytes", "save_file", "unlink", "rename", "renames", "rmtree")
            writes |= owner == "os" and name in ("open", "write", "replace", "remove", "link", "symlink", "truncate")
            writes |= name == "savefig" and not any(keyword.arg == "format" for keyword in node.keywords)
            writes |= name == "open" and owner is None and _mode(node) not in ("r", "rb")
            writes |= name == "save" and owner == "torch"
            if writes:
                found.setdefault(str(path.relative_to(root)), set()).add(name)
    assert found == WRITERS


def _mode(call: ast.Call) -> str:
    modes = list(call.args[1:2]) + [k.value for k in call.keywords if k.arg == "mode"]
    if not modes:
        return "r"
    return str(modes[0].value) if isinstance(modes[0], ast.Constant) else "unknown"
