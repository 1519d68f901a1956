"""Sources of data: built-in names, files, folders, arrays and data sets, each read into float32 at once."""

import difflib
import os
from collections.abc import Callable, Iterable
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pyro_vae.data.archive import read_arrays
from pyro_vae.data.images import pixels, read_images
from pyro_vae.data.sprites import Sprites

__all__ = ["NAMES", "Raw", "Source", "read"]

_TORCHVISION = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "cifar10": "CIFAR10",
    "omniglot": "Omniglot",
}
NAMES: tuple[str, ...] = ("digits", "sprites", *_TORCHVISION)

Source = str | os.PathLike[str] | Tensor | np.ndarray | Dataset[Any]

_CHANNELS = (1, 3, 4)
# torchvision's errors for files that are missing, incomplete or cannot be downloaded
_UNUSABLE = (RuntimeError, OSError, AssertionError, ValueError, HTTPException)


Convert = Callable[[Tensor, str], Tensor]  # from values as found, and their name for errors


class Raw(NamedTuple):
    """A source as read, before it is split.

    Values float32 `(N, *shape)`, or tokens int64 `(N, length)`; labels int64 `(N,)` or `(N, K)`.
    """

    name: str
    x: Tensor
    y: Tensor | None = None
    x_test: Tensor | None = None
    y_test: Tensor | None = None


def read(
    source: Source, root: str | os.PathLike[str] | None = None, *, download: bool = True, tokens: bool = False
) -> Raw:
    """Read any source that `pyro_vae.data.load` accepts; raises its errors."""
    convert = _as_tokens if tokens else _as_float
    if isinstance(source, str) and source in NAMES:
        if tokens:
            raise ValueError(f"{source!r} holds images, no tokens: leave tokens=True out")
        if source == "sprites":
            source = Sprites()
        else:
            return _digits() if source == "digits" else _torchvision(source, root, download)
    if isinstance(source, Sprites):
        return Raw("sprites", source.images(), source.factors)
    if isinstance(source, str | os.PathLike):
        path = _existing(source)
        return _folder(path, convert) if path.is_dir() else _npz(path, convert)
    if isinstance(source, Tensor):
        return Raw("tensor", convert(source, "the tensor"))
    if isinstance(source, np.ndarray):
        return Raw("array", convert(_tensor(source, "the array"), "the array"))
    if isinstance(source, Dataset):
        return _dataset(source, convert)
    raise TypeError(
        f"source: cannot load data from a {type(source).__name__}; expected a name ({', '.join(NAMES)}), a path, a "
        "tensor, a NumPy array or a map-style torch Dataset (a DataLoader goes to fit directly)"
    )


def _existing(source: str | os.PathLike[str]) -> Path:
    text = os.fspath(source)
    path = Path(text).expanduser()
    if text and path.exists():  # Path("") would be the working folder
        return path
    if not isinstance(source, str) or path.suffix == ".npz" or any(sep in text for sep in ("/", os.sep)):
        raise FileNotFoundError(f"no file or folder at {text!r} (looked from {Path.cwd()})")
    near = difflib.get_close_matches(text.lower().replace("-", "_"), NAMES, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(f"unknown data set {text!r}: {hint}known names: {', '.join(NAMES)}; or give a path or a tensor")


def _digits() -> Raw:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)  # (N, 64) -> (N, C, H, W)
    return Raw("digits", x, torch.tensor(labels, dtype=torch.int64))


def _torchvision(name: str, root: str | os.PathLike[str] | None, download: bool) -> Raw:
    import torchvision.datasets

    folder = Path(root or os.environ.get("PYRO_VAE_DATA") or "~/.cache/pyro_vae").expanduser()
    kind = getattr(torchvision.datasets, _TORCHVISION[name])
    which = "background" if name == "omniglot" else "train"

    def part(train: bool) -> tuple[Tensor, Tensor | None]:
        try:
            # first without download, which creates folders: the root may be read-only
            found = kind(folder, **{which: train})
        except _UNUSABLE as problem:
            if not download:
                raise FileNotFoundError(
                    f"{name!r} is not complete under {str(folder)!r}, and nothing is downloaded for a run that is not "
                    "trusted, or with download=False: pass root= (--root on the command line), the folder that has it "
                    "or is to have it"
                ) from problem
            try:
                found = kind(folder, **{which: train}, download=True)
            except _UNUSABLE as error:
                raise FileNotFoundError(
                    f"{name!r} is not complete under {str(folder)!r} and could not be downloaded to it "
                    f"({type(error).__name__}: {error}). Put torchvision's {kind.__name__} files there, point "
                    "PYRO_VAE_DATA or root= to a folder that has them, or use 'digits', which needs no files"
                ) from error
        if name == "omniglot":
            x, y = _stack((f"image {i}", found[i]) for i in range(len(found)))
            return _as_float(x, name), _labels(y, len(x), name)
        return _as_float(torch.as_tensor(found.data), name), _labels(torch.as_tensor(found.targets), len(found), name)

    return Raw(name, *part(True), *part(False))


def _npz(path: Path, convert: Convert) -> Raw:
    found, keys = read_arrays(path, ("x", "x_train", "y", "y_train", "x_test", "y_test"))
    if ("x" in found) == ("x_train" in found) or ("y" in found and "y_train" in found):
        raise ValueError(
            f"{str(path)!r} has the keys {keys}; expected x or x_train (not both), and optionally y or y_train, "
            "x_test, y_test"
        )

    def part(x_key: str, y_key: str) -> tuple[Tensor, Tensor | None]:
        x = convert(_tensor(found[x_key], f"{x_key} of {str(path)!r}"), f"{x_key} of {str(path)!r}")
        y = _tensor(found[y_key], f"{y_key} of {str(path)!r}") if y_key in found else None
        return x, _labels(y, len(x), f"{x_key} of {str(path)!r}")

    x, y = part("x" if "x" in found else "x_train", "y" if "y" in found else "y_train")
    if "x_test" not in found:
        return Raw(path.name, x, y)
    x_test, y_test = part("x_test", "y_test")
    if x_test.shape[1:] != x.shape[1:]:
        raise ValueError(
            f"training data of shape {tuple(x.shape[1:])} and test data of shape {tuple(x_test.shape[1:])} in "
            f"{str(path)!r}; they must be equal"
        )
    return Raw(path.name, x, y, x_test, y_test)


def _folder(path: Path, convert: Convert) -> Raw:
    x, y = _stack(read_images(path))
    return Raw(path.resolve().name, convert(x, str(path)), _labels(y, len(x), str(path)))


def _dataset(source: Dataset[Any], convert: Convert) -> Raw:
    name = type(source).__name__
    try:
        total = len(source)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"{name} has no length; expected a map-style Dataset (a stream goes to fit directly, in a DataLoader)"
        ) from None
    x, y = _stack((f"item {i} of {name}", source[i]) for i in range(total))
    return Raw(name, convert(x, name), _labels(y, len(x), name))


def _stack(items: Iterable[tuple[str, Any]]) -> tuple[Tensor, Tensor | None]:
    """Items `x`, `(x,)` or `(x, y)`, each preceded by its name for errors, as tensors `(N, *)`."""
    names, xs, ys = [], [], []
    for name, item in items:
        x, *label = item if isinstance(item, tuple | list) else (item,)
        if len(label) > 1:
            raise TypeError(f"{name} is a tuple of {1 + len(label)}; expected x, (x,) or (x, y)")
        try:
            ys += [torch.as_tensor(y) for y in label]
        except (TypeError, RuntimeError, ValueError):
            raise TypeError(f"the label of {name} is {label[0]!r}; expected an integer, or no label") from None
        names.append(name)
        xs.append(_item(x, name))
    if not xs:
        raise ValueError("the source is empty")
    if all(x.ndim == 3 and x.dtype == torch.uint8 for x in xs) and {len(x) for x in xs} == {1, 3}:
        xs = [x.expand(3, -1, -1) for x in xs]  # gray images among colored ones
    for name, x in zip(names, xs, strict=True):
        if (x.shape, x.dtype) != (xs[0].shape, xs[0].dtype):
            raise ValueError(
                f"{name} has shape {tuple(x.shape)} ({x.dtype}), but {names[0]} has {tuple(xs[0].shape)} "
                f"({xs[0].dtype}); all must be equal: resize, crop or convert them first"
            )
    return torch.stack(xs), torch.stack(ys) if ys else None


def _item(x: Any, name: str) -> Tensor:
    from PIL.Image import Image

    if isinstance(x, Image):
        return pixels(x, name)
    if isinstance(x, np.ndarray):
        return _tensor(x, name)
    if isinstance(x, Tensor):
        return x.detach().cpu()
    raise TypeError(f"{name} is a {type(x).__name__}; expected a tensor, a NumPy array or a PIL image")


def _tensor(array: np.ndarray, what: str) -> Tensor:
    if array.dtype.kind not in "buif":
        raise TypeError(f"{what} has dtype {array.dtype}; expected numbers (uint8, bool or floats)")
    # a copy in native byte order: torch rejects other orders and warns of read-only memory
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("=")))


def _as_float(x: Tensor, what: str) -> Tensor:
    """Values as float32 on the CPU, uint8 images as `(N, C, H, W)` in [0, 1]."""
    x = x.detach().cpu()
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"{what} has shape {tuple(x.shape)}; expected (N, ...), at least 2 dimensions and none empty")
    if x.dtype == torch.uint8:
        if x.max() == 1:
            raise ValueError(
                f"{what} is uint8, to be divided by 255, but holds only 0 and 1; give it as bool or as float"
            )
        if x.ndim == 3:
            x = x.unsqueeze(1)  # (N, H, W) -> (N, 1, H, W)
        elif x.ndim == 4 and x.shape[-1] in _CHANNELS and x.shape[1] not in _CHANNELS:
            x = x.movedim(-1, 1)  # (N, H, W, C) -> (N, C, H, W)
        return x.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    if not (x.is_floating_point() or x.dtype == torch.bool):
        raise TypeError(
            f"{what} has dtype {x.dtype}, whose scale is unknown; give uint8 (0..255), bool or floats, or tokens=True "
            "for rows of token numbers"
        )
    x = x.to(torch.float32, memory_format=torch.contiguous_format)
    bad = ~x.isfinite()
    if bad.any():
        first = tuple(bad.nonzero()[0].tolist())
        raise ValueError(f"{what} has {int(bad.sum())} values that are not finite, the first at index {first}")
    return x


def _as_tokens(x: Tensor, what: str) -> Tensor:
    """Rows of token numbers as int64 on the CPU."""
    x = x.detach().cpu()
    if x.dtype == torch.uint64:  # for which torch has few operations; those from 2**63 become negative
        x = x.to(torch.int64)
    if x.ndim != 2 or x.numel() == 0 or x.is_floating_point() or x.dtype == torch.bool or int(x.min()) < 0:
        raise ValueError(
            f"{what} has shape {tuple(x.shape)} and dtype {x.dtype}, and tokens=True needs rows of token numbers, "
            "integers (N, length) from 0, as Vocabulary.encode gives them"
        )
    return x.to(torch.int64)


def _labels(y: Tensor | None, total: int, what: str) -> Tensor | None:
    """Labels as int64 on the CPU, `(N, 1)` as `(N,)`."""
    if y is None:
        return None
    if y.ndim not in (1, 2) or len(y) != total:
        raise ValueError(f"{what} has {total} data, but labels of shape {tuple(y.shape)}; expected ({total},)")
    whole = y.long()
    if y.is_floating_point() and not torch.equal(whole.to(y.dtype), y):
        raise ValueError(f"the labels of {what} are {y.dtype} and not whole numbers")
    return (whole.squeeze(1) if y.shape[1:] == (1,) else whole).cpu()
