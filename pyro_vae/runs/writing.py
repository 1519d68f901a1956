"""Writes a run directory during training."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyro

from pyro_vae.runs.directory import CHECKPOINTS, RECORD, check_folder
from pyro_vae.runs.pairs import used_params
from pyro_vae.runs.reading import LIMITS, read_plain
from pyro_vae.runs.saving import save_run
from pyro_vae.support.formats import parse_json
from pyro_vae.support.snapshots import Snapshot
from pyro_vae.training.checkpoints import Checkpoints
from pyro_vae.training.fitting import State
from pyro_vae.training.history import History

__all__ = ["RunCheckpoints", "RunWriter"]


class RunWriter:
    """Saves a run: as a callback of `fit` after an epoch, at most once per second, and on a call of `save`.

    An earlier run in the directory stays as it is until this one is saved for the first time, and is then replaced as
    a whole.

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
        self._is_fresh = not resumed
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
        """Save the run before its first checkpoint, so that the checkpoint is in a directory of its own run."""
        if self._is_fresh:
            self.save(replace(self.history, best=None, stopped="unfinished"))

    def save(self, history: History) -> None:
        """Write weights, metrics and record."""
        if not self.enabled:
            return
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
            fresh=self._is_fresh,
        )
        self._is_fresh = False
        self._saved = time.monotonic()


class RunCheckpoints(Checkpoints):
    """Checkpoints inside a run directory; the run is saved before the first of them.

    Raises:
        ValueError: If their folder is a link: files of other people could be removed and written there.
    """

    def __init__(self, writer: RunWriter, steps: int | None, minutes: float | None) -> None:
        check_folder(writer.path / CHECKPOINTS)
        super().__init__(writer.path / CHECKPOINTS, steps=steps, minutes=minutes)
        self._writer = writer

    def save(self, step: int, snapshot: Snapshot) -> None:
        """Write a checkpoint, and before the first one the run."""
        self._writer.start()
        super().save(step, snapshot)


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
        return str(parse_json(read_plain(path / RECORD, LIMITS[RECORD], trust=True))["started"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # not written yet, or of an older format
        return None
