"""The gradient of any loss of any pair as one compiled graph."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.compilation.call_arguments import describe, layout_of, signature_of, tensors_in, with_tensors
from pyro_vae.compilation.effects import (
    registered_params,
    restored,
    store_is_kept,
    tensors_of,
    unchecked,
    untouched,
)
from pyro_vae.compilation.inductor import compile_graph
from pyro_vae.compilation.mode import Compile, recording
from pyro_vae.compilation.reasons import why_not_compiled
from pyro_vae.compilation.recordable import NumbersStay, Recordable, noted_backward
from pyro_vae.compilation.rewrites import rewrite
from pyro_vae.support.random import fork_rng

__all__ = ["CompiledGradients", "Recording", "compile_graph", "compiled_function", "layout_of"]

Loss = Callable[..., Tensor]

PATIENCE = 50  # steps with another shape of batch before that shape gets a graph of its own
UNASKED = 1000  # steps with a shape before it gets a graph where nobody has asked for compiled steps
MAX_GRAPHS = 4
MAX_NODES = 20_000  # the compiler would take very long for an unrolled loop over particles
MAX_UNASKED = 1500  # it takes minutes for more, as of a loop over time, which nobody has asked for
CHECK_EVERY = 500  # steps between comparisons with the eager loss


class Recording(NamedTuple):
    """The graph of a loss and its gradients, before it is compiled.

    Attributes:
        module: The graph. Its inputs are the scale of the loss, the tensors of the arguments, and the state.
        state: The parameters, buffers and constants that it reads and may write.
        params: The parameters with a gradient, in the order of the outputs, which the losses precede.
        registered: The parameters that the programs register.
        num_values: The number of losses; None for a single one.
        eager: The losses of arguments, computed eagerly on the noise that comes next; nothing changes.
    """

    module: fx.GraphModule
    state: list[Tensor]
    params: list[Tensor]
    registered: list[Tensor]
    num_values: int | None
    eager: Callable[..., list[Tensor]]


class _Graph(NamedTuple):
    run: Callable[..., Any]
    state: list[Tensor]  # parameters, buffers and constants, which each call reads and may write
    params: list[Tensor]  # parameters with a gradient, in the order of the outputs
    registered: list[Tensor]  # parameters that the programs register, with a gradient or without
    num_values: int | None  # how many losses are returned together; None for a single one
    num_operations: int
    seconds: tuple[float, float]  # that recording and compiling took


class CompiledGradients:
    """Gradients of `loss(*args, **kwargs)`, recorded once per shape of the arguments and compiled.

    Pyro's handlers, the pair's Python and autograd run once, while the tensor operations below them are recorded at
    the dispatcher. Inductor compiles the recorded graph of loss and gradients. Parameters, buffers, weights and
    temperatures are inputs of the graph, so each call uses their current values. Random numbers are drawn from torch's
    generators in the eager order: the same seed gives the same run, compiled or not. The exceptions are dropout and
    Bernoulli draws, which are compiled as comparisons with uniform noise.

    Values that are not tensors are constants of the graph, for example a Python number that the pair reads at each
    step. The loss is therefore compared with the eager one every 500 steps. If they differ, a warning is issued and all
    further steps run eagerly.

    `call` returns None when the step must run eagerly: because the shape was not seen often enough, or permanently,
    with the reason in `reason`.

    Args:
        loss: A function of the arguments that has already run eagerly, so that parameters exist.
        objective: The objective that the loss belongs to. Its method `advance`, if it has one, is called before each
            compiled step, to update what the objective changes in Python from step to step. It changes its tensors in
            place.
        modules: The modules that the loss calls. A change of their train or eval mode needs a new graph.
        state: A result of `state()`: steps then run compiled or eagerly as they would have in that object.
        label: What warnings call the steps.
        makes_gradients: Whether the loss is not to be differentiated, but calls `backward()` itself and returns
            numbers, as Pyro's `loss_and_grads` does. The graph differentiates the tensors that it calls this of.

    Attributes:
        registered: The parameters that the programs register in the graph that ran last.
        asked: What the user has asked for. If "auto", a shape is compiled after 1000 steps, and no warning says that it
            cannot be. If "auto" or "chosen", no graph is compiled that takes minutes.
    """

    def __init__(
        self,
        loss: Loss,
        objective: Any,
        modules: list[nn.Module],
        state: dict[str, Any] | None = None,
        label: str = "steps",
        *,
        makes_gradients: bool = False,
    ) -> None:
        self.objective, self.modules, self.label = objective, modules, label
        self.loss: Any = loss
        self.makes_gradients = makes_gradients
        self.registered: list[Tensor] = []
        self.asked: Compile = True
        self.advance: Callable[[], None] | None = getattr(objective, "advance", None)
        self.reason: str | None = None
        self._graphs: dict[Any, _Graph] = {}
        self._seen: dict[Any, int] = {}
        self._left_out: dict[Any, str] = {}  # what runs eagerly although there are graphs, and why
        self._scale = torch.ones(())
        self._calls = 0
        # of the loaded state, by the repr of the signature
        self._seen_before: dict[str, int] = {}
        self._compiled_before: set[str] = set()
        if state is not None:
            self._calls, self.reason, self._seen_before = state["calls"], state["reason"], dict(state["seen"])
            self._compiled_before = set(state["graphs"])

    @property
    def num_graphs(self) -> int:
        """The number of compiled graphs: one per shape of batch that was seen often enough."""
        return len(self._graphs)

    def kinds(self) -> Iterator[tuple[str, _Graph | None, str]]:
        """The kinds of arguments met so far: their description, their graph, and why they have none."""
        for key, graph in self._graphs.items():
            yield describe(key), graph, ""
        for key, reason in self._left_out.items():
            yield describe(key), None, reason
        for key, count in self._seen.items():
            if self.reason is None and key not in self._graphs and key not in self._left_out:
                needed = UNASKED if self.asked == "auto" else PATIENCE
                waits = (
                    f"seen {count} times, compiled after {needed}" if count < needed else f"{MAX_GRAPHS} graphs exist"
                )
                yield describe(key), None, waits

    def state(self) -> dict[str, Any]:
        """What decides whether a step runs compiled, ready for JSON."""
        seen = {**self._seen_before, **{repr(key): n for key, n in self._seen.items()}}
        graphs = sorted(self._compiled_before | {repr(key) for key in self._graphs})
        return {"calls": self._calls, "reason": self.reason, "seen": seen, "graphs": graphs}

    def call(
        self, params: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], scale: float | Tensor
    ) -> Tensor | tuple[Tensor, ...] | None:
        """Add the gradients of `scale * loss` to the parameters' `.grad`; return the loss, or None."""
        if self.reason is not None:
            return None
        leaves = tensors_in((*args, *kwargs.values()))
        key: Any = None
        try:
            key = self._signature(params, args, kwargs)
            if key in self._left_out:
                return None
            graph = self._graphs.get(key) or self._new_graph(key, params, args, kwargs, leaves)
            if graph is None:
                return None
            self._calls += 1
            if self._calls % CHECK_EVERY == 0 and not self._agrees(graph, leaves, args, kwargs):
                return None
        except Exception as error:  # whatever the pair, the recorder, the compiler or its code raise
            self._leave_out(key, why_not_compiled(error))
            return None
        if self.advance is not None:
            self.advance()
        values, grads = _split(self._run(graph, leaves, scale), graph)
        for param, grad in zip(graph.params, grads, strict=True):
            param.grad = grad if param.grad is None else param.grad.add_(grad)
        self.registered = graph.registered
        return values[0] if graph.num_values is None else tuple(values)

    def _run(self, graph: _Graph, leaves: list[Tensor], scale: float | Tensor) -> Any:
        with torch.no_grad():
            return graph.run(self._scale.fill_(scale), *leaves, *graph.state)

    def _signature(self, params: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return (
            *map(signature_of, args),
            *((name, signature_of(value)) for name, value in kwargs.items()),
            tuple(p.requires_grad for p in params),
            tuple(module.training for module in self.modules),
            (params[0].dtype, params[0].device) if params else None,
        )

    def _new_graph(
        self, key: Any, params: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], leaves: list[Tensor]
    ) -> _Graph | None:
        name = repr(key)
        self._seen[key] = self._seen.get(key, self._seen_before.pop(name, 0)) + 1
        if len(self._seen) + len(self._seen_before) > 1000:
            self._seen.clear()
            self._seen_before.clear()
        num_graphs = len(self._compiled_before) + len(self._graphs)
        waits = self._seen[key] < (UNASKED if self.asked == "auto" else PATIENCE) or num_graphs >= MAX_GRAPHS
        if (num_graphs or self.asked == "auto") and waits and name not in self._compiled_before:
            return None
        self._compiled_before.discard(name)
        graph = self._record(params, args, kwargs, leaves)
        if not self._agrees(graph, leaves, args, kwargs):
            return None
        self._graphs[key] = graph
        return graph

    def _record(
        self, params: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], leaves: list[Tensor]
    ) -> _Graph:
        started = time.perf_counter()
        module, state, used, registered, number, _ = self.record(params, args, kwargs)
        self._check_size(len(module.graph.nodes))
        recorded = time.perf_counter()
        with torch.no_grad():
            run = compile_graph(module, [self._scale, *leaves, *state])
        seconds = recorded - started, time.perf_counter() - recorded
        return _Graph(run, state, used, registered, number, len(module.graph.nodes), seconds)

    def record(self, params: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Recording:
        """The graph of the loss of these arguments and its gradients, not compiled.

        Raises:
            Exception: Whatever the pair or the recorder raise.
        """
        leaves = tensors_in((*args, *kwargs.values()))
        trained = [p for p in params if p.requires_grad]
        if params:  # a scale on another device would make each step wait for a transfer
            self._scale = self._scale.to(params[0].device)
        used: list[Tensor] = []
        number: list[int | None] = []

        def loss_and_gradients(scale: Tensor, *tensors: Tensor) -> list[Tensor]:
            inputs = iter(tensors)
            positional = [with_tensors(value, inputs) for value in args]
            keywords = {name: with_tensors(value, inputs) for name, value in kwargs.items()}
            value, total = self._value_and_total(positional, keywords)
            if not total.requires_grad:  # a batch that trains nothing, where others do
                number.append(len(value) if isinstance(value, tuple) else None)
                return _tensors(value)
            grads = torch.autograd.grad(total * scale, trained, allow_unused=True)
            used.extend(p for p, grad in zip(trained, grads, strict=True) if grad is not None)
            number.append(len(value) if isinstance(value, tuple) else None)
            return [*_tensors(value), *(grad for grad in grads if grad is not None)]

        # otherwise running averages would include this batch twice
        with untouched(self._side_effects()), registered_params() as registered, Recordable(), NumbersStay():
            module = make_fx(loss_and_gradients)(self._scale, *leaves)
        state = _lift(module)

        def eager(*args: Any, **kwargs: Any) -> list[Tensor]:
            return self._eager(state, args, kwargs)

        return Recording(module, state, used, registered, number[0], eager)

    def _check_size(self, operations: int) -> None:
        if operations > MAX_NODES:
            raise ValueError(f"its graph has {operations} operations (particles in a loop?)")
        if operations > MAX_UNASKED and self.asked is not True:
            raise ValueError(
                f"its graph has {operations} operations, which take minutes to compile: compile=True does it"
            )

    def _value_and_total(self, args: list[Any], kwargs: dict[str, Any]) -> tuple[Any, Tensor]:
        """The loss, or losses, and what is to be differentiated."""
        with store_is_kept():
            if not self.makes_gradients:
                value = self.loss(*args, **kwargs)
                return value, torch.as_tensor(value)
            with noted_backward() as noted:
                value = self.loss(*args, **kwargs)
        return value, sum(noted[1:], start=noted[0]) if noted else torch.zeros(())

    def _side_effects(self) -> list[Tensor]:
        """Tensors that an evaluation of the loss may change, besides gradients."""
        buffers = [b for module in self.modules for b in module.buffers(recurse=False)]
        return [*buffers, *tensors_of(self.objective)]

    def _agrees(self, graph: _Graph, leaves: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the compiled and the eager loss agree on the same random numbers; gives up if not."""
        with unchecked(), recording(), fork_rng(), restored(_written(graph.state)):
            compiled = _split(self._run(graph, leaves, 1.0), graph)[0]
        eager = self._eager(graph.state, args, kwargs)
        for ours, theirs in zip(compiled, eager, strict=True):
            # the caller reports a loss that is not finite
            if not torch.allclose(ours, theirs.to(ours), rtol=1e-2, atol=1e-2, equal_nan=True):
                self._give_up(
                    f"the compiled loss is {float(ours):.6g}, the eager one is {float(theirs):.6g}: the pair reads a "
                    "value that changes from step to step and is not a tensor, or draws random numbers outside torch"
                )
                return False
        return True

    def _eager(self, state: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """The losses, computed eagerly on the noise that comes next; nothing changes."""
        outside = unchecked(), recording(), fork_rng(), restored(_written(state))
        with ExitStack() as stack:
            for context in (*outside, Recordable(), NumbersStay(), noted_backward()):
                stack.enter_context(context)
            return _tensors(self.loss(*args, **kwargs))

    def _leave_out(self, key: Any, reason: str) -> None:
        """Run what has failed eagerly from now on: only this shape, if others are compiled."""
        if not self._graphs or key is None:
            return self._give_up(reason)
        self._graphs.pop(key, None)
        self._left_out[key] = reason
        if self.asked != "auto":
            warnings.warn(f"{self.label} with one kind of arguments run eagerly, not compiled: {reason}", stacklevel=4)

    def _give_up(self, reason: str) -> None:
        self.reason = reason
        self._graphs.clear()
        if self.asked != "auto":
            warnings.warn(f"{self.label} run eagerly, not compiled: {reason}", stacklevel=4)


def compiled_function(f: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[..., Tensor]:
    """`f` as one compiled graph without gradients, for inputs of these shapes; each call draws new random numbers.

    Raises:
        ValueError: If the graph and `f` disagree on the same random numbers.
        Exception: Any exception of the recorder or the compiler.
    """
    with torch.no_grad(), unchecked():
        with fork_rng(), Recordable():
            module = make_fx(f)(*inputs)
        state = _lift(module)
        rewrite(module)
        run = compile_graph(module, [*inputs, *state])
        with fork_rng():
            compiled = run(*inputs, *state)
        with fork_rng(), Recordable():
            eager = f(*inputs)
        if not torch.allclose(compiled, eager, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise ValueError("the compiled function does not agree with the eager one")
    return lambda *tensors: run(*tensors, *state)


def _written(state: list[Tensor]) -> list[Tensor]:
    """What of the state of a graph a step may write to."""
    return [tensor for tensor in state if not tensor.requires_grad]


def _tensors(value: Any) -> list[Tensor]:
    """The losses of a step without a gradient, a number as a tensor."""
    return [torch.as_tensor(v).detach() for v in (value if isinstance(value, tuple) else (value,))]


def _split(outputs: Any, graph: _Graph) -> tuple[list[Tensor], list[Tensor]]:
    """The losses and the gradients among the outputs of a graph."""
    number = 1 if graph.num_values is None else graph.num_values
    return list(outputs[:number]), list(outputs[number:])


def _lift(module: fx.GraphModule) -> list[Tensor]:
    """Turn the constant tensors of a graph into inputs, in place; returns them in the order of these inputs."""
    graph = module.graph
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    inputs: dict[int, fx.Node] = {}
    state: list[Tensor] = []
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        value = module
        for part in node.target.split("."):
            value = getattr(value, part)
        if not isinstance(value, Tensor):
            continue
        if id(value) not in inputs:
            with graph.inserting_after(last):
                last = inputs[id(value)] = graph.placeholder(f"state_{len(state)}")
            state.append(value)
        node.replace_all_uses_with(inputs[id(value)])
        graph.erase_node(node)
    graph.eliminate_dead_code()
    module.recompile()
    return state
