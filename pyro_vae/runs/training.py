"""Trains a pair into a run directory, from Python and from the command line."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyro.infer
import torch

from pyro_vae import data as datasets
from pyro_vae.data import Data, Source
from pyro_vae.distributed.ranks import Ranks, launch
from pyro_vae.runs.config import DATA_KEYS, NOT_STORED, read_config
from pyro_vae.runs.directory import CONFIG, RECORD, create_run, settle
from pyro_vae.runs.programs import describe_pair, make_pair, name_of_pair
from pyro_vae.runs.reading import LIMITS, read_plain
from pyro_vae.runs.record import parse_record
from pyro_vae.runs.run import LoadedRun
from pyro_vae.runs.writing import RunCheckpoints, RunWriter
from pyro_vae.support import arguments
from pyro_vae.support.arguments import checked_from
from pyro_vae.support.import_paths import stable_path
from pyro_vae.support.random import fork_rng
from pyro_vae.training.fitting import State, fit
from pyro_vae.training.nonfinite import NonFiniteLoss
from pyro_vae.training.settings import describe

__all__ = ["train"]

# arguments of `fit` that `train` passes itself, and those that are not stored with the run
_PASSED = ("model", "guide", "data", "seed", "callbacks", "checkpoints", "resume")
_NOT_STORED = (*_PASSED, "valid", *NOT_STORED)


@checked_from(checkpoint_steps=1)
def train(
    pair: Any,
    data: Source | Data,
    *,
    init_args: Mapping[str, Any] | None = None,
    data_args: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    seed: int | None = None,
    checkpoint_steps: int | None = None,
    checkpoint_minutes: float | None = 10.0,
    callbacks: Sequence[Callable[[State], bool | None]] = (),
    on_start: Callable[[LoadedRun], None] | None = None,
    config: Mapping[str, Any] | None = None,
    command: str = "",
    **options: Any,
) -> LoadedRun:
    """Train a pair as `fit` does, and save the run in a directory: configuration, weights, metrics and checkpoints.

    `pv.load_run(path)` rebuilds a pair that was built from a class. For two functions, or an object made before, the
    directory holds the weights only, and `pv.load_run(path, pair=...)` loads them into the pair.

    Args:
        pair: A class with the methods `model` and `guide`, shipped or your own, which is built here from `init_args`
            (its argument `data_shape` is filled in; its weights come from `seed`); a mapping with `class_path` and
            `init_args`; an object with these methods; or a tuple of two functions, `(model, guide)`.
        data: The argument of `pv.data.load` (a name, a path, a tensor, ...), or its result.
        init_args: Arguments of the class: numbers, strings, lists, and mappings with a `class_path` for parts.
        data_args: Further arguments of `pv.data.load`. The default of its seed is the seed of the run.
        out: The run directory. Default: runs/DATE-PAIR-DATA.
        overwrite: Replace the run in `out`. The old run stays as it is until the new one is saved for the first time,
            with its first checkpoint or at the end of its first epoch.
        resume: Resume from the latest checkpoint in `out`, or start if there is no run yet.
        seed: Seed of the weights, the data, the shuffling and all noise. Default: drawn from torch's generator, and
            recorded. Torch's generators are left as they were.
        checkpoint_steps, checkpoint_minutes: Steps and minutes between two checkpoints, whichever come first.
        callbacks: As for `fit`. The run is saved before they are called.
        on_start: Called with the run before the first step.
        config: The content of `config.yaml`. Default: derived from the arguments.
        command: The command line, for the record.
        **options: Other options of `fit`.

    Returns:
        LoadedRun: With `path`, `history`, `model` and `guide`. Also after Ctrl-C: `history.stopped` is "interrupted".

    Raises:
        TypeError: For an option that `fit` does not have, or if `pair` is not a pair.
        FileExistsError: If `out` exists and is not empty (see `overwrite` and `resume`).
        ValueError: If the pair cannot be built, or is not that of the run to resume; and as in `fit`.
        NonFiniteLoss: As in `fit`; the run was saved with the last good weights.

    Example:
        >>> import tempfile
        >>> from pyro_vae import VAE
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     digits = {"flatten": True, "binarize": "static"}
        ...     run = train(VAE, "digits", data_args=digits, out=f"{folder}/run", epochs=1, seed=0)
        ...     sorted(file.name for file in run.path.iterdir())
        ['checkpoints', 'config.yaml', 'metrics.csv', 'metrics.jsonl', 'run.json', 'weights.safetensors']
    """
    _check_options(options)
    arguments.flag("overwrite", overwrite)
    arguments.flag("resume", resume)
    seed = int(torch.randint(2**31, ())) if seed is None else seed
    spec = describe_pair(pair, init_args)
    ranks = launch(*(options.get(name, default) for name, default in _LAUNCH.items()))
    with _directory(out, overwrite, resume, name_of_pair(spec), data, ranks) as (path, resumed):
        if resumed:
            _check_same_pair(path, spec)
        dataset = data if isinstance(data, Data) else datasets.load(data, **{"seed": seed, **(data_args or {})})
        made = make_pair(pair, spec, dataset, seed)
        stored = dict(config) if config is not None else _config(spec, dataset, seed, options)
        with fork_rng(seed):
            args = dataset.train.args(min(4, len(dataset.train)))
        writer = RunWriter(
            path, made, stored, dataset.describe(), args, command=command, resumed=resumed, enabled=ranks.is_main
        )
        run = LoadedRun(path, made, stored, {"data": writer.data}, writer.history, trust=True, source=dataset)
        if on_start is not None:
            on_start(run)
        try:
            history = fit(
                made.model,
                made.guide,
                dataset,
                **options,
                seed=seed,
                callbacks=[writer, *callbacks],
                checkpoints=RunCheckpoints(writer, checkpoint_steps, checkpoint_minutes),
                resume=resumed,
            )
        except NonFiniteLoss as error:
            writer.save(replace(writer.history, best=None, stopped="non-finite loss"))
            raise NonFiniteLoss(
                f"{error}. The weights are saved in {path}", error.step, error.batch, error.sites
            ) from error
        writer.save(history)
        return replace(run, history=history, record=_record(path, run.record, ranks))


_FIT = inspect.signature(fit).parameters
_LAUNCH = {name: _FIT[name].default for name in ("devices", "num_nodes", "strategy", "device")}


def _check_options(options: Mapping[str, Any]) -> None:
    known = [name for name in _FIT if name not in _PASSED]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
            raise TypeError(f"fit has no option {name!r}: {hint}")


@contextmanager
def _directory(
    out: str | Path | None, overwrite: bool, resume: bool, name: str, data: Any, ranks: Ranks
) -> Iterator[tuple[Path, bool]]:
    """The run directory, and whether its run is resumed; a new directory is removed if the run cannot start."""
    if resume and out is None:
        raise ValueError("resume=True needs out=, the directory of the run to resume")

    def choose() -> tuple[Path, bool]:
        if out is None:
            return _create_dated(name, data), False
        resumed = False
        if resume and Path(out).is_dir():
            settle(Path(out))
            resumed = (Path(out) / RECORD).exists() or (Path(out) / CONFIG).exists()
        return (Path(out) if resumed else create_run(out, overwrite=overwrite)), resumed

    path, resumed = _choose_together(choose, ranks)
    try:
        yield path, resumed
    except BaseException:
        with suppress(OSError):
            path.rmdir()  # fails if there is anything in it
        raise


def _choose_together(choose: Callable[[], tuple[Path, bool]], ranks: Ranks) -> tuple[Path, bool]:
    """The choice of rank 0, on all ranks; if it fails, only rank 0 raises the error."""
    chosen, problem = None, None
    if ranks.is_main:
        try:
            chosen = choose()
        except Exception as error:
            problem = error
    chosen, failed = ranks.broadcast((chosen, problem is not None))
    if problem is not None:
        raise problem
    if failed or chosen is None:
        raise SystemExit(1)
    return chosen


def _create_dated(name: str, data: Any) -> Path:
    if isinstance(data, str | os.PathLike):
        source = Path(data).stem
    else:
        source = data.name if isinstance(data, Data) else "data"
    name_of_run = f"runs/{datetime.now():%Y%m%d-%H%M%S}-{name}-{source}"
    candidate, n = name_of_run, 1
    while True:
        try:
            return create_run(candidate, exist_ok=False)
        except FileExistsError:  # another run started in the same second
            n += 1
            candidate = f"{name_of_run}-{n}"


def _check_same_pair(path: Path, spec: Mapping[str, Any]) -> None:
    before = read_config(path, trust=True)["model"]
    if any(before.get(key) != spec.get(key) for key in ("class_path", "functions")):
        raise ValueError(f"{path} holds a run of {before}, but this pair is {dict(spec)}: choose another directory")


def _config(spec: Mapping[str, Any], data: Data, seed: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration that `pyro-vae train` would write; other settings are stored as their descriptions."""
    known = {"data": data.name, "binarize": data.binarize, "flatten": data.flatten, "valid": 0, "test": 0}
    known = {"data": data.name, **dict.fromkeys(DATA_KEYS), **known, **data.origin}
    if known.pop("seed") not in (None, seed):
        known["data_seed"] = data.seed
    settings = {name: options.get(name, p.default) for name, p in _FIT.items() if name not in _NOT_STORED}
    if settings["optim"] is None:
        del settings["optim"]  # the command line has no such option
    return {"model": dict(spec), **known, "seed": seed, **{name: _plain(value) for name, value in settings.items()}}


def _plain(value: Any) -> Any:
    """A setting in a form that YAML can represent."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    kind = stable_path(f"{type(value).__module__}.{type(value).__qualname__}")
    if is_dataclass(value) and not isinstance(value, type):
        return {"class_path": kind, "init_args": asdict(value)}
    return kind if isinstance(value, pyro.infer.ELBO) else describe(value)


def _record(path: Path, record: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    return parse_record(read_plain(path / RECORD, LIMITS[RECORD], trust=True)) if ranks.is_main else record
