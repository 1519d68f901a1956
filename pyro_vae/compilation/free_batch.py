"""A function of tensors as a graph of tensor operations that takes any number of data.

The function is recorded at several numbers of data. What it does must be the same at each of them but for sizes, and
these must be whole multiples of the number of data plus a constant; then they are computed from the inputs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.compilation.effects import unchecked
from pyro_vae.compilation.mode import recording
from pyro_vae.compilation.recordable import Recordable
from pyro_vae.support.random import fork_rng

__all__ = [
    "BoundToSize",
    "NoRows",
    "ancestors",
    "batch_axis",
    "constants_of",
    "prune",
    "record_with_free_batch",
    "recorded",
]

aten = torch.ops.aten
SIZES = ((11, 13, 17), (19, 23, 29))  # if other sizes of the function are among the first, the second are tried
FILLED = {
    aten.new_zeros.default: 0.0,
    aten.zeros_like.default: 0.0,
    aten.new_ones.default: 1.0,
    aten.ones_like.default: 1.0,
    aten.new_empty.default: 0.0,
    aten.empty_like.default: 0.0,
}


class BoundToSize(ValueError):
    """What a function does depends on the number of data in another way than by sizes."""


class NoRows(BoundToSize):
    """A function returns a row for each datum, and reads no input that has one."""


def record_with_free_batch(
    f: Callable[..., Sequence[Tensor]], inputs: Callable[[int], Sequence[Tensor]]
) -> fx.GraphModule:
    """The graph of `f`, without gradients, for any number of data.

    Values are not checked within it. Parameters and other tensors that are no inputs are attributes of the graph.

    Args:
        f: A function of tensors that returns a sequence of tensors.
        inputs: Its inputs for a number of data.

    Returns:
        The graph, with a placeholder for each input, and an output that is a tuple.

    Raises:
        BoundToSize: If the operations, their numbers or the constants depend on the number of data.
        Exception: Whatever `f` or the recorder raise, for example where a branch depends on the values of tensors.
    """
    for sizes in SIZES[:-1]:
        try:
            return _merged([recorded(f, inputs(n)) for n in sizes], sizes)
        except BoundToSize:
            continue
    return _merged([recorded(f, inputs(n)) for n in SIZES[-1]], SIZES[-1])


def recorded(f: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """The graph of `f` for these inputs, without gradients, random draws that nothing reads, and checks of values."""
    with (
        torch.no_grad(),
        fork_rng(),
        recording(),
        unchecked(),
        Recordable(),
    ):
        module = _in_plain_operations(lambda *tensors: tuple(f(*tensors)), inputs)
    for node in list(module.graph.nodes):
        if node.target in FILLED:  # of another tensor they take the shape alone
            with module.graph.inserting_before(node):
                value = node.meta["val"]
                filled = module.graph.call_function(
                    aten.full.default,
                    (list(value.shape), FILLED[node.target]),
                    {"dtype": value.dtype, "device": value.device},
                )
                filled.meta = node.meta
                node.replace_all_uses_with(filled)
        elif node.target == aten.detach.default:
            node.replace_all_uses_with(node.args[0])
    prune(module)
    return module


def _in_plain_operations(f: Callable[..., Any], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """The graph of `f`, if possible with ordinary operations in place of those that write into a tensor."""
    try:
        return make_fx(functionalize(f))(*inputs)
    except RuntimeError as error:
        if "functional tensor" not in str(error):  # it writes into a constant
            raise
    return make_fx(f)(*inputs)


def prune(module: fx.GraphModule) -> None:
    """Leave out what does not reach the output, random draws included."""

    def stays(node: fx.Node) -> bool:
        schema = getattr(node.target, "_schema", None)
        return node.op in ("placeholder", "output") or (schema is not None and schema.is_mutable)

    module.graph.eliminate_dead_code(stays)
    module.recompile()


def batch_axis(shapes: Sequence[torch.Size]) -> int | None:
    """The dimension along which shapes at several numbers of data differ."""
    return next((i for i, sizes in enumerate(zip(*shapes, strict=True)) if len(set(sizes)) > 1), None)


def ancestors(node: fx.Node) -> set[fx.Node]:
    """All nodes that a node is computed from, and itself."""
    found, todo = {node}, [node]
    while todo:
        for other in todo.pop().all_input_nodes:
            if other not in found:
                found.add(other)
                todo.append(other)
    return found


def constants_of(module: fx.GraphModule) -> Iterator[tuple[fx.Node, Tensor]]:
    """The nodes of a graph that are attributes, with their values."""
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value: Any = module
            for part in node.target.split("."):
                value = getattr(value, part)
            yield node, value


def _merged(modules: Sequence[fx.GraphModule], sizes: Sequence[int]) -> fx.GraphModule:
    """The first graph, in which sizes that differ between the graphs are computed from the number of data."""
    graphs = [list(module.graph.nodes) for module in modules]
    if len({len(nodes) for nodes in graphs}) > 1:
        raise BoundToSize(
            f"it consists of {len(graphs[0])} operations for {sizes[0]} data, of {len(graphs[1])} for {sizes[1]}"
        )
    _check_constants(modules, sizes)
    position = [{node: i for i, node in enumerate(nodes)} for nodes in graphs]
    graph = modules[0].graph
    number = _NumberOfData(graph, graphs, sizes)
    for same in zip(*graphs, strict=True):
        if len({(node.op, str(node.target) if node.op == "call_function" else node.op) for node in same}) > 1:
            raise BoundToSize(f"it does {same[0].target} for {sizes[0]} data where it does {same[1].target} for others")
        if same[0].op != "placeholder":

            def merged(values: tuple[Any, ...], node: fx.Node = same[0]) -> Any:
                first = values[0]
                if isinstance(first, fx.Node):
                    if len({places[v] for places, v in zip(position, values, strict=True)}) > 1:
                        raise BoundToSize(f"the inputs of {node.target} depend on it")
                    return first
                if isinstance(first, list | tuple) and len({len(v) for v in values}) == 1:
                    return type(first)(merged(each, node) for each in zip(*values, strict=True))
                if isinstance(first, dict):
                    return {key: merged(tuple(v[key] for v in values), node) for key in first}
                if all(type(v) is type(first) and v == first for v in values[1:]):
                    return first
                return number.affine(values, node)

            same[0].args = tuple(merged(each) for each in zip(*(node.args for node in same), strict=True))
            same[0].kwargs = {key: merged(tuple(node.kwargs[key] for node in same)) for key in same[0].kwargs}
    modules[0].recompile()
    return modules[0]


class _NumberOfData:
    """Sizes of a graph in terms of the number of data, which is read off the first input that has it."""

    def __init__(self, graph: fx.Graph, graphs: Sequence[list[fx.Node]], sizes: Sequence[int]) -> None:
        self.graph, self.sizes = graph, sizes
        self.source: tuple[fx.Node, int] | None = None
        for same in zip(*graphs, strict=True):
            if same[0].op == "placeholder" and same[0].users and self.source is None:
                axis = batch_axis([node.meta["val"].shape for node in same])
                self.source = None if axis is None else (same[0], axis)
        self.last = [node for node in graph.nodes if node.op == "placeholder"][-1] if self.source else None
        self.found: dict[tuple[int, int], fx.Node] = {}

    def affine(self, values: Sequence[Any], node: fx.Node) -> fx.Node:
        """The node of a number that has these values at these numbers of data."""
        sizes = self.sizes
        if not all(type(v) is int for v in values):
            raise BoundToSize(f"{node.target} takes {values[0]} for {sizes[0]} data and {values[1]} for {sizes[1]}")
        slope, rest = divmod(values[1] - values[0], sizes[1] - sizes[0])
        offset = values[0] - slope * sizes[0]
        if rest or any(v != slope * n + offset for v, n in zip(values, sizes, strict=True)):
            raise BoundToSize(f"{node.target} takes {values[0]} for {sizes[0]} data and {values[1]} for {sizes[1]}")
        if self.source is None:
            raise NoRows("no input that it reads has a row for each datum")
        result = self._node(1, 0, aten.sym_size.int, *self.source)
        if slope != 1:
            result = self._node(slope, 0, operator.mul, result, slope)
        return self._node(slope, offset, operator.add, result, offset) if offset else result

    def _node(self, slope: int, offset: int, target: Any, *args: Any) -> fx.Node:
        if (slope, offset) not in self.found:
            assert self.last is not None
            with self.graph.inserting_after(self.last):
                self.last = self.found[slope, offset] = self.graph.call_function(target, args)
        return self.found[slope, offset]


def _check_constants(modules: Sequence[fx.GraphModule], sizes: Sequence[int]) -> None:
    for same in zip(*(list(constants_of(module)) for module in modules), strict=False):
        first = same[0][1]
        for _, other in same[1:]:
            if other is not first and not (other.shape == first.shape and torch.equal(other, first)):
                raise BoundToSize(
                    f"it holds a constant tensor of shape {tuple(first.shape)} for {sizes[0]} data, and another, of "
                    f"shape {tuple(other.shape)}, for others: make such a tensor an argument of the pair"
                )
