"""What a run of programs calls, registers and changes, and how to run them without a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.infer
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_vae.compilation.mode import recording
from pyro_vae.compilation.recordable import pyro_recordable
from pyro_vae.compilation.validation import unvalidated
from pyro_vae.pair.parameters import unconstrained
from pyro_vae.support.random import fork_rng

__all__ = ["modules_called", "registered_params", "restored", "store_is_kept", "tensors_of", "unchecked", "untouched"]


class _Registered(Messenger):
    def __init__(self) -> None:
        super().__init__()
        self.found: dict[Tensor, None] = {}

    def _pyro_post_param(self, msg: Any) -> None:
        if (found := unconstrained(msg["value"])) is not None:
            self.found[found] = None


@contextmanager
def registered_params() -> Iterator[list[Tensor]]:
    """A context that yields a list, filled at its end with the parameters that programs registered inside it."""
    params: list[Tensor] = []
    with _Registered() as noted:
        yield params
    params.extend(noted.found)


@contextmanager
def modules_called() -> Iterator[list[nn.Module]]:
    """A context that yields a list, filled at its end with the modules that were called inside it."""
    found: dict[int, nn.Module] = {}

    def note(module: nn.Module, args: Any) -> None:
        found[id(module)] = module

    handle = register_module_forward_pre_hook(note)
    modules: list[nn.Module] = []
    try:
        yield modules
    finally:
        handle.remove()
        modules.extend(found.values())


@contextmanager
def unchecked() -> Iterator[None]:
    """Within it neither Pyro nor distributions check values, and recurrent networks consist of what can be compiled."""
    backend: Any = torch.backends.mkldnn
    before, backend.enabled = backend.enabled, False
    try:
        with pyro.validation_enabled(False), unvalidated(), pyro_recordable():
            yield
    finally:
        backend.enabled = before


@contextmanager
def store_is_kept() -> Iterator[None]:
    """Refuse a loss that puts other tensors in place of parameters, as no graph can; the parameters are put back.

    Raises:
        ValueError: Naming a parameter.
    """
    store: Any = pyro.get_param_store()
    before = store.get_state()
    held = dict(before["params"])
    yield
    replaced = [name for name, param in store.named_parameters() if name in held and param is not held[name]]
    if replaced:
        store.set_state(before)
        raise ValueError(
            f"the loss gives the parameter {replaced[0]!r} of Pyro's store another tensor at each step, as the "
            "decaying average of a baseline does"
        )


@contextmanager
def restored(tensors: list[Tensor]) -> Iterator[None]:
    """A context at whose end tensors get back the values that they had at its start."""
    # nothing writes to an expanded tensor, and nothing can
    written = [t for t in tensors if not any(s == 0 and n > 1 for s, n in zip(t.stride(), t.shape, strict=True))]
    before = [t.detach().clone() for t in written]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(written, before, strict=True):
                tensor.copy_(value)


@contextmanager
def untouched(tensors: list[Tensor]) -> Iterator[None]:
    """A context for a recording: nothing is validated, no schedule advances, and noise and `tensors` are put back."""
    with unchecked(), fork_rng(), recording(), restored(tensors):
        yield


def tensors_of(objective: Any) -> list[Tensor]:
    """Tensors that an objective, or one that it wraps, has as attributes or in dictionaries."""
    attributes = list(getattr(objective, "__dict__", {}).values())
    values = [v for a in attributes for v in (a.values() if isinstance(a, dict) else (a,))]
    inner = [t for v in values if isinstance(v, pyro.infer.ELBO) for t in tensors_of(v)]
    return [v for v in values if isinstance(v, Tensor)] + inner
