"""A function as an objective, as `pyro.infer.SVI` takes one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.infer
from torch import Tensor

from pyro_vae.elbo.estimators.bounds import Differentiable
from pyro_vae.pair.protocol import Program

__all__ = ["FunctionLoss", "loss_object"]

OF_AN_ELBO = ("differentiable_loss", "loss", "loss_and_grads")


class FunctionLoss(Differentiable):
    """A loss given by a function `(model, guide, *args, **kwargs) -> tensor`, in nats, summed over the data.

    Whether it is a bound on log p(x) is not known ("none"), unless the function has an attribute `bound` that says so:
    "elbo", "iwae", or "own" for another one.

    Args:
        function: The function; its value is differentiated.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.bound: str = getattr(function, "bound", "none")

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """What the function returns.

        Raises:
            TypeError: If that is not a tensor.
        """
        loss = self.function(model, guide, *args, **kwargs)
        if not isinstance(loss, Tensor):
            raise TypeError(
                f"a loss function must return a tensor that can be differentiated, got {type(loss).__name__}: return "
                "the loss itself, without .item() or float()"
            )
        return loss.sum()


def loss_object(function: Callable[..., Any]) -> pyro.infer.ELBO:
    """The objective that a function stands for: that whose method it is, such as `Trace_ELBO().differentiable_loss`."""
    owner = getattr(function, "__self__", None)
    if isinstance(owner, pyro.infer.ELBO) and getattr(function, "__name__", "") in OF_AN_ELBO:
        return owner
    return FunctionLoss(function)
