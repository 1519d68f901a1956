"""One training step of a VAE: this library, eager and compiled, against stock Pyro, PyTorch by hand, and NumPyro.

    python examples/benchmarks/training.py                    # needs `pip install -e .[bench]` for the NumPyro column
    python examples/benchmarks/training.py --batch_size 128

The network is 784-400-z20-400-784 with softplus, as in Pyro's tutorial, under Adam at rate 1e-3; all begin with the
same weights. The competitors take turns, a few steps each, in one process; the table shows medians and their ratios.
"GEMM fraction" is the fraction of the machine's matrix-product rate, measured in the same run, that the step reaches.
At the end each competitor's ELBO after the same number of steps, so that none wins by doing less.

On a 2-core CPU, two threads, torch 2.15, NumPyro 0.22 (GEMM 333 GFLOP/s), ms a step at batch 32, 128, 512:

    stock Pyro           5.45   7.20   14.44
    PyTorch, fused Adam  2.06   3.47    9.38
    PyTorch, compiled    1.98   3.35    9.24
    pyro_vae             3.12   4.58   10.88
    pyro_vae, compiled   1.45   2.74    8.05
    NumPyro, jitted      1.93   3.08    8.54
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.infer
import pyro.optim
import torch
from rich.console import Console
from torch import Tensor

import pyro_vae as pv
from pyro_vae.support.random import fork_rng
from pyro_vae.training.svi import fused_adam

from bench import DATA, LR, Networks, Step, gemm_rate, machine, make_table, numpyro_jit, step_flops


def stock_pyro(batches: list[Tensor]) -> tuple[Step, Networks]:
    nets = Networks()
    optimizer = pyro.optim.Adam({"lr": LR})  # type: ignore[attr-defined]
    svi = pyro.infer.SVI(nets.model, nets.guide, optimizer, pyro.infer.TraceMeanField_ELBO())
    return lambda i: svi.step(batches[i]), nets


def by_hand(batches: list[Tensor], compiled: bool = False) -> tuple[Step, Networks]:
    nets = Networks()
    optimizer = torch.optim.Adam(nets.parameters(), LR, fused=True)
    loss_of = torch.compile(nets.loss) if compiled else nets.loss

    def step(i: int) -> None:
        loss = loss_of(batches[i])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step, nets


def ours(batches: list[Tensor], **options: Any) -> tuple[Step, Networks]:
    nets = Networks()
    svi = pv.SVI(nets.model, nets.guide, fused_adam(LR), **options)

    def step(i: int) -> None:
        with pyro.validation_enabled(False):
            svi.step(batches[i])

    return step, nets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--rounds", type=int, default=30, help="turns of each competitor")
    parser.add_argument("--block", type=int, default=10, help="steps in a turn")
    options = parser.parse_args()
    console = Console()
    rate = gemm_rate()
    console.print(f"{machine()}, matrix products at {rate / 1e9:.0f} GFLOP/s")
    for size in options.batch_size:
        generator = torch.Generator().manual_seed(0)
        probabilities = torch.rand(DATA, generator=generator) ** 3
        batches = [(torch.rand(size, DATA, generator=generator) < probabilities).float() for _ in range(16)]
        steps: dict[str, Step] = {}
        nets: dict[str, Networks] = {}
        pyro.clear_param_store()  # the networks of the last size are gone, their names may come again
        makers: dict[str, Callable[[], tuple[Step, Networks]]] = {
            "Pyro": partial(stock_pyro, batches),
            "PyTorch": partial(by_hand, batches),
            "PyTorch compiled": partial(by_hand, batches, compiled=True),
            "pyro_vae": partial(ours, batches, compile=False),
            "pyro_vae compiled": partial(ours, batches, compile=True),
        }
        first: dict[str, float] = {}
        for name, make in makers.items():
            steps[name], nets[name] = make()
            started = time.perf_counter()
            for i in range(3):
                steps[name](i)
            first[name] = time.perf_counter() - started
        elbo_of = None
        try:
            started = time.perf_counter()
            block_step, elbo_of = numpyro_jit(batches, options.block)
            block_step(0)
            first["NumPyro jitted"] = time.perf_counter() - started
        except ImportError:
            console.print("NumPyro is not installed: no such row")
        seconds: dict[str, list[float]] = {name: [] for name in first}
        done = 3
        for _ in range(options.rounds):
            for name in steps:
                started = time.perf_counter()
                for i in range(options.block):
                    steps[name]((done + i) % len(batches))
                seconds[name].append((time.perf_counter() - started) / options.block)
            if elbo_of is not None:
                started = time.perf_counter()
                block_step(done)
                seconds["NumPyro jitted"].append((time.perf_counter() - started) / options.block)
            done += options.block
        ms = {name: 1e3 * statistics.median_high(s) for name, s in seconds.items()}
        columns = ("ms a step", "/ Pyro", "/ PyTorch", "GEMM fraction", "first 3 steps s", f"ELBO at {done}")
        table = make_table(f"batch {size}", "", *columns)
        x = torch.cat(batches)
        for name, value in ms.items():
            if name in nets:
                with torch.no_grad(), fork_rng(0):
                    elbo = -float(nets[name].loss(x)) / len(x)
            else:
                elbo = elbo_of(x) if elbo_of else float("nan")
            fraction = step_flops(size) / (value / 1e3) / rate
            ratios = f"{value / ms['Pyro']:.2f}", f"{value / ms['PyTorch']:.2f}"
            table.add_row(name, f"{value:.2f}", *ratios, f"{fraction:.0%}", f"{first[name]:.1f}", f"{elbo:.2f}")
        console.print(table)


if __name__ == "__main__":
    main()
