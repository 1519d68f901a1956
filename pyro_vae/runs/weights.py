"""All tensors that a pair has learnt, by name: of its networks, wherever they live, and from `pyro.param`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pyro_vae.pair.networks import modules_of
from pyro_vae.support.random import fork_rng

__all__ = ["OUTSIDE", "PARAM", "device_of", "gather", "networks", "restore"]

OUTSIDE = "network/"  # prefix of networks that the pair uses and does not hold
PARAM = "param/"  # prefix of what only Pyro's parameter store holds


def networks(pair: Any) -> dict[str, nn.Module]:
    """The networks of a pair, by the prefix of their tensors' names; a pair that is a module itself has none."""
    found = modules_of(pair.model, pair.guide)
    inside = set(pair.modules()) if isinstance(pair, nn.Module) else set()
    outside = {f"{OUTSIDE}{name}/": net for name, net in found.items() if net not in inside}
    return {"": pair, **outside} if inside else outside


def device_of(pair: Any) -> torch.device:
    """Where the networks of a pair are; the CPU if it has none."""
    places = (p.device for net in networks(pair).values() for p in net.parameters())
    return next(places, torch.device("cpu"))


def gather(pair: Any, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU of all state of the pair's networks, and of those `params` that are in no network."""
    tensors: dict[str, Tensor] = {}
    held: set[int] = set()
    for prefix, net in networks(pair).items():
        held |= {id(p) for p in net.parameters()}
        for name, value in net.state_dict().items():
            if not isinstance(value, Tensor):
                raise TypeError(f"the state {prefix + name!r} is a {type(value).__name__}: only tensors can be saved")
            tensors[prefix + name] = value
    tensors |= {PARAM + name: value for name, value in params.items() if id(value) not in held}
    # cloned: safetensors refuses tensors that share memory
    return {name: value.detach().clone().contiguous().cpu() for name, value in tensors.items()}


def restore(pair: Any, tensors: Mapping[str, Tensor], *args: Any) -> None:
    """Fill the networks of a pair, and its parameters in Pyro's store, where it makes them when it runs on `args`.

    Raises:
        ValueError: If something does not fit. Nothing has changed then: a network may be shared with other pairs.
    """
    before = [
        (net, {k: v.clone() for k, v in net.state_dict().items() if isinstance(v, Tensor) and not is_lazy(v)})
        for net in networks(pair).values()
    ]
    left = _restore_networks(pair, tensors)
    if not left:
        return
    try:
        _restore_params(pair, left, *args)
    except ValueError:
        for net, values in before:
            net.load_state_dict(values, strict=False)
        raise


def _restore_networks(pair: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fill the networks of a pair, all of them or, after an error, none; returns the tensors that belong to none.

    Raises:
        ValueError: If a network lacks a tensor, has one too many, or one of another shape or type.
    """
    left = dict(tensors)
    chosen = []
    for prefix, net in networks(pair).items():
        if prefix:
            names = [name for name in left if name.startswith(prefix)]
        else:
            names = [name for name in left if not name.startswith((OUTSIDE, PARAM))]
        values = {name.removeprefix(prefix): left.pop(name) for name in names}
        _check_fit(prefix, net.state_dict(), values)
        chosen.append((net, values))
    for net, values in chosen:
        try:
            net.load_state_dict(values)
        except RuntimeError as error:
            message = textwrap.shorten(str(error), 400, placeholder=" ...")
            raise ValueError(f"it does not fit the model: {message}") from error
    return left


def _check_fit(prefix: str, made: Mapping[str, Any], values: Mapping[str, Tensor]) -> None:
    wrong = [f"it lacks the tensor {prefix + name!r}" for name in made if name not in values]
    wrong += [f"it has a tensor {prefix + name!r} too many" for name in values if name not in made]
    for name, value in values.items():
        model = made.get(name)
        if not isinstance(model, Tensor) or is_lazy(model):
            continue
        if (value.shape, value.dtype) != (model.shape, model.dtype):
            wrong.append(
                f"its tensor {prefix + name!r} has shape {tuple(value.shape)} ({value.dtype}), the model's has "
                f"{tuple(model.shape)} ({model.dtype})"
            )
    if wrong:
        more = f"; and {len(wrong) - 3} more differences" * (len(wrong) > 3)
        raise ValueError(f"it does not fit the model: {'; '.join(wrong[:3])}{more}")


def _restore_params(pair: Any, tensors: Mapping[str, Tensor], *args: Any) -> None:
    """Fill the parameters that a pair takes from `pyro.param`, which it makes when it first runs, here on `args`.

    Raises:
        ValueError: If it does not make one of them, or makes it in another shape or type. None is filled then, and
            those that the run made are gone again.
    """
    store = pyro.get_param_store()
    values = {name.removeprefix(PARAM): value for name, value in tensors.items()}
    before = set(store.keys())
    failure = ""
    try:
        with torch.no_grad(), fork_rng():
            pair.guide(*args)
            pair.model(*args)
    except Exception as error:
        failure = f" (run on the data given, or on zeros, it raised {type(error).__name__}: {error})"
    made = dict(store.named_parameters())
    for name, value in values.items():
        there = made.get(name)
        if there is None or (there.shape, there.dtype) != (value.shape, value.dtype):
            for new in set(store.keys()) - before:
                del store[new]
            found = "none" if there is None else f"one of shape {tuple(there.shape)} ({there.dtype})"
            raise ValueError(
                f"it has a parameter {name!r} of shape {tuple(value.shape)} ({value.dtype}), the pair makes "
                f"{found}{failure}"
            )
    with torch.no_grad():
        for name, value in values.items():
            made[name].copy_(value)
