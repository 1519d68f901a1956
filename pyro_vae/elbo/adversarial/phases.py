"""Objectives made of phases: several losses, each with the parameters that it may change."""

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
        name: Its name, unique within the objective.
        loss: `(model, guide, *args, **kwargs) -> tensor`, 0-d and summed over the batch.
        owns: The parameters that it may change: "model" and "guide" stand for all that these programs register,
            "critic/NAME" for those of a critic, and anything else is a prefix of parameter names.
        steps: Number of its updates within one step of the objective.
        lr: Its learning rate, as a factor on that of the optimizer.

    Raises:
        ValueError: Without parameters, or for `steps` or `lr` that are not positive.
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
    """An objective that `pv.SVI` steps phase by phase, with one optimizer each; its value is not a bound on log p(x).

    Within a step the phases run in order. Each starts from the weights that the previous one left, and changes its own
    parameters only: gradients with respect to others are not computed. The last phase is the pair's, and its loss is
    the loss of the step. Networks that only training needs, critics above all, belong here and not in the pair.

    A subclass sets `phases`, and puts its networks into `critics`, at the latest when a phase first needs one.

    Args:
        num_particles: Must be 1: each phase draws once per datum.
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
        """The loss of the last phase without a gradient, a 0-d tensor summed over the data; not always in nats."""
        return self.phases[-1].loss(model, guide, *args, **kwargs).detach()

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Any:
        """Not defined for several losses with parameters of their own."""
        raise NotImplementedError(
            f"{type(self).__name__} consists of the phases {', '.join(p.name for p in self.phases)}, each with its own "
            "parameters and optimizer: train it with pv.fit or pv.SVI"
        )

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("this library's estimators read traces themselves")

    def on_prepare(self, params: Mapping[str, Tensor]) -> None:
        """Called before the first step with the model's parameters by name, into which averages are restored."""
        self.trained = dict(params)

    def on_step(self, params: Mapping[str, Tensor]) -> None:
        """Called after each step with the model's parameters by name."""
        if self.average is None:
            return
        self.trained = dict(params)
        with torch.no_grad():
            for name, param in params.items():
                average = self.averages.get(name)
                if average is None:
                    self.averages[name] = param.detach().clone()
                else:
                    average.lerp_(param.detach(), 1 - self.average)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """A context in which the model has its averaged parameters, for sampling and evaluation.

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

    def state_dict(self) -> dict[str, Tensor]:
        """The state of training by name: the critics' weights and buffers, and the averages."""
        critics = {f"critic/{c}.{n}": t for c, net in self.critics.items() for n, t in net.state_dict().items()}
        return critics | {f"average/{name}": t for name, t in self.averages.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load what `state_dict` returned; the critics must exist already (see `SVI.prepare`).

        Raises:
            ValueError: For a critic that does not exist, or has another shape.
        """
        unknown = {name for name in state if not name.startswith(("average/", "critic/"))}
        known = {name for critic in self.critics for name in state if name.startswith(f"critic/{critic}.")}
        unknown |= {name for name in state if name.startswith("critic/")} - known
        if unknown:
            found = ", ".join(sorted(unknown)[:3])
            raise ValueError(
                f"the state has {found}, and {type(self).__name__} has the critics {list(self.critics)}: build the "
                "objective as it was when the state was saved, and call SVI.prepare first"
            )
        for critic, net in self.critics.items():
            prefix = f"critic/{critic}."
            try:
                net.load_state_dict({n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)})
            except RuntimeError as error:
                raise ValueError(f"the state does not fit the critic {critic!r}: {error}") from error
        for name, value in state.items():
            if name.startswith("average/"):
                self.averages[name.removeprefix("average/")] = value.detach().clone()


def warn_once(warned: set[str], key: str, message: str) -> None:
    """Warn, unless `key` is in `warned` already."""
    if key not in warned:
        warned.add(key)
        warnings.warn(message, stacklevel=2)
