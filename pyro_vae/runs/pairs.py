"""The parameters of a pair of plain functions, saved as one file and loaded into the same functions elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyro
import torch
from pyro import poutine
from safetensors.torch import save
from torch import Tensor

from pyro_vae.pair.networks import eval_mode, to_networks_device
from pyro_vae.pair.protocol import Program
from pyro_vae.runs.directory import WEIGHTS
from pyro_vae.runs.machine import environment
from pyro_vae.runs.reading import LIMITS, read_plain
from pyro_vae.runs.weights import PARAM, collect_tensors, networks, restore
from pyro_vae.support import arguments
from pyro_vae.support.arguments import checked
from pyro_vae.support.files import checksum, write_file
from pyro_vae.support.formats import check_entries, parse_metadata, parse_weights, parsing
from pyro_vae.support.random import fork_rng

__all__ = ["load_pair", "save_pair", "used_params"]

FORMAT = 1
_HEADER = "pyro_vae"


@checked
def save_pair(path: str | Path, model: Program, guide: Program, *args: Any) -> Path:
    """Save the parameters of a pair: its networks, and its parameters in Pyro's store.

    The result is one `.safetensors` file of tensors and JSON metadata, without code: `load_pair` needs the same two
    functions. Networks are identified by the names of the variables that the functions use for them.

    Args:
        path: The file, with or without the ending `.safetensors`.
        model, guide: The pair: functions, or methods of an object.
        *args: A few data, as the pair is called with. They are needed only if Pyro's parameter store holds parameters
            that are in none of the pair's networks: the pair is run to find out which of them it uses.

    Returns:
        Path: The file.

    Raises:
        ValueError: If `args` are needed and missing, or if there is nothing to save.

    Example:
        >>> import tempfile
        >>> pyro.clear_param_store()
        >>> decoder = torch.nn.Linear(2, 4)
        >>> def model(x):
        ...     pyro.module("decoder", decoder)
        >>> def guide(x):
        ...     pass
        >>> folder = tempfile.TemporaryDirectory()
        >>> file = save_pair(f"{folder.name}/my_pair", model, guide)
        >>> file.name
        'my_pair.safetensors'
        >>> load_pair(file, model, guide)
        >>> folder.cleanup()
    """
    file = _with_suffix(path)
    _check_programs(model, guide)
    pair = SimpleNamespace(model=model, guide=guide)
    tensors = collect_tensors(pair, _own_params(pair, args))
    if not tensors:
        raise ValueError(
            "nothing to save: the functions use no network that can be found, and Pyro's parameter store is empty"
        )
    metadata = {
        "format": FORMAT,
        "versions": environment(torch.device("cpu"))["versions"],
        "checksum": _checksum(tensors),
    }
    write_file(file, save(tensors, metadata={_HEADER: json.dumps(metadata)}))
    return file


@checked
def load_pair(path: str | Path, model: Program, guide: Program, *args: Any) -> None:
    """Fill the networks of a pair, and its parameters in Pyro's store, with what `save_pair` wrote.

    Names, shapes and types are compared first, so that an error changes nothing. The networks stay on their devices.

    Args:
        path: The file.
        model, guide: The functions that were saved, with networks of the same names and shapes.
        *args: A few data, as the pair is called with. They are needed only if the file holds parameters that the pair
            makes by `pyro.param` when it runs.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If it is damaged, is another kind of file, or does not fit the pair.
    """
    file = _with_suffix(path)
    _check_programs(model, guide)
    if not file.exists():
        raise FileNotFoundError(f"no file at {file}")
    content = read_plain(file, LIMITS[WEIGHTS], trust=True)  # the caller names the file itself
    with parsing(file):
        tensors = parse_weights(content)
        metadata = check_entries(parse_metadata(content, _HEADER), format=int, checksum=str)
        if metadata["format"] != FORMAT:
            raise ValueError(f"it has format {metadata['format']}, this version of pyro_vae reads {FORMAT}")
        if metadata["checksum"] != _checksum(tensors):
            raise ValueError("its checksum does not fit its tensors: bring the original back")
    pair = SimpleNamespace(model=model, guide=guide)
    params = [name.removeprefix(PARAM) for name in tensors if name.startswith(PARAM)]
    if params and not args:
        raise ValueError(
            f"{file} holds the parameters {', '.join(params)}, which the pair makes when it runs: pass a few data, "
            "load_pair(path, model, guide, x)"
        )
    known = tuple(networks(pair))
    unknown = [name for name in tensors if not name.startswith((*known, PARAM))]
    try:
        if unknown:
            raise ValueError(f"it has a tensor {unknown[0]!r}; the pair's networks are {', '.join(known) or 'none'}")
        with eval_mode(model, guide):
            restore(pair, tensors, *to_networks_device(args, model, guide))
    except ValueError as error:
        raise ValueError(f"{file} does not fit the pair: {error}") from error


def _own_params(pair: Any, args: tuple[Any, ...]) -> dict[str, Tensor]:
    """The unconstrained parameters in Pyro's store that the pair uses and that are in none of its networks."""
    store = pyro.get_param_store()
    in_networks = {id(p) for net in networks(pair).values() for p in net.parameters()}
    if not args:
        free = [name for name, value in store.named_parameters() if id(value) not in in_networks]
        if free:
            raise ValueError(
                f"Pyro's parameter store holds {', '.join(free[:5])}, in none of the pair's networks: pass a few data, "
                "save_pair(path, model, guide, x), so that the pair can be run to find out which of them it uses"
            )
        return {}
    used = used_params(pair, args)
    return {name: value for name, value in store.named_parameters() if name in used}


def used_params(pair: Any, args: tuple[Any, ...]) -> set[str]:
    """The names in Pyro's store that a pair uses when it runs on `args`."""
    args = to_networks_device(args, pair.model, pair.guide)
    with torch.no_grad(), fork_rng(), eval_mode(pair.model, pair.guide), poutine.trace(param_only=True) as traced:
        pair.guide(*args)
        pair.model(*args)
    return {name for name, site in traced.trace.nodes.items() if site["type"] == "param"}


def _checksum(tensors: dict[str, Tensor]) -> str:
    return checksum(save({name: tensors[name] for name in sorted(tensors)}))


def _check_programs(model: Any, guide: Any) -> None:
    arguments.function("model", model, "a Pyro program")
    arguments.function("guide", guide, "a Pyro program")


def _with_suffix(path: str | Path) -> Path:
    path = Path(arguments.path("path", path) or "")
    return path if path.suffix == ".safetensors" else path.with_name(f"{path.name}.safetensors")
