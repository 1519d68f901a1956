"""The epochs of several runs of one program, whose steps are one graph."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pyro_vae.compilation.call_arguments import layout_of, tensors_in
from pyro_vae.compilation.effects import restored, tensors_of
from pyro_vae.compilation.mode import recording
from pyro_vae.compilation.reasons import why_not_compiled
from pyro_vae.compilation.stacked import CannotStack, StackedGraph, StackedTensors
from pyro_vae.pair.untouched import kept_buffers
from pyro_vae.support.random import fork_rng
from pyro_vae.training.together.members import Member
from pyro_vae.training.together.stacked_adam import StackedAdam, clip_each

__all__ = ["StackedEpochs"]

CHECK_EVERY = 500  # steps between comparisons with the eager loss, as of a compiled step
TOLERANCE = 1e-2  # of these comparisons, relative and in nats


class StackedEpochs:
    """Trains runs epoch by epoch, their steps stacked in one graph.

    Args:
        members: The runs. They differ in their seeds, learning rates and schedules alone.

    Raises:
        CannotStack: From `train` and `gain`, if the runs cannot be one graph.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = list(members)
        if not members[0].run.batches.in_memory or members[0].run.batches.device.type != "cpu":
            raise CannotStack("runs are stacked on CPUs only, from data in memory")
        self._tensors, self._adam = StackedTensors(), StackedAdam()
        self._graphs: dict[Any, StackedGraph] = {}
        self._eager: dict[Any, list[Any]] = {}
        self._is_compiled, self._steps = False, 0
        self._first, self._started, self._share = members[0].run, time.perf_counter(), 0.0

    @property
    def active(self) -> list[int]:
        """The numbers of the runs that go on."""
        return [k for k, member in enumerate(self.members) if not member.is_over]

    def train(self) -> bool:
        """Train for an epoch; returns whether any run goes on."""
        for k in self.active:
            if not self.members[k].start_epoch():
                self._leave(k)
        active = self.active
        if not active:
            return False
        self._train_epoch()
        for k in active:
            self.members[k].end_epoch()
            if self.members[k].is_over:
                self._leave(k)
        now = time.perf_counter()
        self._share += (now - self._started) / len(active)
        self._started = now
        for k in active:
            epochs = self.members[k].run.state.history.epochs
            epochs[-1] = replace(epochs[-1], seconds=self._share)
        return True

    def gain(self, number: int) -> float:
        """How many times faster the steps of `number` such runs would be stacked, as recorded.

        It takes the first step of each of these runs, which end thereby.
        """
        for member in self.members:
            member.start_epoch()
        batches = next(self._batches())
        self._first_step(batches)
        return self._new_graph("first", batches).gain(number)

    def end(self, reason: str) -> None:
        """End the runs with their best weights."""
        for k in self.active:
            self.members[k].finish(reason)
            self._leave(k)

    def close(self) -> None:
        """Give each run tensors of its own again."""
        self._tensors.separate()

    def _leave(self, k: int) -> None:
        """Take the tensors of a run that is over out of the stack, which its row goes through from now on in vain."""
        self._tensors.separate(k)
        self.members[k].run.best.restore()

    def _validate(self) -> None:
        """Let Pyro validate all data by the first run, as the first epoch of a single run does."""
        svi = self._first.state.svi
        with (
            self.members[0].in_front(),
            fork_rng(),
            recording(),
            restored(tensors_of(svi.objective)),
            kept_buffers(svi.model, svi.guide),
        ):
            for batch in self._first.batches.batches():
                svi.evaluate_loss(*batch)

    def _train_epoch(self) -> None:
        state, choice = self._first.state, self._first.choice
        loss, latest = None, []
        for batches in self._batches():
            latest = batches
            if state.step == 0:
                loss = self._first_step(batches)
                continue
            is_first, loss = len(state.losses) < 2, self._step(batches)
            if is_first:
                choice.start()
            else:
                choice.step()
            self._choose(batches)
            if state.step == self._first.schedules.length.last_step:
                break
        assert loss is not None
        for k in self.active:
            with self.members[k].in_front() as run:
                run.check.check(run.state.step - 1, loss[k], latest[k])  # which notes the batch
                run.check.end_epoch(run.state.step)

    def _batches(self) -> Iterator[list[tuple[Any, ...]]]:
        """The batches of each step of the epoch, one of each run."""
        streams = []
        for member in self.members:
            with member.drawing():
                streams.append(member.run.state.remaining_batches(member.run.batches))
        split = self._first.batches.split
        if split is None or not split.dynamic:
            yield from map(list, zip(*streams, strict=True))
            return
        for _ in range(self._first.batches.steps_per_epoch or 0):
            found = []
            for member, stream in zip(self.members, streams, strict=True):
                with member.drawing():  # a binary image from its gray values
                    found.append(next(stream))
            yield found

    def _first_step(self, batches: Sequence[tuple[Any, ...]]) -> Tensor:
        """Take the first step of each run eagerly, in which parameters are made; returns the losses `(S,)`."""
        losses = []
        for member, batch in zip(self.members, batches, strict=True):
            with member.in_front() as run:
                losses.append(run.step(batch))
                run.state.add(losses[-1])
                run.advance(1)
        self._validate()
        return torch.stack(losses)

    def _step(self, batches: Sequence[tuple[Any, ...]]) -> Tensor:
        """Take a step of each run; returns the losses `(S,)` before it, in nats per datum."""
        active = self.active
        for k in active:
            state = self.members[k].run.state
            self.members[k].run.schedules.set_kl_weight(state.epochs)
        key = tuple(layout_of(leaf) for leaf in tensors_in(batches[0]))
        graph = self._graphs.get(key) or self._new_graph(key, batches)
        self._steps += 1
        if self._steps % CHECK_EVERY == 0:
            self._check(key, graph, batches, [active[self._steps // CHECK_EVERY % len(active)]])
        for k in active:
            advance = getattr(self.members[k].run.state.svi.objective, "advance", None)
            if advance is not None:
                advance()
        before = [member.generator.get_state() for member in self.members]
        scale = 1 / self._first.step.num_data(batches[0])
        generators = [member.generator for member in self.members]
        losses, grads = graph(scale, [tensors_in(batch) for batch in batches], generators)
        losses = losses * scale
        if not bool(losses.isfinite().all()):
            self._report(losses, batches, before)
        clip_norm = self._first.state.svi.clip_norm
        if clip_norm is not None:
            clip_each(grads, clip_norm)
        self._adam.step(graph.params, grads, [self._rate(member) for member in self.members])
        for k in active:
            run = self.members[k].run
            run.state.add(losses[k])
            run.advance(1)
        return losses

    def _rate(self, member: Member) -> float:
        run, state = member.run, member.run.state
        if not member.is_over:
            run.schedules.set_lr(state.svi, state.epochs, state.step, state.lr_factor)
        return state.svi.lr

    def _new_graph(self, key: Any, batches: Sequence[tuple[Any, ...]]) -> StackedGraph:
        recordings = []
        for member, batch in zip(self.members, batches, strict=True):
            with member.in_front() as run:
                try:
                    with restored(tensors_of(run.state.svi.objective)):
                        run.state.svi.prepare(*batch)
                    recordings.append(run.state.svi.record(*batch))
                except Exception as error:  # whatever the pair or the recorder raise
                    raise CannotStack(why_not_compiled(error)) from error
        graph = StackedGraph(recordings, tensors_in(batches[0]), self._tensors)
        self._eager[key] = [each.eager for each in recordings]
        self._check(key, graph, batches, self.active)
        self._graphs[key] = graph
        optimizers: list[Any] = [member.run.state.svi.optimizer for member in self.members]
        for param, *rows in zip(graph.params, *(each.params for each in recordings), strict=True):
            self._adam.adopt(param, [optimizer.state[row] for optimizer, row in zip(optimizers, rows, strict=True)])
        return graph

    def _check(self, key: Any, graph: StackedGraph, batches: Sequence[tuple[Any, ...]], which: Sequence[int]) -> None:
        """Compare the losses of these runs with the eager ones, on the same noise."""
        copies = [torch.Generator().set_state(member.generator.get_state()) for member in self.members]
        stacked = graph.losses([tensors_in(batch) for batch in batches], copies)
        for k in which:
            with self.members[k].in_front():
                eager = self._eager[key][k](*batches[k])[0]
            if not torch.allclose(stacked[k], eager.to(stacked), rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
                raise CannotStack(
                    f"the stacked loss is {float(stacked[k]):.6g}, the eager one is {float(eager):.6g}: the pair reads "
                    "a value that changes from step to step and is not a tensor, or draws random numbers outside torch"
                )

    def _choose(self, batches: Sequence[tuple[Any, ...]]) -> None:
        """Compile the graph of these batches, if that was asked for, or pays for the steps that are left."""
        state = self._first.state
        asked = state.compiles is True
        if state.compiles == "auto" and self._first.choice.is_known:
            state.compiles = self._first.choice.compiles(state.step, state.ranks)
        if state.compiles is not True or self._is_compiled:
            return
        self._is_compiled = True
        graph = self._graphs[tuple(layout_of(leaf) for leaf in tensors_in(batches[0]))]
        try:
            graph.compile()
        except Exception as error:  # whatever the compiler raises
            if asked:
                warnings.warn(f"stacked steps run as recorded, not compiled: {error}", stacklevel=2)

    def _report(self, losses: Tensor, batches: Sequence[tuple[Any, ...]], before: Sequence[Tensor]) -> None:
        """Raise NonFiniteLoss for the first run whose loss is not finite, if it goes on."""
        for k in self.active:
            if not bool(losses[k].isfinite()):
                self.members[k].generator.set_state(before[k])
                with self.members[k].in_front() as run:
                    run.check.before_step()
                    run.check.check(run.state.step, losses[k], batches[k])
