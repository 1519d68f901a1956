"""Forms of training data: dictionaries, nested tuples and arrays as one tuple of tensors, which batches are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves

from pyro_vae.pair.arguments import takes_keywords
from pyro_vae.pair.forms import Form, InForm, form_along, form_of
from pyro_vae.pair.networks import to_networks_device
from pyro_vae.pair.protocol import Program

__all__ = ["as_tensors", "in_tensors"]

NO_BATCHES = (
    "fit trains on batches of tensors with one row per datum, and the data hold none: a pair that has its data itself "
    "is trained by pv.SVI(model, guide).step()"
)


def as_tensors(source: Any) -> Any:
    """Arrays of numpy and frames of pandas as tensors, a list of numbers as one tensor; anything else as it is."""
    if isinstance(source, np.ndarray):
        return torch.as_tensor(source if source.flags.writeable else source.copy())
    if hasattr(source, "to_numpy") and hasattr(source, "iloc"):
        return torch.tensor(source.to_numpy())
    if isinstance(source, PackedSequence):
        return source
    if isinstance(source, tuple):
        return tuple(map(as_tensors, source))
    if isinstance(source, Mapping):
        return {name: as_tensors(value) for name, value in source.items()}
    is_list = isinstance(source, list) and source
    if is_list and all(isinstance(v, int | float) or (isinstance(v, Tensor) and v.dim() == 0) for v in source):
        return torch.stack([torch.as_tensor(v) for v in source])
    return source


def in_tensors(model: Program, guide: Program | None, *sources: Any) -> tuple[Any, ...]:
    """The pair on a tuple of tensors, and the sources of its data as such tuples, training data first.

    A dictionary is given to the pair by keyword if the model takes all of its keys, else as one argument. What is not a
    tensor, such as a number after the data, is the same for all batches. Data that run along another axis than the
    first, or in packed sequences, are found by the plates of the model. Other sources, and the pair, stay as they are.

    Raises:
        TypeError: For None in the place of a guide, on data of these forms; for data without a tensor.
        ValueError: For validation data of another form than the training data; for data without values.
    """
    sources = tuple(map(as_tensors, sources))
    first = sources[0]
    if first == ():
        raise TypeError(NO_BATCHES)
    if not isinstance(first, tuple | Mapping | Tensor):
        return model, guide, *sources
    if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in tree_leaves(first)):
        raise ValueError(
            "the data are on the device 'meta', which has shapes and no values: make them anew on a device"
        )
    form = _form(model, first)
    if form is None:
        return model, guide, *sources
    if guide is None:
        raise TypeError(
            "a guide is made here for data that are a tensor, or a tuple of tensors with one row per datum: make it "
            "with pv.AmortizedGuide(model, ...), called as the model is"
        )
    found = []
    for source in sources:
        if not isinstance(source, tuple | Mapping | Tensor):
            found.append(source)
            continue
        try:
            found.append(form.rows(*_arguments(model, source)))
        except (AttributeError, IndexError, ValueError) as error:
            raise ValueError("the validation data have another form than the training data") from error
    return InForm(model, form), InForm(guide, form), *found


def _form(model: Program, source: Any) -> Form | None:
    """The form of data that are not rows of tensors; None for those that are."""
    data = _arguments(model, source)
    args = to_networks_device(data[0], model)
    form = form_of(model, (args, data[1]))
    if form is not None and (any(form.axes) or any(isinstance(leaf, PackedSequence) for leaf in form.leaves)):
        return form
    if isinstance(source, Tensor) or (source and isinstance(source, tuple) and all(map(_has_rows, source))):
        return None
    # every tensor has a row for each datum: one of another length is a mistake, which the batches report
    form = form_along(data, lambda leaf: 0 if _has_rows(leaf) else None)
    if all(axis is None for axis in form.axes):
        raise TypeError(NO_BATCHES)
    return form


def _arguments(model: Program, source: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How the programs take a source: as arguments, as keywords or as one argument."""
    if isinstance(source, tuple) and not isinstance(source, PackedSequence):
        return source, {}
    if isinstance(source, Mapping) and takes_keywords(model, source):
        return (), dict(source)
    return (source,), {}


def _has_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0
