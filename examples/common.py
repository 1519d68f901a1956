"""Code that several examples share: options, training and measuring, paired differences, curves, sheets of images.

Not an example itself: the examples beside it import it.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

import pyro_vae as pv

HELP = {
    "data": "a data set's name or file",
    "num_samples": "importance samples per test image",
    "num_data": "test images, at most",
}


def make_parser(doc: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with an option per keyword, of its default's type, and with `--seed` and `--pictures`, a folder.

    The example's figures get the style of the library.
    """
    pv.plots.use_style()
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {**defaults, "seed": 0, "pictures": Path("pictures")}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default, help=HELP.get(name))
    return parser


def train_and_measure(
    name: str,
    vae: Any,
    data: pv.data.Data,
    test: Tensor,
    options: argparse.Namespace,
    *,
    batch_size: int = 128,
    bound_samples: int = 10,
    **training: Any,
) -> tuple[pv.History, pv.evaluate.Bound, pv.evaluate.LogMarginal]:
    """Train a pair under a cosine schedule; print and return its ELBO and log p(x) on `test`.

    `options` has `epochs`, `seed` and `num_samples`.
    """
    history = pv.fit(
        vae.model,
        vae.guide,
        data,
        epochs=options.epochs,
        batch_size=min(batch_size, len(data.train)),
        lr=2e-3,
        lr_schedule="cosine",
        seed=options.seed,
        **training,
    )
    elbo = pv.bound(vae.model, vae.guide, test, num_samples=bound_samples, seed=0)
    marginal = pv.log_marginal(vae.model, vae.guide, test, num_samples=options.num_samples, seed=0, progress=None)
    print(f"{name}, {history[-1].seconds:.0f} seconds\n  {elbo}\n  {marginal}", flush=True)
    return history, elbo, marginal


def mean_and_error(difference: Tensor, spec: str = ".2f") -> str:
    """The mean of paired differences `(N,)` and its standard error.

    The differences are between pairs on the same data, so the difficulty of a datum cancels.
    """
    mean, error = float(difference.mean()), float(difference.std()) / math.sqrt(len(difference))
    return f"{mean:{spec}} ± {error:{spec.lstrip('+')}}"


def plot_validation(ax: Axes, histories: dict[str, pv.History], skip: float = 0.2) -> None:
    """Validation ELBOs by epoch; the axis is scaled without the first fraction `skip` of the epochs."""
    late: list[float] = []
    for i, (name, history) in enumerate(histories.items()):
        values = [epoch.monitored for epoch in history]
        ax.plot([epoch.epoch for epoch in history], values, label=name, color=f"C{i}")
        late += values[int(skip * len(values)) :]
    ax.set(xlabel="epoch", ylabel="validation ELBO (nats per datum)", ylim=(min(late) - 2, max(late) + 2))
    ax.locator_params(axis="x", integer=True)
    ax.legend()


def sheet(images: Tensor, columns: int) -> Tensor:
    """Images `(rows * columns, ...)`, gray, as one `(rows * height, columns * width)`."""
    tiles = pv.plots.as_images(images)  # (N, 1, H, W)
    height, width = tiles.shape[-2:]
    return tiles.reshape(-1, columns, height, width).permute(0, 2, 1, 3).reshape(-1, columns * width)


def choose_labeled(y: Tensor, count: int) -> Tensor:
    """Random rows of `count` data, the same number of each class."""
    order = torch.randperm(len(y))
    classes = int(y.max()) + 1
    return torch.cat([order[y[order] == c][: count // classes] for c in range(classes)])
