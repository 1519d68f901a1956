"""Trainings from seeds: one after another, stacked in one graph, or shared among processes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyro
import pyro.infer
from torch import nn

from pyro_vae.compilation.stacked import CannotStack
from pyro_vae.pair.protocol import Program
from pyro_vae.training.fitting import fit
from pyro_vae.training.history import History
from pyro_vae.training.together.building import build_pair
from pyro_vae.training.together.members import Member, with_members
from pyro_vae.training.together.stacked_epochs import StackedEpochs

__all__ = ["Fitted", "Job", "Stacked", "one_after_another", "stacked", "train_together", "why_not_stacked"]

Stacked = bool | Literal["auto"]

GAIN = 2.0  # the least by which stacking must make steps faster, as recorded: compiled, it is about half of that
_UNSTACKED: dict[str, Any] = {  # options of `fit` with the values that stacked steps have
    "optim": None,
    "accumulate": 1,
    "precision": "float32",
    "rollbacks": 0,
    "checkpoints": None,
    "resume": False,
    "devices": ("auto", 1),
    "num_nodes": 1,
}


@dataclass(frozen=True)
class Fitted:
    """A pair that was trained from a seed: its networks hold its weights, `store` what Pyro's parameter store held."""

    seed: int
    history: History
    pair: tuple[Program, Program]
    store: dict[str, Any] = field(repr=False)

    def load(self) -> tuple[Program, Program]:
        """The trained pair, whose parameters are put into Pyro's parameter store."""
        store: Any = pyro.get_param_store()
        store.set_state(self.store)
        list(store.values())  # a parameter at hand knows its unconstrained value
        return self.pair


@dataclass(frozen=True)
class Job:
    """A training to be done.

    Attributes:
        build: `build(seed)` returns a fresh pair.
        data: The training data.
        seed: The seed of the weights and of the run.
        options: The options of `fit`.
        label: What errors call it.
        check: Called with the seed and the networks of the pair before it is trained.
    """

    build: Callable[[int], Any]
    data: Any
    seed: int
    options: Mapping[str, Any]
    label: str
    check: Callable[[int, list[nn.Module]], None] = lambda seed, nets: None

    def run(self) -> tuple[tuple[Program, Program], History]:
        """Build the pair and train it."""
        pair, nets = build_pair(self.build, self.seed)
        self.check(self.seed, nets)
        options = {"progress": False, **self.options}
        if isinstance(options.get("elbo"), pyro.infer.ELBO | Mapping):
            options["elbo"] = copy.deepcopy(options["elbo"])  # it may have a state, such as a baseline
        try:
            history = fit(*pair, self.data, seed=self.seed, **options)
        except Exception as error:
            # of another run, if one inside this one has failed
            if not any(note.startswith("while training") for note in getattr(error, "__notes__", ())):
                error.add_note(f"while training {self.label}")
            raise
        if history.stopped == "interrupted":
            raise KeyboardInterrupt
        return (pair[0], history.guide if pair[1] is None else pair[1]), history


def one_after_another(jobs: Sequence[Job]) -> Iterator[Fitted]:
    """Train one pair after another; each has an empty parameter store."""
    for job in jobs:
        store: Any
        with pyro.get_param_store().scope() as store:
            pair, history = job.run()
        yield Fitted(job.seed, history, pair, store)


def stacked(jobs: Sequence[Job]) -> list[Fitted]:
    """Train several pairs at once, their steps stacked in one graph.

    Raises:
        CannotStack: If they cannot be. Their pairs may be partly trained then.
    """

    def train(members: list[Member]) -> list[Any]:
        epochs = StackedEpochs(members)
        try:
            while epochs.train():
                pass
        except KeyboardInterrupt:
            epochs.end("interrupted")
            raise
        finally:
            epochs.close()
        return [member.store for member in members]

    trained, stores = train_together(jobs, train)
    return [
        Fitted(job.seed, history, pair, store)
        for job, (pair, history), store in zip(jobs, trained, stores, strict=True)
    ]


def train_together(
    jobs: Sequence[Job], train: Callable[[list[Member]], Any]
) -> tuple[list[tuple[tuple[Program, Program], History]], Any]:
    """Set up all jobs and train them by one function; returns pairs and histories, and what the function returned."""
    found: dict[int, tuple[tuple[Program, Program], History]] = {}
    returned: list[Any] = []
    starts = [(job.label, lambda i=i, job=job: found.update({i: job.run()})) for i, job in enumerate(jobs)]
    with_members(starts, lambda members: returned.append(train(members)))
    return [found[i] for i in range(len(jobs))], returned[0]


class _Measured(Exception):
    def __init__(self, gain: float) -> None:
        super().__init__(gain)
        self.gain = gain


def why_not_stacked(jobs: Sequence[Job], how: Stacked) -> str | None:
    """Why these jobs are not stacked, found by a step of the first two of them; None if they are.

    Raises:
        ValueError: If `how` insists on stacking, and it is not possible.
    """
    if how is False or len(jobs) < 2:
        return "stacked=False" if how is False else "there is one run"
    reason = _unstacked_option(jobs[0].options) or (None if how is True else _measured_reason(jobs))
    if how is True and reason is not None:
        raise ValueError(f"stacked=True, but {reason}: leave it at 'auto', or give stacked=False")
    return reason


def _unstacked_option(options: Mapping[str, Any]) -> str | None:
    for name, value in _UNSTACKED.items():
        allowed = value if isinstance(value, tuple) else (value,)
        if not any(options.get(name, allowed[0]) is each or options.get(name, allowed[0]) == each for each in allowed):
            return f"{name}={options[name]!r} is not for stacked steps"
    return "threads='auto' measures single steps" if options.get("threads") == "auto" else None


def _measured_reason(jobs: Sequence[Job]) -> str | None:
    def measure(members: list[Member]) -> None:
        epochs = StackedEpochs(members)
        try:
            raise _Measured(epochs.gain(len(jobs)))
        finally:
            epochs.close()

    try:
        train_together(jobs[:2], measure)
    except _Measured as measured:
        if measured.gain >= GAIN:
            return None
        return (
            f"stacking would not pay: {len(jobs)} steps at once are {measured.gain:.1f} times as fast as one after "
            f"another, and {GAIN:.0f} times is the least"
        )
    except CannotStack as error:
        return str(error)
    raise AssertionError("the measurement always ends by an exception")
