"""The gradients of several runs of one program as one graph, with weights and noise of its own for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.compilation.draws import Draw, draws_as_inputs
from pyro_vae.compilation.effects import restored
from pyro_vae.compilation.gradients import Recording
from pyro_vae.compilation.inductor import compile_graph

__all__ = ["CannotStack", "StackedGraph", "StackedTensors"]

aten = torch.ops.aten
# vmap has rules for what they do, and none for doing it in place
_OUT_OF_PLACE: dict[Any, Any] = {
    aten.scatter_.value: aten.scatter.value,
    aten.scatter_.src: aten.scatter.src,
    aten.lerp_.Tensor: aten.lerp.Tensor,
    aten.lerp_.Scalar: aten.lerp.Scalar,
}
TURNS = 5  # in which one graph and several are timed


class CannotStack(ValueError):
    """Why runs cannot be, or should not be, one graph."""


class StackedTensors:
    """Tensors of several runs, one beside the other in memory.

    Each tensor of a run becomes a view of its row, so that a run goes on reading and writing its own.
    """

    def __init__(self) -> None:
        self._stacks: dict[tuple[int, ...], tuple[Tensor, tuple[Tensor, ...]]] = {}

    def stack(self, rows: tuple[Tensor, ...]) -> Tensor:
        """The stack `(S, *)` of a tensor of each run.

        Raises:
            CannotStack: If the tensors differ in shape, type or device.
        """
        key = tuple(map(id, rows))
        if key not in self._stacks:
            if len({(row.shape, row.dtype, row.device) for row in rows}) > 1:
                raise CannotStack("the tensors of the runs differ in shape, type or device")
            stacked = torch.stack([row.detach() for row in rows])
            for row, part in zip(rows, stacked, strict=True):
                row.data = part
            self._stacks[key] = stacked, rows
        return self._stacks[key][0]

    def separate(self, k: int | None = None) -> None:
        """Give run `k`, or each run, tensors of its own again, with their values."""
        for _, rows in self._stacks.values():
            for row in rows if k is None else (rows[k],):
                row.data = row.data.clone()


class _Input(NamedTuple):
    tensor: Tensor
    is_stacked: bool  # or the same for all runs

    def row(self, k: int) -> Tensor:
        return self.tensor[k] if self.is_stacked else self.tensor


class StackedGraph:
    """The losses and gradients of one step of each of S runs as one graph.

    `torch.func.vmap` over the recorded graph of one run. The draws are inputs: each run has those that it would draw
    alone, from its own generator and in the same order.

    Args:
        recordings: The graph of each run, which must be the same but for its tensors.
        leaves: The tensors of the arguments of one run.
        tensors: Makes the stacks.

    Attributes:
        params: The stacks of the parameters with a gradient, `(S, *)`, in the order of the gradients.

    Raises:
        CannotStack: If the runs are not the same program, or share a tensor that they write to; if a draw depends on
            values; if an operation cannot be made for several runs.
    """

    def __init__(self, recordings: Sequence[Recording], leaves: Sequence[Tensor], tensors: StackedTensors) -> None:
        first = recordings[0]
        if first.num_values is not None or not first.params:
            raise CannotStack("a step has no single loss that could be differentiated")
        if len({recording.module.code for recording in recordings}) > 1:
            raise CannotStack("the runs are not the same operations: what the pair does depends on the seed")
        self._number, self._module = len(recordings), first.module
        self._leaves = [leaf.expand(self._number, *leaf.shape) for leaf in leaves]
        self._state = [_stacked(rows, tensors) for rows in zip(*(r.state for r in recordings), strict=True)]
        _check_written(first.module, self._state)
        self.params = [tensors.stack(rows) for rows in zip(*(r.params for r in recordings), strict=True)]
        _made_batchable(first.module)
        try:
            self._draws: list[Draw] = draws_as_inputs(first.module)
        except ValueError as error:
            raise CannotStack(str(error)) from error
        self._noise = [draw.example.new_empty((self._number, *draw.example.shape)) for draw in self._draws]
        self._scale = torch.ones((), device=self.params[0].device)
        self._draw([torch.Generator(self._scale.device).manual_seed(0)] * self._number)
        with restored(self._written()):
            self._vectorized = self._vectorize(self._inputs())
        self._run: Callable[..., Any] = self._vectorized

    def __call__(
        self, scale: float, leaves: Sequence[Sequence[Tensor]], generators: Sequence[torch.Generator]
    ) -> tuple[Tensor, list[Tensor]]:
        """The losses `(S,)`, and the gradients of `scale` times them, each `(S, *)`.

        Args:
            scale: The factor on the losses.
            leaves: The tensors of the arguments of each run.
            generators: The generators of the runs.
        """
        self._draw(generators)
        stacked = [torch.stack(rows) for rows in zip(*leaves, strict=True)]
        with torch.no_grad():
            losses, *grads = self._run(self._scale.fill_(scale), *stacked, *self._states(), *self._noise)
        return losses, grads

    def losses(self, leaves: Sequence[Sequence[Tensor]], generators: Sequence[torch.Generator]) -> Tensor:
        """The losses `(S,)` alone; nothing changes but the generators."""
        with restored(self._written()):
            return self(1.0, leaves, generators)[0].clone()

    def compile(self) -> None:
        """Compile the graph.

        Raises:
            Exception: Whatever the compiler raises.
        """
        with torch.no_grad():
            self._run = compile_graph(self._vectorized, self._inputs())

    def gain(self, number: int) -> float:
        """How many times faster a step of `number` runs is than as many of one, as recorded, measured in turns."""
        alone = [self._scale, *(leaf[0] for leaf in self._leaves), *(state.row(0) for state in self._state)]
        alone = [tensor.clone() for tensor in (*alone, *(noise[0] for noise in self._noise))]
        rows = zip(alone, self._dims(), strict=True)
        together = [one if dim is None else torch.stack([one] * number) for one, dim in rows]
        several = self._vectorize(together)
        seconds: list[list[float]] = [[], []]
        with torch.no_grad():
            for _ in range(TURNS):
                for found, run, inputs in zip(seconds, (several, self._module), (together, alone), strict=True):
                    started = time.perf_counter()
                    run(*inputs)
                    found.append(time.perf_counter() - started)
        return number * min(seconds[1]) / min(seconds[0])

    def _draw(self, generators: Sequence[torch.Generator]) -> None:
        for k, generator in enumerate(generators):
            for draw, noise in zip(self._draws, self._noise, strict=True):
                draw.write(noise[k], generator)

    def _inputs(self) -> list[Tensor]:
        return [self._scale, *(leaf.contiguous() for leaf in self._leaves), *self._states(), *self._noise]

    def _states(self) -> list[Tensor]:
        return [state.tensor for state in self._state]

    def _written(self) -> list[Tensor]:
        """What a run of the graph may write to."""
        params = set(map(id, self.params))
        return [state.tensor for state in self._state if state.is_stacked and id(state.tensor) not in params]

    def _dims(self) -> tuple[int | None, ...]:
        """Which inputs have a row for each run."""
        states = (0 if state.is_stacked else None for state in self._state)
        return None, *(0 for _ in self._leaves), *states, *(0 for _ in self._draws)

    def _vectorize(self, inputs: list[Tensor]) -> fx.GraphModule:
        """The graph for several runs; the inputs may be written to."""
        try:
            with torch.no_grad():
                return make_fx(torch.func.vmap(self._module, in_dims=self._dims()))(*inputs)
        except (RuntimeError, ValueError, NotImplementedError) as error:
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise CannotStack(f"an operation cannot be made for several runs: {first[:200]}") from error


def _stacked(rows: tuple[Tensor, ...], tensors: StackedTensors) -> _Input:
    if len(rows) > 1 and all(row is rows[0] for row in rows):
        return _Input(rows[0].detach(), False)
    return _Input(tensors.stack(rows), True)


def _check_written(module: fx.GraphModule, state: Sequence[_Input]) -> None:
    """Refuse a graph that writes to a tensor which all runs share."""
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    shared = {node for node, each in zip(inputs[-len(state) :], state, strict=True) if not each.is_stacked}
    for node in module.graph.nodes:
        if getattr(getattr(node.target, "_schema", None), "is_mutable", False) and node.args[0] in shared:
            raise CannotStack("the runs write to a tensor that all of them share: make all networks inside build")


def _made_batchable(module: fx.GraphModule) -> None:
    """Replace operations that cannot be made for several runs by equal ones that can be, in place."""
    graph = module.graph
    for node in list(graph.nodes):
        if node.target == aten.lift_fresh_copy.default:
            node.target = aten.clone.default
        elif node.target in _OUT_OF_PLACE:
            with graph.inserting_before(node):
                new = graph.call_function(_OUT_OF_PLACE[node.target], node.args, node.kwargs)
                new.meta = dict(node.meta)
                written = graph.call_function(aten.copy_.default, (node.args[0], new))
            written.meta = dict(node.meta)
            node.replace_all_uses_with(written)
            graph.erase_node(node)
        elif node.target in (aten.index_put.default, aten.index_put_.default) and _fills(node):
            value, (mask,), filling = node.args[:3]
            with graph.inserting_before(node):
                new = graph.call_function(aten.where.self, (mask, filling, value))
                if node.target == aten.index_put_.default:
                    new = graph.call_function(aten.copy_.default, (value, new))
            new.meta = dict(node.meta)
            node.replace_all_uses_with(new)
            graph.erase_node(node)
    module.recompile()


def _fills(node: fx.Node) -> bool:
    """Whether a node puts one number where a mask of the same shape is true."""
    args: Any = node.args
    value, indices, filling, *_ = args
    if len(args) > 3 or len(indices) != 1:
        return False
    written, mask, number = (each.meta.get("val") for each in (value, indices[0], filling))
    if written is None or mask is None or number is None:
        return False
    return mask.dtype == torch.bool and mask.shape == written.shape and number.numel() == 1
