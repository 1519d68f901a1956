"""Objectives made of phases: several losses, each with the parameters that it may touch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro.infer
import torch
from torch import Tensor, nn

from pyro_vae.pair.protocol import Program

__all__ = ["Phase", "PhasedELBO"]


@dataclass(frozen=True)
class Phase:
    """One of the losses that an objective minimizes in turn.

    Args:
        name: What to call it.
        loss: `(model, guide, *args, **kwargs) -> tensor`, 0-d and summed over the batch.
        owns: The parameters that it may change: "model" and "guide" stand for all that these programs register,
            "critic/NAME" for a critic's, and anything else is how names of parameters begin.
        steps: How often it is run within one step of the objective.
        lr: Its learning rate, as a factor on that of the optimizer.
    """

    name: str
    loss: Callable[..., Tensor]
    owns: tuple[str, ...]
    steps: int = 1
    lr: float = 1.0

    def __post_init__(self) -> None:
        if not self.owns:
            raise ValueError(f"the phase {self.name!r} owns no parameters: name some in `owns`")
        if self.steps < 1 or not self.lr > 0:
            raise ValueError(f"the phase {self.name!r} needs steps >= 1 and lr > 0, got {self.steps} and {self.lr}")

    def may_touch(self, name: str, sides: Collection[str]) -> bool:
        """Whether it may change the parameter called `name`, which the programs `sides` register."""
        return any(role in sides or (role not in ("model", "guide") and name.startswith(role)) for role in self.owns)


class PhasedELBO(pyro.infer.ELBO):
    """An objective that `pv.SVI` steps phase by phase, with one optimizer for each; its value is no bound on log p(x).

    Within a step the phases run in their order, each on the weights that the one before has left, and each changes
    its own parameters only: gradients with respect to others are never computed. The last phase is the pair's, and its
    loss is the loss of the step. What belongs to training alone, critics above all, lives here and never in the pair.

    A subclass sets `phases`, and puts its networks into `critics`, at the latest when a phase first needs one.

    Args:
        average: If given, the decay of an exponential moving average of the model's parameters over the steps, see
            `averaged`.
    """

    bound: ClassVar[str] = "none"
    is_bound: ClassVar[bool] = False

    def __init__(self, num_particles: int = 1, average: float | None = None) -> None:
        if num_particles != 1:
            raise ValueError(f"{type(self).__name__} draws once per datum and step: num_particles must be 1")
        if average is not None and not 0 < average < 1:
            raise ValueError(f"average is a decay between 0 and 1, 0.999 for one, got {average}")
        super().__init__(num_particles=num_particles)
        self.average = average
        self.phases: Sequence[Phase] = ()
        self.critics: dict[str, nn.Module] = {}
        self.averages: dict[str, Tensor] = {}
        self.trained: dict[str, Tensor] = {}

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of the last phase without a gradient, a 0-d tensor, nats or not, summed over the data."""
        return self.phases[-1].loss(model, guide, *args, **kwargs).detach()

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Any:
        """Not defined for several losses with parameters of their own."""
        raise NotImplementedError(
            f"{type(self).__name__} consists of the phases {', '.join(p.name for p in self.phases)}, each with its own "
            "parameters and optimizer: train it with pv.fit or pv.SVI"
        )

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("this library's estimators read traces themselves")

    def prepared(self, params: Mapping[str, Tensor]) -> None:
        """Take note of the model's parameters, by name, before the first step, so that averages can be put back."""
        self.trained = dict(params)

    def updated(self, params: Mapping[str, Tensor]) -> None:
        """Take note of the model's parameters, by name, after a step."""
        if self.average is None:
            return
        self.trained = dict(params)
        with torch.no_grad():
            for name, param in params.items():
                kept = self.averages.get(name)
                if kept is None:
                    self.averages[name] = param.detach().clone()
                else:
                    kept.lerp_(param.detach(), 1 - self.average)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the model has its averaged parameters: sample and evaluate there.

        Raises:
            ValueError: Without `average`, or before the first step.
        """
        if not self.averages:
            raise ValueError(f"nothing is averaged yet: give {type(self).__name__}(average=0.999), and train")
        with torch.no_grad():
            before = {name: param.detach().clone() for name, param in self.trained.items()}
            for name, param in self.trained.items():
                param.copy_(self.averages[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, param in self.trained.items():
                    param.copy_(before[name])

    def state(self) -> dict[str, Tensor]:
        """What training has put here, by name: the critics' weights and buffers, and the averages."""
        critics = {f"critic/{c}.{n}": t for c, net in self.critics.items() for n, t in net.state_dict().items()}
        return critics | {f"average/{name}": t for name, t in self.averages.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave, once the critics exist (see `SVI.prepare`).

        Raises:
            ValueError: For a critic that does not exist, or is of another shape.
        """
        unknown = {name for name in state if not name.startswith(("average/", "critic/"))}
        known = {name for critic in self.critics for name in state if name.startswith(f"critic/{critic}.")}
        unknown |= {name for name in state if name.startswith("critic/")} - known
        if unknown:
            raise ValueError(f"{type(self).__name__} has no place for {', '.join(sorted(unknown)[:3])}")
        for critic, net in self.critics.items():
            prefix = f"critic/{critic}."
            try:
                net.load_state_dict({n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)})
            except RuntimeError as error:
                raise ValueError(f"the critic {critic!r} does not fit: {error}") from error
        for name, value in state.items():
            if name.startswith("average/"):
                self.averages[name.removeprefix("average/")] = value.detach().clone()


def warn_once(said: set[str], key: str, message: str) -> None:
    """Warn unless `key` has been warned of before."""
    if key not in said:
        said.add(key)
        warnings.warn(message, stacklevel=2)
