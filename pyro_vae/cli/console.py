"""Functions that several commands share: print, load a run, report its metrics, write its pictures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import pyro
from rich.console import Console
from torch import Tensor

from pyro_vae.cli.parser import Parser
from pyro_vae.data import Split, Vocabulary
from pyro_vae.distributed.ranks import Ranks
from pyro_vae.evaluate import Bound, bound, summarize
from pyro_vae.evaluate.marginal.proposals import NoDensity
from pyro_vae.runs import LoadedRun, load_run, save_json
from pyro_vae.runs.directory import RECORD, WEIGHTS, settle
from pyro_vae.runs.evaluations import evaluation_path
from pyro_vae.support.files import write_file
from pyro_vae.support.pictures import as_png
from pyro_vae.support.random import fork_rng
from pyro_vae.support.tables import Printable, printable

__all__ = [
    "add_data_options",
    "add_progress_option",
    "add_loading_options",
    "add_run_options",
    "add_split_options",
    "add_vocabulary_option",
    "as_text",
    "draw",
    "first_data",
    "look_here",
    "only_main_prints",
    "open_run",
    "publish",
    "put",
    "rebuilt",
    "report",
    "echo",
]


def echo(content: Any) -> None:
    """Print a line, which is never wrapped, or a table, without control characters: they may be a stranger's."""
    if isinstance(content, str):
        print("\n".join(map(printable, content.split("\n"))))
    else:
        Console().print(Printable(content))


@contextmanager
def only_main_prints(ranks: Ranks) -> Iterator[None]:
    """A context in which only rank 0 prints; the other processes exit without a message after Ctrl-C."""
    with ranks.only_main_warns(), nullcontext() if ranks.is_main else redirect_stdout(StringIO()):
        try:
            yield
        except KeyboardInterrupt:
            if ranks.is_main:
                raise
            raise SystemExit(130) from None


def add_run_options(parser: Parser) -> None:
    """Add the options of a command that loads a run."""
    parser.add_argument("run", type=str, help="The run directory, as `pyro-vae train` printed it.")
    add_loading_options(parser, "the run")


def add_loading_options(parser: Parser, what: str) -> None:
    """Add the options of loading `what`, "the run" or "the runs"."""
    parser.add_argument("--device", type=str, default="auto", help='"auto" (a GPU if there is one), cpu or cuda.')
    parser.add_argument("--seed", type=int, default=0, help="Seed of all noise.")
    parser.add_argument(
        "--trust",
        type=bool,
        default=False,
        help=f"Allow {what} to name classes outside pyro_vae and torch.nn, whose code is then executed: needed for a "
        "pair of your own.",
    )


def add_data_options(parser: Parser, num_data: int | None) -> None:
    """Add the options of a command that evaluates a run on some of its data."""
    add_split_options(parser)
    parser.add_argument("--num_data", type=int | None, default=num_data, help="Use only this many, the first ones.")
    add_progress_option(parser)


def add_split_options(parser: Parser) -> None:
    """Add the options of a command that loads a split of a run's data."""
    parser.add_argument("--split", type=Literal["train", "valid", "test"], default="test", help="Which data.")
    parser.add_argument(
        "--root", type=str | None, default=None, metavar="DIR", help="Folder of the data, if they have moved."
    )


def add_vocabulary_option(parser: Parser) -> None:
    """Add the option of a command that shows data, which may be sentences."""
    parser.add_argument(
        "--vocabulary",
        type=str | None,
        default=None,
        metavar="FILE",
        help="For data that are rows of tokens: a text file with one token a line, as `Vocabulary.save` writes it, to "
        "show them as sentences.",
    )


def as_text(vocabulary: str | None) -> Callable[[Tensor], list[str]] | None:
    """The function from rows of tokens to sentences that the option asks for."""
    return None if vocabulary is None else Vocabulary.load(vocabulary).decode


def add_progress_option(parser: Any) -> None:
    """Add the option of a command that takes long."""
    parser.add_argument(
        "--progress",
        type=bool | None,
        default=None,
        metavar="{true,false}",
        help="Progress bars. Default: in a terminal.",
    )


def first_data(
    run: LoadedRun, split: str, n: int | None, root: str | None, *, at_most: bool = False
) -> tuple[Tensor, ...]:
    """The first `n` data of a split of the run's data, or all if `n` is None, on the run's device.

    Returns the arguments of the pair: the data and, if the pair takes them, their labels. `at_most`: fewer than `n`
    data are no error.
    """
    data = run.data(root)
    chosen: Split | None = getattr(data, split)
    if chosen is None:
        splits = [name for name in ("train", "valid", "test") if getattr(data, name) is not None]
        raise ValueError(f"the run's data have no {split} split; --split can be {' or '.join(splits)}")
    n = len(chosen) if n is None or (at_most and n > len(chosen)) else n
    if not 1 <= n <= len(chosen):
        raise ValueError(f"asked for {n} data: the {split} split has {len(chosen)}; give a number from 1 to that")
    return tuple(each.to(run.device) for each in chosen.args(n))


def open_run(options: Any, *, at_most: bool = False) -> tuple[LoadedRun, tuple[Tensor, ...]]:
    """The rebuilt run of a command, and the data that its options select."""
    run = rebuilt(options)
    with fork_rng(options.seed):  # training data may be binarized anew
        return run, first_data(run, options.split, options.num_data, options.root, at_most=at_most)


def rebuilt(options: Any) -> LoadedRun:
    """The run of a command, rebuilt. Modules are looked for in the current folder, too, if the run is trusted."""
    pyro.clear_param_store()
    if options.trust:
        look_here()
    run = load_run(options.run, device=options.device, trust=options.trust)
    with suppress(OSError):  # the directory may be read-only
        settle(run.path)
    return run


def look_here() -> None:
    """Find the user's own modules in the current folder; it could also be one that a stranger has made."""
    here = str(Path.cwd())  # not "": jsonargparse changes the folder while it reads a --config
    if here not in sys.path:
        sys.path.insert(0, here)


def publish(result: Any, run: LoadedRun, name: str) -> None:
    """Print the table of a result, and write it to the run directory as CSV, JSON and a picture."""
    echo(result.table())
    for ending in ("csv", "json"):
        put(run.path / f"{name}.{ending}", result.encoded(f".{ending}"))
    draw(result.plot(), run.path / name)


def put(path: Path, content: bytes | str) -> None:
    """Write a file, beside a run with the permissions of the run, and print its path."""
    write_file(path, content, like=path.parent / RECORD)
    echo(str(path))


def report(
    run: LoadedRun,
    args: tuple[Tensor, ...],
    split: str,
    *,
    num_samples: int,
    seed: int,
    progress: bool | None,
    ranks: Ranks | None = None,
    replace: bool = False,
) -> None:
    """Print the metrics of a run on some data, and write them to its directory; only rank 0 does so.

    `replace`: in place of an earlier evaluation, even if that was of more data or samples.
    """
    summary: Any
    try:
        summary = summarize(
            run.model,
            run.guide,
            *args,
            num_samples=num_samples,
            seed=seed,
            progress=progress,
            data=f"{run.config['data']} ({split})",
            binarize=run.record["data"].get("binarize", run.config["binarize"]),
            ranks=ranks,
        )
    except NoDensity as error:  # a deterministic autoencoder still has a loss to report
        summary = bound(run.model, run.guide, *args, seed=seed)
        echo(f"no log p(x): {error}")
    if ranks is not None and not ranks.is_main:
        return
    try:
        echo(repr(summary) if isinstance(summary, Bound) else summary.table())
    finally:  # the values are saved even if they cannot be printed
        values = summary.to_dict()
        if WEIGHTS in run.record.get("files", {}):  # so that they are not taken for values of later weights
            values = {**values, "weights": run.record["files"][WEIGHTS]}
        headline = run.path / f"evaluation-{split}.json"
        path = save_json(headline if replace else evaluation_path(run.path, split, values), values)
    if path != headline:
        echo(f"{headline.name} has more data or samples, and still stands for the run")
    echo(str(path))


def draw(figure: Any, out: Path) -> None:
    """Write a figure to `OUT.png`, and print the path."""
    path = out.with_name(out.name + ".png")
    put(path, as_png(figure))
