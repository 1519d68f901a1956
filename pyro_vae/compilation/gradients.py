"""The gradient of any loss of any pair as one compiled graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import pyro.infer
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from pyro_vae.compilation.mode import recording
from pyro_vae.compilation.reasons import why_not_compiled
from pyro_vae.compilation.rewrites import rewrite
from pyro_vae.compilation.validation import unvalidated
from pyro_vae.support.random import fork_rng

__all__ = ["CompiledGradients", "Recordable", "compile_graph", "compiled_function", "layout_of", "modules_called"]

Loss = Callable[..., Tensor]

PATIENCE = 50  # steps with another shape of batch before that shape gets a graph of its own
MAX_GRAPHS = 4
MAX_NODES = 20_000  # a loop over particles, unrolled, would take the compiler minutes
CHECK_EVERY = 500  # steps between comparisons with the eager loss


class _Graph(NamedTuple):
    run: Callable[..., Any]
    state: list[Tensor]  # parameters, buffers and constants: read, and perhaps written, at each call
    params: list[Tensor]  # those with a gradient, in the order of the outputs


class CompiledGradients:
    """Gradients of `loss(*args, **kwargs)`, recorded once per shape of the arguments and compiled.

    Pyro's handlers, the pair's Python and autograd run once, while the tensor operations below them are recorded at
    the dispatcher; the recorded graph of loss and gradients goes to Inductor. Parameters, buffers, weights and
    temperatures enter it as inputs, so their present values count. Noise is drawn from torch's generators in the eager
    order: the same seed gives the same run, compiled or not (but for dropout and Bernoulli draws, which are compiled as
    comparisons with uniform noise).

    What is no tensor is fixed at the recording: a Python number that the pair reads anew at each step, say. The loss is
    therefore compared with the eager one every so often; where they differ, this object warns and gives up.

    `call` returns None when the step is to run eagerly: for a shape not seen often enough, or for good, with `reason`.

    Args:
        loss: A differentiable function of the arguments, which has run eagerly before (so that parameters exist), or
            None if there is none.
        objective: Where the loss comes from. Its method `advance`, if there is one, is called before each compiled
            step, for what it changes in Python from step to step; tensors that it holds are changed in place.
        modules: The modules that the loss calls, whose train or eval mode counts.
        state: What `state()` of another such object said: steps then run compiled or eagerly as they would have there.
        what: What a warning calls the steps.
    """

    def __init__(
        self,
        loss: Loss | None,
        objective: Any,
        modules: list[nn.Module],
        state: dict[str, Any] | None = None,
        what: str = "steps",
    ) -> None:
        self.objective, self.modules, self.what = objective, modules, what
        self.loss: Any = loss
        self.advance: Callable[[], None] | None = getattr(objective, "advance", None)
        self.reason: str | None = None
        self._graphs: dict[Any, _Graph] = {}
        self._seen: dict[Any, int] = {}
        self._scale = torch.ones(())
        self._calls = 0
        # by the text of their signature
        self._seen_before: dict[str, int] = {}
        self._compiled_before: set[str] = set()
        if state is not None:
            self._calls, self.reason, self._seen_before = state["calls"], state["reason"], dict(state["seen"])
            self._compiled_before = set(state["graphs"])
        elif loss is None:
            self._give_up("the objective has no differentiable_loss, only gradients of its own making")

    @property
    def num_graphs(self) -> int:
        """How many graphs there are, one for each shape of batch that is frequent enough."""
        return len(self._graphs)

    def state(self) -> dict[str, Any]:
        """What decides whether a step runs compiled, for JSON."""
        seen = {**self._seen_before, **{repr(key): n for key, n in self._seen.items()}}
        graphs = sorted(self._compiled_before | {repr(key) for key in self._graphs})
        return {"calls": self._calls, "reason": self.reason, "seen": seen, "graphs": graphs}

    def call(
        self, params: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], scale: float | Tensor
    ) -> Tensor | None:
        """Add the gradients of `scale * loss` to the parameters' `.grad`; return the loss, or None."""
        if self.reason is not None:
            return None
        leaves = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        try:
            key = self._signature(params, args, kwargs)
            graph = self._graphs.get(key) or self._new(key, params, args, kwargs, leaves)
            if graph is None:
                return None
            self._calls += 1
            if self._calls % CHECK_EVERY == 0 and not self._agrees(graph, leaves, args, kwargs):
                return None
        except Exception as error:  # whatever the pair, the recorder, the compiler or its code raise
            self._give_up(why_not_compiled(error))
            return None
        if self.advance is not None:
            self.advance()
        loss, *grads = self._run(graph, leaves, scale)
        for param, grad in zip(graph.params, grads, strict=True):
            param.grad = grad if param.grad is None else param.grad.add_(grad)
        return loss

    def _run(self, graph: _Graph, leaves: list[Tensor], scale: float | Tensor) -> Any:
        with torch.no_grad():
            return graph.run(self._scale.fill_(scale), *leaves, *graph.state)

    def _signature(self, params: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        def of(a: Any) -> Any:
            return layout_of(a) if isinstance(a, Tensor) else _hashable(a)

        return (
            *map(of, args),
            *((name, of(a)) for name, a in kwargs.items()),
            tuple(p.requires_grad for p in params),
            tuple(module.training for module in self.modules),
            (params[0].dtype, params[0].device) if params else None,
        )

    def _new(
        self, key: Any, params: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], leaves: list[Tensor]
    ) -> _Graph | None:
        name = repr(key)
        self._seen[key] = self._seen.get(key, self._seen_before.pop(name, 0)) + 1
        if len(self._seen) + len(self._seen_before) > 1000:
            self._seen.clear()
            self._seen_before.clear()
        number = len(self._compiled_before) + len(self._graphs)
        waits = self._seen[key] < PATIENCE or number >= MAX_GRAPHS
        if number and waits and name not in self._compiled_before:
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
        trained = [p for p in params if p.requires_grad]
        if params:  # on another device each step would wait for it
            self._scale = self._scale.to(params[0].device)
        used: list[Tensor] = []

        def loss_and_gradients(scale: Tensor, *tensors: Tensor) -> list[Tensor]:
            given = iter(tensors)
            mine = [next(given) if isinstance(a, Tensor) else a for a in args]
            named = {name: next(given) if isinstance(a, Tensor) else a for name, a in kwargs.items()}
            loss = self.loss(*mine, **named)
            grads = torch.autograd.grad(loss * scale, trained, allow_unused=True)
            used.extend(p for p, grad in zip(trained, grads, strict=True) if grad is not None)
            return [loss.detach(), *(grad for grad in grads if grad is not None)]

        # running averages shall not see this batch twice
        with _unchecked(), fork_rng(), recording(), _kept(self._averages()), Recordable():
            module = make_fx(loss_and_gradients)(self._scale, *leaves)
        state = _lift(module)
        if len(module.graph.nodes) > MAX_NODES:
            raise ValueError(f"its graph has {len(module.graph.nodes)} operations (particles in a loop?)")
        with torch.no_grad():
            run = compile_graph(module, [self._scale, *leaves, *state])
        return _Graph(run, state, used)

    def _averages(self) -> list[Tensor]:
        """What a run of the loss may change besides gradients."""
        buffers = [b for module in self.modules for b in module.buffers(recurse=False)]
        return [*buffers, *_tensors_of(self.objective)]

    def _agrees(self, graph: _Graph, leaves: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether compiled and eager loss are the same on the same noise; gives up if not."""
        averages = [held for held in graph.state if not held.requires_grad]
        with _unchecked(), recording():
            with fork_rng(), _kept(averages):  # the same noise for both, on every device
                ours = self._run(graph, leaves, 1.0)[0]
            with fork_rng(), torch.no_grad(), _kept(averages), Recordable():
                eager = self.loss(*args, **kwargs)
        # a pair that is not finite any more is for the caller to find
        if torch.allclose(ours, eager.detach(), rtol=1e-2, atol=1e-2, equal_nan=True):
            return True
        self._give_up(
            f"the compiled loss is {float(ours):.6g} where the eager one is {float(eager):.6g}: the pair reads "
            "something that changes from step to step and is no tensor, or draws noise from elsewhere than torch"
        )
        return False

    def _give_up(self, reason: str) -> None:
        self.reason = reason
        self._graphs.clear()
        warnings.warn(f"{self.what} run eagerly, not compiled: {reason}", stacklevel=4)


def compiled_function(f: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[..., Tensor]:
    """`f` as one compiled graph, for inputs of these shapes; noise is drawn anew at each call, without gradients.

    Raises:
        ValueError: If the graph gives something else than `f` on the same noise.
        Exception: Whatever the recorder or the compiler raise.
    """
    with torch.no_grad(), _unchecked():
        with fork_rng(), Recordable():
            module = make_fx(f)(*inputs)
        state = _lift(module)
        rewrite(module)
        run = compile_graph(module, [*inputs, *state])
        with fork_rng():
            ours = run(*inputs, *state)
        with fork_rng(), Recordable():
            eager = f(*inputs)
        if not torch.allclose(ours, eager, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise ValueError("the compiled function does not agree with the eager one")
    return lambda *tensors: run(*tensors, *state)


@contextmanager
def modules_called() -> Iterator[list[nn.Module]]:
    """The modules that are called within it."""
    found: dict[int, nn.Module] = {}

    def see(module: nn.Module, args: Any) -> None:
        found[id(module)] = module

    handle = register_module_forward_pre_hook(see)
    modules: list[nn.Module] = []
    try:
        yield modules
    finally:
        handle.remove()
        modules.extend(found.values())


class Recordable(TorchFunctionMode):
    """Replaces what PyTorch does by looking at values, and noise that the compiler would draw in a way of its own."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _REPLACED.get(func, func)(*args, **(kwargs or {}))


def _one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    return (tensor.unsqueeze(-1) == torch.arange(num_classes, device=tensor.device)).long()


def _bernoulli(p: Tensor) -> Tensor:
    return (torch.rand_like(p) < p).to(p)


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return x * (torch.rand_like(x) >= p).to(x) / (1 - p) if training and p < 1 else x * float(not training)


_REPLACED = {F.one_hot: _one_hot, torch.bernoulli: _bernoulli, F.dropout: _dropout}


@contextmanager
def _unchecked() -> Iterator[None]:
    """Within it neither Pyro nor distributions check values, and recurrent networks consist of what can be compiled."""
    backend: Any = torch.backends.mkldnn
    before, backend.enabled = backend.enabled, False
    try:
        with pyro.validation_enabled(False), unvalidated():
            yield
    finally:
        backend.enabled = before


@contextmanager
def _kept(tensors: list[Tensor]) -> Iterator[None]:
    """Give tensors the values back that they had before."""
    # nothing writes to an expanded tensor, and nothing can
    written = [t for t in tensors if not any(s == 0 and n > 1 for s, n in zip(t.stride(), t.shape, strict=True))]
    before = [t.detach().clone() for t in written]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(written, before, strict=True):
                tensor.copy_(value)


def _tensors_of(objective: Any) -> list[Tensor]:
    """Tensors that an objective, or one that it wraps, holds as attributes or in dictionaries."""
    held = list(getattr(objective, "__dict__", {}).values())
    values = [v for h in held for v in (h.values() if isinstance(h, dict) else (h,))]
    inner = [t for v in values if isinstance(v, pyro.infer.ELBO) for t in _tensors_of(v)]
    return [v for v in values if isinstance(v, Tensor)] + inner


def compile_graph(module: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
    """Hand a graph to Inductor, with the noise that it would draw eagerly."""
    return torch._inductor.compile(module, inputs, options={"fallback_random": True})


def _lift(module: fx.GraphModule) -> list[Tensor]:
    """Turn the tensors that a graph holds into inputs, in place; returns them in the order of these inputs."""
    graph = module.graph
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    inputs: dict[int, fx.Node] = {}
    state: list[Tensor] = []
    for node in [node for node in graph.nodes if node.op == "get_attr"]:
        held = module
        for part in node.target.split("."):
            held = getattr(held, part)
        if not isinstance(held, Tensor):
            continue
        if id(held) not in inputs:
            with graph.inserting_after(last):
                last = inputs[id(held)] = graph.placeholder(f"state_{len(state)}")
            state.append(held)
        node.replace_all_uses_with(inputs[id(held)])
        graph.erase_node(node)
    graph.eliminate_dead_code()
    module.recompile()
    return state


def layout_of(tensor: Tensor) -> tuple[Any, ...]:
    """What compiled code relies on in an input."""
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _hashable(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value
