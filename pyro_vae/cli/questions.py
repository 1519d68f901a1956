"""`pyro-vae compare-elbos`, `gaps`, `diagnose` and `calibrate`: each calls one function on the data of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyro_vae.cli.console import add_data_options, add_run_options, open_run, publish
from pyro_vae.cli.parser import Parser
from pyro_vae.cli.signatures import add_options
from pyro_vae.evaluate import compare_elbos, inference_gaps, latent_report
from pyro_vae.evaluate.calibration.question import calibration

__all__ = ["QUESTIONS", "Question", "run"]


@dataclass(frozen=True)
class Question:
    """A command that evaluates a run with one function.

    Attributes:
        description: The description in its help.
        function: Called with the pair, its data, and the options, `seed` and `progress` by name.
        parameters: Parameters of the function that become options unchanged.
        num_data: The default number of data.
        files: The name of the files that it writes, without an ending.
        options: Further options as arguments of `add_argument`: parameters with another type or default here.
        help: Help texts of parameters that replace those of the function's docstring.
    """

    description: str
    function: Callable[..., Any]
    parameters: list[str]
    num_data: int
    files: str
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    help: Mapping[str, str] = field(default_factory=dict)


QUESTIONS = {
    "compare-elbos": Question(
        "Compare ELBO estimators on a trained run: bound, gradient bias, variance and signal, time, memory. The table "
        "is also written to estimators.csv and estimators.json in the run directory, with a picture.",
        compare_elbos,
        [],
        num_data=256,
        files="estimators",
        options={
            "estimators": {
                "type": list[str | dict[str, str]] | None,
                "default": None,
                "help": "Names from `pyro-vae list`, or names by latent site, as [trace, {y: enum, z: stl}]. Default: "
                "what the latent sites allow.",
            },
            "num_particles": {"type": list[int], "default": [1, 5, 50], "help": "Particles of each estimator."},
            "repeats": {
                "type": int,
                "default": 100,
                "help": "Gradients per estimator and number of particles.",
            },
        },
    ),
    "gaps": Question(
        "Fit a posterior to each datum separately and split the inference gap of a trained run, log p(x) - ELBO, into "
        "the approximation gap of the guide's family and the amortization gap. The table is also written to gaps.csv "
        "and gaps.json in the run directory, with a picture.",
        lambda *pair, ais, **options: inference_gaps(*pair, method="ais" if ais else None, **options),
        [],
        num_data=100,
        files="gaps",
        options={
            "num_samples": {"type": int, "default": 5000, "help": "Samples per datum for the bounds and log p(x)."},
            "families": {
                "type": list[str],
                "default": ["diagonal_normal"],
                "help": "Posterior families from `pyro-vae list`; the first should be the family of the guide.",
            },
            "ais": {"type": bool, "default": False, "help": "Also use annealed importance sampling for log p(x)."},
        },
    ),
    "diagnose": Question(
        "Report the health of a trained run's latent space: KL and activity by dimension, mutual information, the "
        "aggregate posterior against the prior, posterior collapse. The tables are also written to latent.csv and "
        "latent.json in the run directory, with a picture.",
        latent_report,
        ["num_samples"],
        num_data=1000,
        files="latent",
    ),
    "calibrate": Question(
        "Ask whether a trained run's guide is right: draw latents and data from its model, and rank the truth among "
        "the guide's draws; with posterior predictive checks of its data. The tables are also written to "
        "calibration.csv and calibration.json in the run directory, with a picture.",
        calibration,
        ["num_simulations", "num_samples", "reweight", "alpha"],
        num_data=1000,
        files="calibration",
    ),
}


def _parser(name: str, question: Question) -> Parser:
    parser = Parser(prog=f"pyro-vae {name}", usage=f"pyro-vae {name} RUN [options]", description=question.description)
    add_run_options(parser)
    for option, settings in question.options.items():
        parser.add_argument(f"--{option}", **settings)
    add_options(parser, question.function, question.parameters, question.help)
    add_data_options(parser, num_data=question.num_data)
    return parser


def run(name: str, argv: Sequence[str], command: str) -> None:
    """Rebuild a run, evaluate it and write the result to its directory."""
    question = QUESTIONS[name]
    options = _parser(name, question).read(argv)
    loaded, args = open_run(options, at_most=True)
    chosen = {key: options[key] for key in (*question.options, *question.parameters, "seed", "progress")}
    publish(question.function(loaded.model, loaded.guide, *args, **chosen), loaded, question.files)
