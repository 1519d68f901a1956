"""Images from a folder that may be untrusted: each is opened once, checked and named in its errors."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.archive import check_memory
from pyro_vae.support.files import read_file

__all__ = ["pixels", "read_images"]

# Suffixes, and Pillow's names of the formats that such a file may have. Others are not looked for: to read some of them
# Pillow runs other programs, whatever the file is called.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")
MAX_BYTES = 2**30  # of one file


def read_images(path: Path) -> Iterator[tuple[str, Tensor | tuple[Tensor, int]]]:
    """The images in a folder, each with its name; with its class, if the folder has a subfolder for each class.

    Raises:
        ValueError: For a folder of another kind, and, with the name of the file, for one that is no image, is damaged,
            is a pipe or a device, or if all of them do not fit into memory.
    """
    children = [child for child in path.iterdir() if not child.name.startswith(".")]
    files = sorted(child for child in children if child.suffix.lower() in SUFFIXES)
    classes = sorted(child for child in children if child.is_dir())
    if bool(files) == bool(classes):
        raise ValueError(
            f"{str(path)!r} has {len(files)} images and {len(classes)} subfolders; expected either images, or one "
            f"subfolder of images for each class (known suffixes: {' '.join(SUFFIXES)})"
        )
    if not classes:
        for file in files:
            yield str(file), _open(file, path, len(files))
        return
    by_class = [(_below(folder), i) for i, folder in enumerate(classes)]
    for (found, _), folder in zip(by_class, classes, strict=True):
        if not found:
            raise ValueError(f"{str(folder)!r} holds no images; each subfolder is a class (suffixes: {SUFFIXES})")
    total = sum(len(found) for found, _ in by_class)
    for found, label in by_class:
        for file in found:
            yield str(file), (_open(file, path, total), label)


def _below(folder: Path) -> list[Path]:
    """The images in a folder and all folders below it, in their order. Links are followed, but in no circle."""
    found: dict[str, list[str]] = {}
    seen: set[tuple[int, int]] = set()
    for here, inner, names in os.walk(folder, followlinks=True):
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            inner.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        inner.sort()
        found[here] = sorted(name for name in names if name.lower().endswith(SUFFIXES))
    return [Path(here) / name for here in sorted(found) for name in found[here]]


def _open(path: Path, folder: Path, total: int) -> Tensor:
    """An image, one of `total` of its size."""
    from PIL import Image

    content = read_file(path, MAX_BYTES, links=True)  # whoever names a folder of data may put links there
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            values = image.width * image.height * len(image.getbands())
    except Exception as error:  # Pillow's readers raise a dozen kinds of errors for damaged files
        raise _unreadable(path, error) from error
    # as stored and as float32, twice while they are split
    check_memory(f"{str(folder)!r} has {total:,} images, which need", total * values * 9)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return pixels(image, str(path))
    except ValueError as error:
        raise error if str(path) in str(error) else _unreadable(path, error) from error
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    if type(error).__name__ == "DecompressionBombError":
        return ValueError(f"{str(path)!r} is too large for an image: {error}")
    kinds = ", ".join(FORMATS)
    # its own message names a buffer in memory
    reason = f"no image of a known kind ({kinds})" if "cannot identify" in str(error) else f"damaged: {error}"
    return ValueError(f"{str(path)!r} is {reason:.300}; restore or remove it")


def pixels(image: Any, name: str) -> Tensor:
    """A PIL image as uint8 `(C, H, W)`, C = 1 if it is gray and 3 otherwise; transparency is dropped.

    Raises:
        ValueError: If it has more than 8 bits a pixel.
    """
    if image.mode.startswith(("I", "F")):  # converting these to 8 bits would clip them without notice
        raise ValueError(f"{name} has PIL mode {image.mode!r}, more than 8 bits a pixel; convert it to 8 bits first")
    gray = image.mode in ("1", "L", "LA")
    values = torch.from_numpy(np.array(image.convert("L" if gray else "RGB")))
    return values.unsqueeze(0) if gray else values.movedim(-1, 0)  # (H, W[, C]) -> (C, H, W)
