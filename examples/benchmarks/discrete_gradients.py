"""Gradients for 200 bits: the protocol of the DisARM paper, which later papers share, on binarized images.

    python examples/benchmarks/discrete_gradients.py                  # small: 5000 steps, three seeds, MNIST
    python examples/benchmarks/discrete_gradients.py --published      # a million steps, five seeds, both data sets

Dong, Mnih and Tucker 2020 (arXiv 2006.10680): a VAE with 200 Bernoulli latents and a learned prior; networks that are
linear, or have two layers of 200 units with leaky ReLU of slope 0.3; images binarized anew in every epoch; batch 50;
Adam. The rate of the published length is theirs, 1e-4; the small size has 1e-3, as so few steps go nowhere with the
other. They train the prior by SGD at 1e-2, here it shares Adam. Every estimator runs the model twice a step: one
antithetic pair, two draws as each other's baseline, or one draw and its relaxation. Measured are the ELBO on training
images, the bound of 100 draws on test images, and the variance of the guide's gradient at the weights that the first
estimator has trained, for all of them alike; means over seeds, differences paired by seed.

RODEO (Titsias and Shi 2022), of which this is the protocol, too, is not in this library: see "Which estimator".

Measured with `--steps 1500 --seeds 2 --num_data 500 --repeats 40` on MNIST (2-core CPU, shared with other work, one
thread; seeds 0 and 1; about 30 minutes under that load): train ELBO, its difference to the first paired by seed, the
test bound of 100 draws, and the variance of the guide's gradient, with standard errors over the two seeds.

                                  train ELBO           paired     test, 100 draws    variance
    linear     REINFORCE-LOO    -152.87 ± 0.05                    -143.51 ± 0.13        3860
               DisARM           -151.44 ± 0.20    1.43 ± 0.16     -142.30 ± 0.08        2580
               REBAR            -154.46 ± 0.02   -1.59 ± 0.02     -145.34 ± 0.09        3590
    nonlinear  REINFORCE-LOO    -157.75 ± 0.57                    -147.89 ± 1.02        3260
               DisARM           -157.48 ± 0.22    0.27 ± 0.79     -147.15 ± 0.57        2050
               REBAR            -161.12 ± 0.77   -3.36 ± 0.20     -150.40 ± 0.91        2370

DisARM has the least variance for both networks. Linear, it is ahead of REINFORCE-LOO, the order of the paper;
nonlinear, two seeds do not decide. REBAR's temperature and factor are the defaults, not learned, and its model has the
gradient of one draw where that of the others has two. These runs are 1500 steps of a published million, at ten times
the rate: they say how training begins, not how it ends. Longer and published lengths have not been run.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import pyro_vae as pv
from pyro_vae.elbo import REBAR, DisARM, VarGrad
from pyro_vae.models import DiscreteVAE

BITS, HIDDEN, SLOPE = 200, 200, 0.3
ESTIMATORS: dict[str, Any] = {"REINFORCE-LOO": lambda: VarGrad(2), "DisARM": DisARM, "REBAR": REBAR}


def network(size: int, out: int, depth: int) -> nn.Module:
    """Linear for depth 0, else so many hidden layers."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(size, HIDDEN), nn.LeakyReLU(SLOPE)]
        size = HIDDEN
    return nn.Sequential(*layers, nn.Linear(size, out))


def build(data: pv.data.Data, nets: str, seed: int) -> DiscreteVAE:
    """The same weights for every estimator of a seed."""
    torch.manual_seed(seed)
    depth = {"linear": 0, "nonlinear": 2}[nets]
    pixels = data.shape[0]
    encoder, decoder = network(pixels, BITS, depth), network(BITS, pixels, depth)
    return DiscreteVAE(data.shape, BITS, "bernoulli", encoder=encoder, decoder=decoder)


def variances(vae: DiscreteVAE, x: torch.Tensor, options: argparse.Namespace, seed: int) -> dict[str, float]:
    """The variance of each estimator's gradient at these weights, of the mean over a batch."""
    estimators = {name: ESTIMATORS[name]() for name in options.estimators}
    comparison = pv.compare_elbos(
        vae.model, vae.guide, x, estimators=estimators, repeats=options.repeats, num_samples=10, seed=seed
    )
    return {row.estimator: row.guide_variance for row in comparison.rows}


def run(data: pv.data.Data, nets: str, seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each estimator."""
    rows, train, test = [], data.train.head(options.num_data), data.test.head(options.num_data)
    spread: dict[str, float] = {}
    for name in options.estimators:
        vae, started = build(data, nets, seed), time.perf_counter()
        pv.fit(
            vae.model,
            vae.guide,
            data,
            elbo=ESTIMATORS[name](),
            steps=options.steps,
            batch_size=options.batch_size,
            lr=options.lr,
            seed=seed,
            preflight=False,
        )
        seconds = time.perf_counter() - started
        spread = spread or variances(vae, data.train.head(options.batch_size), options, seed)
        bound = pv.log_marginal(vae.model, vae.guide, test, num_samples=100, seed=seed).mean
        elbo = pv.bound(vae.model, vae.guide, train, num_samples=10, seed=seed).mean
        rows.append({"estimator": name, "elbo": elbo, "bound": bound, "variance": spread[name], "seconds": seconds})
        print(f"{nets}, seed {seed}, {name}: train ELBO {elbo:.2f}, 100 draws {bound:.2f}, {seconds:.0f} s", flush=True)
    return rows


def summary(values: list[float]) -> str:
    """Mean and standard error."""
    if len(values) < 2:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values) / math.sqrt(len(values)):.2f}"


def add_rows(table: Table, where: str, runs: list[list[dict[str, Any]]], estimators: list[str]) -> None:
    """Means over seeds, and differences to the first estimator paired by seed."""
    for i, name in enumerate(estimators):
        own, first = [rows[i] for rows in runs], [rows[0] for rows in runs]
        ahead = [a["elbo"] - b["elbo"] for a, b in zip(own, first, strict=True)]
        elbo, bound = (summary([row[key] for row in own]) for key in ("elbo", "bound"))
        variance = f"{statistics.mean(row['variance'] for row in own):.3g}"
        seconds = f"{statistics.mean(row['seconds'] for row in own):.0f}"
        table.add_row(where, name, elbo, summary(ahead) if i else "", bound, variance, seconds)


def options_of(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["mnist"], help="data sets by name, such as fashion_mnist")
    parser.add_argument("--nets", nargs="+", default=["linear", "nonlinear"], choices=["linear", "nonlinear"])
    parser.add_argument("--estimators", nargs="+", default=list(ESTIMATORS), choices=list(ESTIMATORS))
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch_size", type=int, default=50)
    parser.add_argument("--num_data", type=int, default=2000, help="images of each split to measure on, at most")
    parser.add_argument("--repeats", type=int, default=100, help="gradients for a variance")
    parser.add_argument("--published", action="store_true", help="the published length, on MNIST and Fashion-MNIST")
    options = parser.parse_args(arguments)
    if options.published:
        options.data, options.steps, options.seeds, options.lr = ["mnist", "fashion_mnist"], 1_000_000, 5, 1e-4
        options.num_data = 10_000
    return options


def main() -> None:
    options = options_of()
    table = Table(title=f"{options.steps} steps, {options.seeds} seeds; nats per datum", title_justify="left")
    for column in ("data", "estimator", "train ELBO", "paired", "test, 100 draws", "variance", "seconds"):
        table.add_column(column, justify="left" if column in ("data", "estimator") else "right")
    for name in options.data:
        data = pv.data.load(name, binarize="dynamic", flatten=True, valid=0)
        for nets in options.nets:
            runs = [run(data, nets, seed, options) for seed in range(options.seeds)]
            add_rows(table, f"{name}, {nets}", runs, options.estimators)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
