"""The random draws of a recorded graph as its inputs, so that each copy of the graph can be given noise of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

__all__ = ["Draw", "draws_as_inputs"]

aten = torch.ops.aten


class Draw(NamedTuple):
    """A draw whose distribution depends on no tensor.

    Attributes:
        example: A tensor of its shape, dtype and device.
        write: Writes a draw of a generator into a tensor, by the operation that the graph had in its place.
    """

    example: Tensor
    write: Callable[[Tensor, torch.Generator], object]


def draws_as_inputs(module: fx.GraphModule) -> list[Draw]:
    """Turn the random draws of a graph into further inputs, in place; returns them in their order.

    A class that is drawn by its probabilities becomes a comparison with exponential draws, which is what PyTorch does.

    Raises:
        ValueError: For a draw whose distribution depends on tensors in another way, as of a Gamma or Poisson.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.target == aten.multinomial.default and node.args[1] == 1:
            _as_exponentials(graph, node)
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    draws: list[Draw] = []
    for node in [node for node in graph.nodes if _is_random(node)]:
        write = _writer(node)
        if write is None:
            name = str(node.target).removeprefix("aten.").partition(".")[0]
            raise ValueError(f"the pair draws by {name}, whose noise depends on values and cannot be drawn before")
        with graph.inserting_after(last):
            last = graph.placeholder(f"draw_{len(draws)}")
        last.meta = dict(node.meta)
        value = node.meta["val"]
        draws.append(Draw(torch.empty(value.shape, dtype=value.dtype, device=value.device), write))
        node.replace_all_uses_with(last)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    module.recompile()
    return draws


def _is_random(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _writer(node: fx.Node) -> Callable[[Tensor, torch.Generator], object] | None:
    """What draws into a tensor as the node does; None if that depends on tensors."""
    given: Any = node.args[1:]
    options = {name: value for name, value in node.kwargs.items() if name not in ("generator",)}
    if node.target in (aten.randn.default, aten.randn_like.default):
        return lambda out, generator: out.normal_(generator=generator)
    if node.target in (aten.rand.default, aten.rand_like.default):
        return lambda out, generator: out.uniform_(generator=generator)
    if node.target == aten.randperm.default:
        number: Any = node.args[0]
        return lambda out, generator: torch.randperm(number, generator=generator, out=out)
    into = {
        aten.normal_.default: "normal_",
        aten.uniform_.default: "uniform_",
        aten.exponential_.default: "exponential_",
    }
    if node.target not in into or not _is_fresh(node.args[0], node):
        return None
    if any(isinstance(value, fx.Node) for value in (*given, *options.values())):
        return None
    name = into[node.target]
    return lambda out, generator: getattr(out, name)(*given, **options, generator=generator)


def _is_fresh(tensor: Any, node: fx.Node) -> bool:
    """Whether a tensor was made for a node to write into, and nothing else reads it."""
    made = {aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default, aten.empty_strided.default}
    return isinstance(tensor, fx.Node) and tensor.target in made and list(tensor.users) == [node]


def _as_exponentials(graph: fx.Graph, node: fx.Node) -> None:
    """Draw one class as `torch.multinomial` does: the largest ratio of a probability to an exponential draw."""
    probs: Any = node.args[0]
    value = probs.meta["val"]
    with graph.inserting_before(node):
        made = graph.call_function(
            aten.empty.memory_format, (list(value.shape),), {"dtype": value.dtype, "device": value.device}
        )
        noise = graph.call_function(aten.exponential_.default, (made,))
        ratio = graph.call_function(aten.div.Tensor, (probs, noise))
        drawn = graph.call_function(aten.argmax.default, (ratio, -1, True))
    noise.meta["val"] = value
    drawn.meta = dict(node.meta)
    node.replace_all_uses_with(drawn)
    graph.erase_node(node)
