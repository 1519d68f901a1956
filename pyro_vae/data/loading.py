"""Read a source into memory, split it and binarize it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pyro_vae.data.frames import is_table_file, table
from pyro_vae.data.sources import Raw, Source, read
from pyro_vae.data.splits import Data, Split, draw_binary, split_sizes
from pyro_vae.support import arguments
from pyro_vae.support.arguments import checked_from

__all__ = ["Binarize", "load"]

Binarize = Literal["none", "dynamic", "static", "threshold", "auto"]
COLORS = (3, 4)  # channels of a color image


@checked_from(source=None, valid=None, test=None)
def load(
    source: Source,
    *,
    binarize: Binarize = "none",
    flatten: bool = False,
    root: str | os.PathLike[str] | None = None,
    valid: int | float = 0.1,
    test: int | float = 0.2,
    labels: int | Literal["all"] | None = None,
    types: Mapping[str, Any] | None = None,
    tokens: bool = False,
    seed: int = 0,
    download: bool = True,
) -> Data:
    """Read `source` into memory, split it, and binarize it.

    All but tokens becomes tensors of torch's default dtype (float32) on the CPU (move them with `Data.to`). For data
    larger than memory pass a `torch.utils.data.DataLoader` to `fit` directly.

    Values: uint8 is divided by 255 and bool becomes 0 and 1; floats are not changed and must be finite; other integers
    raise an error, since their scale is unknown, unless they are `tokens`. Images are `(N, C, H, W)`: a uint8 source of
    shape `(N, H, W)` gets one channel, and one of shape `(N, H, W, C)`, C being 1, 3 or 4, has its channels moved
    (unless its dim 1 is 1, 3 or 4 as well: then that is the channels). Sources of any other shape `(N, *)` keep it.

    A source with a test set of its own (every built-in name except `digits` and `sprites`, and an `.npz` with `x_test`)
    keeps it, in its own order. Otherwise a random permutation cuts the test split off first, then the validation split
    from what remains. Where nothing is cut off, the training data keep their order. The global random state is never
    touched.

    Args:
        source: One of `NAMES`; or the path of a table, a `.csv` file, which gives what `pv.data.table` does; or that of
            an `.npz` file (`x` or `x_train`, optionally `y` or `y_train`, `x_test`, `y_test`) or of a folder of equally
            sized images (its subfolders, if it has any, are the classes; all images are made RGB unless all are gray);
            or a tensor, a NumPy array, or a map-style `Dataset` whose items are `x`, `(x,)` or `(x, y)`, with x a
            tensor, an array or a PIL image. A name has priority over a path of the same spelling: write `./mnist` for
            the path. Omniglot: the background set is the training set and the evaluation set, of other alphabets and
            with labels that also count from 0, is the test set; its images keep their 105 x 105 pixels (the 28 x 28
            variant is not offered) and are dark ink (0) on white (1), as distributed.
        binarize: What the model observes, see `Split.x`. `"none"`: the values themselves. `"threshold"`: whether
            they exceed 0.5. `"static"`: one Bernoulli draw with the values as probabilities. `"dynamic"`: a fresh
            draw at each access in the training split, one fixed draw in the others (Salakhutdinov & Murray 2008;
            Burda et al. 2015, arXiv:1509.00519). `"auto"`: `"none"` for color images (three or four channels), whose
            values are no probabilities of a pixel, else `"dynamic"`. All but `"none"` need values in [0, 1].
        flatten: Give each datum as one vector: `(N, C*H*W)`.
        root: Where torchvision keeps its files; by default the environment variable `PYRO_VAE_DATA`, else
            `~/.cache/pyro_vae`. Missing files are downloaded to it, see `download`.
        valid: Size of the validation split: a float in [0, 1) is a fraction of the training set, an int is a count;
            0 for none.
        test: Size of the test split, likewise, as a fraction of the whole source; ignored where the source has its
            own test set.
        labels: Give the pair the labels as a second argument. "all": all labels, in each split, for a conditional pair.
            A number: the labels of that many training data, evenly over the classes, and -1 for the rest, for a
            semi-supervised pair. None: the pair gets the data alone.
        tokens: The data are rows of token numbers `(N, length)`, as `Vocabulary.encode` gives them, and stay int64.
        types: Of the path of a CSV file: types of columns in place of the inferred ones, see `pv.data.table`.
        seed: Seed of the splits, the fixed draws and the choice of labeled data. The test split and its draw do not
            depend on `valid`.
        download: Download a built-in data set of which files are missing.

    Raises:
        ValueError: For an unknown name, values or shapes that cannot be used, or an empty split.
        TypeError: For a source, or an element type, that cannot be read.
        FileNotFoundError: For a path that does not exist, or a built-in data set that is neither under `root` nor can
            be downloaded.

    Example:
        >>> data = load("digits", binarize="dynamic", flatten=True)
        >>> data
        Data('digits', 1294 train, 144 valid, 359 test, shape (64,), binarize='dynamic')
        >>> data.test.head(2).unique()
        tensor([0., 1.])
        >>> [len(x) for (x,) in data.train.batches(500)]
        [500, 500, 294]
    """
    if binarize not in get_args(Binarize):
        raise ValueError(f"binarize={binarize!r}: expected one of {', '.join(map(repr, get_args(Binarize)))}")
    arguments.flag("flatten", flatten)
    arguments.flag("download", download)
    arguments.flag("tokens", tokens)
    arguments.count("seed", seed, least=0)
    arguments.path("root", root, none=True)
    if tokens and (binarize not in ("none", "auto") or is_table_file(source)):
        raise ValueError(
            f"tokens=True is for rows of token numbers, got binarize={binarize!r} and {str(source)!r:.80}: leave it out"
        )
    if is_table_file(source):
        if binarize not in ("none", "auto") or labels is not None:
            raise ValueError(
                f"{str(source)!r} is a table, whose columns have types of their own: leave binarize={binarize!r} "
                f"and labels={labels!r} out"
            )
        return table(source, types=types, valid=valid, test=test, seed=seed)
    if types is not None:
        raise ValueError(f"types={types!r:.80} are those of the columns of a table, a .csv file: leave them out")
    raw = read(source, root, download=download, tokens=tokens)
    if binarize == "auto":
        binarize = "none" if tokens or _is_color(raw.x) else "dynamic"
    if binarize != "none":
        _check_probabilities(raw.x, binarize)
        if raw.x_test is not None:
            _check_probabilities(raw.x_test, binarize)
    # one seed for each use, so that a change of one split does not change the draws of the others
    uses = torch.randint(2**62, (5,), generator=torch.Generator().manual_seed(seed)).tolist()
    for_order, *for_splits, for_labels = (torch.Generator().manual_seed(use) for use in uses)
    order = _order(raw, valid, test, for_order)
    splits = _splits(raw, order, binarize, flatten, for_splits)
    if labels is not None:
        for name, split in splits.items():
            if labels == "all" or name == "train":
                split.given = _observed_labels(split.y, labels, for_labels)
    origin = {"data": os.fspath(source)} if isinstance(source, str | os.PathLike) else {}
    settings = {"binarize": binarize, "flatten": flatten, "valid": valid, "test": test, "labels": labels, "seed": seed}
    settings["tokens"] = tokens
    return Data(
        name=raw.name,
        train=splits["train"],
        valid=splits.get("valid"),
        test=splits.get("test"),
        shape=tuple(splits["train"].intensity.shape[1:]),
        binarize=binarize,
        seed=seed,
        flatten=flatten,
        origin={**origin, "root": None if root is None else os.fspath(root), **settings},
    )


def _order(raw: Raw, valid: int | float, test: int | float, generator: torch.Generator) -> dict[str, Tensor]:
    """The indices of each split's data; the test split is empty if the source has its own."""
    return split_sizes(len(raw.x), valid, test if raw.x_test is None else 0, generator)


def _splits(
    raw: Raw, order: dict[str, Tensor], binarize: str, flatten: bool, generators: list[torch.Generator]
) -> dict[str, Split]:
    """The splits that are not empty; each has its own generator for its fixed draws."""

    def split(x: Tensor, y: Tensor | None, name: str, generator: torch.Generator) -> Split:
        x = x.flatten(1) if flatten else x  # (N, C, H, W) -> (N, C*H*W)
        dtype = torch.get_default_dtype()  # that of networks; draws are made before, and so are the same in any
        if binarize == "threshold":
            return Split((x > 0.5).to(dtype), y)
        if binarize == "static":
            return Split(draw_binary(x, generator).to(dtype), y)
        if binarize == "dynamic" and name != "train":
            return Split(x.to(dtype), y, drawn=draw_binary(x, generator).to(dtype))
        # what is no float by now are tokens
        return Split(x.to(dtype) if x.is_floating_point() else x, y, dynamic=binarize == "dynamic")

    found = {}
    for name, generator in zip(("train", "valid", "test"), generators, strict=True):
        index = order[name]
        if name == "test" and raw.x_test is not None:
            found[name] = split(raw.x_test, raw.y_test, name, generator)
        elif len(index):
            found[name] = split(raw.x[index], None if raw.y is None else raw.y[index], name, generator)
    return found


def _observed_labels(y: Tensor | None, labels: int | str, generator: torch.Generator) -> Tensor:
    """The labels, or those of some of the data and -1 for the rest."""
    if y is None or y.dim() != 1:
        shape = "none" if y is None else f"labels of shape {tuple(y.shape)}"
        raise ValueError(f"labels={labels!r}: expected data with labels (N,), got {shape}")
    if labels == "all":
        return y
    classes = y.unique()
    if isinstance(labels, bool) or not isinstance(labels, int) or not len(classes) <= labels <= len(y):
        raise ValueError(
            f"labels={labels!r}: expected 'all', or a number from {len(classes)}, one of each class, to {len(y)}"
        )
    order = torch.randperm(len(y), generator=generator)
    # one datum of each class per round, until there are enough
    rounds = torch.empty_like(y)
    for c in classes:
        members = order[y[order] == c]
        rounds[members] = torch.arange(len(members))
    chosen = order[rounds[order].argsort(stable=True)[:labels]]
    return torch.full_like(y, -1).index_copy(0, chosen, y[chosen])


def _is_color(x: Tensor) -> bool:
    """Whether data are images with channels, first or last, of colors."""
    return x.dim() == 4 and x.shape[1] != 1 and (x.shape[1] in COLORS or x.shape[-1] in COLORS)


def _check_probabilities(x: Tensor, binarize: str) -> None:
    low, high = (bound.item() for bound in x.aminmax())
    if low < 0 or high > 1:
        raise ValueError(
            f"binarize={binarize!r} needs values in [0, 1], but these lie in [{low:g}, {high:g}]; "
            "rescale them, or use binarize='none'"
        )
