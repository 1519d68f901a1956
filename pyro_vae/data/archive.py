"""Arrays from an untrusted `.npz` file: the sizes that it declares are checked before memory is allocated."""

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pyro_vae.support.memory import physical_memory

__all__ = ["read_arrays"]

DEFAULT_MEMORY = 64 * 2**30


def read_arrays(path: Path, keys: Sequence[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays called `keys` in an `.npz` file, those that it has, and the names of all arrays in it.

    Raises:
        ValueError: If the file is not an `.npz` file, is damaged, holds Python objects, or does not fit into memory.
    """
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise ValueError(f"{str(path)!r} is not an .npz file; write one with numpy.savez(path, x=...)")
    limit = physical_memory() or DEFAULT_MEMORY
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            wanted = {key: members[key] for key in keys if key in members}
            needed = sum(_needed(archive, info) for info in wanted.values())
        if needed <= limit:
            with np.load(path, allow_pickle=False) as arrays:
                return {key: arrays[key] for key in wanted}, list(members)
    except Exception as error:  # zipfile, its codecs and NumPy raise a dozen kinds of errors for damaged files
        message = f"{type(error).__name__}: {error}"
        raise ValueError(f"{str(path)!r} is damaged or not an .npz file of numbers: {message}") from error
    raise ValueError(
        f"{str(path)!r} has {path.stat().st_size:,} bytes, but its arrays need {needed:,}, more than the {limit:,} of "
        "this machine's memory: use a part of it, or pass a DataLoader to fit"
    )


def _needed(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Bytes that an array needs, as stored and as float32, by the sizes declared in the archive and its header."""
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    count = math.prod(shape)
    if not dtype.hasobject and count * dtype.itemsize > info.file_size:
        raise ValueError(f"{info.filename} has {info.file_size:,} bytes, its header says {count * dtype.itemsize:,}")
    return max(info.file_size, 4 * count)
