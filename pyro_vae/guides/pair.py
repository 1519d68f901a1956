"""A model without a guide as a pair, for the command line and run directories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.guides.amortized import AmortizedGuide
from pyro_vae.nets import as_sizes
from pyro_vae.pair.networks import modules_of
from pyro_vae.support.arguments import checked_from

__all__ = ["AmortizedPair"]

EXAMPLES = 1000  # data from which the scales of the inputs are taken, at most


@checked_from(hidden=1, data_shape=1)
class AmortizedPair(nn.Module):
    """A model with an `AmortizedGuide`: what `pyro-vae train --model my_module.model` trains.

    Args:
        program: The model, a Pyro program that takes the data, `(N, *data_shape)`.
        data_shape: Shape of one datum.
        family, structure, hidden: As for `AmortizedGuide`.

    Raises:
        ValueError: If no guide can be made for the model.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def program(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand(x.shape).to_event(1), obs=x)
        >>> pair = AmortizedPair(program, 3)
        >>> pair.guide(torch.zeros(5, 3))["z"].shape
        torch.Size([5])
    """

    def __init__(
        self,
        program: Callable[..., Any],
        data_shape: int | Sequence[int],
        family: str = "diagonal_normal",
        structure: str = "faithful",
        hidden: Sequence[int] = (128, 64),
    ) -> None:
        super().__init__()
        self.data_shape = as_sizes(data_shape, "data_shape")
        self.options: dict[str, Any] = {"family": family, "structure": structure, "hidden": tuple(hidden)}
        self.program = program
        found = {} if isinstance(program, nn.Module) else modules_of(program)
        self.parts = nn.ModuleDict({name.replace(".", "_"): net for name, net in found.items()})
        self.network = self._made(torch.zeros(8, *self.data_shape))

    def model(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """The model."""
        return self.program(x, *args, **kwargs)

    def guide(self, x: Tensor, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The guide, a Pyro program with the model's arguments; returns the value of each latent."""
        result: dict[str, Tensor] = self.network(x, *args, **kwargs)
        return result

    def start_at_data(self, *args: Any) -> None:
        """Make the guide anew for these data: the model's arguments, `(N, *data_shape)` first."""
        self.network = self._made(*args)

    def _made(self, *args: Any) -> AmortizedGuide:
        return AmortizedGuide(self.program, *args, **self.options)
