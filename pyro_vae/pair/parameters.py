"""The tensors behind `pyro.param` statements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.distributions import constraints, transform_to

__all__ = ["offered_tensor", "stale", "unconstrained"]


def unconstrained(value: Tensor) -> Tensor | None:
    """The tensor that training moves behind the value of a `pyro.param` statement; None if there is none."""
    origin: Callable[[], Tensor] | None = getattr(value, "unconstrained", None)
    if origin is not None:
        return origin()
    own = isinstance(value, nn.Parameter) or (value.is_leaf and value.requires_grad)
    return value if own else None


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
