"""Saving a trained pair as a run, and loading it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyro
import torch
from safetensors.torch import save
from torch import Tensor

from pyro_vae.data import Data, load
from pyro_vae.pair.device import choose_device
from pyro_vae.runs.building import build
from pyro_vae.runs.config import as_yaml
from pyro_vae.runs.directory import CONFIG, LINES, METRICS, RECORD, WEIGHTS, write_together
from pyro_vae.runs.machine import environment
from pyro_vae.runs.reading import brief, checksum, damaged, entries, parse_weights, parse_yaml, pick
from pyro_vae.runs.record import FORMAT, parse_record, seal
from pyro_vae.runs.trust import check_names
from pyro_vae.runs.weights import PARAM, gather, networks, restore
from pyro_vae.support.random import fork_rng
from pyro_vae.support.serialization import finite
from pyro_vae.training.history import History

__all__ = ["DATA_KEYS", "LoadedRun", "RunFiles", "load_run", "read_run", "save_run"]

DATA_KEYS = ("binarize", "flatten", "root", "valid", "test", "labels", "seed")
SLACK = 10**6  # numbers that a model may have beyond those stored before it is taken for a memory bomb


def save_run(
    path: Path,
    pair: Any,
    config: Mapping[str, Any],
    data: Mapping[str, Any],
    history: History,
    *,
    params: Mapping[str, Tensor] | None = None,
    command: str = "",
    started: str | None = None,
) -> None:
    """Write what `load_run` reads.

    At any moment, killed or not, the directory holds a whole run: the old one until the new one is there.

    Args:
        path: The run directory.
        pair: An object with the methods `model` and `guide`.
        config: Class and arguments of the pair as `model`, and the arguments of `pv.data.load`: `data` and `DATA_KEYS`.
        data: What `Data.describe` returns.
        history: The epochs.
        params: Unconstrained parameters in Pyro's store, by name, if the pair uses `pyro.param`.
        command: What was called, for the record.
        started: When training began, in ISO 8601. Default: now, less the duration of the epochs.
    """
    seconds = history[-1].seconds if len(history) else 0.0
    files = {
        CONFIG: as_yaml(config),
        WEIGHTS: save(gather(pair, params or {})),
        METRICS: _table(history),
    }
    record = {
        "format": FORMAT,
        "command": command,
        "started": started or (datetime.now().astimezone() - timedelta(seconds=seconds)).isoformat(timespec="seconds"),
        "seconds": seconds,
        "data": data,
        "elbo": history.elbo,
        "epochs": len(history),
        "best": history.best,
        "stopped": history.stopped,
        **environment(_device(pair)),
        "files": {name: checksum(content) for name, content in files.items()},
    }
    lines = "".join(json.dumps(finite(epoch)) + "\n" for epoch in history.to_dicts())
    contents = {path / name: content for name, content in {**files, LINES: lines.encode()}.items()}
    write_together(contents, path / RECORD, seal(record))


def _table(history: History) -> bytes:
    with TemporaryDirectory() as folder:
        history.save(Path(folder) / METRICS)
        return (Path(folder) / METRICS).read_bytes()


def _device(pair: Any) -> torch.device:
    places = (p.device for net in networks(pair).values() for p in net.parameters())
    return next(places, torch.device("cpu"))


@dataclass(frozen=True)
class LoadedRun:
    """A trained pair and where it comes from: `config` is `config.yaml`, `record` is `run.json`."""

    path: Path
    pair: Any
    config: dict[str, Any]
    record: dict[str, Any]
    history: History
    trust: bool = False

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
        return _device(self.pair)

    def data(self, root: str | None = None) -> Data:
        """The data the run was trained on, loaded again; `root` replaces the folder they were found in.

        Raises:
            FileNotFoundError: If that folder is not there: one that only the run names is not made.
            ValueError: If they are not what they were: the test data could be among those trained on.
        """
        # runs from before `labels` have none
        settings: dict[str, Any] = {key: self.config.get(key) for key in DATA_KEYS}
        if root is not None:
            settings["root"] = root
        elif settings["root"] is not None and not self.trust and not Path(settings["root"]).expanduser().is_dir():
            raise FileNotFoundError(
                f"the folder of the data, {settings['root']!r} by {self.path / CONFIG}, is not here: say where they "
                "are with root= (--root on the command line)"
            )
        data = load(self.config["data"], **settings)
        now, then = data.describe()["fingerprint"], self.record["data"]["fingerprint"]
        if now != then:
            raise ValueError(
                f"the data {self.config['data']!r} are not those that {self.path} was trained on (fingerprint {now}, "
                f"then {then}): bring these back, or train again"
            )
        return data


@dataclass(frozen=True)
class RunFiles:
    """What the files of a run hold, checked against each other; nothing is built of it."""

    path: Path
    config: dict[str, Any]
    record: dict[str, Any]
    history: History
    weights: bytes


def read_run(path: str | Path, *, trust: bool = False, weights: bool = True) -> RunFiles:
    """Read the files of a run directory without building its pair: no code of the run is imported or run.

    Args:
        path: The run directory.
        trust: Follow links.
        weights: Read the weights, too; they may be large.

    Raises:
        FileNotFoundError: If the directory or one of its files is missing.
        ValueError: If a file is damaged or does not fit the others; a link, unless `trust`.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no run directory at {path}")
    _, content = pick(path, RECORD, None, trust=trust)
    with damaged(path / RECORD):
        record = parse_record(content)
    sums = record["files"]
    file, content = pick(path, CONFIG, sums.get(CONFIG), trust=trust)
    with damaged(file):
        config = entries(
            parse_yaml(content),
            model=object,
            data=str,
            binarize=str,
            flatten=bool,
            root=(str, type(None)),
            valid=(int, float),
            test=(int, float),
            seed=int,
        )
    file, _ = pick(path, METRICS, sums.get(METRICS), trust=trust)
    with damaged(file):
        epochs = History.load(file).epochs
        # runs of format 1 can have more: the metrics were written before the record
        if len(epochs) < record["epochs"]:
            raise ValueError(f"it has {len(epochs)} of {record['epochs']} epochs")
    tensors = pick(path, WEIGHTS, sums.get(WEIGHTS), trust=trust)[1] if weights else b""
    history = History(
        epochs,
        best=record["best"],
        stopped=record["stopped"],
        data=record["data"],
        seed=config["seed"],
        elbo=record["elbo"],
    )
    return RunFiles(path, config, record, history, tensors)


def load_run(path: str | Path, *, device: str = "cpu", trust: bool = False) -> LoadedRun:
    """Build the pair of a run directory back, in evaluation mode.

    Parameters that a pair takes from `pyro.param` go to Pyro's store; everything else belongs to the pair alone.

    Args:
        path: The run directory.
        device: Where the networks go.
        trust: The configuration of a run names the classes to build, and to build a class is to run its code. By
            default it may only name those of `pyro_vae` and `torch.nn`, and no file may be a link: a directory from
            anybody can be loaded. For a run of a class of your own, pass True; the class must be importable.

    Raises:
        FileNotFoundError: If the directory or one of its files is missing.
        ValueError: If a file is damaged or does not fit the others, if it names a class that is not trusted, or if the
            device is not there.
    """
    files = read_run(path, trust=trust)
    path, config, record = files.path, files.config, files.record
    with damaged(path / WEIGHTS):
        tensors = parse_weights(files.weights)
    if not trust:
        check_names(config["model"], path / CONFIG, "model")
        _check_size(config["model"], record["data"]["shape"], tensors, path)
    with fork_rng():
        try:
            pair = build(config["model"], tuple(record["data"]["shape"]))
        except ValueError as error:
            raise ValueError(f"{path / CONFIG}: {brief(error)}") from error
    run = LoadedRun(path, pair, config, record, files.history, trust)
    for net in networks(pair).values():
        net.eval()
    choose_device(device, run.model, run.guide)
    _announce_shared(tensors)
    with damaged(path / WEIGHTS):
        restore(pair, tensors, torch.zeros(1, *run.shape, device=run.device))
    return run


def _announce_shared(tensors: Mapping[str, Tensor]) -> None:
    store = pyro.get_param_store()
    params = [name.removeprefix(PARAM) for name in tensors if name.startswith(PARAM)]
    shared = [name for name in params if name in store]
    if shared:
        warnings.warn(
            f"Pyro's parameter store has {', '.join(shared)} already: the pair that made it now shares the loaded "
            "value. Call pyro.clear_param_store() first if that pair is still needed",
            stacklevel=3,
        )


def _check_size(spec: Any, shape: list[int], tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse a model that is far larger than its weights before memory is taken for it."""
    try:
        with torch.device("meta"), fork_rng():
            made = sum(v.numel() for net in networks(build(spec, tuple(shape))).values() for v in net.parameters())
    except ValueError:  # what is wrong, if anything, is said when it is built for good
        return
    stored = sum(value.numel() for value in tensors.values())
    if made > stored + SLACK:
        raise ValueError(
            f"{path / CONFIG} describes a model of {made:,} parameters, {path / WEIGHTS} holds {stored:,} numbers: one "
            "of them is damaged"
        )
