"""The parameters that a pair registers with Pyro, in the order in which they were first seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.pair.parameters import offered_tensor, stale, unconstrained
from pyro_vae.pair.protocol import Program

__all__ = ["ParameterRegistry"]


class ParameterRegistry(Messenger):
    """Notes the unconstrained parameters that programs register while they run inside it.

    Attributes:
        names: The name of each parameter in Pyro's store, in the order in which they were first seen.
        latest: The parameters that were registered since it was cleared.
        shadowed: Tensors that a program passed to `pyro.param` under a name that Pyro's store has for another tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[Tensor, str] = {}
        self.latest: dict[Tensor, None] = {}
        self.shadowed: dict[str, Tensor] = {}
        self._programs: dict[Tensor, set[str]] = {}
        self._running: str | None = None

    def watch(self, role: str, program: Program) -> Program:
        """The same program, whose parameters are noted as those of `role`, "model" or "guide"."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            outer, self._running = self._running, role
            try:
                return program(*args, **kwargs)
            finally:
                self._running = outer

        return watched

    def add(self, found: Iterable[tuple[str, Tensor]]) -> None:
        """Note parameters that no program registers."""
        for name, param in found:
            self.names.setdefault(param, name)

    def reorder(self, params: Iterable[tuple[str, Tensor]]) -> None:
        """Move these parameters to the front, in their order."""
        before, self.names = self.names, {}
        self.add(params)
        self.add((name, param) for param, name in before.items())

    def roles(self, param: Tensor) -> set[str]:
        """The roles of the watched programs that have registered a parameter."""
        return self._programs.get(param, set())

    def registered_by(self, role: str) -> dict[str, Tensor]:
        """The parameters that the watched program of this role has registered, by name."""
        return {name: param for name, param in self.by_name().items() if role in self.roles(param)}

    def by_name(self) -> dict[str, Tensor]:
        """All parameters by name."""
        return {name: param for param, name in self.names.items()}

    def shadowed_leaves(self) -> Iterator[tuple[str, Tensor]]:
        """The shadowed tensors that a loss could train, if Pyro's store did not have others under their names."""
        for name, tensor in self.shadowed.items():
            if tensor.is_leaf and tensor.requires_grad and tensor not in self.names:
                yield name, tensor

    def _pyro_post_param(self, msg: Any) -> None:
        found = unconstrained(msg["value"])
        if found is None:  # a first value, which the next statement will hold as a parameter
            return
        if found not in self.names and (text := stale(msg, found)):
            raise ValueError(text)
        self.names.setdefault(found, msg["name"])
        self.latest[found] = None
        if self._running is not None:
            self._programs.setdefault(found, set()).add(self._running)
        offered = offered_tensor(msg)
        if offered is not None and offered is not found:
            self.shadowed[msg["name"]] = offered
