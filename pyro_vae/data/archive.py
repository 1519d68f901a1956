"""Arrays from an untrusted `.npz` file: the sizes that it declares are checked before memory is allocated."""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pyro_vae.support.files import open_plain
from pyro_vae.support.memory import physical_memory

__all__ = ["check_memory", "read_arrays"]

DEFAULT_MEMORY = 64 * 2**30


def read_arrays(path: Path, keys: Sequence[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays called `keys` in an `.npz` file, those that it has, and the names of all arrays in it.

    Raises:
        ValueError: If the file is not an `.npz` file, is damaged, holds Python objects, or does not fit into memory.
    """
    with open_plain(path, 2**62, links=True) as file:  # whoever names a file of data may name a link
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{str(path)!r} is not an .npz file; write one with numpy.savez(path, x=...)")
        try:
            with zipfile.ZipFile(file) as archive:
                members = _members(archive)
                wanted = [key for key in keys if key in members]
                sizes = [_size(archive, members[key]) for key in wanted]
                # all values as float32, twice while they are split, and one array as it is stored
                needed = sum(8 * count for _, count in sizes) + max((stored for stored, _ in sizes), default=0)
                check_memory(f"{str(path)!r} has {path.stat().st_size:,} bytes, but its arrays need", needed)
                return {key: _read(archive, members[key]) for key in wanted}, list(members)
        except _TooLarge:
            raise
        except Exception as error:  # zipfile, its codecs and NumPy raise a dozen kinds of errors for damaged files
            message = f"{type(error).__name__}: {error}"
            raise ValueError(f"{str(path)!r} is damaged or not an .npz file of numbers: {message:.300}") from error


class _TooLarge(ValueError):
    pass


def check_memory(what: str, needed: int) -> None:
    """Refuse data that need more memory than this machine has; `what` begins the message.

    Raises:
        ValueError: If they do.
    """
    limit = physical_memory() or DEFAULT_MEMORY
    if needed > limit:
        raise _TooLarge(
            f"{what} {needed:,}, more than the {limit:,} of this machine's memory: use a part of it, or pass a "
            "DataLoader to fit"
        )


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The members by the names of their arrays, each of which may be there once: what is measured is what is read."""
    found: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        if name in found:
            raise ValueError(f"it has two arrays {name!r:.80}")
        found[name] = info
    return found


def _size(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[int, int]:
    """Bytes of an array as stored, and the number of its values, as declared in the archive and its header."""
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    count = math.prod(shape)
    if not dtype.hasobject and count * dtype.itemsize > info.file_size:
        raise ValueError(f"{info.filename} has {info.file_size:,} bytes, its header says {count * dtype.itemsize:,}")
    return info.file_size, count


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as file:
        array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):
            raise ValueError(f"{info.filename} has more bytes than its header says")
    return array
