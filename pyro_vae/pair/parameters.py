"""What a pair's runs may do to its parameters: frozen ones stay frozen, and all of them can be pickled afterwards."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

__all__ = ["keep_frozen", "offered_tensor", "parameters_kept", "stale", "unconstrained"]


@contextmanager
def keep_frozen() -> Iterator[None]:
    """Within it an `nn.Parameter` with `requires_grad=False` that is given to `pyro.param` is used, but not trained.

    Pyro's store would set `requires_grad` on it, for a `PyroModule`'s own parameters and networks, too.
    """
    store: Any = pyro.get_param_store()
    if "setdefault" in vars(store):
        yield
        return
    register = store.setdefault

    def setdefault(name: str, value: Any, constraint: constraints.Constraint = constraints.real) -> Tensor:
        if isinstance(value, nn.Parameter) and not value.requires_grad:
            used: Any = value.detach()
            used.unconstrained = weakref.ref(value)
            return used
        return register(name, value, constraint)

    store.setdefault = setdefault
    try:
        yield
    finally:
        del store.setdefault


@contextmanager
def parameters_kept() -> Iterator[None]:
    """As `keep_frozen`; at the end, parameters lose what Pyro has tied to them, which cannot be pickled."""
    try:
        with keep_frozen():
            yield
    finally:
        for _, param in pyro.get_param_store().named_parameters():
            vars(param).pop("unconstrained", None)


def unconstrained(value: Tensor) -> Tensor | None:
    """The tensor that training moves behind the value of a `pyro.param` statement; None if there is none."""
    origin: Callable[[], Tensor] | None = getattr(value, "unconstrained", None)
    if origin is not None:
        return origin()
    return value if isinstance(value, nn.Parameter) else None  # of a module with parameters of its own


def offered_tensor(msg: Any) -> Tensor | None:
    """The initial value that a `pyro.param` statement gives, unless it is a function, or nothing."""
    return next((value for value in msg["args"][1:] if isinstance(value, Tensor)), None)


def stale(msg: Any, held: Tensor) -> str | None:
    """What to say of a `pyro.param` statement under whose name Pyro's store held a parameter of another shape.

    Nothing of the networks of `pyro.module`, which keep their shapes and are never broadcast.
    """
    offered = offered_tensor(msg)
    if offered is None or "$$$" in msg["name"]:
        return None
    shape = transform_to(msg["kwargs"].get("constraint", constraints.real)).inverse_shape(offered.shape)
    if tuple(shape) == tuple(held.shape):
        return None
    return (
        f"pyro.param({msg['name']!r}) gives an initial value of shape {tuple(offered.shape)}, but Pyro's parameter "
        f"store holds a parameter of shape {tuple(held.shape)} under that name, from an earlier pair or other data: "
        "call pyro.clear_param_store() before building a pair, or use another name"
    )
