"""The parameters that a pair registers with Pyro, in the order in which they were first seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.pair.parameters import offered_tensor, stale, unconstrained

__all__ = ["ParameterRegistry"]

Program = Callable[..., Any]


class ParameterRegistry(Messenger):
    """Notes the unconstrained parameters that programs register while they run inside it.

    Attributes:
        names: The name of each parameter in Pyro's store, in the order in which they were first seen.
        shadowed: Tensors that a program offered under a name which stands for another one in Pyro's store.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[Tensor, str] = {}
        self.shadowed: dict[str, Tensor] = {}
        self._sides: dict[Tensor, set[str]] = {}
        self._side: str | None = None

    def watch(self, side: str, program: Program) -> Program:
        """The program, whose parameters will be noted as those of `side`."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            outer, self._side = self._side, side
            try:
                return program(*args, **kwargs)
            finally:
                self._side = outer

        return watched

    def add(self, found: Iterable[tuple[str, Tensor]]) -> None:
        """Note parameters that are registered otherwise."""
        for name, param in found:
            self.names.setdefault(param, name)

    def reorder(self, params: Iterable[tuple[str, Tensor]]) -> None:
        """Let these parameters come first, in their order."""
        before, self.names = self.names, {}
        self.add(params)
        self.add((name, param) for param, name in before.items())

    def sides(self, param: Tensor) -> set[str]:
        """The watched programs that have registered a parameter."""
        return self._sides.get(param, set())

    def of_side(self, side: str) -> dict[str, Tensor]:
        """The parameters that a watched program has registered, by name."""
        return {name: param for name, param in self.by_name().items() if side in self.sides(param)}

    def by_name(self) -> dict[str, Tensor]:
        """All parameters by name."""
        return {name: param for param, name in self.names.items()}

    def hidden_leaves(self) -> Iterator[tuple[str, Tensor]]:
        """The shadowed tensors that a loss could train, if Pyro's store did not hold others under their names."""
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
        if self._side is not None:
            self._sides.setdefault(found, set()).add(self._side)
        offered = offered_tensor(msg)
        if offered is not None and offered is not found:
            self.shadowed[msg["name"]] = offered
