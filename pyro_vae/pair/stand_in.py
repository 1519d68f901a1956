"""Something to run a model on where there are no data: it has a length, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["OnlyLength", "only_length"]


class UnknownShape:
    """A shape of which only the first size is known."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __getitem__(self, index: Any) -> Any:
        if index == 0:
            return self.length
        if index == slice(None, 1):
            return torch.Size([self.length])
        raise _too_much(f"shape[{index!r}]")

    def __len__(self) -> int:
        raise _too_much("len(shape)")

    def __iter__(self) -> Iterator[Any]:
        raise _too_much("shape")


class OnlyLength(Tensor):
    """A tensor of N data that are unknown, for models that take `x` for its length alone.

    `len(x)`, `x.shape[0]`, `x.size(0)`, `x.device` and `x.dtype` work, and so does `obs=x` where observations are not
    looked at. Anything else raises `ValueError`: a made-up value must not get into a sample.
    """

    @staticmethod
    def __new__(cls: type[OnlyLength], length: int, device: torch.device | None = None) -> OnlyLength:
        result: OnlyLength = torch.empty(length, device=device).as_subclass(cls)
        return result

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            name = getattr(func, "__name__", "")
            # of a property there comes its __get__
            name = getattr(getattr(func, "__self__", None), "__name__", name) if name == "__get__" else name
            if name in _KNOWN:
                return func(*args, **(kwargs or {}))
            if name == "shape" or (name == "size" and len(args) == 1 and not kwargs):
                return UnknownShape(len(args[0]))
            if name == "size" and args[1:] == (0,):
                return len(args[0])
        raise _too_much(name or str(func))


_KNOWN = ("__len__", "__hash__", "device", "dtype", "is_cuda", "requires_grad")


@contextmanager
def only_length() -> Iterator[None]:
    """Say what is wrong where a model gives torch the shape of an `OnlyLength`, which torch refuses."""
    try:
        yield
    except TypeError as error:
        if UnknownShape.__name__ in str(error):
            raise _too_much("shape") from error
        raise


def _too_much(what: str) -> ValueError:
    return ValueError(
        f"the model looks at more of the data than their number ({what}), so that a number alone will not do: pass a "
        "tensor with as many rows as there shall be samples in its place"
    )
