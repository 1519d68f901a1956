"""Do two processes train faster than one with two threads? Rows a second, on a CPU or on several GPUs.

    python examples/benchmarks/processes.py
    python examples/benchmarks/processes.py --devices 4 --device cuda

`pv.fit` on a 784-400-z20-400-784 VAE: once in one process with all threads, then with `--devices` processes that share
them, each with its part of the same global batch. Both are runs of this script, in turn; an epoch's time is taken from
the second epoch on, without the first one, in which Pyro checks the data. Also shown is what summing the gradients
takes by itself.

With `--epochs 5` on a 2-core CPU, torch 2.15, thousands of data a second (other runs differ by a tenth and more):

    global batch                             128     512    2048
    one process, two threads                18.9    35.8    53.0
    one process, two threads, compiled      39.5    54.4    60.9

Two processes of one thread each, whose gradients gloo sums, come to 0.47 times the first row at batch 128 and 0.88
times at 2048. The sum takes 3.6 to 4.4 ms (3.1 to 3.8 ms in another run); the rest is the work that each process does
in full, whatever its part of the batch: the optimizer's step, writing the gradients, Pyro's own.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from typing import Any

import torch
from rich.console import Console

import pyro_vae as pv

from bench import make_table


def work(options: argparse.Namespace) -> None:
    """One run, in each of its processes; the first prints what it took."""
    ranks = pv.launch(options.work, device=options.device)
    torch.manual_seed(0)
    vae = pv.VAE(784, latent_dim=20, hidden=(400,), activation="softplus")
    x = torch.rand(options.num_data, 784).round()
    times: list[float] = []

    def record_time(state: Any) -> None:
        times.append(time.perf_counter())

    pv.fit(
        vae.model,
        vae.guide,
        x,
        epochs=options.epochs,
        batch_size=options.batch_size,
        seed=0,
        devices=options.work,
        device=options.device,
        compile=options.compile,
        callbacks=[record_time],
        preflight=False,
    )
    grads = [p.detach().clone() for p in vae.parameters()]
    started = time.perf_counter()
    for _ in range(20):
        ranks.sum_(grads)
    taken = (time.perf_counter() - started) / 20
    if ranks.is_main:
        spans = sorted(b - a for a, b in itertools.pairwise(times[1:]))
        print(json.dumps({"seconds": spans[len(spans) // 2], "sum": taken, "threads": torch.get_num_threads()}))


def measured(options: argparse.Namespace, devices: int, batch_size: int) -> dict[str, Any]:
    words = [sys.executable, __file__, "--work", str(devices), "--batch_size", str(batch_size)]
    words += ["--num_data", str(options.num_data), "--epochs", str(options.epochs), "--device", options.device]
    words += ["--compile"] if options.compile else []
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=dict(os.environ))
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=2, help="processes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[128, 512, 2048], help="global batches")
    parser.add_argument("--num_data", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--batch_size", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        work(options)
        return
    title = f"{options.num_data} data, {'compiled' if options.compile else 'eager'}, {options.device}"
    rates_of = ("1 process, data/s", "threads", f"{options.devices} processes, data/s", "threads")
    table = make_table(title, "batch", *rates_of, "ratio", "sum of gradients ms")
    for size in options.batch_sizes:
        one, several = measured(options, 1, size), measured(options, options.devices, size)
        rates = [options.num_data / found["seconds"] for found in (one, several)]
        table.add_row(
            str(size),
            f"{rates[0]:,.0f}",
            str(one["threads"]),
            f"{rates[1]:,.0f}",
            str(several["threads"]),
            f"{rates[1] / rates[0]:.2f}",
            f"{1e3 * several['sum']:.2f}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
