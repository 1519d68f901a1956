"""Saves a trained pair as a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors.torch import save
from torch import Tensor

from pyro_vae.runs.config import as_yaml
from pyro_vae.runs.directory import CONFIG, LINES, METRICS, RECORD, WEIGHTS, write_together
from pyro_vae.runs.machine import environment
from pyro_vae.runs.reading import checksum
from pyro_vae.runs.record import FORMAT, seal
from pyro_vae.runs.weights import collect_tensors, device_of
from pyro_vae.support.serialization import finite
from pyro_vae.training.history import History

__all__ = ["save_run"]


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
    """Write the files that `load_run` reads.

    At any moment, even if the process is killed, the directory holds a complete run: the old one or the new one.

    Args:
        path: The run directory.
        pair: An object with the methods `model` and `guide`.
        config: Class and arguments of the pair as `model`, and the arguments of `pv.data.load`: `data` and `DATA_KEYS`.
        data: The data as described by `Data.describe`.
        history: The epochs.
        params: Unconstrained parameters in Pyro's store, by name, if the pair uses `pyro.param`.
        command: The command line, for the record.
        started: When training began, in ISO 8601. Default: now, minus the duration of the epochs.
    """
    seconds = history[-1].seconds if len(history) else 0.0
    files = {
        CONFIG: as_yaml(config),
        WEIGHTS: save(collect_tensors(pair, params or {})),
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
        **environment(device_of(pair)),
        "files": {name: checksum(content) for name, content in files.items()},
    }
    lines = "".join(json.dumps(finite(epoch)) + "\n" for epoch in history.to_dicts())
    contents = {path / name: content for name, content in {**files, LINES: lines.encode()}.items()}
    write_together(contents, path / RECORD, seal(record))


def _table(history: History) -> bytes:
    with TemporaryDirectory() as folder:
        history.save(Path(folder) / METRICS)
        return (Path(folder) / METRICS).read_bytes()
