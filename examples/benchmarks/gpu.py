"""A training step and the marginal likelihood on a GPU, in one table that takes less than five minutes.

    python examples/benchmarks/gpu.py
    python examples/benchmarks/gpu.py --device cpu --batch_size 128 --rounds 5     # the CPU stands in

The network is 784-400-z20-400-784 with softplus under Adam, and all begin with the same weights: stock Pyro, PyTorch by
hand (eager, under `torch.compile`, and as a captured CUDA graph), and `pv.SVI` (eager, compiled, and both compiled and
captured), in float32, and the compiled one with its networks in bfloat16. They take turns; the table shows medians and
ratios to Pyro. A row that this device or version of PyTorch cannot run says why. At the end: samples per second of
`log_marginal`.
"""

import argparse
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

from bench import DATA, LR, Networks, gemm_rate, machine, make_table, step_flops, take_turns

Step = Callable[[], object]


def stock_pyro(x: Tensor) -> Step:
    nets = Networks().to(x.device)
    optimizer: Any = vars(pyro.optim)["Adam"]({"lr": LR})
    svi = pyro.infer.SVI(nets.model, nets.guide, optimizer, pyro.infer.TraceMeanField_ELBO())
    return lambda: svi.step(x)


def by_hand(x: Tensor, compiled: bool = False, capturable: bool = False) -> Step:
    nets = Networks().to(x.device)
    optimizer = torch.optim.Adam(nets.parameters(), LR, fused=True, capturable=capturable)
    loss_of = torch.compile(nets.loss) if compiled else nets.loss

    def step() -> None:
        optimizer.zero_grad(set_to_none=not capturable)
        loss_of(x).backward()
        optimizer.step()

    return step


def ours(x: Tensor, capturable: bool = False, **options: Any) -> Step:
    nets = Networks().to(x.device)
    svi = pv.SVI(
        nets.model,
        nets.guide,
        lambda params: torch.optim.Adam(params, LR, fused=True, capturable=capturable),
        **options,
    )

    def step() -> None:
        with pyro.validation_enabled(False):
            svi.step(x)

    step()
    step()
    if options.get("compile") and svi.compilation.reason:
        raise RuntimeError(svi.compilation.reason)
    return step


def captured(make: Callable[[], Step], device: str) -> Step:
    """A step as one CUDA graph, captured after a few ordinary steps beside the main stream."""
    if device != "cuda":
        raise RuntimeError("CUDA graphs need a GPU")
    step = make()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def ready(step: Step, device: str, count: int) -> None:
    for _ in range(count):
        step()
    if device == "cuda":
        torch.cuda.synchronize()


def steps_of(x: Tensor, device: str) -> dict[str, Callable[[], Step]]:
    return {
        "Pyro": partial(stock_pyro, x),
        "PyTorch": partial(by_hand, x),
        "PyTorch, compiled": partial(by_hand, x, compiled=True),
        "PyTorch, captured": partial(captured, partial(by_hand, x, capturable=True), device),
        "pv.SVI": partial(ours, x, compile=False),
        "pv.SVI, compiled": partial(ours, x, compile=True),
        "pv.SVI, compiled and captured": partial(captured, partial(ours, x, capturable=True, compile=True), device),
        "pv.SVI, compiled, bfloat16": partial(ours, x, compile=True, precision="bfloat16"),
    }


def training(size: int, options: argparse.Namespace, console: Console) -> None:
    device, rate = options.device, gemm_rate(device=options.device)
    x = (torch.rand(size, DATA, generator=torch.Generator().manual_seed(0)) < 0.3).float().to(device)
    steps: dict[str, Callable[[], object]] = {}
    failed: dict[str, str] = {}
    for name, make in steps_of(x, device).items():
        try:
            step = make()
            ready(step, device, 3)
            steps[name] = partial(ready, step, device, options.block)
        except Exception as error:  # a table without this row is better than none
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:90]
    seconds = take_turns(steps, options.rounds)
    table = make_table(f"batch {size}", "", "ms a step", "/ Pyro", "GEMM fraction", "")
    for name in (*seconds, *failed):
        if name in failed:
            table.add_row(name, "", "", "", failed[name])
            continue
        value = seconds[name] / options.block
        fraction = step_flops(size) / value / rate
        table.add_row(name, f"{1e3 * value:.3f}", f"{seconds[name] / seconds['Pyro']:.3f}", f"{fraction:.0%}", "")
    console.print(table)


def marginal(options: argparse.Namespace, console: Console) -> None:
    nets = Networks().to(options.device)
    x = (torch.rand(options.data, DATA) < 0.3).float().to(options.device)
    pv.log_marginal(nets.model, nets.guide, x, num_samples=10, seed=0)  # what is made once
    started = time.perf_counter()
    pv.log_marginal(nets.model, nets.guide, x, num_samples=options.samples, seed=0)
    seconds = time.perf_counter() - started
    rate = options.data * options.samples / seconds
    weights = sum(p.numel() for p in nets.decoder.parameters() if p.dim() == 2)
    share = 2 * weights * rate / gemm_rate(device=options.device)
    console.print(f"log_marginal: {rate:.3g} samples a second, {share:.0%} of the matrix-product rate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    parser.add_argument("--batch_size", type=int, nargs="+", default=[128, 512, 4096])
    parser.add_argument("--rounds", type=int, default=15, help="turns of each")
    parser.add_argument("--block", type=int, default=10, help="steps in a turn")
    parser.add_argument("--data", type=int, default=1000, help="data of log_marginal")
    parser.add_argument("--samples", type=int, default=1000, help="samples of log_marginal for each")
    options = parser.parse_args()
    console = Console(width=140)
    name = torch.cuda.get_device_name() if options.device == "cuda" else "no GPU, the CPU stands in"
    console.print(f"{machine()}, {name}")
    for size in options.batch_size:
        pyro.clear_param_store()
        training(size, options, console)
    marginal(options, console)


if __name__ == "__main__":
    main()
