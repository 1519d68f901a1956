"""Writes a run directory during training."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyro

from pyro_vae.runs.config import save_config
from pyro_vae.runs.directory import CHECKPOINTS, RECORD, clear_run
from pyro_vae.runs.pairs import used_params
from pyro_vae.runs.saving import save_run
from pyro_vae.support.snapshots import Snapshot
from pyro_vae.training.checkpoints import Checkpoints
from pyro_vae.training.fitting import State
from pyro_vae.training.history import History

__all__ = ["CHECKPOINTS", "RunCheckpoints", "RunWriter"]


class RunWriter:
    """Saves a run: as a callback of `fit` after an epoch, at most once per second, and on a call of `save`.

    An earlier run in the directory is replaced when this run is saved for the first time.

    Args:
        path: The run directory.
        pair: An object with the methods `model` and `guide`.
        config: The content of `config.yaml`.
        data: The data as described by `Data.describe`.
        args: A few data, as the pair is called with. If Pyro's store holds parameters already, the pair is run on them
            to find out which of these it uses.
        command: The command line, for the record.
        resumed: Whether the run in the directory is resumed.
        enabled: False in all processes except the main one.
    """

    def __init__(
        self,
        path: Path,
        pair: Any,
        config: Mapping[str, Any],
        data: Mapping[str, Any],
        args: tuple[Any, ...],
        *,
        command: str = "",
        resumed: bool = False,
        enabled: bool = True,
    ) -> None:
        self.path, self.pair, self.config, self.data = path, pair, config, data
        self.command, self.enabled = command, enabled
        self.history = History(data=dict(data), seed=config["seed"], elbo=str(config["elbo"]))
        self._foreign = _foreign_params(pair, args) if enabled else set()
        self._is_started = resumed
        self._saved: float | None = None
        started = _started(path) if resumed else None
        self._started = started or datetime.now().astimezone().isoformat(timespec="seconds")

    def __call__(self, state: State) -> None:
        """Save the run after an epoch, unless it was saved within the last second."""
        self.history = state.history
        if self._saved is not None and time.monotonic() < self._saved + 1:
            return
        # now the pair has the weights of this epoch; the best ones are restored at the end
        self.save(replace(state.history, best=None, stopped="unfinished"))

    def start(self) -> None:
        """Replace an earlier run by the configuration, which is needed to resume this one."""
        if not self._is_started:
            check_no_link(self.path / CHECKPOINTS)
            clear_run(self.path)
            Checkpoints(self.path / CHECKPOINTS).clear()
            save_config(self.path, self.config)
            self._is_started = True

    def save(self, history: History) -> None:
        """Write weights, metrics and record."""
        if not self.enabled:
            return
        self.start()
        store = pyro.get_param_store().named_parameters()
        params = {name: value for name, value in store if name not in self._foreign}
        save_run(
            self.path,
            self.pair,
            self.config,
            self.data,
            history,
            params=params,
            command=self.command,
            started=self._started,
        )
        self._saved = time.monotonic()


class RunCheckpoints(Checkpoints):
    """Checkpoints inside a run directory; the configuration is written before the first of them."""

    def __init__(self, writer: RunWriter, steps: int | None, minutes: float | None) -> None:
        super().__init__(writer.path / CHECKPOINTS, steps=steps, minutes=minutes)
        self._writer = writer

    def _check_folder(self) -> None:
        """Refuse a link, which may lead anywhere: the run may come from somebody else."""
        check_no_link(self.path)
        super()._check_folder()

    def save(self, step: int, snapshot: Snapshot) -> None:
        """Write a checkpoint, and before the first one the configuration."""
        self._writer.start()
        super().save(step, snapshot)


def check_no_link(folder: Path) -> None:
    """Refuse a folder of a run that is a link to another place.

    Raises:
        ValueError: If it is one.
    """
    if folder.is_symlink():
        raise ValueError(
            f"{folder} is a link to another folder, where files would be written and removed: put a folder in its place"
        )


def _foreign_params(pair: Any, args: tuple[Any, ...]) -> set[str]:
    """The names in Pyro's store before training that the pair does not use."""
    store = pyro.get_param_store()
    before = set(store.keys())
    if not before:
        return before
    try:
        used = used_params(pair, args)
    except Exception:  # `fit` will raise a clear error
        used = set()
    for name in set(store.keys()) - before:  # training makes them with its own random numbers
        del store[name]
    return before - used


def _started(path: Path) -> str | None:
    """When the resumed run began, according to its record."""
    try:
        return str(json.loads((path / RECORD).read_text())["started"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # not written yet, or of an older format
        return None
