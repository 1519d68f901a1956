"""What does half precision save, and what does it cost? Seconds an epoch and the ELBO reached, by the type.

    python examples/benchmarks/precision.py
    python examples/benchmarks/precision.py --device cuda --compile --batch_size 512

`pv.fit` on the 784-400-z20-400-784 VAE of `training.py`, the same weights, batches and noise for each type: the
networks compute in it, all else in float32. The ELBO of the test data is that of the weights, measured in float32 on
the same draws; beside it stands the mean difference to float32, with the standard error over the data. An epoch's time
is the median without the first two, in which things are checked and compiled. "products" is the rate of a product of
two large matrices in that type: where it is below that of float32, the processor has no units for the type, and nothing
can be won.

At the defaults, on one core of a CPU without units for bfloat16 (the other busy, one thread, torch 2.15, 105 seconds):
float32 2.04 s an epoch and a test ELBO of -109.41; bfloat16 7.11 s, 3.5 times as long, as its products are 5 times
slower there (31 against 163 GFLOP/s), and -109.42, lower by 0.014 ± 0.000.
"""

import argparse
import itertools
import statistics
import time
from typing import Any

import pyro
import torch
from rich.console import Console

import pyro_vae as pv
from pyro_vae.evaluate.bounds import Bound

from bench import Networks, gemm_rate, make_table


def run(kind: Any, data: Any, options: argparse.Namespace) -> tuple[float, Bound]:
    pyro.clear_param_store()
    nets = Networks()
    ends: list[float] = []
    pv.fit(
        nets.model,
        nets.guide,
        data,
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        seed=0,
        device=options.device,
        compile=options.compile,
        precision=kind,
        callbacks=[lambda state: ends.append(time.perf_counter())],
    )
    test = data.test.head(len(data.test)).to(options.device)
    spans = [b - a for a, b in itertools.pairwise(ends)][1:]
    return statistics.median(spans), pv.bound(nets.model, nets.guide, test, num_samples=options.particles, seed=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist", choices=["mnist", "fashion_mnist"])
    parser.add_argument(
        "--types", nargs="+", default=["float32", "bfloat16"], help="the first is what others differ from"
    )
    parser.add_argument("--batch_size", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--particles", type=int, default=10, help="draws for the ELBO of each test datum")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    if options.epochs < 3:
        parser.error("--epochs must be at least 3: the first two are not timed")

    data = pv.data.load(options.data, binarize="static", flatten=True)
    title = f"{options.data}, batch {options.batch_size}, {options.epochs} epochs, {options.device}"
    table = make_table(title, "type", "s/epoch", "ratio", "products GFLOP/s", "test ELBO", "difference")
    found = {kind: run(kind, data, options) for kind in options.types}
    seconds, first = found[options.types[0]]
    for kind, (taken, bound) in found.items():
        gap = bound.elbo - first.elbo
        table.add_row(
            kind,
            f"{taken:.2f}",
            f"{taken / seconds:.2f}",
            f"{gemm_rate(dtype=getattr(torch, kind), device=options.device) / 1e9:,.0f}",
            f"{float(bound.elbo.mean()):.2f}",
            f"{float(gap.mean()):+.3f} ± {float(gap.std()) / len(gap) ** 0.5:.3f}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
