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

__all__ = ["Precision", "networks_in", "precision_dtype"]

Precision = Literal["float32", "bfloat16", "float16"]


def precision_dtype(precision: str) -> torch.dtype | None:
    """The dtype that networks run in, or None for their own.

    Raises:
        ValueError: For another name.
    """
    dtypes = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if precision not in dtypes:
        raise ValueError(f"precision must be one of {', '.join(dtypes)}, got {precision!r}")
    return dtypes[precision]


@contextmanager
def networks_in(dtype: torch.dtype | None, *programs: Callable[..., Any]) -> Iterator[None]:
    """Within it, matrix products and convolutions inside any called `nn.Module` run in `dtype`.

    What the outermost module returns is float32 again, so distributions, densities and sums never see half precision.
    The programs themselves, where they are modules, and Pyro's own modules are no networks: they stay as they are, and
    the networks in them count by themselves. Weights stay in float32; None changes nothing.
    """
    if dtype is None:
        yield
        return
    open_: list[Any] = []  # modules entered and not yet left; the first one's autocast

    def is_network(module: nn.Module) -> bool:
        return not isinstance(module, PyroModule) and not any(module is program for program in programs)

    def enter(module: nn.Module, args: Any) -> None:
        if is_network(module):
            context = None
            if not open_:
                context = torch.autocast(_device(module, args), dtype)
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
        if open_ and open_[0] is not None:  # an error left it open
            open_[0].__exit__(None, None, None)


def _device(module: nn.Module, args: Any) -> str:
    tensors = (t for t in (*args, *module.parameters()) if isinstance(t, Tensor))
    return next((t.device.type for t in tensors), "cpu")
