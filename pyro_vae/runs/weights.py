"""All tensors of a pair by name: those of its networks, and the parameters that only Pyro's store has."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from pyro_vae.pair.networks import modules_of
from pyro_vae.pair.running import Running
from pyro_vae.support.random import fork_rng

__all__ = ["OUTSIDE", "PARAM", "device_of", "collect_tensors", "networks", "restore"]

OUTSIDE = "network/"  # prefix of networks that the pair uses but that are not its submodules
PARAM = "param/"  # prefix of parameters that only Pyro's parameter store has


def networks(pair: Any) -> dict[str, nn.Module]:
    """The networks of a pair by the prefix of their tensors' names, which is empty for a pair that is a module."""
    found = modules_of(pair.model, pair.guide)
    inside = set(pair.modules()) if isinstance(pair, nn.Module) else set()
    outside = {f"{OUTSIDE}{name}/": net for name, net in found.items() if net not in inside}
    return {"": pair, **outside} if inside else outside


def device_of(pair: Any) -> torch.device:
    """The device of a pair's networks; the CPU if it has none."""
    devices = (p.device for net in networks(pair).values() for p in net.parameters())
    return next(devices, torch.device("cpu"))


def collect_tensors(pair: Any, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU of the state of all networks of a pair, and of those `params` that are in no network."""
    tensors: dict[str, Tensor] = {}
    in_networks: set[int] = set()
    for prefix, net in networks(pair).items():
        in_networks |= {id(p) for p in net.parameters()}
        for name, value in net.state_dict().items():
            if not isinstance(value, Tensor):
                raise TypeError(f"the state {prefix + name!r} is a {type(value).__name__}: only tensors can be saved")
            tensors[prefix + name] = value
    tensors |= {PARAM + name: value for name, value in params.items() if id(value) not in in_networks}
    # cloned: safetensors refuses tensors that share memory
    return {name: value.detach().clone().contiguous().cpu() for name, value in tensors.items()}


def restore(pair: Any, tensors: Mapping[str, Tensor], *args: Any) -> None:
    """Fill the networks of a pair, and the parameters in Pyro's store that the pair makes when it runs on `args`.

    Raises:
        ValueError: If a tensor does not fit. Nothing has changed then, since other pairs may share a network.
    """
    _set_up(pair, args)
    before = [
        (net, {k: v.clone() for k, v in net.state_dict().items() if isinstance(v, Tensor) and not is_lazy(v)})
        for net in networks(pair).values()
    ]
    remaining = _restore_networks(pair, tensors)
    if not remaining:
        return
    try:
        _restore_params(pair, remaining, *args)
    except ValueError:
        for net, values in before:
            net.load_state_dict(values, strict=False)
        raise


def _set_up(pair: Any, args: tuple[Any, ...]) -> None:
    """Let the guides of Pyro that make their parameters at their first run make them.

    Raises:
        ValueError: If there is nothing to run them on.
    """
    waiting = [
        type(part).__name__
        for net in networks(pair).values()
        for part in net.modules()
        if getattr(part, "prototype_trace", "") is None
    ]
    if not waiting:
        return
    if not args:
        raise ValueError(
            f"{waiting[0]} makes its parameters when it first runs: pass a few data, as many as it was trained with if "
            "it has parameters for each of them"
        )
    with torch.no_grad(), fork_rng(), Running():
        pair.guide(*args)


def _restore_networks(pair: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fill all networks of a pair (none of them after an error); returns the tensors of no network.

    Raises:
        ValueError: If a tensor of a network is missing, superfluous, or of another shape or type.
    """
    remaining = dict(tensors)
    chosen = []
    for prefix, net in networks(pair).items():
        if prefix:
            names = [name for name in remaining if name.startswith(prefix)]
        else:
            names = [name for name in remaining if not name.startswith((OUTSIDE, PARAM))]
        values = {name.removeprefix(prefix): remaining.pop(name) for name in names}
        _check_fit(prefix, net.state_dict(), values)
        chosen.append((net, values))
    for net, values in chosen:
        try:
            net.load_state_dict(values)
        except RuntimeError as error:
            message = textwrap.shorten(str(error), 400, placeholder=" ...")
            raise ValueError(f"it does not fit the model: {message}") from error
    return remaining


def _check_fit(prefix: str, state: Mapping[str, Any], values: Mapping[str, Tensor]) -> None:
    wrong = [f"it lacks the tensor {prefix + name!r}" for name in state if name not in values]
    wrong += [f"it has an unexpected tensor {prefix + name!r}" for name in values if name not in state]
    for name, value in values.items():
        own = state.get(name)
        if not isinstance(own, Tensor) or is_lazy(own):
            continue
        if (value.shape, value.dtype) != (own.shape, own.dtype):
            wrong.append(
                f"its tensor {prefix + name!r} has shape {tuple(value.shape)} ({value.dtype}), the model's has "
                f"{tuple(own.shape)} ({own.dtype})"
            )
    if wrong:
        more = f"; and {len(wrong) - 3} more differences" * (len(wrong) > 3)
        raise ValueError(f"it does not fit the model: {'; '.join(wrong[:3])}{more}")


def _restore_params(pair: Any, tensors: Mapping[str, Tensor], *args: Any) -> None:
    """Fill the parameters that a pair makes by `pyro.param` when it runs on `args`.

    Raises:
        ValueError: If the pair does not make one of them, or makes it in another shape or type. None is filled then,
            and those that the pair has made are deleted.
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
        param = made.get(name)
        if param is None or (param.shape, param.dtype) != (value.shape, value.dtype):
            for new in set(store.keys()) - before:
                del store[new]
            found = "none" if param is None else f"one of shape {tuple(param.shape)} ({param.dtype})"
            raise ValueError(
                f"it has a parameter {name!r} of shape {tuple(value.shape)} ({value.dtype}), the pair makes "
                f"{found}{failure}"
            )
    with torch.no_grad():
        for name, value in values.items():
            made[name].copy_(value)
