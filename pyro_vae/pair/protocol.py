"""The protocol of a system: an object with a model and a guide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

__all__ = ["Data", "Pair", "Program"]

Program = Callable[..., Any]
Data = tuple[tuple[Any, ...], dict[str, Any]]  # a pair's positional and keyword arguments; the N data come first


@runtime_checkable
class Pair(Protocol):
    """A model/guide pair as one object, usually an `nn.Module` with these two methods.

    Only the command line and run directories need it: they build a pair from its class and arguments. Your class need
    not inherit from it.
    """

    def model(self, x: Any, /) -> Any:
        """The generative model of the data `x`, `(N, ...)`: a Pyro program."""

    def guide(self, x: Any, /) -> Any:
        """The variational posterior of the model's latents: a Pyro program with the same latent sites."""
