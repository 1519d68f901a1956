"""How time and memory grow with the batch, the latent size, the particles and the data.

    python examples/benchmarks/growth.py
    python examples/benchmarks/growth.py --what particles

A step of a 784-400-zL-400-784 VAE with softplus under Adam, of `pv.SVI` eager and compiled, beside the same step in
hand-written PyTorch: the ELBO for one particle, the importance-weighted bound for more. The three take turns, in one
process. Shown are medians, the fraction of the machine's matrix-product rate that a step reaches, and by how much one
step raises the memory of the process at its peak (Linux only), weights and optimizer not counted. The last table has
the time of a step within `pv.fit` for data sets of several sizes, which should not grow.

With `--rounds 11` on a 2-core CPU, two threads (332 GFLOP/s), ms of PyTorch and of `pv.SVI` compiled, MB of each:
batch 32, 128, 512, 2048: 2.3 and 1.5, 3.6 and 2.9, 10.0 and 8.4, 36 and 31; 1 and 3, 2 and 4, 12 and 7, 37 and 22.
Latent size 2, 20, 100, 400: 3.5 and 2.8, 3.7 and 2.8, 4.3 and 3.4, 5.8 and 4.8. Particles 1, 5, 20, 50: 1.9 and 1.3,
2.8 and 2.1, 5.8 and 4.5, 17 and 10; 0 and 3, 3 and 3, 7 and 4, 17 and 8. Data 1000, 10 000, 60 000: 5.8, 3.1, 3.0 ms
a step, of which the measurement of 1000 data at the end of each epoch is a part.
"""

import argparse
import ctypes
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyro
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

import pyro_vae as pv

from bench import DATA, Networks, gemm_rate, machine, make_table, take_turns

Step = Callable[[], object]


class Pair(Networks):
    """The networks of `training.py`, with the importance-weighted bound by hand."""

    def bound(self, x: Tensor, particles: int) -> Tensor:
        if particles == 1:
            return self.loss(x)
        loc, log_scale = self.encoder(x).chunk(2, -1)
        noise = torch.randn(particles, *loc.shape)
        z = loc + log_scale.exp() * noise
        many = x.expand(particles, *x.shape)
        log_w = -F.binary_cross_entropy_with_logits(self.decoder(z), many, reduction="none").sum(-1)
        log_w = log_w + (0.5 * noise.square() - 0.5 * z.square() + log_scale).sum(-1)
        return -(log_w.logsumexp(0) - math.log(particles)).sum()

    def flops(self, batch: int, particles: int) -> int:
        """Of the matrix products: forward, and gradients by weights and inputs, of which the data need none."""
        first, *rest = (layer.weight.numel() for layer in self.encoder if isinstance(layer, nn.Linear))
        decoder = sum(layer.weight.numel() for layer in self.decoder if isinstance(layer, nn.Linear))
        return 2 * batch * (2 * first + 3 * sum(rest) + 3 * particles * decoder)


def by_hand(batch: int, latent: int, particles: int) -> Step:
    nets, x = Pair(latent), torch.rand(batch, DATA).round()
    optimizer = torch.optim.Adam(nets.parameters(), fused=True)

    def step() -> None:
        loss = nets.bound(x, particles)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def ours(batch: int, latent: int, particles: int, compiled: bool) -> Step:
    nets, x = Pair(latent), torch.rand(batch, DATA).round()
    objective = pv.elbo.make("mean_field" if particles == 1 else "iwae", num_particles=particles)
    svi = pv.SVI(nets.model, nets.guide, loss=objective, compile=compiled)

    def step() -> None:
        with pyro.validation_enabled(False):
            svi.step(x)

    return step


def peak_bytes(step: Step) -> float:
    """By how much a step raises the resident memory of this process at its peak."""
    if sys.platform != "linux":
        return math.nan
    ctypes.CDLL(None).malloc_trim(0)

    def status(name: str) -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
        return 1024 * int(line.split()[1])

    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    step()
    return max(0, status("VmHWM") - before)


def row(label: str, sizes: tuple[int, int, int], rounds: int, rate: float) -> list[str]:
    pyro.clear_param_store()
    steps = {"PyTorch": by_hand(*sizes), "eager": ours(*sizes, False), "compiled": ours(*sizes, True)}
    memory = {}
    for name, step in steps.items():
        for _ in range(3):
            step()
        memory[name] = min(peak_bytes(step) for _ in range(3))
    middle = take_turns(steps, rounds)
    batch, latent, particles = sizes
    flops = Pair(latent).flops(batch, particles)
    cells = [label]
    for name, value in middle.items():
        ratio = "" if name == "PyTorch" else f" ({value / middle['PyTorch']:.2f})"
        cells += [f"{1e3 * value:.2f}{ratio}", f"{flops / value / rate:.0%}", f"{memory[name] / 2**20:.0f}"]
    return cells


def data_row(num_data: int) -> list[str]:
    nets, x = Pair(20), torch.rand(num_data, DATA).round()
    pyro.clear_param_store()
    times: list[float] = []
    steps = max(1, num_data // 128)

    def record_time(state: object) -> None:
        times.append(time.perf_counter())

    pv.fit(
        nets.model, nets.guide, x, epochs=4, batch_size=128, seed=0, compile=True, device="cpu", callbacks=[record_time]
    )
    return [str(num_data), f"{1e3 * (times[-1] - times[-2]) / steps:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = ("batch", "latent", "particles", "data")
    parser.add_argument("--what", nargs="+", choices=kinds, default=list(kinds), help="what grows")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each competitor")
    parser.add_argument("--max_fraction", type=float, default=1.0, help="of the largest size, where to stop")
    options = parser.parse_args()
    console, rate = Console(width=130), gemm_rate()
    console.print(f"{machine()}, {rate / 1e9:.0f} GFLOP/s")
    grown = {
        "batch": [(n, (n, 20, 1)) for n in (32, 128, 512, 2048)],
        "latent": [(n, (128, n, 1)) for n in (2, 20, 100, 400)],
        "particles": [(n, (20, 20, n)) for n in (1, 5, 20, 50)],
    }
    for what, sizes in grown.items():
        if what not in options.what:
            continue
        title = {"batch": "batch", "latent": "latent size, batch 128"}.get(what, "particles, batch 20")
        names = ("PyTorch ms", "pyro_vae ms (/ PyTorch)", "compiled ms (/ PyTorch)")
        table = make_table(title, what, *(column for name in names for column in (name, "GEMM", "MB")))
        for n, size in sizes:
            if n <= options.max_fraction * sizes[-1][0]:
                table.add_row(*row(str(n), size, options.rounds, rate))
        console.print(table)
    if "data" in options.what:
        table = make_table("size of the data, batch 128, compiled, within fit", "data", "ms a step")
        for n in (1_000, 10_000, 60_000):
            if n <= options.max_fraction * 60_000:
                table.add_row(*data_row(n))
        console.print(table)


if __name__ == "__main__":
    main()
