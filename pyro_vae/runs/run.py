"""Reads a run from its directory and rebuilds its pair."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae.data import Data, load
from pyro_vae.pair.device import choose_device
from pyro_vae.runs.building import build
from pyro_vae.runs.config import DATA_KEYS, parse_config, read_config
from pyro_vae.runs.directory import CHECKPOINTS, CONFIG, METRICS, RECORD, WEIGHTS
from pyro_vae.runs.programs import as_pair
from pyro_vae.runs.reading import read_files
from pyro_vae.runs.record import parse_record
from pyro_vae.runs.trust import check_names
from pyro_vae.runs.weights import PARAM, device_of, networks, restore
from pyro_vae.support import arguments
from pyro_vae.support.arguments import checked
from pyro_vae.support.formats import one_line, parse_weights, parsing
from pyro_vae.support.memory import TooLarge
from pyro_vae.support.random import fork_rng
from pyro_vae.training.history import History

__all__ = ["DATA_KEYS", "LoadedRun", "RunFiles", "check_resumable", "check_root", "load_run", "read_run"]

# bytes of tensors that building a model may take: those of the stored ones a few times, since parts are copied and
# tables computed, and a little; more would look like a memory bomb
EXTRA, TIMES = 2**26, 8


@dataclass(frozen=True)
class LoadedRun:
    """A trained pair with its configuration, record and history.

    Attributes:
        path: The run directory.
        pair: An object with the methods `model` and `guide`.
        config: The content of `config.yaml`.
        record: The content of `run.json`.
        history: The metrics of each epoch.
        trust: Whether `config` may name any class and any folder.
        source: The training data, if they are in memory.
    """

    path: Path
    pair: Any
    config: dict[str, Any]
    record: dict[str, Any]
    history: History
    trust: bool = False
    source: Data | None = None

    @property
    def model(self) -> Any:
        """The pair's model."""
        return self.pair.model

    @property
    def guide(self) -> Any:
        """The pair's guide."""
        return self.pair.guide

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one datum."""
        return tuple(self.record["data"]["shape"])

    @property
    def device(self) -> torch.device:
        """The device of the pair's networks."""
        return device_of(self.pair)

    def data(self, root: str | None = None) -> Data:
        """The data that the run was trained on, loaded again; `root` replaces the folder that they were read from.

        Raises:
            FileNotFoundError: If the folder named by the run does not exist; it is not created.
            ValueError: If the data have changed, so that test data could be among those trained on.
        """
        if root is None and self.source is not None:
            return self.source
        # runs of earlier versions have no `labels`, `types` or `tokens`
        settings: dict[str, Any] = {key: self.config.get(key) for key in DATA_KEYS}
        # a stranger's run has no say about what is downloaded, and to where
        settings["download"] = self.trust or root is not None
        settings["seed"] = self.config.get("data_seed", settings["seed"])
        settings["tokens"] = bool(settings["tokens"])
        if root is not None:
            settings["root"] = root
        elif not self.trust:
            check_root(settings["root"], self.path / CONFIG)
        data = load(self.config["data"], **settings)
        self._check_same(data)
        return data

    def _check_same(self, data: Data) -> None:
        """Compare fingerprints with the record; those of earlier versions cover the training data alone."""
        now, before = data.describe(), self.record["data"]
        pairs = {"training data": (now["fingerprint"], before["fingerprint"])}
        if isinstance(contents := before.get("contents"), dict):
            pairs |= {f"{name} split": (found, contents.get(name)) for name, found in now["contents"].items()}
        for name, (found, recorded) in pairs.items():
            if found != recorded:
                raise ValueError(
                    f"the data {self.config['data']!r} are not those that {self.path} was trained on (fingerprint of "
                    f"the {name} {found}, at training {recorded}): restore these, or train again"
                )


def check_root(root: str | None, file: Path) -> None:
    """Refuse a folder of data that only a run names and that does not exist: it would be made.

    Raises:
        FileNotFoundError: If it does not.
    """
    if root is not None and not Path(root).expanduser().is_dir():
        raise FileNotFoundError(
            f"the folder of the data, {root!r} in {file}, does not exist: pass it as root= (--root on the command line)"
        )


@dataclass(frozen=True)
class RunFiles:
    """The contents of a run's files, which were checked against each other; no pair is built."""

    path: Path
    config: dict[str, Any]
    record: dict[str, Any]
    history: History
    weights: bytes


def read_run(path: str | Path, *, trust: bool = False, weights: bool = True) -> RunFiles:
    """Read the files of a run directory without building its pair: no code of the run is imported or executed.

    Args:
        path: The run directory.
        trust: Follow links.
        weights: Read the weights, too, which may be large.

    Raises:
        FileNotFoundError: If the directory or one of its files is missing.
        ValueError: If a file is damaged, does not fit the others, or is a link (unless `trust`).
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no run directory at {path}")
    names = (CONFIG, METRICS, WEIGHTS) if weights else (CONFIG, METRICS)
    record, found = read_files(path, names, parse_record, trust=trust)
    file, content = found[CONFIG]
    with parsing(file):
        config = parse_config(content)
    file, content = found[METRICS]
    with parsing(file):
        epochs = History.parse(content.decode()).epochs
        # runs of format 1 can have more: the metrics were written before the record
        if len(epochs) < record["epochs"]:
            raise ValueError(f"it has {len(epochs)} of {record['epochs']} epochs")
    history = History(
        epochs,
        best=record["best"],
        stopped=record["stopped"],
        data=record["data"],
        seed=config["seed"],
        elbo=record["elbo"],
    )
    return RunFiles(path, config, record, history, found[WEIGHTS][1] if weights else b"")


@checked
def load_run(path: str | Path, *, pair: Any = None, device: str = "cpu", trust: bool = False) -> LoadedRun:
    """Rebuild the pair of a run directory, in evaluation mode.

    Parameters that a pair takes from `pyro.param` are put into Pyro's store; all other tensors belong to the pair only.

    Args:
        path: The run directory.
        pair: A pair to fill with the weights, instead of building one: an object with the methods `model` and `guide`,
            or a tuple of two functions, `(model, guide)`. It is required if the run was one of such a pair.
        device: The device of the networks.
        trust: The configuration of a run names the classes to build, and building a class runs its code. By default it
            may only name classes of `pyro_vae` and `torch.nn`, and no file may be a link, so that an untrusted
            directory can be loaded. For a run of a class of your own, pass True; the class must be importable.

    Raises:
        FileNotFoundError: If the directory or one of its files is missing.
        ValueError: If a file is damaged or does not fit the others, if it names a class that is not trusted, if the
            device does not exist, or if `pair` is required and missing.
    """
    arguments.flag("trust", trust)
    files = read_run(path, trust=trust)
    with parsing(files.path / WEIGHTS):
        tensors = parse_weights(files.weights)
    made = _build(files, tensors, trust) if pair is None else as_pair(pair)
    run = LoadedRun(files.path, made, files.config, files.record, files.history, trust)
    for net in networks(made).values():
        net.eval()
    choose_device(device, run.model, run.guide)
    _warn_of_shared_params(tensors)
    try:
        restore(made, tensors, torch.zeros(1, *run.shape, device=run.device))
    except ValueError as error:
        raise ValueError(f"{files.path / WEIGHTS} is damaged: {one_line(error)}") from error
    return run


def check_resumable(path: str | Path, *, trust: bool = False) -> dict[str, Any]:
    """Check a run that is to be resumed, before any of its code runs or anything is written; returns its configuration.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If its configuration is damaged, or (unless `trust`) names what strangers may not, or a model that
            is far larger than the files of the run.
    """
    path = Path(path)
    config = read_config(path, trust=trust)
    if not trust and "functions" not in config["model"] and (path / RECORD).exists():
        record, _ = read_files(path, (), parse_record)
        # the size of damaged weights will do: the run is resumed from a checkpoint
        sizes = [f.lstat().st_size for f in (*path.glob(f"*{WEIGHTS}"), *path.glob(f"{CHECKPOINTS}/*.safetensors"))]
        _build_within(config["model"], record["data"], max(sizes, default=0), path)
    return config


def _build(files: RunFiles, tensors: Mapping[str, Tensor], trust: bool) -> Any:
    """The pair that a run's configuration describes."""
    model, file, data = files.config["model"], files.path / CONFIG, files.record["data"]
    if isinstance(model, dict) and "class_path" not in model and "functions" in model:
        raise ValueError(
            f"{files.path} holds the weights of a pair of functions, but not the functions: pass them, "
            "load_run(path, pair=(model, guide))"
        )
    if not trust:
        check_names(model, file, "model")
        stored = sum(value.numel() * value.element_size() for value in tensors.values())
        return _build_within(model, data, stored, files.path)
    with fork_rng():
        try:
            return build(model, tuple(data["shape"]), columns=data.get("columns"))
        except ValueError as error:
            raise ValueError(f"{file}: {one_line(error)}") from error


def _build_within(spec: Any, data: Mapping[str, Any], stored: int, path: Path) -> Any:
    """The pair of a stranger, unless it is far larger than its weights.

    Raises:
        ValueError: If it is, or cannot be built.
    """
    limit = EXTRA + TIMES * stored
    with fork_rng():
        try:
            return build(spec, tuple(data["shape"]), columns=data.get("columns"), limit=limit)
        except TooLarge as error:
            raise ValueError(
                f"{path / CONFIG} describes a model that takes more than {limit:,} bytes to build, but {stored:,} are "
                f"stored in {path}: one of them is damaged"
            ) from error
        except ValueError as error:
            raise ValueError(f"{path / CONFIG}: {one_line(error)}") from error


def _warn_of_shared_params(tensors: Mapping[str, Tensor]) -> None:
    store = pyro.get_param_store()
    params = [name.removeprefix(PARAM) for name in tensors if name.startswith(PARAM)]
    shared = [name for name in params if name in store]
    if shared:
        warnings.warn(
            f"Pyro's parameter store has {', '.join(shared)} already: the pair that made it now shares the loaded "
            "value. Call pyro.clear_param_store() first if that pair is still needed",
            stacklevel=3,
        )
