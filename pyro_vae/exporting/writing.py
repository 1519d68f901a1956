"""`export`: the encoder and the decoder of a trained pair as files of torch, and of ONNX where it is installed."""

from __future__ import annotations

import json
import platform
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pyro
import torch

from pyro_vae.exporting.formats import (
    Runner,
    as_onnx,
    as_program,
    onnx_is_installed,
    onnx_runner,
    program_bytes,
    program_runner,
)
from pyro_vae.exporting.graphs import Port, weight_names
from pyro_vae.exporting.halves import MANY, Half, decoder_of, encoder_of
from pyro_vae.exporting.inputs import Arguments
from pyro_vae.pair.arguments import takes_mask
from pyro_vae.pair.networks import eval_mode, modules_of, to_networks_device
from pyro_vae.pair.protocol import Pair, Program
from pyro_vae.support import arguments
from pyro_vae.support.arguments import checked
from pyro_vae.support.files import write_file
from pyro_vae.support.random import seeded

__all__ = ["Exported", "Port", "export"]

DESCRIPTION = "export.json"
FORMAT = 1


@dataclass(frozen=True)
class Exported:
    """What `export` has written.

    Attributes:
        inputs, outputs: Of each program, by its name: "encoder", "decoder".
        files: The files.
    """

    inputs: dict[str, list[Port]]
    outputs: dict[str, list[Port]]
    files: list[Path]

    def __repr__(self) -> str:
        lines = [
            f"{name}: {', '.join(map(str, self.inputs[name]))} -> {', '.join(map(str, self.outputs[name]))}"
            for name in self.inputs
        ]
        return "\n".join([*lines, *map(str, self.files)])


@checked
def export(
    pair: Pair | tuple[Program, Program],
    path: str | Path,
    *args: Any,
    only: Literal["encoder", "decoder"] | None = None,
    onnx: bool | None = None,
    **kwargs: Any,
) -> Exported:
    """Write a trained pair as two programs that need neither Pyro nor this library.

    `encoder.pt2` computes the latents of data: for each latent of the guide the mean of its distribution, given such
    values of the latents before it. `decoder.pt2` computes from latents the mean of what the model observes. Both take
    any number of data N. `torch.export.load(file).module()` is a function of tensors that returns its outputs by name.

    A discrete latent has its most probable value, and its probabilities under `NAME_probs`. A latent whose distribution
    has no formula of its mean (a flow, a positive or bounded latent of an `AmortizedGuide`) has the image of the mean
    of the base distribution, which is its median if it is a single number. `export.json` says which, with names, shapes
    and types of inputs and outputs. Arguments of the pair beside the data are inputs of the programs that read them.
    Arguments that are not tensors are fixed as they came.

    What is written is read back and compared with the pair for 1, 5 and 100 data before the call returns.

    Args:
        pair: An object with the methods `model` and `guide`, such as a `VAE` or a loaded run; or two functions,
            `(model, guide)`.
        path: The folder, which is made.
        *args, **kwargs: Example data, `(N, ...)`, then whatever else the pair takes. A pair with a `data_shape` and no
            further arguments needs none.
        only: "encoder" or "decoder", to write one of them.
        onnx: True also writes `encoder.onnx` and `decoder.onnx`, which needs onnx and onnxscript; they are compared,
            too, where onnxruntime is installed. None does so if the packages are there, and warns of a program that
            ONNX cannot express.

    Returns:
        Exported: The inputs and outputs of each program, and the files.

    Raises:
        TypeError: If no example data came, and the pair does not say their shape or takes a mask of missing values.
        ValueError: For what is no function of tensors for any number of data, with the site: parameters for each datum,
            control flow that depends on values, data that depend on the rest of their batch, a decoder that reads what
            it predicts, a site without a mean; with `onnx=True`, for an operation that ONNX does not have.
        ImportError: For `onnx=True` where it is not installed.

    Example:
        >>> import tempfile, pyro_vae as pv
        >>> vae = pv.VAE(64, latent_dim=3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = export(vae, folder, onnx=False)
        ...     encoder = torch.export.load(f"{folder}/encoder.pt2").module()
        >>> print(*found.outputs["encoder"], *found.outputs["decoder"])
        z (N, 3) float32 x (N, 64) float32
        >>> encoder(torch.zeros(7, 64))["z"].shape
        torch.Size([7, 3])
    """
    model, guide = _programs(pair)
    arguments.choice("only", only, ("encoder", "decoder"), none=True)
    if onnx and not onnx_is_installed():
        raise ImportError("onnx=True needs onnx and onnxscript, which are not installed: pip install 'pyro-vae[onnx]'")
    folder = Path(path)
    if folder.is_file():
        raise FileExistsError(f"{folder} is a file: export writes several files, name a folder")
    args = to_networks_device(args, model, guide) if args or kwargs else _example(pair, model, guide)
    halves: dict[str, Half] = {}
    files: dict[str, bytes] = {}
    with torch.no_grad(), eval_mode(model, guide), seeded(0), pyro.validation_enabled(False):
        inputs, weights = Arguments((model, guide), args, kwargs), weight_names(model, guide)
        if only != "decoder":
            halves["encoder"] = encoder_of(guide, inputs, weights)
        if only != "encoder":
            halves["decoder"] = decoder_of(model, guide, inputs, weights)
        for name, half in halves.items():
            files |= _contents(name, half, onnx)
    files[DESCRIPTION] = _description(halves, files).encode()
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():  # the description last
        write_file(folder / file, content)
    return Exported(
        {name: half.graph.inputs for name, half in halves.items()},
        {name: half.graph.outputs for name, half in halves.items()},
        [folder / file for file in files],
    )


def _programs(pair: Any) -> tuple[Program, Program]:
    """Model and guide of a pair."""
    if isinstance(pair, tuple | list) and len(pair) == 2:
        model, guide = pair
    elif callable(getattr(pair, "model", None)) and callable(getattr(pair, "guide", None)):
        model, guide = pair.model, pair.guide
    else:
        expected = "an object with the methods model and guide, or a tuple of both, (model, guide)"
        raise arguments.wrong(TypeError, "pair", expected, pair)
    arguments.function("model", model, "a Pyro program")
    arguments.function("guide", guide, "a Pyro program")
    return model, guide


def _example(pair: Any, *programs: Program) -> tuple[Any, ...]:
    """Example data of the shape that a pair says."""
    owner = getattr(pair, "pair", pair)  # of a loaded run
    shape = getattr(owner, "data_shape", None)
    if takes_mask(programs[0]):
        raise TypeError("the pair takes a mask: give export example data with one, export(pair, path, x, mask)")
    if shape is None:
        raise TypeError("export needs example data, as the pair is called with: export(pair, path, x)")
    like = next((p for net in modules_of(*programs).values() for p in net.parameters()), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(MANY, *shape, generator=generator).to(like),)


def _contents(name: str, half: Half, onnx: bool | None) -> dict[str, bytes]:
    """The files of one program, which have been read back and compared with the pair."""
    graph = half.graph
    program = as_program(graph, half.inputs(MANY))
    found = {f"{name}.pt2": program_bytes(program)}
    _check_same(f"{name}.pt2", half, program_runner(found[f"{name}.pt2"]), 1e-4)
    if onnx or (onnx is None and onnx_is_installed()):
        try:
            content = as_onnx(program, graph.inputs, graph.outputs)
        except ValueError as error:
            if onnx:
                raise ValueError(f"{name}.onnx: {error}; onnx=False writes {name}.pt2") from error
            warnings.warn(f"{name}.onnx is not written: {error}; {name}.pt2 is", stacklevel=4)
            return found
        runner = onnx_runner(content, graph.inputs)
        if runner is not None:
            _check_same(f"{name}.onnx", half, runner, 1e-3)
        found[f"{name}.onnx"] = content
    return found


def _check_same(file: str, half: Half, run: Runner, tolerance: float) -> None:
    """Compare a program that was read back with the pair.

    Raises:
        RuntimeError: If they differ.
    """
    for n in (1, MANY, 100):
        found = run(half.inputs(n))
        for port in half.graph.outputs:
            expected, value = half.expected(n)[port.name], found[port.name]
            if value.shape != expected.shape or not torch.allclose(
                value.double(), expected.double(), rtol=tolerance, atol=tolerance / 10
            ):
                raise RuntimeError(
                    f"{file} does not give the pair's {port.name} for {n} data, so nothing was written: if the pair "
                    "branches on the number of data, do without; if not, please report this"
                )


def _description(halves: Mapping[str, Half], files: Mapping[str, Any]) -> str:
    """The content of `export.json`."""
    content = {
        "format": FORMAT,
        "programs": {
            name: {
                "files": [file for file in files if file.startswith(f"{name}.")],
                "inputs": [port.to_dict() for port in half.graph.inputs],
                "outputs": [port.to_dict() for port in half.graph.outputs],
            }
            for name, half in halves.items()
        },
        "versions": {
            "pyro_vae": version("pyro-vae"),
            "torch": str(torch.__version__),
            "pyro": pyro.__version__,
            "python": platform.python_version(),
        },
    }
    return json.dumps(content, indent=2) + "\n"
