"""The command line: train, evaluate, sample, reconstruct, list. Options come from the signatures they set."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pyro_vae import conditionals, data, elbo, models, plots, priors
from pyro_vae.device import choose_device
from pyro_vae.evaluate import Summary, reconstruct, sample, summarize
from pyro_vae.fit import fit
from pyro_vae.guard import NonFiniteLoss
from pyro_vae.models import Pair
from pyro_vae.runs import DATA_KEYS, LoadedRun, create_run, load_data, load_run, save_json, save_run

__all__ = ["main"]

console = Console()
_FIT_BY_HAND = {"model", "guide", "data", "valid", "optim", "callbacks", "progress", "seed"}


def main(args: Sequence[str] | None = None) -> int:
    """Entry point of `pyro-vae`; returns the exit status."""
    sys.path.insert(0, "")  # a pair of the user's own lies in the folder they work in
    parser, commands = _parser()
    options = parser.parse_args(args)
    if options.subcommand is None:
        parser.print_help()
        return 2
    command, subparser = commands[options.subcommand]
    try:
        command(subparser, options[options.subcommand])
    except (ValueError, TypeError, OSError, NonFiniteLoss) as error:
        print(f"pyro-vae {options.subcommand}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> tuple[ArgumentParser, dict[str, tuple[Callable[..., None], ArgumentParser]]]:
    parser = ArgumentParser(
        prog="pyro-vae", description="Train variational autoencoders in Pyro and measure what they are worth."
    )
    subcommands = parser.add_subcommands(required=False)
    built = {}
    for name, (command, make) in _COMMANDS.items():
        subparser = make()
        subcommands.add_subcommand(name, subparser, help=(command.__doc__ or "").splitlines()[0])
        built[name] = (command, subparser)
    return parser, built


def _train_parser() -> ArgumentParser:
    parser = ArgumentParser(description="Train a model/guide pair and report its ELBO and log p(x) on the test data.")
    parser.add_argument("--config", action="config", help="Read options from a YAML file, a run's config.yaml for one.")
    parser.add_argument(
        "--model",
        type=Pair,
        default={"class_path": "pyro_vae.models.VAE"},
        help="The pair: a name from `pyro-vae list`, or module.Class of your own; its arguments as --model.NAME.",
    )
    _data_options(parser, data="digits", binarize="dynamic", flatten=True, valid=0.1, test=0.2)
    parser.add_argument("--seed", type=int, default=0, help="Of initialisation, data splits, shuffling and all noise.")
    parser.add_function_arguments(fit, as_group=False, skip=_FIT_BY_HAND)
    parser.add_argument("--num_samples", type=int, default=1000, help="Importance samples per test datum for log p(x).")
    parser.add_argument("--out", type=str | None, default=None, help="Run directory. Default: runs/DATE-MODEL-DATA.")
    parser.add_argument("--overwrite", type=bool, default=False, help="Allow --out to exist; its files are replaced.")
    parser.add_argument("--progress", type=bool | None, default=None, help="Progress bars; default: in a terminal.")
    keys = ("data", *DATA_KEYS)
    parser.link_arguments(keys, "model.init_args.data_shape", compute_fn=_data_shape)
    return parser


def _data_options(parser: ArgumentParser, **defaults: Any) -> None:
    parser.add_argument(
        "--data",
        type=str,
        default=defaults["data"],
        help=f"One of {', '.join(data.NAMES)}, or the path of an .npz file or of a folder of images.",
    )
    parser.add_argument(
        "--binarize",
        type=data.Binarize,
        default=defaults["binarize"],
        help="How grey values become binary observations.",
    )
    parser.add_argument("--flatten", type=bool, default=defaults["flatten"], help="Make each datum one vector.")
    parser.add_argument("--root", type=str | None, default=None, help="Folder of the data; default: $PYRO_VAE_DATA.")
    parser.add_argument(
        "--valid", type=int | float, default=defaults["valid"], help="Share or number of validation data."
    )
    parser.add_argument(
        "--test", type=int | float, default=defaults["test"], help="The same of test data, if not given."
    )


def _data_shape(*settings: Any) -> list[int]:
    return list(load_data(*settings).shape)


def _train(parser: ArgumentParser, options: Namespace) -> None:
    """Train a pair; write a run directory; report ELBO and log p(x)."""
    config = yaml.safe_load(parser.dump(options, skip_link_targets=False, skip_none=False))
    for key in ("config", "overwrite", "progress"):
        config.pop(key, None)
    dataset = load_data(options.data, **{k: options[k] for k in DATA_KEYS})
    kind = config["model"]["class_path"].rsplit(".", 1)[-1]
    default = f"runs/{datetime.now():%Y%m%d-%H%M%S}-{kind}-{Path(options.data).stem}"
    path = create_run(options.out or default, overwrite=options.overwrite)
    torch.manual_seed(options.seed)
    chosen = parser.instantiate_classes(options)
    pair = chosen.model
    if hasattr(pair, "start_at_mean"):
        pair.start_at_mean(dataset.mean)
    console.print(f"{kind} on {dataset!r} -> {path}", highlight=False, soft_wrap=True)
    example = dataset.train.head(1)
    history = fit(
        pair.model,
        pair.guide,
        dataset,
        **{name: chosen[name] for name in fit.__kwdefaults__ if name not in _FIT_BY_HAND},
        seed=options.seed,
        progress=options.progress,
        callbacks=[lambda state: save_run(path, pair, config, state.history, example.to(_device_of(pair)))],
    )
    save_run(path, pair, config, history, example.to(_device_of(pair)))
    if history.stopped != "finished":
        console.print(f"stopped after epoch {len(history)}: {history.stopped}")
    run = LoadedRun(path, pair, config, history)
    if dataset.test is not None:
        _report(run, dataset.test, options)
        shown = dataset.test.head(min(20, len(dataset.test))).to(_device_of(pair))
        torch.manual_seed(options.seed)
        _write(
            path / "reconstructions",
            plots.reconstructions,
            {"x": shown.cpu(), "reconstructed": reconstruct(pair.model, pair.guide, shown).cpu()},
        )
        _write(
            path / "samples", plots.image_grid, {"x": sample(pair.model, shown[:1].expand(64, *shown.shape[1:])).cpu()}
        )
    plots.save(history.plot(), path / "history.png")


def _run_parser(description: str, **extra: tuple[Any, Any, str]) -> ArgumentParser:
    parser = ArgumentParser(description=description)
    parser.add_argument("run", type=str, help="The run directory.")
    for name, (kind, default, text) in extra.items():
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu or cuda.")
    parser.add_argument("--root", type=str | None, default=None, help="Folder of the data, if it has moved.")
    parser.add_argument("--seed", type=int, default=0, help="Of the noise.")
    return parser


def _evaluate_parser() -> ArgumentParser:
    return _run_parser(
        "Report ELBO and log p(x) of a trained run; the table is also written to evaluation-SPLIT.json in the run.",
        num_samples=(int, 5000, "Importance samples per datum for log p(x)."),
        split=(Literal["train", "valid", "test"], "test", "Which data."),
        num_data=(int | None, None, "Only the first so many data."),
        progress=(bool | None, None, "Progress bars; default: in a terminal."),
    )


def _evaluate(_: ArgumentParser, options: Namespace) -> None:
    """Report ELBO and log p(x) of a run."""
    run = _load(options)
    _report(run, _split(run, options), options)


def _sample_parser() -> ArgumentParser:
    return _run_parser(
        "Draw data from the prior of a trained run: a picture if they are images, and an .npz file.",
        num=(int, 64, "How many."),
        mean=(bool, True, "Show the means of p(x|z) rather than draws from it."),
        out=(str | None, None, "Where to write, without an ending; default: samples in the run directory."),
    )


def _sample(_: ArgumentParser, options: Namespace) -> None:
    """Draw data from a run's model."""
    run = _load(options)
    if options.num < 1:
        raise ValueError(f"--num must be at least 1, got {options.num}")
    template = run.data(options.root).train.head(1).expand(options.num, *run.data(options.root).shape)
    torch.manual_seed(options.seed)
    x = sample(run.model, template.to(_device_of(run.pair)), mean=options.mean).cpu()
    out = Path(options.out or run.path / "samples")
    _write(out, plots.image_grid, {"x": x})


def _reconstruct_parser() -> ArgumentParser:
    return _run_parser(
        "Reconstruct data with a trained run: a picture if they are images, and an .npz file.",
        num=(int, 20, "How many: the first data of the split."),
        split=(Literal["train", "valid", "test"], "test", "Which data."),
        mean=(bool, True, "Show the means of p(x|z) rather than draws from it."),
        out=(str | None, None, "Where to write, without an ending; default: reconstructions in the run directory."),
    )


def _reconstruct(_: ArgumentParser, options: Namespace) -> None:
    """Reconstruct data with a run."""
    run = _load(options)
    x = _split(run, options).head(options.num)
    torch.manual_seed(options.seed)
    again = reconstruct(run.model, run.guide, x.to(_device_of(run.pair)), mean=options.mean).cpu()
    out = Path(options.out or run.path / "reconstructions")
    _write(out, plots.reconstructions, {"x": x, "reconstructed": again})


def _list(_: ArgumentParser, __: Namespace) -> None:
    """List models, data sets, estimators and parts."""
    table = Table(show_header=False)
    systems = [n for n in models.__all__ if n != "Pair"]
    for what, names in (
        ("models (--model)", systems),
        ("data (--data)", data.NAMES),
        ("estimators (--elbo)", elbo.names()),
        ("likelihoods (--model.likelihood)", conditionals.LIKELIHOODS),
        ("posteriors (--model.posterior)", conditionals.POSTERIORS),
        ("priors (--model.prior)", priors.PRIORS),
    ):
        table.add_row(what, ", ".join(names))
    console.print(table)


def _load(options: Namespace) -> LoadedRun:
    run = load_run(options.run)
    choose_device(options.device, run.model, run.guide)
    return run


def _split(run: LoadedRun, options: Namespace) -> data.Split:
    split = getattr(run.data(options.root), options.split)
    if split is None:
        raise ValueError(f"the run's data have no {options.split} split: choose another --split")
    return split


def _report(run: LoadedRun, split: data.Split, options: Namespace) -> Summary:
    name = options.get("split", "test")
    x = split.head(options.get("num_data") or len(split)).to(_device_of(run.pair))
    summary = summarize(
        run.model,
        run.guide,
        x,
        num_samples=options.num_samples,
        seed=options.seed,
        progress=options.progress,
        data=f"{run.config['data']} ({name})",
        binarize=run.config["binarize"],
    )
    console.print(summary.table())
    save_json(run.path / f"evaluation-{name}.json", summary.to_dict())
    return summary


def _write(out: Path, draw: Callable[..., Any], arrays: dict[str, Tensor]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(out.with_suffix(".npz"), **{name: a.numpy() for name, a in arrays.items()})  # type: ignore[arg-type]
    console.print(str(out.with_suffix(".npz")), highlight=False, soft_wrap=True)
    try:
        figure = draw(*arrays.values())
    except ValueError:  # no images
        return
    console.print(str(plots.save(figure, out.with_suffix(".png"))), highlight=False, soft_wrap=True)


def _device_of(pair: Any) -> torch.device:
    return next((p.device for p in pair.parameters()), torch.device("cpu"))


_COMMANDS: dict[str, tuple[Callable[..., None], Callable[[], ArgumentParser]]] = {
    "train": (_train, _train_parser),
    "evaluate": (_evaluate, _evaluate_parser),
    "sample": (_sample, _sample_parser),
    "reconstruct": (_reconstruct, _reconstruct_parser),
    "list": (_list, lambda: ArgumentParser(description="List what has a name: models, data sets, estimators, parts.")),
}
