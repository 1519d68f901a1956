"""Builds a pair from the name of its class and its arguments."""

from __future__ import annotations

import importlib
import inspect
from argparse import ArgumentError
from contextlib import nullcontext
from typing import Any

from jsonargparse import ArgumentParser

from pyro_vae.support.columns import as_columns
from pyro_vae.support.memory import TooLarge, limited_tensors
from pyro_vae.support.stubs import look_along_own_path

__all__ = ["build"]


def build(spec: Any, data_shape: tuple[int, ...], *, columns: Any = None, limit: int | None = None) -> Any:
    """The pair that a mapping with `class_path` and `init_args` describes.

    If the class has an argument `data_shape`, it gets the shape of one datum, or an int if it is annotated as one; of a
    table it gets an argument `columns`, too, unless `init_args` have it.

    Args:
        spec: The mapping.
        data_shape: The shape of one datum.
        columns: The columns of a table.
        limit: The bytes of tensors that may be made on the way, for a mapping from a stranger.

    Raises:
        ValueError: If the class cannot be imported, is not a pair, does not take the arguments, or is beyond the limit.

    Example:
        >>> build({"class_path": "pyro_vae.VAE", "init_args": {"latent_dim": 3}}, (64,)).latent_dim
        3
    """
    try:
        path = spec["class_path"]
        module, _, name = path.rpartition(".")
        cls = getattr(importlib.import_module(module), name)
    except Exception as error:  # the user's module can raise anything
        raise ValueError(
            f"cannot import the model {spec!r}: {error}. The file of a class of your own must lie in the current "
            "folder or on PYTHONPATH"
        ) from error
    look_along_own_path()
    parser = ArgumentParser(exit_on_error=False)
    try:
        parser.add_class_arguments(cls, "model", skip={"data_shape"}, instantiate=False)
        with nullcontext() if limit is None else limited_tensors(limit):  # parts are made here
            parsed = parser.instantiate(parser.parse_object({"model": spec.get("init_args") or {}}))
        arguments = {**vars(parsed.get("model") or parsed), **spec.get("dict_kwargs", {})}
        shape_parameter = inspect.signature(cls).parameters.get("data_shape")
        if shape_parameter is not None:
            arguments["data_shape"] = _as_annotated(tuple(data_shape), shape_parameter.annotation)
        if columns is not None and "columns" in inspect.signature(cls).parameters and arguments.get("columns") is None:
            arguments["columns"] = as_columns(columns)
        with nullcontext() if limit is None else limited_tensors(limit):
            pair = cls(**arguments)
    except Exception as error:  # the constructor can raise anything
        if _comes_from(error, TooLarge):
            raise TooLarge(f"{path} is larger than {limit:,} bytes") from error
        kind = "" if isinstance(error, ValueError | TypeError | ArgumentError) else f"{type(error).__name__}: "
        raise ValueError(f"cannot build the model {path}: {kind}{error}") from error
    for method in ("model", "guide"):
        if not callable(getattr(pair, method, None)):
            raise ValueError(f"{path} is not a pair: it has no method {method}(self, x)")
    return pair


def _comes_from(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error is not None


def _as_annotated(shape: tuple[int, ...], annotation: Any) -> int | tuple[int, ...]:
    if annotation not in (int, "int"):
        return shape
    if len(shape) > 1:
        raise ValueError(f"its data_shape is an int, but the data have shape {shape}: pass --flatten true")
    return shape[0]
