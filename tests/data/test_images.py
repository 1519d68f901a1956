"""Folders of images: damage is named, and only images are read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyro_vae.data import archive, load

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(sang) (w) file closefile\n%%EOF\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images, each of one gray level."""
    made = tmp_path / "images"
    made.mkdir()
    for i in range(4):
        Image.fromarray(np.full((8, 8), 40 * i, dtype="uint8")).save(made / f"{i}.png")
    return made


def levels(folder: Path) -> list[int]:
    """The gray level of each image, in the order in which they are read."""
    return [round(255 * float(x)) for x in load(folder, valid=0, test=0).train.x[:, 0, 0, 0]]


@pytest.mark.parametrize("share", [0, 0.2, 0.5, 0.8])
def test_a_cut_image_is_named(folder: Path, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (8, 8), dtype="uint8")
    Image.fromarray(noise).save(folder / "2.png")
    content = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"2\.png' is (damaged|no image of a known kind)"):
        load(folder, valid=0, test=0)


def test_pipes_and_programs_are_no_images(folder: Path) -> None:
    (folder / "2.png").write_bytes(POSTSCRIPT)  # Pillow would start an interpreter
    with pytest.raises(ValueError, match=r"2\.png' is no image of a known kind"):
        load(folder, valid=0, test=0)
    (folder / "2.png").unlink()
    os.mkfifo(folder / "2.png")
    with pytest.raises(ValueError, match=r"2\.png is not a plain file"):
        load(folder, valid=0, test=0)
    (folder / "2.png").unlink()
    (folder / "2.png").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=r"2\.png is not a plain file"):
        load(folder, valid=0, test=0)


def test_links_that_the_user_made_are_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    os.rename(folder / "1.png", tmp_path / "elsewhere" / "one.png")
    (folder / "1.png").symlink_to(tmp_path / "elsewhere" / "one.png")
    (tmp_path / "short").symlink_to(folder)
    assert levels(tmp_path / "short") == [0, 40, 80, 120]


def test_classes_are_read_in_the_order_of_their_names_and_links_in_no_circle(folder: Path, tmp_path: Path) -> None:
    """Each folder before the folders in it, as earlier versions did: the splits of a run depend on it."""
    for name, images in {"b": (1,), "a": (0, 3), "a/deeper": (2,)}.items():
        (tmp_path / "classes" / name).mkdir(parents=True, exist_ok=True)
        for i in images:
            (tmp_path / "classes" / name / f"{i}.png").write_bytes((folder / f"{i}.png").read_bytes())
    for name in ("again", "and again"):
        (tmp_path / "classes" / "a" / name).symlink_to(tmp_path / "classes" / "a")
    data = load(tmp_path / "classes", valid=0, test=0)
    assert levels(tmp_path / "classes") == [0, 120, 80, 40]
    assert data.train.y is not None
    assert data.train.y.tolist() == [0, 0, 0, 1]
    (tmp_path / "classes" / "c").mkdir()
    with pytest.raises(ValueError, match="c' holds no images"):
        load(tmp_path / "classes", valid=0, test=0)


def test_images_that_do_not_fit_into_memory_are_not_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "physical_memory", lambda: 4 * 64 * 9 - 1)
    with pytest.raises(ValueError, match=r"images' has 4 images, which need 2,304, more than the 2,303"):
        load(folder, valid=0, test=0)
