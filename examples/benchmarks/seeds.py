"""How much faster are many seeds at once than one run after another?

    python examples/benchmarks/seeds.py
    python examples/benchmarks/seeds.py --data digits --latent 5 --hidden 20 20 --num_data 1400

Trains one pair from each of `--seeds` seeds: by `pv.fit`, one after another; by `pv.fit_many` with the steps of all
stacked in one graph; and by `pv.fit_many` with the seeds shared among processes. Each way is a process of its own, in
alternating turns, so that a slow moment of the machine affects all of them. On busy cores the seconds of the processor
tell more than those of the clock. Memory is the largest of the process and of those that it starts, added up.

16 seeds of a 784-200-200-z50 VAE on 3000 MNIST images at batch 100, compiled (`--compile --num_data 3000`), one thread
per process, on a 2-core Intel Xeon with AVX-512 that other processes shared: ten of them (medians of two turns), and
two (one turn), which left one core in all:

                      ten others: times as fast   processor s   two others: times as fast   processor s   memory MB
    one after another                      1.00          36.7                        1.00          22.7        1428
    2 processes                            1.42          39.4                        0.87          26.5        3330

Each process compiles the graph once. By the seconds of the processor two free cores would give at most 1.7 to 1.9
times, which has not been measured. Stacking takes longer than single runs here: see "Many seeds at once" in the
documentation of speed.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from rich.console import Console

import pyro_vae as pv

from bench import machine, make_table

WAYS = ("one after another", "stacked", "processes")


def work(options: argparse.Namespace) -> None:
    """Train in one of the ways, and print what it took."""
    data = pv.data.load(options.data, binarize="dynamic", flatten=True)
    torch.manual_seed(0)  # the binary images are drawn from gray ones
    x = data.train.head(min(options.num_data, len(data.train)))

    def build(seed: int) -> pv.VAE:
        return pv.VAE(x.shape[1], latent_dim=options.latent, hidden=options.hidden)

    how: dict[str, Any] = {
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "compile": options.compile,
        "preflight": False,
    }
    seeds = range(options.seeds)
    started, before = time.perf_counter(), time.process_time()
    if options.work == "one after another":
        histories = []
        for seed in seeds:
            torch.manual_seed(seed)
            vae = build(seed)
            histories.append(pv.fit(vae.model, vae.guide, x, seed=seed, progress=False, **how))
    else:
        stacked = options.work == "stacked"
        processes = 1 if stacked else options.processes
        runs = pv.fit_many(build, x, seeds=seeds, stacked=stacked, processes=processes, **how)
        histories = runs.histories
    seconds = time.perf_counter() - started
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    memory = (own.ru_maxrss + others.ru_maxrss * options.processes * (options.work == "processes")) / 1024
    cpu = sum(usage.ru_utime + usage.ru_stime for usage in (own, others)) - before
    elbo = statistics.mean(history[-1].train_elbo for history in histories)
    print(json.dumps({"seconds": seconds, "cpu": cpu, "memory": memory, "elbo": elbo}))


def measured(way: str) -> dict[str, Any]:
    words = [sys.executable, __file__, *sys.argv[1:], "--work", way]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=dict(os.environ))
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=16, help="how many")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--num_data", type=int, default=6000)
    parser.add_argument("--latent", type=int, default=50)
    parser.add_argument("--hidden", type=int, nargs="+", default=[200, 200])
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--work", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work is not None:
        work(options)
        return
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in options.ways}
    for _ in range(options.rounds):
        for way in options.ways:
            found[way].append(measured(way))
    title = f"{options.seeds} seeds, {options.epochs} epochs, batch {options.batch_size}, {machine()}"
    table = make_table(title, "", "seconds", "times as fast", "processor seconds", "memory MB", "training ELBO")
    seconds = {way: statistics.median(each["seconds"] for each in rounds) for way, rounds in found.items()}
    for way, rounds in found.items():
        name = f"{options.processes} processes" if way == "processes" else way
        ratio = statistics.median(
            first["seconds"] / each["seconds"] for first, each in zip(found[options.ways[0]], rounds, strict=True)
        )
        cpu = statistics.median(each["cpu"] for each in rounds)
        memory = statistics.median(each["memory"] for each in rounds)
        table.add_row(
            name, f"{seconds[way]:.1f}", f"{ratio:.2f}", f"{cpu:.1f}", f"{memory:.0f}", f"{rounds[0]['elbo']:.3f}"
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
