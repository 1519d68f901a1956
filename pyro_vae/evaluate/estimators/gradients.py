"""Repeated gradients of one estimator: their moments, time and memory."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.running import Running
from pyro_vae.support.random import fork_rng

__all__ = ["Gradients", "LiveBytes", "Moments", "timed_in_turns"]

LEVEL = 1e-3  # of the test that reports a bias


class Moments:
    """Mean and total variance of a random vector."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.squares, self.count = 0.0, 0
        self._last: Tensor | None = None
        self._halves: list[float] = []  # of pairs of draws, each a draw of the variance

    def add(self, vector: Tensor) -> None:
        vector = vector.double()
        if self.total is None:
            self.total = torch.zeros_like(vector)
        self.total += vector
        self.squares += float(vector.square().sum())
        self.count += 1
        if self._last is None:
            self._last = vector
        else:
            self._halves.append(float((vector - self._last).square().sum()) / 2)
            self._last = None

    @property
    def mean(self) -> Tensor:
        assert self.total is not None
        return self.total / self.count

    @property
    def variance(self) -> float:
        return max(0.0, self.squares - self.count * float(self.mean.square().sum())) / (self.count - 1)

    @property
    def variance_error(self) -> float:
        """Standard error of the variance, from pairs of draws; NaN for fewer than two pairs."""
        if len(self._halves) < 2:
            return math.nan
        halves = torch.tensor(self._halves, dtype=torch.float64)
        return float(halves.std()) / math.sqrt(len(halves))

    @property
    def norm(self) -> float:
        """Norm of the expectation, corrected for the noise of the mean."""
        return math.sqrt(max(0.0, float(self.mean.square().sum()) - self.variance / self.count))

    @property
    def snr(self) -> float:
        spread = math.sqrt(self.variance)
        return self.norm / spread if spread > 0 else math.inf

    def distance(self, other: Moments) -> tuple[float, float]:
        """Norm of the difference of expectations and its standard error, both relative to the other's norm.

        The norm is corrected for the noise, and zero where noise explains it: where it is within Student's quantile
        of its standard error, as if all noise were in one direction.
        """
        parts = [(m.variance / m.count, m.count - 1) for m in (self, other)]
        noise = sum(part for part, _ in parts)
        square = float((self.mean - other.mean).square().sum())
        if noise > 0:
            freedom = noise**2 / sum(part**2 / count for part, count in parts)  # Welch 1947
            square = square - noise if square > noise * _quantile(freedom) ** 2 else 0.0
        if other.norm == 0:
            return (math.nan, math.nan) if square > 0 else (0.0, 0.0 if noise == 0 else math.nan)
        return math.sqrt(max(0.0, square)) / other.norm, math.sqrt(noise) / other.norm


def _quantile(freedom: float) -> float:
    from scipy.special import stdtrit  # the quantile of Student's t; scipy is slow to import

    return float(stdtrit(freedom, 1 - LEVEL / 2))


class Gradients:
    """Gradients of the mean loss of one estimator, taken without touching the parameters' own `.grad`."""

    def __init__(
        self,
        model: Program,
        guide: Program,
        data: Data,
        objective: Any,
        params_by_program: dict[str, list[Tensor]],
        n: int,
    ) -> None:
        self.model, self.guide, self.data, self.objective, self.params_by_program, self.n = (
            model,
            guide,
            data,
            objective,
            params_by_program,
            n,
        )
        self.params = list({id(p): p for program in params_by_program.values() for p in program}.values())

    def gradient(self, seed: int) -> tuple[Tensor, dict[int, Tensor]]:
        """The mean loss and the gradient of each parameter, by its id."""
        args, kwargs = self.data
        with fork_rng(seed), Running():
            if hasattr(self.objective, "differentiable_loss"):
                loss = self.objective.differentiable_loss(self.model, self.guide, *args, **kwargs) / self.n
                found: list[Tensor | None] = []
                if self.params:
                    found = list(torch.autograd.grad(loss, self.params, allow_unused=True))
            else:
                # not those of the densities alone: a baseline's, too
                every = list({id(p): p for p in (*self.params, *_stored())}.values())
                saved = [p.grad for p in every]
                for p in every:
                    p.grad = None
                loss = torch.as_tensor(self.objective.loss_and_grads(self.model, self.guide, *args, **kwargs)) / self.n
                found = [None if p.grad is None else p.grad / self.n for p in self.params]
                for p in _stored():
                    p.grad = None
                for p, grad in zip(every, saved, strict=True):
                    p.grad = grad
        grads = {id(p): torch.zeros_like(p) if g is None else g for p, g in zip(self.params, found, strict=True)}
        return loss.detach(), grads

    def by_program(self, grads: dict[int, Tensor]) -> dict[str, Tensor]:
        """Each program's gradient as one vector."""
        parts = {
            program: [grads[id(p)].flatten() for p in params] for program, params in self.params_by_program.items()
        }
        return {program: torch.cat(each) if each else torch.zeros(1) for program, each in parts.items()}

    def repeat(
        self, seeds: Iterable[int], advance: Callable[..., None] = lambda: None
    ) -> tuple[dict[str, Moments], Tensor, Tensor]:
        """Moments of the gradient by program, the values of the bound, and the seconds of each gradient."""
        moments = {program: Moments() for program in self.params_by_program}
        values, seconds = [], []
        self.gradient(0)  # a first run fills caches, and Pyro validates it
        with pyro.validation_enabled(False):
            for seed in seeds:
                loss, grads, took = self.timed_gradient(seed)
                seconds.append(took)
                values.append(-float(loss))
                for program, vector in self.by_program(grads).items():
                    moments[program].add(vector)
                advance()
        return moments, torch.tensor(values, dtype=torch.float64), torch.tensor(seconds, dtype=torch.float64)

    def timed_gradient(self, seed: int) -> tuple[Tensor, dict[int, Tensor], float]:
        started = time.perf_counter()
        loss, grads = self.gradient(seed)
        if loss.device.type == "cuda":
            torch.cuda.synchronize(loss.device)
        return loss, grads, time.perf_counter() - started

    def peak_memory(self, seed: int) -> int:
        """Peak bytes of tensors that are allocated during one gradient."""
        with LiveBytes() as live:
            self.gradient(seed)
        return live.peak


def timed_in_turns(every: Sequence[Gradients], seeds: Sequence[int], least: int, enough: float) -> list[Tensor]:
    """The seconds of some gradients of each estimator, one after the other: what else the machine does slows all alike.

    There are at least `least` rounds, and more until their seconds are `enough` for each estimator.
    """
    rounds: list[list[float]] = []
    for each in every:
        each.gradient(0)  # a first run plans
    with pyro.validation_enabled(False):
        for seed in seeds:
            if len(rounds) >= least and sum(map(sum, rounds)) >= enough * len(every):
                break
            rounds.append([each.timed_gradient(seed)[2] for each in every])
    return list(torch.tensor(rounds, dtype=torch.float64).T)


def _stored() -> list[Tensor]:
    return [param for _, param in pyro.get_param_store().named_parameters()]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live tensors that were allocated inside the context."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        old = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in old and storage._cdata not in self._seen:
                    self._seen.add(storage._cdata)
                    self.live += storage.nbytes()
                    self.peak = max(self.peak, self.live)
                    weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        return out

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size
