"""`.npz` files of strangers: what they claim is checked before memory is taken."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyro_vae.data import archive, load
from pyro_vae.support.memory import physical_memory


def _npy(shape: tuple[int, ...], content: bytes = b"", dtype: str = "|u1") -> bytes:
    """An `.npy` file whose header may say anything."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + content


def _zip(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return path


def test_sound_files(tmp_path: Path) -> None:
    for dtype in (np.uint8, np.float32, np.float64):
        x = np.arange(60).reshape(20, 3).astype(dtype)
        np.savez_compressed(tmp_path / "a.npz", x=x, other=np.zeros(5))
        arrays, names = archive.read_arrays(tmp_path / "a.npz", ("x", "y"))
        assert list(arrays) == ["x"]
        assert names == ["x", "other"]
        np.testing.assert_array_equal(arrays["x"], x)


def test_a_zip_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 32 * 2**20
    path = _zip(tmp_path / "bomb.npz", x=_npy((size // 64, 64), bytes(size)))
    assert path.stat().st_size < 40_000
    monkeypatch.setattr(archive, "physical_memory", lambda: 4 * size - 1)
    with pytest.raises(ValueError, match=r"bomb\.npz' has [\d,]+ bytes, but its arrays need [\d,]+, more than"):
        load(path)
    monkeypatch.setattr(archive, "physical_memory", lambda: None)  # a system that does not tell
    assert len(load(path).train.x) > 0


def test_a_bomb_beside_the_data_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _zip(tmp_path / "a.npz", x=_npy((20, 2), bytes(40)), bomb=_npy((2**20,), bytes(2**20)))
    monkeypatch.setattr(archive, "physical_memory", lambda: 1000)
    assert load(path).shape == (2,)


def test_a_size_in_the_directory_that_is_a_lie(tmp_path: Path) -> None:
    path = _zip(tmp_path / "a.npz", x=_npy((2**20, 1), bytes(2**20)))
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02") + 24  # of the uncompressed size in the central directory
    content[at : at + 4] = struct.pack("<I", 200)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npz' is damaged "):
        load(path)


@pytest.mark.parametrize("shape", [(2**40, 2), (2**62, 2**62), (10**30, 1)])
def test_a_header_that_is_a_lie(tmp_path: Path, shape: tuple[int, ...]) -> None:
    path = _zip(tmp_path / "a.npz", x=_npy(shape, bytes(100)))
    with pytest.raises(ValueError, match=r"a\.npz' is damaged .*its header says"):
        load(path)


def test_no_pickles(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match=r"a\.npz' is damaged or not an \.npz file of numbers: .*allow_pickle"):
        load(tmp_path / "a.npz")


def test_damage(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.random.default_rng(0).random((40, 5)))
    content = (tmp_path / "a.npz").read_bytes()
    rng = np.random.default_rng(1)
    refused = passed = 0
    for _ in range(200):
        changed = bytearray(content)
        for at in rng.integers(len(content), size=3):
            changed[at] ^= 1 << int(rng.integers(8))
        (tmp_path / "a.npz").write_bytes(changed)
        try:
            load(tmp_path / "a.npz")
        except ValueError as error:
            refused += "a.npz" in str(error)
        else:
            passed += 1
    assert refused + passed == 200
    assert refused > 150


def test_a_pipe_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"a\.npz is not a plain file"):
        load(tmp_path / "a.npz")


def test_memory_of_this_machine() -> None:
    found = physical_memory()
    assert found is None or found > 2**28


@pytest.mark.filterwarnings("ignore:.*decompression bomb:PIL.Image.DecompressionBombWarning")
def test_an_image_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (200, 200)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"a\.png' is too large for an image: .*decompression bomb"):
        load(tmp_path)


def test_two_arrays_of_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The small one could be measured, and the large one read."""
    large, small = _npy((2**17, 64), bytes(4 * 2**23)), _npy((2, 2), bytes(16))
    monkeypatch.setattr(archive, "physical_memory", lambda: 10**6)
    for names in (("x", "x.npy"), ("x.npy", "x")):
        path = tmp_path / "two.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
            made.writestr(names[0], large)
            made.writestr(names[1], small)
        with pytest.raises(ValueError, match="it has two arrays 'x'"):
            load(path)


def test_an_array_reached_through_a_link(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((20, 4), dtype="float32"))
    (tmp_path / "b.npz").symlink_to(tmp_path / "a.npz")
    assert len(load(tmp_path / "b.npz", valid=0, test=0).train) == 20
