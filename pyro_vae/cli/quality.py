"""`pyro-vae quality`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jsonargparse import Namespace
from torch import Tensor

from pyro_vae import plots
from pyro_vae.cli.console import add_data_options, add_run_options, echo, open_run, publish
from pyro_vae.cli.parser import Parser
from pyro_vae.evaluate import inception_features, sample, sample_quality, train_features
from pyro_vae.evaluate.quality.features import FeatureNet, OtherFeatures
from pyro_vae.runs import LoadedRun
from pyro_vae.support.files import remove
from pyro_vae.support.random import fork_rng

__all__ = ["run"]


def _parser() -> Parser:
    parser = Parser(
        prog="pyro-vae quality",
        usage="pyro-vae quality RUN [options]",
        description="Compare samples of a trained run with unseen data: Fréchet and kernel distance, precision, "
        "recall, density, coverage, class score, diversity, sharpness. The features are those of a small classifier, "
        "which is trained on the run's training data and stored in the run directory, or pixels, if the data have no "
        "labels. The table is also written to quality.csv and quality.json there, with a picture.",
    )
    add_run_options(parser)
    parser.add_argument("--mean", type=bool, default=True, help="The means of p(x|z), or else samples from it.")
    parser.add_argument("--neighbors", type=int, default=5, help="Neighbors for precision, recall and the like.")
    parser.add_argument("--feature_steps", type=int, default=1000, help="Training steps of the classifier.")
    parser.add_argument(
        "--inception", type=str | None, default=None, metavar="FILE", help="Weights of torchvision's Inception v3."
    )
    add_data_options(parser, num_data=4000)
    return parser


def run(name: str, argv: Sequence[str], command: str) -> None:
    """Rebuild a run and measure the quality of its samples."""
    options = _parser().read(argv)
    loaded, args = open_run(options, at_most=True)
    if "columns" in loaded.record["data"]:
        raise ValueError(
            "the data are a table, not images: pv.evaluate.table_fidelity compares rows with synthetic ones"
        )
    images = plots.as_images(args[0]).to(loaded.device)
    data_source = loaded.data(options.root)
    labels = data_source.train.y
    net = None
    if options.inception is not None:
        net = inception_features(options.inception).to(loaded.device)
    elif labels is not None and labels.dim() == 1:
        with fork_rng(options.seed):  # training data may be binarized anew
            training = plots.as_images(data_source.train.x).to(loaded.device)
        net = _features(loaded, training, labels.to(loaded.device), options)
    else:
        echo("the data have no labels to learn features from: pixels are compared")
    with fork_rng(options.seed):
        half = (len(args[0]) + 1) // 2
        template = (torch.zeros_like(args[0]), *args[1:])
        parts = zip(*(each[:half].split(500) for each in template), strict=True)
        samples = torch.cat([sample(loaded.model, *part, mean=options.mean) for part in parts])
    result = sample_quality(
        images, plots.as_images(samples).to(loaded.device), net, neighbors=options.neighbors, seed=options.seed
    )
    publish(result, loaded, "quality")


def _features(loaded: LoadedRun, x: Tensor, y: Tensor, options: Namespace) -> FeatureNet:
    """The classifier of a run: the stored one, if it is of the same data and options, else a new one."""
    file = loaded.path / "features.safetensors"
    arguments: dict[str, Any] = {
        "steps": options.feature_steps,
        "seed": 0,  # a run has the same features for all samples
        "path": file,
        "progress": options.progress,
    }
    is_stored = file.exists()
    try:
        net = train_features(x, y, **arguments)
    except OtherFeatures:
        remove(file)
        return train_features(x, y, **arguments)
    if is_stored:
        echo(f"the features are those of {file}; delete it to train them anew")
    return net
