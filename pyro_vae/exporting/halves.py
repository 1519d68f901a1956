"""The encoder and the decoder of a pair, recorded, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from pyro_vae.compilation.free_batch import BoundToSize, NoRows, ancestors, batch_axis, recorded
from pyro_vae.compilation.reasons import why_not_compiled
from pyro_vae.exporting.graphs import Function, Graph, Port, graph_of, ports_of
from pyro_vae.exporting.inputs import Arguments
from pyro_vae.exporting.programs import Decoding, Encoding
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.rows import RowsOfOtherData
from pyro_vae.pair.running import traced
from pyro_vae.pair.subsampling import on_all_data

__all__ = ["Half", "decoder_of", "encoder_of"]

F = TypeVar("F", bound=Encoding | Decoding)

MANY, FEW = 5, 2  # numbers of data whose results are compared


@dataclass(frozen=True)
class Half:
    """Half of a pair.

    Attributes:
        graph: The graph.
        function: What was recorded.
        examples: The inputs of the function for a number of data.
    """

    graph: Graph
    function: Function
    examples: Callable[[int], Sequence[Tensor]]

    def inputs(self, n: int) -> list[Tensor]:
        """The inputs of the graph for a number of data."""
        values = self.examples(n)
        return [values[i] for i in self.graph.kept]

    def expected(self, n: int) -> dict[str, Tensor]:
        """What the graph must return, by name."""
        values = self.function(*self.examples(n))
        return {port.name: value for port, value in zip(self.graph.outputs, values, strict=True)}


def encoder_of(guide: Program, arguments: Arguments, weights: Mapping[int, str]) -> Half:
    """The guide, from data to latents.

    Raises:
        ValueError: If it cannot be recorded; if it does not read the data; if a datum depends on others.
    """
    encoding = Encoding(guide, arguments)
    with _explained("guide", encoding):
        encoding(*arguments.of_size(MANY))
    if not encoding.kinds:
        raise ValueError("the guide samples no latent site, so there is nothing to encode to")
    given = [(name, "data") for name in arguments.names]
    with suppress(NoRows):
        half = _half("guide", encoding, arguments.of_size, given, weights)
        if any(port.batch_axis is not None for port in half.graph.inputs):
            return half
    raise ValueError(
        f"the guide computes none of its latents ({', '.join(encoding.kinds)}) from the data, so there is no encoder "
        "to export: only='decoder' writes the decoder alone"
    )


def decoder_of(model: Program, guide: Program, arguments: Arguments, weights: Mapping[int, str]) -> Half:
    """The model, from latents to the mean of what it observes.

    Raises:
        ValueError: If it cannot be recorded; if no mean depends on latents; if one is computed from what it predicts.
    """
    drawn = [_drawn(model, guide, arguments, n) for n in (FEW, MANY)]
    axes = {name: batch_axis([draws[name].shape for draws in drawn]) for name in drawn[0]}

    def examples(n: int) -> list[Tensor]:
        latents = [_rows(value, axes[name], n) for name, value in drawn[1].items()]
        return [*latents, *arguments.of_size(n)]

    decoding = Decoding(model, arguments, list(axes))
    given = [*((name, "latent") for name in axes), *((name, "data") for name in arguments.names)]
    _outputs("model", decoding, examples)
    if not decoding.kinds:
        raise ValueError("the model observes no site, so there is no decoder to export: only='encoder' writes the rest")
    with _explained("model", decoding):
        _check_predicts(decoding, examples(MANY))
    return _half("model", decoding, examples, given, weights)


def _drawn(model: Program, guide: Program, arguments: Arguments, n: int) -> dict[str, Tensor]:
    """A value of each latent of the model: from the guide or, if that is one for other data, from the prior."""
    drawing, tensors = Decoding(model, arguments, []), arguments.of_size(n)
    with suppress(Exception):
        args, kwargs = arguments.filled(tensors)
        return drawing.draw(*tensors, on=traced(on_all_data(guide), args, kwargs))
    with _explained("model", drawing):
        return drawing.draw(*tensors)


def _rows(value: Tensor, axis: int | None, n: int) -> Tensor:
    """The rows of a value over and over, n of them; all of it if it has no dimension of the data."""
    return value if axis is None else value.index_select(axis, torch.arange(n, device=value.device) % MANY)


def _half(
    program: str,
    function: Encoding | Decoding,
    examples: Callable[[int], list[Tensor]],
    given: Sequence[tuple[str, str]],
    weights: Mapping[int, str],
) -> Half:
    inputs = ports_of(given, [examples(FEW), examples(MANY)])
    outputs = _outputs(program, function, examples)
    with _explained(program, function):
        return Half(graph_of(function, examples, inputs, outputs, weights), function, examples)


def _outputs(program: str, function: Encoding | Decoding, examples: Callable[[int], list[Tensor]]) -> list[Port]:
    """The outputs; refuses what has no value, and data whose results depend on chance or on those beside them."""
    with _explained(program, function):
        many, again = (function(*examples(MANY)) for _ in range(2))
        named = list(function.kinds.items())
        few = function(*examples(FEW))
    if list(function.kinds.items()) != named:
        differing = sorted(set(function.kinds) ^ set(dict(named)))[0]
        raise ValueError(
            f"the {program} has the site {differing!r} for some numbers of data and not for others, as in a loop over "
            "a plate: write `with pyro.plate(...):`, with the data as one tensor"
        )
    ports = ports_of(named, [few, many])
    for port, a, b, c in zip(ports, few, many, again, strict=True):
        what = f"the {port.kind} of the site {port.site!r} of the {program}"
        if bool(b.isnan().any()):
            raise ValueError(
                f"{what} is not a number for the example data: its distribution has none, or the data hold values that "
                "the networks cannot read"
            )
        if not torch.equal(b, c):
            raise ValueError(f"{what} is another one in each run: it is computed from random numbers that are no site")
        same = _rows(b, port.batch_axis, FEW)
        if not torch.allclose(a.double(), same.double(), rtol=1e-3, atol=1e-4):
            raise ValueError(
                f"{what} depends on the other data of a batch, and a program for any number of data cannot: batch "
                "normalization in training mode makes it so (put such a network into evaluation mode, with running "
                "statistics), and control flow that reads a whole batch"
            )
    return ports


def _check_predicts(decoding: Decoding, tensors: Sequence[Tensor]) -> None:
    """Refuse means that do not depend on latents, and those that are computed from the observed value itself."""
    means = len(decoding.kinds)
    graph = recorded(lambda *inputs: [*decoding(*inputs), *decoding.observed.values()], tensors).graph
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    latents, data = set(inputs[: len(decoding.names)]), set(inputs[len(decoding.names) :])
    found = next(node for node in graph.nodes if node.op == "output").args[0]
    reached = False
    for name, mean, value in zip(decoding.kinds, found[:means], found[means:], strict=True):
        above = ancestors(mean)
        reached = reached or bool(above & latents)
        if seen := above & data & ancestors(value):
            argument = decoding.arguments.names[inputs.index(next(iter(seen))) - len(decoding.names)]
            raise ValueError(
                f"the mean of the observed site {name!r} is computed from {argument!r}, which it observes, as in an "
                "autoregressive decoder: no function of the latents gives it. Give covariates as arguments of their "
                "own; only='encoder' writes the encoder alone"
            )
    if not reached:
        raise ValueError(
            f"no mean of an observed site ({', '.join(decoding.kinds)}) depends on a latent, so there is no decoder to "
            "export: only='encoder' writes the encoder alone"
        )


@contextmanager
def _explained(program: str, function: F) -> Iterator[F]:
    """A context in which errors of the recorder, and of shapes, become a reason with the site."""
    try:
        yield function
    except RowsOfOtherData as error:
        raise ValueError(
            f"the {program} has no form for any number of data, which an exported program needs: {error}"
        ) from error
    except (TypeError, ImportError, NoRows):
        raise
    except BoundToSize as error:
        raise ValueError(
            f"the {program} cannot be exported for any number of data, since what it does depends on that number "
            f"(at site {function.latest!r} or before): {error}"
        ) from error
    except ValueError as error:
        cause = error.__cause__
        if isinstance(cause, ValueError):  # Pyro adds all shapes of a trace
            raise ValueError(str(cause)) from error
        raise
    except Exception as error:  # of the recorder
        raise ValueError(_cannot(program, function, error)) from error


def _cannot(program: str, function: Encoding | Decoding, error: Exception) -> str:
    where = f", after its site {function.latest!r}" if function.latest else ", before its first site"
    return f"the {program} cannot be exported{where}: {why_not_compiled(error)}"
