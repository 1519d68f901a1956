"""The pair that a run trains: it is built from a class, or exists already."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from pyro_vae.data import Data
from pyro_vae.guides.pair import EXAMPLES
from pyro_vae.runs.building import build
from pyro_vae.support.import_paths import stable_path
from pyro_vae.support.random import fork_rng

__all__ = ["as_pair", "describe_pair", "make_pair", "name_of_pair"]


def describe_pair(pair: Any, init_args: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The entry `model` of a configuration: the class of a pair and its arguments, or the names of its functions.

    Raises:
        TypeError: If it is not a pair.
        ValueError: If `init_args` come with anything except a class.
    """
    if inspect.isclass(pair):
        return {"class_path": stable_path(f"{pair.__module__}.{pair.__qualname__}"), "init_args": dict(init_args or {})}
    if init_args:
        raise ValueError(f"init_args are the arguments of a class, but the pair is a {type(pair).__name__}")
    if isinstance(pair, Mapping):
        return dict(pair)
    made = as_pair(pair)
    return {"functions": [_name_of(program) for program in (made.model, made.guide)]}


def name_of_pair(spec: Mapping[str, Any]) -> str:
    """The name of a pair: that of its class, or of its model function (of its class, if it is a method `model`)."""
    if "class_path" in spec:
        return str(spec["class_path"]).rpartition(".")[2]
    *outer, name = (part for part in str(next(iter(spec["functions"]), "")).split(".") if part != "<locals>")
    return outer[-1] if name == "model" and outer else name


def make_pair(pair: Any, spec: Mapping[str, Any], data: Data, seed: int) -> Any:
    """The pair to train. A pair that is built here gets its weights from `seed`, and the data mean if it takes it.

    Raises:
        ValueError: If the pair cannot be built.
    """
    if "class_path" not in spec:
        return as_pair(pair)
    with fork_rng(seed):
        made = build(spec, data.shape, columns=getattr(data, "columns", None))
    if hasattr(made, "start_at_data"):
        with fork_rng(seed):
            made.start_at_data(*data.train.args(min(EXAMPLES, len(data.train))))
    if hasattr(made, "start_at_mean") and data.train.intensity.is_floating_point():  # tokens have no mean
        try:
            made.start_at_mean(data.mean)
        except ValueError as error:
            warnings.warn(f"training does not start at the mean of the data: {error}", stacklevel=3)
    return made


def as_pair(pair: Any) -> Any:
    """An object with `model` and `guide`, from such an object or a tuple of two functions.

    Raises:
        TypeError: If `pair` is neither.
    """
    if callable(getattr(pair, "model", None)) and callable(getattr(pair, "guide", None)):
        return pair
    if isinstance(pair, tuple) and len(pair) == 2 and all(map(callable, pair)):
        return SimpleNamespace(model=pair[0], guide=pair[1])
    raise TypeError(
        f"expected a class with the methods model and guide, an object of one, or a tuple (model, guide) of two "
        f"functions, got {pair!r:.80}"
    )


def _name_of(program: Any) -> str:
    owner = getattr(program, "__self__", None)
    if owner is not None:  # a method: named by the class of its object, which may have inherited it
        return f"{stable_path(f'{type(owner).__module__}.{type(owner).__qualname__}')}.{program.__name__}"
    return f"{program.__module__}.{getattr(program, '__qualname__', type(program).__qualname__)}"
