"""Networks in half precision, log-probabilities in single."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_map

from pyro_vae.support.arguments import choice

__all__ = ["Precision", "networks_in", "precision_dtype"]

Precision = Literal["float32", "bfloat16", "float16"]


def precision_dtype(precision: str) -> torch.dtype | None:
    """The dtype that networks run in; None for "float32", which leaves their dtype unchanged.

    Raises:
        ValueError: If `precision` is not one of "float32", "bfloat16" and "float16".
    """
    dtypes = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return dtypes[choice("precision", precision, dtypes)]


@contextmanager
def networks_in(dtype: torch.dtype | None, *programs: Callable[..., Any]) -> Iterator[None]:
    """A context in which matrix products and convolutions inside any called `nn.Module` run in `dtype`.

    The outermost module returns float32 again, so distributions, densities and sums are never in half precision.
    Weights stay in float32. The programs themselves (where they are modules) and Pyro's own modules do not count as
    networks: only the networks inside them run in `dtype`. If `dtype` is None, nothing changes.
    """
    if dtype is None:
        yield
        return
    open_: list[Any] = []  # one entry per module entered and not yet left: autocast for the outermost, None for others

    def is_network(module: nn.Module) -> bool:
        return not isinstance(module, PyroModule) and not any(module is program for program in programs)

    def enter(module: nn.Module, args: Any) -> None:
        if is_network(module):
            context = None
            if not open_:
                context = torch.autocast(_device_type(module, args), dtype)
                context.__enter__()
            open_.append(context)

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        if not is_network(module):
            return None
        context = open_.pop()
        if context is None:
            return None
        context.__exit__(None, None, None)
        return tree_map(lambda v: v.float() if isinstance(v, Tensor) and v.dtype == dtype else v, output)

    hooks = register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        if open_ and open_[0] is not None:  # after an error inside a module
            open_[0].__exit__(None, None, None)


def _device_type(module: nn.Module, args: Any) -> str:
    tensors = (t for t in (*args, *module.parameters()) if isinstance(t, Tensor))
    return next((t.device.type for t in tensors), "cpu")
