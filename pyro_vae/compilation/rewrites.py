"""Rewrites of recorded graphs into equivalent ones that take less arithmetic, before they are compiled."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

__all__ = ["rewrite"]

aten = torch.ops.aten
GROUP = 16  # factors of a product in (1, 2], far from overflow


def rewrite(module: fx.GraphModule) -> None:
    """Rewrite the CPU operations of a graph of ATen operations in place. The graph must not be differentiated.

    - A Bernoulli log-density summed over its pixels takes one logarithm per 16 pixels: in
      `log p = x l - max(l, 0) - log(1 + exp(-|l|))` the sum of the last terms is the log of a product.
    - ELU uses `exp(x) - 1`, which is faster than `expm1`; its error is at most the rounding error of a number near 1.
    - The bias of a linear layer is added in one operation with those that follow. A matrix product with a bias would
      first copy the bias to every row.
    """
    graph = module.graph
    for node in _nodes(graph, aten.binary_cross_entropy_with_logits.default):
        _group_logarithms(graph, node)
    for node in _nodes(graph, aten.elu.default):
        with graph.inserting_before(node):
            x = node.args[0]
            if node.args[1:] in ((), (1.0,)):
                below = _call(graph, aten.sub.Tensor, _call(graph, aten.exp.default, x), 1.0)
                positive = _call(graph, aten.gt.Scalar, x, 0.0)
                node.replace_all_uses_with(_call(graph, aten.where.self, positive, x, below))
    for node in _nodes(graph, aten.addmm.default):
        with graph.inserting_before(node):
            bias, *factors = node.args
            # a difference, since the compiler would fuse the product and a sum into addmm again
            minus = _call(graph, aten.neg.default, bias)
            node.replace_all_uses_with(_call(graph, aten.sub.Tensor, _call(graph, aten.mm.default, *factors), minus))
    graph.eliminate_dead_code()
    module.recompile()


def _group_logarithms(graph: fx.Graph, cross_entropy: fx.Node) -> None:
    """Replace the sum of a negative cross entropy over its last dimension, if the graph has no other use for it."""
    chain: list[Any] = [cross_entropy]
    for target in (aten.neg.default, aten.view.default, aten.sum.dim_IntList):
        users = list(chain[-1].users)
        if len(users) != 1 or users[0].target != target:
            return
        chain.append(users[0])
    _, _, view, total = chain
    logits, x, *options = cross_entropy.args
    shape = view.meta["val"].shape
    if options != [None, None, 0] or total.args[1] != [-1] or shape[-1] % GROUP:
        return
    with graph.inserting_before(total):

        def call(op: Any, *args: Any) -> fx.Node:
            return _call(graph, op, *args)

        linear = call(aten.sub.Tensor, call(aten.mul.Tensor, x, logits), call(aten.clamp.default, logits, 0.0))
        linear = call(aten.sum.dim_IntList, call(aten.reshape.default, linear, shape), [-1])
        exps = call(aten.exp.default, call(aten.neg.default, call(aten.abs.default, logits)))
        factors = call(aten.reshape.default, call(aten.add.Tensor, exps, 1.0), [*shape[:-1], GROUP, shape[-1] // GROUP])
        logs = call(aten.sum.dim_IntList, call(aten.log.default, call(aten.prod.dim_int, factors, -2)), [-1])
        total.replace_all_uses_with(call(aten.sub.Tensor, linear, logs))


def _call(graph: fx.Graph, op: Any, *args: Any) -> fx.Node:
    return graph.call_function(op, args)


def _nodes(graph: fx.Graph, op: Any) -> list[fx.Node]:
    """The calls of an operation that return a CPU tensor and have no keyword arguments."""
    found = graph.find_nodes(op="call_function", target=op)
    return [n for n in found if not n.kwargs and n.meta["val"].device.type == "cpu"]
