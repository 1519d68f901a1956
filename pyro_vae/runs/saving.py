"""Saves a trained pair as a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from pyro_vae.runs.config import as_yaml
from pyro_vae.runs.directory import CONFIG, LINES, METRICS, WEIGHTS, write_together
from pyro_vae.runs.machine import environment
from pyro_vae.runs.record import FORMAT, seal
from pyro_vae.runs.weights import collect_tensors, device_of
from pyro_vae.support.files import checksum
from pyro_vae.support.serialization import finite
from pyro_vae.support.tables import as_csv
from pyro_vae.training.history import Epoch, History

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
    fresh: bool = False,
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
        fresh: Whether this is another run than the one that is there, whose checkpoints and evaluations then go.
    """
    seconds = history[-1].seconds if len(history) else 0.0
    files = {
        CONFIG: as_yaml(config),
        WEIGHTS: save(collect_tensors(pair, params or {})),
        METRICS: as_csv(list(Epoch.__dataclass_fields__), history.to_dicts()).encode(),
        LINES: "".join(json.dumps(finite(epoch)) + "\n" for epoch in history.to_dicts()).encode(),
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
    write_together(path, files, seal(record), fresh=fresh)
