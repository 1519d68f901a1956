"""A recorded graph as a compiled function, made once in a process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vae.compilation.call_arguments import layout_of
from pyro_vae.compilation.costs import note_seconds

__all__ = ["compile_graph"]

MAX_COMPILED = 16  # graphs that a process keeps for another run of the same

_compiled: dict[Any, Callable[..., Any]] = {}


def compile_graph(module: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
    """Compile a graph with Inductor, so that it draws the random numbers of eager execution.

    A graph whose constants are inputs is compiled once in a process: a run from another seed has the same. What is made
    is stored in PyTorch's folder of compiled graphs, too, where another process finds it.
    """
    if any(node.op in ("get_attr", "call_module") for node in module.graph.nodes):
        return _compile(module, inputs)  # a graph within the graph, which its code does not show
    key = module.code, tuple(map(layout_of, inputs)), torch.get_num_threads()
    run = _compiled.pop(key, None) or _compile(module, inputs)
    _compiled[key] = run  # the latest last
    if len(_compiled) > MAX_COMPILED:
        del _compiled[next(iter(_compiled))]
    return run


def _compile(module: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
    # their import takes a second, which only those should wait for who compile
    from torch._dynamo.utils import counters
    from torch._guards import TracingContext, tracing
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    # without a context that knows the shapes, PyTorch stores no graphs
    fake = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True)
    started, missed = time.perf_counter(), counters["inductor"]["fxgraph_cache_miss"]
    # on a CPU the outputs of convolutions do not have the strides that this optimization expects
    on_cpu = all(value.device.type == "cpu" for value in inputs if isinstance(value, Tensor))
    options = {"fallback_random": True, **({"layout_optimization": False} if on_cpu else {})}
    with tracing(TracingContext(fake)):
        run: Callable[..., Any] = torch._inductor.compile(module, inputs, options=options)
    if counters["inductor"]["fxgraph_cache_miss"] > missed:
        note_seconds(time.perf_counter() - started)
    return run
