"""log p(x) by importance sampling and by annealing: seconds, peak memory, and fraction of the matrix-product rate.

    python examples/benchmarks/likelihood.py
    python examples/benchmarks/likelihood.py --num_data 50 --num_temperatures 20     # a short run

Importance sampling runs on 784-400-z20-400-784, 5000 samples for each datum; annealing on 784-200-200-z50-200-200-784,
16 chains, 500 temperatures, 10 leapfrog steps, for a tenth of the data. The pixels are noise and the networks
untrained: the work is the same. The fraction counts the decoder's multiplications only, forward for importance
sampling, forward and backward to the latents for annealing (without its pilot run), against the same products by
themselves, in float32 at the same sizes.

Importance sampling runs twice: this many samples are drawn by compiled code, which the first call of a process makes.

On a 2-core CPU, two threads: importance sampling of 1000 data takes 17 to 18 seconds, at 59 to 67 % of the rate of its
matrix products (320 GFLOP/s); in the first call of a process 21 seconds, 48 %; on a machine where this graph has never
been compiled 34 seconds, 31 %. Peak memory of the process 963 MiB. Annealing of 100 data takes 73 seconds, at 28 %.
"""

import argparse
import resource
import time

import torch
from rich.console import Console

import pyro_vae as pv

from bench import machine, make_table


def gemm_rate(sizes: list[tuple[int, int]], rows: int) -> float:
    """Multiply-adds per second of a decoder's products on `rows` rows, at the best of 50."""
    inputs = [(torch.randn(rows, a), torch.randn(a, b)) for a, b in sizes]
    best = float("inf")
    for _ in range(50):
        started = time.perf_counter()
        for x, weight in inputs:
            x @ weight
        best = min(best, time.perf_counter() - started)
    return rows * sum(a * b for a, b in sizes) / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_data", type=int, default=1000)
    parser.add_argument("--num_samples", type=int, default=5000)
    parser.add_argument("--num_temperatures", type=int, default=500)
    options = parser.parse_args()
    torch.manual_seed(0)
    x = (torch.rand(options.num_data, 784) < 0.2).float()
    tenth = x[: max(1, len(x) // 10)]
    wide = pv.VAE(784, 20, hidden=(400,))
    deep = pv.VAE(784, 50, hidden=(200, 200))
    table = make_table(machine(), "", "data", "seconds", "GFLOP/s", "GEMM GFLOP/s", "fraction", "peak MiB")
    jobs = [
        ("importance, compiling", wide, x, [(20, 400), (400, 784)], 2048, options.num_samples),
        ("importance, again", wide, x, [(20, 400), (400, 784)], 2048, options.num_samples),
        ("ais", deep, tenth, [(50, 200), (200, 200), (200, 784)], 320, 16 * 2 * 10 * options.num_temperatures),
    ]
    for method, vae, data, sizes, rows, passes in jobs:
        rate = gemm_rate(sizes, rows)
        started = time.perf_counter()
        pv.log_marginal(
            vae.model,
            vae.guide,
            data,
            method=pv.AIS(num_temperatures=options.num_temperatures) if method == "ais" else "importance",
            num_samples=None if method == "ais" else options.num_samples,
            seed=0,
            progress=None,
        )
        seconds = time.perf_counter() - started
        done = len(data) * passes * sum(a * b for a, b in sizes) / seconds
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # of the whole process so far
        table.add_row(
            method,
            str(len(data)),
            f"{seconds:.1f}",
            f"{2e-9 * done:.0f}",
            f"{2e-9 * rate:.0f}",
            f"{100 * done / rate:.0f} %",
            f"{peak:.0f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
