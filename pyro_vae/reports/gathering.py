"""What a run has to show: each question is put to its pair, and a refusal is kept with its reason."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_vae import elbo
from pyro_vae.data import Table
from pyro_vae.evaluate import bound, encode, latent_report, log_marginal, reconstruct, sample
from pyro_vae.evaluate.calibration.question import calibration
from pyro_vae.evaluate.preflight.report import preflight
from pyro_vae.reports.likeness import kind_of_data, observation_of, quality_of, traversal_of
from pyro_vae.reports.maps import Map, map_of_codes
from pyro_vae.runs import LoadedRun, RunFiles, load_run, read_run
from pyro_vae.runs.evaluations import read_evaluation
from pyro_vae.support.formats import one_line
from pyro_vae.support.random import fork_rng

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Options", "RunFacts", "gather"]

PICTURES = 20  # reconstructions
SAMPLES = 60  # pictures of samples
PREFLIGHT = 16  # data that are enough to check a pair


@dataclass(frozen=True)
class Options:
    """What `report` was asked for; see there."""

    split: str = "test"
    num_data: int = 500
    num_samples: int = 1000
    num_simulations: int = 200
    seed: int = 0
    root: str | None = None
    text: Callable[[Tensor], list[str]] | None = None


@dataclass
class RunFacts:
    """A run and what its pair has answered.

    Attributes:
        name: A name for the run, unique among those of a report.
        files: Its configuration, record and history.
        run: The rebuilt pair; None if it could not be rebuilt.
        split: The split that the questions were put to.
        args: The arguments of the pair for these data; empty without data.
        train_args: The same for as many training data.
        labels: The classes of the data `(N,)`, if there are any.
        gray: The gray values of images that are observed as binary draws of them, else the data.
        kind: "images", "text", "counts" or "columns".
        names: The names of the columns of a table; missing values of `x` are NaN then.
        answers: What was answered, by question.
        refusals: Why a question was not answered, by question.
    """

    name: str
    files: RunFiles | LoadedRun
    run: LoadedRun | None = None
    split: str = "test"
    args: tuple[Tensor, ...] = ()
    train_args: tuple[Tensor, ...] = ()
    labels: Tensor | None = None
    gray: Tensor | None = None
    kind: str = "columns"
    names: tuple[str, ...] = ()
    answers: dict[str, Any] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, question: str) -> Any:
        """The answer to a question, or None."""
        return self.answers.get(question)

    @property
    def x(self) -> Tensor:
        """The data that the questions were put to."""
        return self.args[0].masked_fill(~self.args[1], torch.nan) if self.names else self.args[0]


def gather(source: str | Path | LoadedRun, name: str, options: Options, *, trust: bool, device: str) -> RunFacts:
    """Read a run, rebuild its pair and put all questions to it.

    Raises:
        FileNotFoundError, ValueError: If the run cannot be read.
    """
    if isinstance(source, LoadedRun):
        facts = RunFacts(name, source, source)
    else:
        files = read_run(source, trust=trust)
        facts = RunFacts(name, files)
        with _asking(facts, "pair"):
            facts.run = load_run(source, trust=trust, device=device)
    with _asking(facts, "evaluation"):
        facts.answers["evaluation"] = _stored_evaluation(facts.files)
    if facts.run is not None:
        with _asking(facts, "data"):
            _load_data(facts, facts.run, options)
    if facts.args and facts.run is not None:
        _ask_all(facts, facts.run, options)
    return facts


@contextmanager
def _asking(facts: RunFacts, question: str) -> Iterator[None]:
    """A context in which an error becomes the reason why there is no answer: the pair may be anybody's."""
    try:
        yield
    except Exception as error:
        facts.refusals[question] = one_line(error) or type(error).__name__


def _stored_evaluation(files: RunFiles | LoadedRun) -> dict[str, Any] | None:
    """The evaluation of the whole test split that `train` and `evaluate` write, if it is of these weights."""
    found = read_evaluation(files.path / "evaluation-test.json")
    weights = files.record.get("files", {}).get("weights.safetensors")
    return found if found is not None and found.get("weights", weights) == weights else None


def _load_data(facts: RunFacts, run: LoadedRun, options: Options) -> None:
    data = run.data(options.root)
    names = [options.split, *(n for n in ("test", "valid", "train") if n != options.split)]
    facts.split = next(name for name in names if getattr(data, name) is not None)
    chosen = getattr(data, facts.split)
    n = min(options.num_data, len(chosen))
    with fork_rng(options.seed):
        facts.args = tuple(each.to(run.device) for each in chosen.args(n))
        facts.train_args = tuple(each.to(run.device) for each in data.train.args(min(n, len(data.train))))
    facts.gray = chosen.intensity[:n].to(run.device)
    if chosen.y is not None and chosen.y.dim() == 1:
        facts.labels = chosen.y[:n].cpu()
    if isinstance(data, Table):
        facts.names = tuple(column.name for column in data.columns)
    else:
        facts.kind = "text" if options.text is not None else kind_of_data(facts.x)


def _ask_all(facts: RunFacts, run: LoadedRun, options: Options) -> None:
    model, guide, args, seed = run.model, run.guide, facts.args, options.seed
    objective = facts.files.record["elbo"]
    checked = {"elbo": objective} if objective in elbo.names() else {}
    few, first = tuple(a[:PREFLIGHT] for a in args), tuple(a[:PICTURES] for a in args)
    draws, simulations = options.num_samples, options.num_simulations

    def samples(n: int, mean: bool) -> Tensor:
        template = tuple(a[:n] for a in args)
        return sample(model, torch.zeros_like(template[0]), *template[1:], mean=mean, seed=seed)

    questions: dict[str, Callable[[], Any]] = {
        "preflight": lambda: preflight(model, guide, *few, strict=False, **checked),
        "observation": lambda: observation_of(model, guide, few),
        "bound": lambda: bound(model, guide, *args, num_samples=4, seed=seed),
        "train_bound": lambda: bound(model, guide, *facts.train_args, num_samples=4, seed=seed),
        "log_marginal": lambda: log_marginal(model, guide, *args, num_samples=draws, seed=seed),
        "latent": lambda: latent_report(model, guide, *args, seed=seed),
        "codes": lambda: encode(guide, *args, seed=seed),
        "map": lambda: _map(facts, seed),
        "reconstructions": lambda: _means(lambda mean: reconstruct(model, guide, *first, mean=mean, seed=seed)),
        "samples": lambda: _means(lambda mean: samples(SAMPLES, mean)),
        "draws": lambda: samples(len(facts.x), False),
        "traversal": lambda: traversal_of(model, args, facts["codes"], facts["latent"]),
        "calibration": lambda: calibration(model, guide, *args, num_simulations=simulations, seed=seed),
        "quality": lambda: quality_of(facts.kind, facts.gray, samples(len(facts.x), True), seed),
    }
    for question, ask in questions.items():
        with _asking(facts, question), fork_rng(seed):
            facts.answers[question] = ask()


def _map(facts: RunFacts, seed: int) -> Map | None:
    codes, found = facts["codes"], facts["bound"]
    return None if codes is None else map_of_codes(codes, None if found is None else found.elbo, seed)


def _means(generate: Callable[[bool], Tensor]) -> Tensor:
    """Means of the observed site, or draws where its distribution has no mean."""
    try:
        return generate(True)
    except ValueError:
        return generate(False)
