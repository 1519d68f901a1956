"""A run directory: the configuration, the weights and the figures of one training, and the pair built back from it."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyro
import torch
import yaml
from jsonargparse import ArgumentParser
from pyro import poutine
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyro_vae.data import Data, load
from pyro_vae.elbo.tracing import fork_rng, trace_pair
from pyro_vae.history import History
from pyro_vae.models.pair import Pair

__all__ = ["LoadedRun", "create_run", "load_run", "save_json", "save_run"]

FORMAT = 1
CONFIG, WEIGHTS, METRICS = "config.yaml", "weights.safetensors", "metrics.csv"
DATA_KEYS = ("binarize", "flatten", "root", "valid", "test", "seed")
_STORE = "param_store/"  # prefix of pyro.param entries that are in no module


@lru_cache(maxsize=1)
def load_data(
    source: str, binarize: str, flatten: bool, root: str | None, valid: float, test: float, seed: int
) -> Data:
    """`pv.data.load`, remembered: the command line needs the shape before the data."""
    return load(source, binarize=binarize, flatten=flatten, root=root, valid=valid, test=test, seed=seed)  # type: ignore[arg-type]


def create_run(path: str | Path, *, overwrite: bool = False) -> Path:
    """Make the directory of a new run.

    Raises
    ------
    FileExistsError
        If something is there already and `overwrite` is not set.
    PermissionError
        If it cannot be made or written to.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())) and not overwrite:
        raise FileExistsError(f"{path} exists: choose another --out, or pass --overwrite true")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PermissionError(
            f"cannot make the run directory {path}: {error.strerror}; choose another --out"
        ) from error
    if not os.access(path, os.W_OK):
        raise PermissionError(f"cannot write to the run directory {path}: choose another --out")
    return path


def save_json(path: Path, values: dict[str, Any]) -> Path:
    """Write figures as JSON."""
    path.write_text(json.dumps(values, indent=2) + "\n")
    return path


def save_run(path: Path, pair: Any, config: dict[str, Any], history: History, example: Tensor) -> None:
    """Write what `load_run` reads: `config.yaml`, `weights.safetensors` and `metrics.csv`.

    `example` is a datum `(1, ...)`: the pair runs on it once to tell which parameters are its own.
    """
    record = {
        **config,
        "versions": {
            "format": FORMAT,
            "pyro_vae": version("pyro-vae"),
            "torch": str(torch.__version__),
            "pyro": pyro.__version__,
            "python": platform.python_version(),
        },
    }
    (path / CONFIG).write_text(yaml.safe_dump(record, sort_keys=False))
    held = {id(p) for p in pair.parameters()}
    loose = {_STORE + name: p for name, p in _params(pair, example).items() if id(p) not in held}
    # cloned: safetensors refuses tensors that share memory
    tensors = {n: t.detach().clone().contiguous().cpu() for n, t in {**pair.state_dict(), **loose}.items()}
    save_file(tensors, path / WEIGHTS)
    history.save(path / METRICS)


def _params(pair: Any, example: Tensor) -> dict[str, Tensor]:
    """The unconstrained parameters that one run of the pair asks Pyro for, by name."""
    with torch.no_grad(), fork_rng(), poutine.trace(param_only=True) as capture:
        trace_pair(pair.model, pair.guide, (example,))
    return {name: site["value"].unconstrained() for name, site in capture.trace.nodes.items()}


@dataclass(frozen=True)
class LoadedRun:
    """A trained pair and where it comes from."""

    path: Path
    pair: Any
    config: dict[str, Any]
    history: History

    @property
    def model(self) -> Any:
        """The pair's model."""
        return self.pair.model

    @property
    def guide(self) -> Any:
        """The pair's guide."""
        return self.pair.guide

    def data(self, root: str | None = None) -> Data:
        """The data the run was trained on, loaded again; `root` replaces the folder they were found in."""
        settings = {k: self.config[k] for k in DATA_KEYS}
        if root is not None:
            settings["root"] = root
        return load_data(self.config["data"], **settings)


def load_run(path: str | Path, *, device: str = "cpu") -> LoadedRun:
    """Build the pair of a run directory back, in evaluation mode.

    Raises
    ------
    FileNotFoundError
        If the directory or one of its files is missing.
    ValueError
        If a file is damaged or does not fit the others.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no run directory at {path}")
    for name in (CONFIG, WEIGHTS, METRICS):
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path} holds no {name}: it is no run directory, or a damaged one")
    try:
        config = yaml.safe_load((path / CONFIG).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path / CONFIG} is damaged: {error}") from error
    missing = [k for k in ("model", "data", "versions", *DATA_KEYS) if not isinstance(config, dict) or k not in config]
    if missing:
        raise ValueError(f"{path / CONFIG} is damaged: it has no entry {missing[0]!r}")
    if config["versions"].get("format") != FORMAT:
        found = config["versions"].get("format")
        raise ValueError(f"{path} has run format {found}; this version of pyro_vae reads format {FORMAT}")
    pair = build(config["model"])
    try:
        tensors = load_file(path / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path / WEIGHTS} is damaged: {error}") from error
    run = LoadedRun(path, pair, config, History.load(path / METRICS))
    loose = {n.removeprefix(_STORE): t for n, t in tensors.items() if n.startswith(_STORE)}
    try:
        pair.load_state_dict({n: t for n, t in tensors.items() if not n.startswith(_STORE)})
    except RuntimeError as error:
        raise ValueError(f"{path / WEIGHTS} does not fit the model {config['model']['class_path']}: {error}") from error
    if loose:
        _restore_loose(run, loose)
    pair.to(device)
    pair.eval()
    return run


def build(spec: dict[str, Any]) -> Any:
    """The object that a `class_path` with `init_args` describes.

    Raises
    ------
    ValueError
        If the class cannot be imported, is no pair, or does not take the arguments.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model", type=Pair)
    try:
        return parser.instantiate_classes(parser.parse_object({"model": spec})).model
    except Exception as error:
        raise ValueError(
            f"cannot build the model {spec.get('class_path') if isinstance(spec, dict) else spec!r}: {error}\n"
            "A class of your own must be importable: run from the folder of its file, or put that on PYTHONPATH"
        ) from error


def _restore_loose(run: LoadedRun, loose: dict[str, Tensor]) -> None:
    """Fill the parameters that the pair does not hold itself, which it makes when it first runs."""
    params = _params(run.pair, run.data().train.head(1))
    for name, value in loose.items():
        if name not in params or params[name].shape != value.shape:
            raise ValueError(f"{run.path / WEIGHTS} has a parameter {name!r} that the pair does not make")
        with torch.no_grad():
            params[name].copy_(value)
