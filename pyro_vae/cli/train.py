"""`pyro-vae train`."""

from __future__ import annotations

import importlib
import inspect
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pyro
import torch
import yaml
from jsonargparse import Namespace
from torch import Tensor

from pyro_vae import data, elbo, plots
from pyro_vae.cli.console import add_progress_option, draw, echo, look_here, only_main_prints, put, report
from pyro_vae.cli.parser import Parser
from pyro_vae.cli.signatures import add_options, argument_help
from pyro_vae.data import Table
from pyro_vae.distributed.ranks import Ranks, launch
from pyro_vae.evaluate import reconstruct, sample
from pyro_vae.pair.protocol import Pair
from pyro_vae.runs import DATA_KEYS, LoadedRun, train
from pyro_vae.runs.config import as_yaml, with_stable_paths
from pyro_vae.runs.directory import CONFIG
from pyro_vae.runs.run import check_resumable, check_root
from pyro_vae.support.random import fork_rng
from pyro_vae.training.fitting import fit
from pyro_vae.training.history import History

__all__ = ["run"]

# parameters of `fit` that are not options, or are options of another group
_BY_HAND = ("model", "guide", "data", "valid", "optim", "callbacks", "progress", "seed", "checkpoints", "resume")
_FIT_OPTIONS = [name for name in inspect.signature(fit).parameters if name not in _BY_HAND]
# options that are not stored with the run
_NOT_STORED = (
    *("config", "out", "overwrite", "progress", "resume", "trust", "checkpoint_steps", "checkpoint_minutes"),
    *("devices", "num_nodes", "strategy", "report"),
)
_MAY_CHANGE = ("epochs", "steps", "early_stopping", "device", "num_samples", "root", "rollbacks", "preflight")
# help that the docstring of `fit` does not have
_MORE_HELP = {
    "elbo": f"The names are {', '.join(elbo.names())}.",
    "kl_weight": "For example `--kl_weight Warmup --kl_weight.epochs 10`.",
    "num_nodes": "See the documentation on several devices.",
}


_VAE = "pyro_vae.VAE"
_AMORTIZED = "pyro_vae.guides.AmortizedPair"


def _parser(model: str | None = None) -> Parser:
    parser = Parser(
        prog="pyro-vae train",
        usage="pyro-vae train [options]",
        description="Train a model/guide pair, report its ELBO and log p(x) on the test data, and save everything in a "
        "run directory.",
    )
    parser.add_argument("--config", action="config", help="Read options from a YAML file, as a run's config.yaml.")
    group = parser.add_argument_group("model")
    group.add_subclass_arguments(
        Pair,
        "model",
        as_group=False,
        # the columns of a table are those of the data, but a class of the user's may have an argument of this name
        skip={"data_shape", *(["columns"] if (model or "").startswith("pyro_vae.") else [])},
        instantiate=False,
        default={"class_path": model or _VAE},
        metavar="CLASS",
        help="The pair: a name from `pyro-vae list`, module.Class of your own, or module.function: a Pyro model, for "
        "which a guide is made. Arguments follow as --model.NAME VALUE; an argument data_shape is filled in.",
    )
    group = parser.add_argument_group("data")
    _add_data_options(group)
    group = parser.add_argument_group("training")
    group.add_argument("--seed", type=int, default=0, help="Seed of weights, splits, shuffling and all noise.")
    texts = argument_help(fit)
    add_options(group, fit, _FIT_OPTIONS, {name: f"{texts[name]} {more}" for name, more in _MORE_HELP.items()})
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
        help="Resume a run that was stopped, killed or has ended, from its latest checkpoint and with its own options, "
        f"of which only {', '.join(_MAY_CHANGE)} may change.",
    )
    group.add_argument("--checkpoint_steps", type=int | None, default=None, help="Steps between two checkpoints.")
    group.add_argument("--checkpoint_minutes", type=float, default=10.0, help="Minutes between two checkpoints.")
    group.add_argument(
        "--trust",
        type=bool,
        default=False,
        help="With --resume: allow the run to name classes outside pyro_vae and torch.nn.",
    )
    group.add_argument(
        "--report", type=bool, default=False, help="Also write report.html, a page to look at, to the run directory."
    )
    add_progress_option(group)
    return parser


def _add_data_options(group: Any) -> None:
    names = ", ".join(data.NAMES)
    group.add_argument(
        "--data",
        type=str,
        default="digits",
        help=f"{names}; or an .npz file, a folder of images, or a .csv file, a table whose first row has the names of "
        "its columns (--model TabularVAE).",
    )
    group.add_argument(
        "--binarize",
        type=data.Binarize,
        default="auto",
        help="How gray values become binary observations. auto: dynamic, and none for color images.",
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
        help="Labels for the pair: all (ConditionalVAE), or a number of training data (SemiSupervisedVAE).",
    )
    group.add_argument(
        "--types",
        type=dict[str, str | list[str] | None] | None,
        default=None,
        metavar="TYPES",
        help="Types of columns of a .csv file in place of the inferred ones: real, positive, count, binary, "
        "categorical or ordinal; or a list of levels in order. For example --types.size '[S, M, L]'.",
    )
    group.add_argument(
        "--tokens",
        type=bool,
        default=False,
        help="The data are rows of token numbers, integers (N, length), as `Vocabulary.encode` gives them "
        "(--model TextVAE --binarize none --flatten false).",
    )
    group.add_argument("--valid", type=int | float, default=0.1, help="Fraction or number of validation data.")
    group.add_argument(
        "--test", type=int | float, default=0.2, help="Fraction or number of test data, if the data have no test split."
    )
    group.add_argument(
        "--data_seed",
        type=int | None,
        default=None,
        help="Seed of splits and fixed draws. Default: --seed.",
    )


def run(name: str, argv: Sequence[str], command: str) -> None:
    """Train, save, report and draw."""
    pyro.clear_param_store()
    torch.manual_seed(0)  # networks that a pair's module makes when it is imported are the same every time
    run_to_resume = _value(argv, "--resume")
    trust = _is_true(argv, "--trust")
    before: list[str] = []
    if run_to_resume is None or trust:
        look_here()
    if run_to_resume is not None:
        # checked for untrusted names before anything is imported
        stored = check_resumable(run_to_resume, trust=trust)
        if "functions" in stored["model"]:
            raise ValueError(
                f"{run_to_resume} is a run of a pair made in Python and can only be resumed there: "
                "pv.train(pair, data, out=..., resume=True)"
            )
        if not trust and _value(argv, "--root") is None:
            check_root(stored["root"], Path(run_to_resume) / CONFIG)
        before = ["--config", as_yaml(stored).decode()]  # not the file, which may have changed since it was checked
    parser, options = _read([*before, *argv])
    if options.num_samples < 1:
        raise ValueError(f"--num_samples must be at least 1, got {options.num_samples}")
    config = _stored_config(parser, options)
    if before:
        _check_unchanged(_stored_config(*_read(before)), config)
    ranks = launch(options.devices, options.num_nodes, options.strategy, options.device)
    with only_main_prints(ranks):
        may_download = run_to_resume is None or trust or _value(argv, "--root") is not None
        trained = _train(parser.make(options), config, command, may_download)
        _report_end(trained)
        try:
            _show(trained, options, ranks)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{_summary(trained.history)}. Saved in {trained.path}") from None


def _train(options: Namespace, config: dict[str, Any], command: str, may_download: bool) -> LoadedRun:
    data_seed = config.get("data_seed", options.seed)
    return train(
        config["model"],
        options.data,
        data_args={**{key: options[key] for key in DATA_KEYS}, "seed": data_seed, "download": may_download},
        out=options.out if options.resume is None else options.resume,
        overwrite=options.overwrite,
        resume=options.resume is not None,
        seed=options.seed,
        checkpoint_steps=options.checkpoint_steps,
        checkpoint_minutes=options.checkpoint_minutes,
        on_start=_say_start,
        config=config,
        command=command,
        progress=options.progress,
        **{key: options[key] for key in _FIT_OPTIONS},
    )


def _say_start(run: LoadedRun) -> None:
    data = run.data()
    shown = f"{data.name}" if isinstance(data, Table) else repr(data)
    echo(f"{type(run.pair).__name__} on {shown} -> {run.path}")
    if isinstance(data, Table):  # the types of the columns, which were inferred
        echo(repr(data))


def _report_end(run: LoadedRun) -> None:
    """Print how training ended.

    Raises:
        KeyboardInterrupt: If it was interrupted.
    """
    history, path = run.history, run.path
    best = f"; the weights are those of epoch {history.best}" if history.best else ""
    if history.stopped == "interrupted":
        metrics = f"; `pyro-vae evaluate {path}` reports its ELBO and log p(x)" if len(history) else ""
        raise KeyboardInterrupt(
            f"{_summary(history)}{best}. Saved in {path}; `pyro-vae train --resume {path}` resumes it{metrics}"
        )
    echo(f"{_summary(history)}{f' ({history.stopped})' * (history.stopped != 'finished')}{best}")
    if elbo.bound_of(history.elbo) == "none":
        echo(
            f"the loss of {history.elbo} is not a bound on log p(x); the values below are those of the pair's own "
            "likelihood, which it did not maximize"
        )


def _summary(history: History) -> str:
    if not len(history):
        return "no epoch was completed"
    return f"trained for {len(history)} epoch{'s' * (len(history) > 1)}, {history[-1].seconds:.1f} s"


def _value(argv: Sequence[str], option: str) -> str | None:
    """The value of an option in unparsed arguments, where the last one counts; None without the option."""
    found = None
    for argument, following in zip(argv, [*argv[1:], None], strict=True):
        if argument == option:
            found = following
        elif argument.startswith(f"{option}="):
            found = argument.removeprefix(f"{option}=")
    return found


def _is_true(argv: Sequence[str], option: str) -> bool:
    """Whether an option that is true or false is true, in unparsed arguments.

    Raises:
        ArgumentError: If it is neither.
    """
    if all(word.split("=")[0] != option for word in argv):
        return False
    text = _value(argv, option)
    value = None if text is None else yaml.safe_load(text[:10])  # as the parser does
    if not isinstance(value, bool):
        raise ArgumentError(None, f"{option}: expected true or false, got {text}")
    return value


def _stored_config(parser: Parser, options: Namespace) -> dict[str, Any]:
    """The options that are stored with the run, as in its configuration file."""
    config = yaml.safe_load(parser.dump(options, skip_unset=False))
    if config["data_seed"] is None:
        del config["data_seed"]
    return with_stable_paths({key: value for key, value in config.items() if key not in _NOT_STORED})


def _check_unchanged(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [
        f"{name} was {before.get(name)!r}, is now {now.get(name)!r}"
        for name in {**before, **now}
        if name not in _MAY_CHANGE and before.get(name) != now.get(name)
    ]
    if changed:
        raise ValueError(
            f"--resume uses the options of the run: {'; '.join(changed)}. Only {', '.join(_MAY_CHANGE)} may change; "
            "train another run with other options"
        )


def _read(argv: Sequence[str]) -> tuple[Parser, Namespace]:
    argv = [*_with_guide(argv)]
    parser = _parser()
    chosen = parser.read([argument for argument in argv if not argument.startswith("--print_config")]).model.class_path
    if chosen != _VAE:
        # jsonargparse keeps arguments when the class changes: those of the same name would have the VAE's defaults
        parser = _parser(chosen)
    return parser, parser.read(argv)


def _with_guide(argv: Sequence[str]) -> Iterator[str]:
    """The options, with a model that is a function in the form of a pair whose guide is made."""
    words = iter(argv)
    for word in words:
        path = word.removeprefix("--model=") if word.startswith("--model=") else None
        if word == "--model":
            path = next(words, None)
            if path is None:
                yield word
                return
        if path is None:
            yield word
        elif _is_program(path):
            yield from ("--model", _AMORTIZED, "--model.program", path)
        else:
            yield from ("--model", path)


def _is_program(path: str) -> bool:
    """Whether an option's value is the import path of a function."""
    module, _, name = path.rpartition(".")
    if not module or module.partition(".")[0] == "pyro_vae":
        return False
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception:  # the parser says what is wrong
        return False
    return callable(found) and not inspect.isclass(found)


def _show(run: LoadedRun, options: Namespace, ranks: Ranks) -> None:
    """Report and draw, on the test data if there are any."""
    dataset = run.data()
    split: Any = next(name for name in ("test", "valid", "train") if getattr(dataset, name) is not None)
    chosen = getattr(dataset, split)
    with fork_rng(options.seed):
        args = chosen.to(run.device).args()
        report(
            run,
            args,
            split,
            num_samples=options.num_samples,
            seed=options.seed,
            progress=options.progress,
            ranks=ranks,
            replace=True,
        )
        if not ranks.is_main:
            return
        if "columns" not in run.record["data"]:  # rows of a table may have as many values as a small image
            _draw_images(run, args)
    if len(run.history):
        draw(run.history.plot(), run.path / "history")
    if options.report:
        from pyro_vae.reports import report as report_on  # not at the top: training need not wait for what it imports

        made = report_on(run, split=split, num_samples=options.num_samples, seed=options.seed)
        put(run.path / "report.html", made.page)


def _draw_images(run: LoadedRun, args: tuple[Tensor, ...]) -> None:
    """Draw reconstructions and samples, if the data are images."""
    first = tuple(each[:20] for each in args)
    try:
        draw(
            plots.reconstructions(first[0], _means(reconstruct, run.model, run.guide, *first)),
            run.path / "reconstructions",
        )
        template = [torch.zeros_like(args[0][:64]), *(each[:64] for each in args[1:])]
        draw(plots.image_grid(_means(sample, run.model, *template)), run.path / "samples")
    except ValueError as error:
        echo(f"no pictures: {error}")


def _means(generate: Callable[..., Tensor], *args: Any) -> Tensor:
    try:
        return generate(*args)
    except ValueError:  # distributions without a mean
        return generate(*args, mean=False)
