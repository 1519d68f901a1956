"""A function of tensors as a graph with named inputs, outputs and weights, for any number of data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyro
from torch import Tensor, fx, nn

from pyro_vae.compilation.free_batch import batch_axis, constants_of, prune, record_with_free_batch
from pyro_vae.exporting.inputs import identifier
from pyro_vae.pair.networks import modules_of
from pyro_vae.pair.protocol import Program

__all__ = ["Function", "Graph", "Port", "graph_of", "ports_of", "weight_names"]

Function = Callable[..., Sequence[Tensor]]


@dataclass(frozen=True)
class Port:
    """An input or an output of an exported program.

    Attributes:
        name: Its name in the program.
        site: The argument or the site of the pair that it is.
        kind: What it is: "data", "latent", "mean", "most probable value", "probabilities" or "image of the mean of the
            base distribution".
        shape: Its shape, with "N" for the number of data.
        dtype: Its type, as torch names it.
    """

    name: str
    site: str
    kind: str
    shape: tuple[int | str, ...]
    dtype: str

    @property
    def batch_axis(self) -> int | None:
        """The dimension of the data, None if there is none."""
        return self.shape.index("N") if "N" in self.shape else None

    def to_dict(self) -> dict[str, Any]:
        """The port as plain Python objects."""
        return {**asdict(self), "shape": list(self.shape)}

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(map(str, self.shape))}) {self.dtype}"


@dataclass(frozen=True)
class Graph:
    """A recorded function.

    Attributes:
        module: The graph. It takes the inputs by position or by name, and returns the outputs by name.
        inputs, outputs: What goes in and comes out.
        kept: Which of the function's inputs these are: it does not read the others.
    """

    module: fx.GraphModule
    inputs: list[Port]
    outputs: list[Port]
    kept: list[int]


def graph_of(
    function: Function,
    examples: Callable[[int], Sequence[Tensor]],
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    weights: Mapping[int, str],
) -> Graph:
    """Record a function.

    Args:
        function: From tensors to tensors.
        examples: Its inputs for a number of data.
        inputs, outputs: What goes in and comes out.
        weights: Names of tensors that are no inputs, by identity.

    Raises:
        Exception: As `record_with_free_batch`.
    """
    module = record_with_free_batch(function, examples)
    nodes = [node for node in module.graph.nodes if node.op == "placeholder"]
    kept = [i for i, node in enumerate(nodes) if node.users]
    for i, node in enumerate(nodes):
        if i in kept:
            with module.graph.inserting_before(node):
                named = module.graph.placeholder(inputs[i].name)
            named.meta = node.meta
            node.replace_all_uses_with(named)
        module.graph.erase_node(node)
    taken = {inputs[i].name for i in kept}  # ONNX has one space of names
    outputs = [replace(port, name=f"{port.name}_out") if port.name in taken else port for port in outputs]
    output = next(node for node in module.graph.nodes if node.op == "output")
    output.args = ({port.name: node for port, node in zip(outputs, output.args[0], strict=True)},)
    prune(module)
    return Graph(_with_own_weights(module, weights), [inputs[i] for i in kept], outputs, kept)


def ports_of(named: Sequence[tuple[str, str]], values: Sequence[Sequence[Tensor]]) -> list[Port]:
    """Inputs or outputs, from names and kinds and their values at several numbers of data."""
    taken: list[str] = []
    found = []
    for (name, kind), *same in zip(named, *values, strict=True):
        axis = batch_axis([value.shape for value in same])
        shape: list[int | str] = list(same[0].shape)
        if axis is not None:
            shape[axis] = "N"
        taken.append(identifier(name, taken))
        found.append(Port(taken[-1], name, kind, tuple(shape), str(same[0].dtype).removeprefix("torch.")))
    return found


def weight_names(*programs: Program) -> dict[int, str]:
    """The names of the parameters and buffers of a pair, by identity."""
    found: dict[int, str] = {}
    for owner, net in modules_of(*programs).items():
        prefix = "" if owner in ("", "self", type(net).__name__) else f"{owner}_"
        for name, tensor in (*net.named_parameters(), *net.named_buffers()):
            found.setdefault(id(tensor), prefix + name)
    store: Any = pyro.get_param_store()
    for name, tensor in store.named_parameters():
        found.setdefault(id(tensor), name)
    return found


def _with_own_weights(module: fx.GraphModule, names: Mapping[int, str]) -> fx.GraphModule:
    """The graph with copies of its weights, which need no gradient, under the names that they have in the pair."""
    root = nn.Module()
    known: dict[int, str] = {}
    for node, value in list(constants_of(module)):
        if id(value) not in known:
            name = known[id(value)] = identifier(names.get(id(value), "constant"), set(known.values()))
            copy = value.detach().clone()
            if id(value) in names and copy.is_floating_point():
                root.register_parameter(name, nn.Parameter(copy, requires_grad=False))
            else:
                root.register_buffer(name, copy)
        node.target = known[id(value)]
    made = fx.GraphModule(root, module.graph)
    made.recompile()
    return made
