"""Running averages of networks in several processes: those of the whole batch, not of one process's share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pyro_vae.distributed.ranks import Ranks

__all__ = ["RunningAverages"]


class RunningAverages:
    """Merges the tensors that networks change by themselves in a gradient step: running means, codebooks, counters.

    - Of a tensor of real numbers, every process gets the mean of the changes, weighted by the processes' shares of the
      batch. That makes running means exact.
    - Variances of batch normalization also get the variance between the shares.
    - A module with a method `replica_weights(before, rank, size)` chooses the weights of this process's changes itself,
      as a dictionary from the names of its tensors.
    - Whole numbers are those of rank 0.

    Tensors that are not in a network's `state_dict` are constants.

    Args:
        networks: The networks of the pair and of the objective.
        ranks: The processes.
    """

    def __init__(self, networks: Iterable[nn.Module], ranks: Ranks) -> None:
        self._ranks = ranks
        modules = list({id(m): m for net in networks for m in net.modules()}.values())
        self._norms = [m for m in modules if isinstance(m, _BatchNorm) and not isinstance(m, nn.SyncBatchNorm)]
        self._choosing: list[Any] = [m for m in modules if hasattr(m, "replica_weights")]
        found = {
            id(b): b
            for m in modules
            for name, b in m.named_buffers(recurse=False)
            if name not in m._non_persistent_buffers_set
        }
        found |= {id(t): t for m in self._choosing for t in self._chosen(m).values()}
        self.tensors = list(found.values())
        self._per_row: dict[nn.Module, float] = {}  # elements per channel in the input of a norm, for each datum
        self._before: dict[int, Tensor] = {}

    @staticmethod
    def _chosen(module: Any) -> dict[str, Tensor]:
        """The tensors whose weights a module chooses itself."""
        before = {name: t.detach() for name, t in [*module.named_buffers(), *module.named_parameters()]}
        return {name: getattr(module, name) for name in module.replica_weights(before, 0, 1)}

    @contextmanager
    def measuring(self, rows: int) -> Iterator[None]:
        """A context in which the pair runs on `rows` data, to see how many elements each norm averages over."""

        def note(module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor) and args[0].dim() > 1:
                self._per_row[module] = args[0].numel() / args[0].shape[1] / rows

        handles = [norm.register_forward_pre_hook(note) for norm in self._norms]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def start(self) -> None:
        """Note the tensors before the first gradient of a step."""
        if not self._before:
            self._before = {id(t): t.detach().clone() for t in self.tensors}

    def forget(self) -> None:
        """Forget what `start` has noted, after a step that failed."""
        self._before = {}

    @torch.no_grad()
    def merge(self, weight: float, rows: float) -> None:
        """Give all processes the same values after the gradients of a step. All must call it.

        Args:
            weight: The share of this process in the batch; the shares sum to 1.
            rows: How many data it passes through the networks at a time.
        """
        self.start()
        before, ranks = self._before, self._ranks
        weights: dict[int, Any] = {}
        for module in self._choosing:
            tensors = self._chosen(module)
            own = {name: before[id(t)] for name, t in tensors.items()}
            weights |= {id(tensors[name]): w for name, w in module.replica_weights(own, ranks.rank, ranks.size).items()}
        real = [t for t in self.tensors if t.is_floating_point() or t.is_complex()]
        changes = [(t - before[id(t)]) * weights.get(id(t), weight) for t in real]
        norms = [norm for norm in self._norms if self._has_moved(norm)]
        parts = [self._moments(norm, weight, rows) for norm in norms]
        ranks.sum_([*changes, *(part for part, _ in parts)])
        ranks.broadcast_([t for t in self.tensors if not t.is_floating_point() and not t.is_complex()])
        for t, change in zip(real, changes, strict=True):
            t.copy_(before[id(t)] + change)
        for _, set_to in parts:
            set_to()
        self.forget()

    def _has_moved(self, norm: Any) -> bool:
        return norm.running_var is not None and norm.momentum != 0 and self._steps_of(norm) > 0

    def _steps_of(self, norm: Any) -> int:
        """How often a norm was called in training mode in this step; the same in all processes."""
        return int(norm.num_batches_tracked - self._before[id(norm.num_batches_tracked)])

    def _moments(self, norm: Any, weight: float, rows: float) -> tuple[Tensor, Callable[[], None]]:
        """This process's part of the moments of the whole batch, and a function that uses their sum, made in place."""
        steps, total = self._steps_of(norm), int(norm.num_batches_tracked)
        rate = steps / total if norm.momentum is None else 1 - (1 - norm.momentum) ** steps
        now = (norm.running_mean, norm.running_var)
        old = [self._before[id(t)].double() for t in now]
        mean, var = ((t.double() - (1 - rate) * o) / rate for t, o in zip(now, old, strict=True))
        n = rows * self._per_row.get(norm, 1.0)
        second = var * ((n - 1) / n) + mean.square()
        sums = torch.cat([weight * mean, weight * second, mean.new_tensor([n])])

        def set_to() -> None:
            mean, second, (all_n,) = sums.split([len(old[0]), len(old[1]), 1])
            unbiased = (second - mean.square()).clamp_min(0) * all_n / (all_n - 1).clamp_min(1)
            norm.running_var.copy_((1 - rate) * old[1] + rate * unbiased)

        return sums, set_to
