"""`pyro-vae train`."""

from __future__ import annotations

import inspect
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pyro
import torch
import yaml
from jsonargparse import Namespace
from torch import Tensor

from pyro_vae import data, elbo, plots
from pyro_vae.cli.console import add_progress_option, draw, only_leader_prints, report, say
from pyro_vae.cli.parser import Parser
from pyro_vae.data import Data
from pyro_vae.distributed.ranks import Ranks, launch
from pyro_vae.evaluate import reconstruct, sample
from pyro_vae.pair.protocol import Pair
from pyro_vae.runs import DATA_KEYS, LoadedRun, build, clear_run, create_run, save_run
from pyro_vae.runs.config import read_config, save_config, with_stable_paths
from pyro_vae.runs.directory import CONFIG, RECORD
from pyro_vae.support.random import fork_rng
from pyro_vae.support.snapshots import Snapshot
from pyro_vae.training.checkpoints import Checkpoints
from pyro_vae.training.fitting import State, fit
from pyro_vae.training.history import History
from pyro_vae.training.nonfinite import NonFiniteLoss

__all__ = ["run"]

_FIT_BY_HAND: set[str | int] = {
    *("model", "guide", "data", "valid", "optim", "callbacks", "progress", "seed"),
    *("checkpoints", "resume"),
}
# options that are not part of the experiment
_NOT_KEPT = (
    *("config", "out", "overwrite", "progress", "resume", "trust", "checkpoint_steps", "checkpoint_minutes"),
    *("devices", "num_nodes", "strategy"),
)
_MAY_CHANGE = ("epochs", "steps", "early_stopping", "device", "num_samples", "root", "rollbacks", "preflight")
# options that are spelt otherwise here than in Python
_FIT_HELP = {
    "elbo": f"The estimator to train with: {', '.join(elbo.names())}; or the class of a pyro.infer.ELBO.",
    "epochs": "Length of the run in epochs. Default: 50, unless --steps is given.",
    "steps": "Length of the run in gradient steps, in place of --epochs.",
    "batch_size": "Data per step; the last batch of an epoch may be smaller.",
    "accumulate": "Take the gradient of each batch in so many parts, one after the other, which takes less memory.",
    "lr": "Learning rate.",
    "lr_schedule": "Course of the learning rate over the run: constant, linear or cosine (both to zero).",
    "kl_weight": "Weight of the KL in the objective: a number (beta), Warmup or Cyclical, as in "
    "`--kl_weight Warmup --kl_weight.epochs 10`.",
    "early_stopping": "Stop after so many epochs without a better validation ELBO.",
    "keep_best": "End with the weights of the epoch with the best validation ELBO.",
    "device": '"auto" (a GPU if there is one), cpu or cuda.',
    "devices": "Processes that train together on each machine, one for each device: they are started. auto: those that "
    "torchrun has started, else one.",
    "num_nodes": "Machines that train together; see the documentation on several devices.",
    "strategy": "How they work together: auto or ddp.",
    "compile": "Compile the gradient step: true, false, or auto, which does so for runs of at least 10,000 steps.",
    "precision": "What the networks compute in; log-probabilities stay in float32.",
    "preflight": "Check the pair on a few data before training.",
    "rollbacks": "How often a NaN in the loss takes the run back to the epoch before with half the learning rate, in "
    "place of ending it.",
}


_VAE = "pyro_vae.VAE"
CHECKPOINTS = "checkpoints"


def _parser(model: str = _VAE) -> Parser:
    parser = Parser(
        prog="pyro-vae train",
        usage="pyro-vae train [options]",
        description="Train a model/guide pair, report its ELBO and log p(x) on the test data, and keep all of it in a "
        "run directory.",
    )
    parser.add_argument("--config", action="config", help="Read options from a YAML file, as a run's config.yaml.")
    group = parser.add_argument_group("model")
    group.add_subclass_arguments(
        Pair,
        "model",
        as_group=False,
        skip={"data_shape"},
        instantiate=False,
        default={"class_path": model},
        metavar="CLASS",
        help="The pair: a name from `pyro-vae list`, or module.Class of your own. Its arguments follow as "
        "--model.NAME VALUE; a data_shape among them is filled in.",
    )
    group = parser.add_argument_group("data")
    _add_data_options(group)
    group = parser.add_argument_group("training")
    group.add_argument("--seed", type=int, default=0, help="Seed of weights, splits, shuffling and all noise.")
    group.add_function_arguments(fit, as_group=False, skip=_FIT_BY_HAND)
    for action in group._group_actions:
        action.help = _FIT_HELP.get(action.dest, action.help)
    group = parser.add_argument_group("evaluation and output")
    group.add_argument("--num_samples", type=int, default=1000, help="Importance samples per test datum for log p(x).")
    group.add_argument(
        "--out", type=str | None, default=None, metavar="DIR", help="The run directory. Default: runs/DATE-MODEL-DATA."
    )
    group.add_argument("--overwrite", type=bool, default=False, help="Replace the run that --out holds.")
    group.add_argument(
        "--resume",
        type=str | None,
        default=None,
        metavar="RUN",
        help="Go on with a run that was stopped, killed or has ended, from its latest checkpoint and with its own "
        f"options; of these only {', '.join(_MAY_CHANGE)} may be given anew.",
    )
    group.add_argument("--checkpoint_steps", type=int | None, default=None, help="Steps between two checkpoints.")
    group.add_argument("--checkpoint_minutes", type=float, default=10.0, help="Minutes between two checkpoints.")
    group.add_argument(
        "--trust",
        type=bool,
        default=False,
        help="With --resume: let the run name classes outside pyro_vae and torch.nn.",
    )
    add_progress_option(group)
    return parser


def _add_data_options(group: Any) -> None:
    names = ", ".join(data.NAMES)
    group.add_argument("--data", type=str, default="digits", help=f"{names}; or an .npz file or a folder of images.")
    group.add_argument(
        "--binarize", type=data.Binarize, default="dynamic", help="How grey values become binary observations."
    )
    group.add_argument("--flatten", type=bool, default=True, help="Make each datum one vector.")
    group.add_argument(
        "--root",
        type=str | None,
        default=None,
        metavar="DIR",
        help="Folder of the data. Default: $PYRO_VAE_DATA, else ~/.cache/pyro_vae.",
    )
    group.add_argument(
        "--labels",
        type=Literal["all"] | int | None,
        default=None,
        help="Labels for the pair: all (ConditionalVAE), or those of so many training data (SemiSupervisedVAE).",
    )
    group.add_argument("--valid", type=int | float, default=0.1, help="Share or number of validation data.")
    group.add_argument(
        "--test", type=int | float, default=0.2, help="Share or number of test data, if the data bring none."
    )


def run(words: Sequence[str], command: str) -> None:
    """Train, save, report and draw."""
    pyro.clear_param_store()
    torch.manual_seed(0)  # networks made while the module of a pair is imported are the same every time
    run_to_resume = _value(words, "--resume")
    resumed = None if run_to_resume is None else Path(run_to_resume)
    before: list[str] = []
    if resumed is not None:
        read_config(resumed, trust=_value(words, "--trust") == "true")  # names of code, before any is imported
        before = ["--config", str(resumed / CONFIG)]
    parser, options = _read([*before, *words])
    if options.num_samples < 1:
        raise ValueError(f"--num_samples must be at least 1, got {options.num_samples}")
    config = _kept(parser, options)
    if before:
        _check_unchanged(_kept(*_read(before)), config)
    ranks = launch(options.devices, options.num_nodes, options.strategy, options.device)
    path = _agreed(lambda: _directory(options), ranks) if resumed is None else resumed
    with only_leader_prints(ranks):
        try:
            _train(parser.make(options), config, path, command, ranks)
        except BaseException:
            with suppress(OSError):
                path.rmdir()  # a run that never began leaves no empty folder
            raise


def _agreed(choose: Callable[[], Path], ranks: Ranks) -> Path:
    """What the first rank chooses; if it cannot, it alone says why."""
    path, problem = None, None
    if ranks.leads:
        try:
            path = choose()
        except Exception as error:
            problem = error
    path, failed = ranks.from_leader((path, problem is not None))
    if problem is not None:
        raise problem
    if failed or path is None:
        raise SystemExit(1)
    return path


def _value(words: Sequence[str], option: str) -> str | None:
    """What an option is given, None if nothing: found before the words are parsed, the last one counts as there."""
    found = None
    for word, after in zip(words, [*words[1:], None], strict=True):
        if word == option:
            found = after
        elif word.startswith(f"{option}="):
            found = word.removeprefix(f"{option}=")
    return found


def _kept(parser: Parser, options: Namespace) -> dict[str, Any]:
    """The options that make the experiment, as its configuration file has them."""
    config = yaml.safe_load(parser.dump(options, skip_unset=False))
    return with_stable_paths({key: value for key, value in config.items() if key not in _NOT_KEPT})


def _check_unchanged(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [
        f"{name} was {before.get(name)!r}, is now {now.get(name)!r}"
        for name in {**before, **now}
        if name not in _MAY_CHANGE and before.get(name) != now.get(name)
    ]
    if changed:
        raise ValueError(
            f"--resume goes on with the options of the run: {'; '.join(changed)}. Only {', '.join(_MAY_CHANGE)} may be "
            "given anew; train another run with other options"
        )


def _read(words: Sequence[str]) -> tuple[Parser, Namespace]:
    parser = _parser()
    chosen = parser.read([word for word in words if not word.startswith("--print_config")]).model.class_path
    if chosen != _VAE:
        # jsonargparse lets arguments outlive a change of the class: those of its own name would keep the VAE's defaults
        parser = _parser(chosen)
    return parser, parser.read(words)


def _directory(options: Namespace) -> Path:
    if options.out is not None:
        return create_run(options.out, overwrite=options.overwrite)
    kind = options.model.class_path.rsplit(".", 1)[-1]
    name = f"runs/{datetime.now():%Y%m%d-%H%M%S}-{kind}-{Path(options.data).stem}"
    candidate, n = name, 1
    while True:
        try:
            return create_run(candidate, exist_ok=False)
        except FileExistsError:  # another run began in the same second
            n += 1
            candidate = f"{name}-{n}"


def _train(options: Namespace, config: dict[str, Any], path: Path, command: str, ranks: Ranks) -> None:
    dataset = data.load(options.data, **{key: options[key] for key in DATA_KEYS})
    torch.manual_seed(options.seed)
    pair = build(config["model"], dataset.shape)
    if hasattr(pair, "start_at_mean"):
        try:
            pair.start_at_mean(dataset.mean)
        except ValueError as error:
            warnings.warn(f"training does not start at the mean of the data: {error}", stacklevel=2)
    say(f"{type(pair).__name__} on {dataset!r} -> {path}")
    keeper = _Keeper(path, pair, config, dataset, command, begun=options.resume is not None, writes=ranks.leads)
    checkpoints = _RunCheckpoints(keeper, options.checkpoint_steps, options.checkpoint_minutes)
    try:
        history = fit(
            pair.model,
            pair.guide,
            dataset,
            **{key: options[key] for key in inspect.signature(fit).parameters if key not in _FIT_BY_HAND},
            seed=options.seed,
            progress=options.progress,
            callbacks=[keeper],
            checkpoints=checkpoints,
            resume=options.resume is not None,
        )
    except NonFiniteLoss as error:
        keeper.save(replace(keeper.history, best=None, stopped="non-finite loss"))
        raise NonFiniteLoss(f"{error}. They are in {path}", error.step, error.batch, error.sites) from error
    keeper.save(history)
    trained = "no epoch was completed"
    if len(history):
        trained = f"trained for {len(history)} epoch{'s' * (len(history) > 1)}, {history[-1].seconds:.1f} s"
    best = f"; the weights are those of epoch {history.best}" if history.best else ""
    if history.stopped == "interrupted":
        figures = f"; `pyro-vae evaluate {path}` reports its figures" if len(history) else ""
        raise KeyboardInterrupt(f"{trained}{best}. Saved in {path}; `pyro-vae train --resume {path}` goes on{figures}")
    say(f"{trained}{f' ({history.stopped})' * (history.stopped != 'finished')}{best}")
    if elbo.bound_of(history.elbo) == "none":
        say(
            f"the loss of {history.elbo} is no bound on log p(x); the figures below are those of the pair's own "
            "likelihood, which it did not maximise"
        )
    try:
        _show(LoadedRun(path, pair, config, {"data": keeper.data}, history), dataset, options, ranks)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{trained}. Saved in {path}") from None


class _Keeper:
    """Saves the run after epochs, at most one a second; only then does it replace an older one.

    Of several processes only one `writes`.
    """

    def __init__(
        self,
        path: Path,
        pair: Any,
        config: Mapping[str, Any],
        dataset: Data,
        command: str,
        *,
        begun: bool,
        writes: bool,
    ) -> None:
        self.path, self.pair, self.config, self.command = path, pair, config, command
        self.data = dataset.describe()
        self.history = History(data=self.data, seed=config["seed"], elbo=str(config["elbo"]))
        self.begun, self.writes = begun, writes
        self._saved: float | None = None
        self._started = _started(path) if begun else None
        self._started = self._started or datetime.now().astimezone().isoformat(timespec="seconds")

    def __call__(self, state: State) -> None:
        self.history = state.history
        if self._saved is not None and time.monotonic() < self._saved + 1:
            return
        # the pair has the weights of this epoch now, and the best ones only at the end
        self.save(replace(state.history, best=None, stopped="unfinished"))

    def begin(self) -> None:
        """Replace an older run by what is needed to resume this one."""
        if not self.begun:
            clear_run(self.path)
            Checkpoints(self.path / CHECKPOINTS).clear()
            save_config(self.path, self.config)
            self.begun = True

    def save(self, history: History) -> None:
        if not self.writes:
            return
        self.begin()
        params = dict(pyro.get_param_store().named_parameters())
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


def _started(path: Path) -> str | None:
    """When the run began that is gone on with, by its record."""
    try:
        return str(json.loads((path / RECORD).read_text())["started"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # not written yet, or of an older format
        return None


class _RunCheckpoints(Checkpoints):
    """Checkpoints inside a run directory, whose configuration is there before them."""

    def __init__(self, keeper: _Keeper, steps: int | None, minutes: float) -> None:
        super().__init__(keeper.path / CHECKPOINTS, steps=steps, minutes=minutes)
        self._keeper = keeper

    def save(self, step: int, snapshot: Snapshot) -> None:
        self._keeper.begin()
        super().save(step, snapshot)


def _show(run: LoadedRun, dataset: Data, options: Namespace, ranks: Ranks) -> None:
    """Report and draw, on the test data if there are any."""
    split = next(name for name in ("test", "valid", "train") if getattr(dataset, name) is not None)
    chosen = getattr(dataset, split)
    with fork_rng(options.seed):
        args = chosen.to(run.device).args()
        report(
            run, args, split, num_samples=options.num_samples, seed=options.seed, progress=options.progress, ranks=ranks
        )
        if not ranks.leads:
            return
        shown = tuple(each[:20] for each in args)
        try:
            draw(
                plots.reconstructions(shown[0], _means(reconstruct, run.model, run.guide, *shown)),
                run.path / "reconstructions",
            )
            template = [torch.zeros_like(args[0][:64]), *(each[:64] for each in args[1:])]
            draw(plots.image_grid(_means(sample, run.model, *template)), run.path / "samples")
        except ValueError as error:
            say(f"no pictures: {error}")
    if len(run.history):
        draw(run.history.plot(), run.path / "history")


def _means(generate: Callable[..., Tensor], *args: Any) -> Tensor:
    try:
        return generate(*args)
    except ValueError:  # distributions without a mean
        return generate(*args, mean=False)
