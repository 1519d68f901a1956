"""A placeholder for the data, to run a model on where only the number of data is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = ["DataPlaceholder", "explain_placeholder"]


class UnknownShape:
    """The shape of a placeholder: only its first size is known."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __getitem__(self, index: Any) -> Any:
        if index == 0:
            return self.length
        if index == slice(None, 1):
            return torch.Size([self.length])
        raise _unknown_data_error(f"shape[{index!r}]")

    def __len__(self) -> int:
        raise _unknown_data_error("len(shape)")

    def __iter__(self) -> Iterator[Any]:
        raise _unknown_data_error("shape")


class DataPlaceholder(Tensor):
    """A tensor of N unknown data, for models that use only the length of `x`.

    `len(x)`, `x.shape[0]`, `x.size(0)`, `x.device` and `x.dtype` work, and so does `obs=x` where observations are
    ignored. Anything else raises `ValueError`: no made-up value can reach a sample.
    """

    @staticmethod
    def __new__(cls: type[DataPlaceholder], length: int, device: torch.device | None = None) -> DataPlaceholder:
        result: DataPlaceholder = torch.empty(length, device=device).as_subclass(cls)
        return result

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            name = getattr(func, "__name__", "")
            # a property arrives as its __get__
            name = getattr(getattr(func, "__self__", None), "__name__", name) if name == "__get__" else name
            if name in _KNOWN:
                return func(*args, **(kwargs or {}))
            if name == "shape" or (name == "size" and len(args) == 1 and not kwargs):
                return UnknownShape(len(args[0]))
            if name == "size" and args[1:] == (0,):
                return len(args[0])
        raise _unknown_data_error(name or str(func))


_KNOWN = ("__len__", "__hash__", "device", "dtype", "is_cuda", "requires_grad")


@contextmanager
def explain_placeholder() -> Iterator[None]:
    """Explain the error of torch where a model passes it the shape of a `DataPlaceholder`."""
    try:
        yield
    except TypeError as error:
        if UnknownShape.__name__ in str(error):
            raise _unknown_data_error("shape") from error
        raise


def _unknown_data_error(what: str) -> ValueError:
    return ValueError(
        f"the model uses more of the data than their number ({what}), so a number of samples is not enough: pass a "
        "tensor with one row per sample in its place"
    )
