"""What programs and losses do that no graph can hold, answered inside the graph while they are recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro.infer.util
import pyro.util
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["NumbersStay", "Recordable", "noted_backward", "pyro_recordable"]


class Recordable(TorchFunctionMode):
    """Replaces functions that branch on values, and random draws that the compiler would do in another way."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _REPLACED.get(func, func)(*args, **(kwargs or {}))


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    return (tensor.unsqueeze(-1) == torch.arange(num_classes, device=tensor.device)).long()


def _bernoulli(p: Tensor) -> Tensor:
    return (torch.rand_like(p) < p).to(p)


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return x * (torch.rand_like(x) >= p).to(x) / (1 - p) if training and p < 1 else x * float(not training)


_REPLACED = {F.one_hot: _one_hot, torch.bernoulli: _bernoulli, F.dropout: _dropout}


class NumbersStay(TorchFunctionMode):
    """Within it `tensor.item()` is a tensor without a gradient, which most code can use in place of the number.

    Code that cannot, such as `range(lengths.max().item())`, raises an error as it would have done.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.item and args[0].is_floating_point():  # integers are sizes and indices
            return args[0].detach().clone().reshape(())  # no later change of the tensor changes the number
        return func(*args, **(kwargs or {}))


@contextmanager
def pyro_recordable() -> Iterator[None]:
    """A context in which Pyro's losses look at no values: no NaN is looked for, and no term of an expectation dropped.

    `TraceEnum_ELBO` drops the terms of probability zero from its expectations, after a look at all of them. Within this
    context they are counted as zero, which is the same sum.
    """
    utilities: Any = pyro.util
    owner: Any = pyro.infer.util.Dice
    is_nan, expectation = utilities.torch_isnan, owner.compute_expectation

    def compute_expectation(dice: Any, costs: Any) -> Any:
        with _ZerosStay():
            return expectation(dice, costs)

    utilities.torch_isnan, owner.compute_expectation = (lambda x: False), compute_expectation
    try:
        yield
    finally:
        utilities.torch_isnan, owner.compute_expectation = is_nan, expectation


class _ZerosStay(TorchFunctionMode):
    """Within it no question about all elements is answered by yes, and what a selection leaves out is zero instead."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__bool__:
            return False
        if func is Tensor.masked_select:
            value, mask = args
            return torch.where(mask, value, torch.zeros_like(value))
        return func(*args, **(kwargs or {}))


@contextmanager
def noted_backward() -> Iterator[list[Tensor]]:
    """A context in which `tensor.backward()` only notes the tensor, in the list that the context yields.

    Raises:
        ValueError: From a `backward` that is told what to differentiate by, or to keep the graph of the gradient.
    """
    engine: Any = torch.autograd
    noted: list[Tensor] = []
    before = engine.backward

    def backward(
        tensors: Any, grad_tensors: Any = None, retain_graph: Any = None, create_graph: bool = False, **more: Any
    ) -> None:
        given = grad_tensors if isinstance(grad_tensors, tuple | list) else (grad_tensors,)
        if create_graph or any(g is not None for g in given) or any(v is not None for v in more.values()):
            raise ValueError("the loss calls backward(), with more arguments than a graph can hold")
        noted.extend((tensors,) if isinstance(tensors, Tensor) else tensors)

    engine.backward = backward
    try:
        yield noted
    finally:
        engine.backward = before
