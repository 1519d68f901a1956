"""All tensors that a pair has learnt, by name: of its networks, wherever they live, and from `pyro.param`."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Mapping
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.elbo.tracing import fork_rng
from pyro_vae.evaluate.modules import modules_of

__all__ = ["gather", "networks", "restore_networks", "restore_params"]

_OUTSIDE = "network/"  # prefix of networks that the pair uses and does not hold
_PARAM = "param/"  # prefix of what only Pyro's parameter store holds


def networks(pair: Any) -> dict[str, nn.Module]:
    """The networks of a pair, by the prefix of their tensors' names; a pair that is a module itself has none."""
    found = modules_of(pair.model, pair.guide)
    inside = set(pair.modules()) if isinstance(pair, nn.Module) else set()
    outside = {f"{_OUTSIDE}{name}/": net for name, net in found.items() if net not in inside}
    return {"": pair, **outside} if inside else outside


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
    tensors |= {_PARAM + name: value for name, value in params.items() if id(value) not in held}
    # cloned: safetensors refuses tensors that share memory
    return {name: value.detach().clone().contiguous().cpu() for name, value in tensors.items()}


def restore_networks(pair: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fill the networks of a pair; returns the tensors that belong to none.

    Raises:
        ValueError: If a network lacks a tensor, or has it in another shape.
    """
    left = dict(tensors)
    for prefix, net in networks(pair).items():
        if prefix:
            names = [name for name in left if name.startswith(prefix)]
        else:
            names = [name for name in left if not name.startswith((_OUTSIDE, _PARAM))]
        try:
            net.load_state_dict({name.removeprefix(prefix): left.pop(name) for name in names})
        except RuntimeError as error:
            message = textwrap.shorten(str(error), 400, placeholder=" ...")
            raise ValueError(f"it does not fit the model: {message}") from error
    return left


def restore_params(pair: Any, tensors: Mapping[str, Tensor], x: Tensor) -> None:
    """Fill the parameters that a pair takes from `pyro.param`, which it makes when it first runs, here on `x`.

    Raises:
        ValueError: If it does not make one of them, or makes it in another shape.
    """
    store = pyro.get_param_store()
    values = {name.removeprefix(_PARAM): value for name, value in tensors.items()}
    shared = [name for name in values if name in store]
    if shared:
        warnings.warn(
            f"Pyro's parameter store has {', '.join(shared)} already: the pair that made it now shares the loaded "
            "value. Call pyro.clear_param_store() first if that pair is still needed",
            stacklevel=4,
        )
    failure = ""
    try:
        with torch.no_grad(), fork_rng():
            pair.guide(x)
            pair.model(x)
    except Exception as error:
        failure = f" (run on a datum of zeros, it raised {type(error).__name__}: {error})"
    made = dict(store.named_parameters())
    for name, value in values.items():
        if name not in made or made[name].shape != value.shape:
            there = f"one of shape {tuple(made[name].shape)}" if name in made else "none"
            raise ValueError(
                f"it has a parameter {name!r} of shape {tuple(value.shape)}, the pair makes {there}{failure}"
            )
        with torch.no_grad():
            made[name].copy_(value)
