"""Graphs as files of torch and of ONNX, and back."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae.exporting.graphs import Graph, Port
from pyro_vae.support.formats import one_line

__all__ = ["as_onnx", "as_program", "onnx_is_installed", "onnx_runner", "program_runner"]

Runner = Callable[[Sequence[Tensor]], dict[str, Tensor]]


def as_program(graph: Graph, inputs: Sequence[Tensor]) -> Any:
    """A graph as an `ExportedProgram` for any number of data."""
    size = torch.export.Dim("N", min=1)
    dynamic = {p.name: None if p.batch_axis is None else {p.batch_axis: size} for p in graph.inputs}
    named = {port.name: value for port, value in zip(graph.inputs, inputs, strict=True)}
    with _quiet():
        return torch.export.export(graph.module, tuple(named.values()), dynamic_shapes=dynamic, strict=False)


def program_bytes(program: Any) -> bytes:
    """The content of a `.pt2` file."""
    file = io.BytesIO()
    with _quiet():
        torch.export.save(program, file)
    return file.getvalue()


def program_runner(content: bytes) -> Runner:
    """The function in a `.pt2` file, from inputs to outputs by name."""
    with _quiet():
        module = torch.export.load(io.BytesIO(content)).module()
    return lambda inputs: module(*inputs)


def onnx_is_installed() -> bool:
    """Whether ONNX files can be made."""
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript"))


def as_onnx(program: Any, inputs: Sequence[Port], outputs: Sequence[Port]) -> bytes:
    """An `ExportedProgram` as an ONNX file.

    Raises:
        ValueError: If the exporter of torch does not know one of its operations, or fails at it.
    """
    names: dict[str, Any] = {"input_names": [port.name for port in inputs]}
    names["output_names"] = [port.name for port in outputs]
    try:
        with _quiet():
            made: Any = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    except Exception as error:  # those of the exporter are private classes
        raise ValueError(f"torch.onnx.export cannot convert it: {_cause(error)}") from error
    content: bytes = made.model_proto.SerializeToString()
    return content


def onnx_runner(content: bytes, inputs: Sequence[Port]) -> Runner | None:
    """The function in an ONNX file; None where onnxruntime is not installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(values: Sequence[Tensor]) -> dict[str, Tensor]:
        named = {port.name: value.cpu().numpy() for port, value in zip(inputs, values, strict=True)}
        return dict(zip(names, map(torch.as_tensor, session.run(names, named)), strict=True))

    return run


def _cause(error: BaseException) -> str:
    """The first line of the error that came first."""
    while error.__cause__ is not None:
        error = error.__cause__
    unknown = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(error))
    return f"ONNX has no {unknown.group(1)}" if unknown else one_line(error)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A context without what exporters say of their own insides."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
