"""Saving a trained pair as a run, and loading it."""

from __future__ import annotations

import csv
import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyro
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyro_vae.data import Data, load
from pyro_vae.device import choose_device
from pyro_vae.elbo.tracing import fork_rng
from pyro_vae.history import History
from pyro_vae.runs.build import build
from pyro_vae.runs.directory import CONFIG, METRICS, RECORD, WEIGHTS, replacing, save_json
from pyro_vae.runs.weights import gather, networks, restore_networks, restore_params

__all__ = ["DATA_KEYS", "LoadedRun", "load_run", "save_run"]

FORMAT = 1
DATA_KEYS = ("binarize", "flatten", "root", "valid", "test", "seed")


def save_run(
    path: Path,
    pair: Any,
    config: Mapping[str, Any],
    data: Mapping[str, Any],
    history: History,
    *,
    params: Mapping[str, Tensor] | None = None,
    command: str = "",
) -> None:
    """Write what `load_run` reads.

    Args:
        path: The run directory.
        pair: An object with the methods `model` and `guide`.
        config: Class and arguments of the pair as `model`, and the arguments of `pv.data.load`: `data` and `DATA_KEYS`.
        data: What `Data.describe` returns.
        history: The epochs.
        params: Unconstrained parameters in Pyro's store, by name, if the pair uses `pyro.param`.
        command: What was called, for the record.
    """
    record = {
        "format": FORMAT,
        "command": command,
        "versions": {
            "pyro_vae": version("pyro-vae"),
            "torch": str(torch.__version__),
            "pyro": pyro.__version__,
            "python": platform.python_version(),
        },
        "data": data,
        "elbo": history.elbo,
        "epochs": len(history),
        "best": history.best,
        "stopped": history.stopped,
    }
    with replacing(path / CONFIG) as temporary:
        temporary.write_text(yaml.safe_dump(dict(config), sort_keys=False, default_flow_style=None))
    with replacing(path / WEIGHTS) as temporary:
        save_file(gather(pair, params or {}), temporary)
    with replacing(path / METRICS) as temporary:
        history.save(temporary)
    save_json(path / RECORD, record)


@dataclass(frozen=True)
class LoadedRun:
    """A trained pair and where it comes from: `config` is `config.yaml`, `record` is `run.json`."""

    path: Path
    pair: Any
    config: dict[str, Any]
    record: dict[str, Any]
    history: History

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
        """Where the pair's networks are."""
        places = (p.device for net in networks(self.pair).values() for p in net.parameters())
        return next(places, torch.device("cpu"))

    def data(self, root: str | None = None) -> Data:
        """The data the run was trained on, loaded again; `root` replaces the folder they were found in.

        Raises:
            ValueError: If they are not what they were: the test data could be among those trained on.
        """
        settings = {key: self.config[key] for key in DATA_KEYS}
        if root is not None:
            settings["root"] = root
        data = load(self.config["data"], **settings)
        now, then = data.describe()["fingerprint"], self.record["data"]["fingerprint"]
        if now != then:
            raise ValueError(
                f"the data {self.config['data']!r} are not those that {self.path} was trained on (fingerprint {now}, "
                f"then {then}): bring these back, or train again"
            )
        return data


def load_run(path: str | Path, *, device: str = "cpu") -> LoadedRun:
    """Build the pair of a run directory back, in evaluation mode.

    The class of a pair of your own must be importable. Parameters that a pair takes from `pyro.param` go to Pyro's
    store; everything else belongs to the pair alone.

    Raises:
        FileNotFoundError: If the directory or one of its files is missing.
        ValueError: If a file is damaged or does not fit the others, or if the device is not there.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no run directory at {path}")
    for name in (CONFIG, RECORD, WEIGHTS, METRICS):
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path} holds no {name}: it is no run directory, or a damaged one")
    with _damaged(path / CONFIG):
        config = yaml.safe_load((path / CONFIG).read_text())
        _check_entries(config, "model", "data", *DATA_KEYS)
    with _damaged(path / RECORD):
        record = json.loads((path / RECORD).read_text())
        _check_entries(record, "format", "data", "elbo", "epochs", "best", "stopped")
        if record["format"] != FORMAT:
            raise ValueError(f"it has run format {record['format']!r}, this version of pyro_vae reads {FORMAT}")
        _check_entries(record["data"], "shape", "fingerprint")
    with _damaged(path / METRICS):
        epochs = History.load(path / METRICS).epochs
        if len(epochs) < record["epochs"]:  # more can be: the metrics are written before the record
            raise ValueError(f"it has {len(epochs)} of {record['epochs']} epochs")
    with _damaged(path / WEIGHTS):
        tensors = load_file(path / WEIGHTS)
    history = History(
        epochs,
        best=record["best"],
        stopped=record["stopped"],
        data=record["data"],
        seed=config["seed"],
        elbo=record["elbo"],
    )
    with fork_rng():
        pair = build(config["model"], tuple(record["data"]["shape"]))
    run = LoadedRun(path, pair, config, record, history)
    with _damaged(path / WEIGHTS):
        left = restore_networks(pair, tensors)
    for net in networks(pair).values():
        net.eval()
    choose_device(device, run.model, run.guide)
    if left:
        with _damaged(path / WEIGHTS):
            restore_params(pair, left, torch.zeros(1, *run.shape, device=run.device))
    return run


@contextmanager
def _damaged(file: Path) -> Iterator[None]:
    """Name the file in what reading it raises."""
    try:
        yield
    except (ValueError, yaml.YAMLError, csv.Error, SafetensorError) as error:
        raise ValueError(f"{file} is damaged: {' '.join(str(error).split())}") from error


def _check_entries(found: Any, *names: str) -> None:
    if not isinstance(found, dict):
        raise ValueError(
            f"expected entries `name: value`, found {'nothing' if found is None else type(found).__name__}"
        )
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"it has no entry {missing[0]!r}")
