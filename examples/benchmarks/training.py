"""One training step of a VAE: this library, eager and compiled, against stock Pyro, PyTorch by hand, and NumPyro.

    python examples/benchmarks/training.py                    # needs `pip install -e .[bench]` for the NumPyro column
    python examples/benchmarks/training.py --batch_size 128

The network is 784-400-z20-400-784 with softplus, as in Pyro's tutorial, under Adam at rate 1e-3; all begin with the
same weights. The competitors take turns, a few steps each, in one process; the table shows medians and their ratios.
"GEMM share" is the share of the machine's matrix-product rate, measured in the same run, that the step reaches. At the
end each competitor's ELBO after the same number of steps, so that none wins by doing less.

On a 2-core CPU, two threads, torch 2.15, NumPyro 0.22 (GEMM 333 GFLOP/s), ms a step at batch 32, 128, 512:

    stock Pyro           5.45   7.20   14.44
    PyTorch, fused Adam  2.06   3.47    9.38
    PyTorch, compiled    1.98   3.35    9.24
    pyro_vae             3.12   4.58   10.88
    pyro_vae, compiled   1.45   2.74    8.05
    NumPyro, jitted      1.93   3.08    8.54
"""

import argparse
import platform
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.support.random import fork_rng
from pyro_vae.training.svi import fused_adam

DATA, HIDDEN, LATENT, LR = 784, 400, 20, 1e-3
Step = Callable[[int], object]  # takes the number of the batch, returns when the work is done


class Networks(nn.Module):
    """Encoder and decoder, the same for everybody."""

    def __init__(self, latent: int = LATENT) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.latent = latent
        self.encoder = nn.Sequential(nn.Linear(DATA, HIDDEN), nn.Softplus(), nn.Linear(HIDDEN, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, HIDDEN), nn.Softplus(), nn.Linear(HIDDEN, DATA))

    def model(self, x: Tensor) -> None:
        pyro.module(f"decoder_{id(self)}", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module(f"encoder_{id(self)}", self.encoder)
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def loss(self, x: Tensor) -> Tensor:
        loc, log_scale = self.encoder(x).chunk(2, -1)
        z = loc + log_scale.exp() * torch.randn_like(loc)
        kl = 0.5 * (loc.square() + (2 * log_scale).exp() - 2 * log_scale - 1).sum()
        return F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum") + kl


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


def numpyro_jit(batches: list[Tensor], block: int) -> tuple[Step, Callable[[Tensor], float]]:
    """`block` steps of NumPyro's SVI as one jitted loop; a call runs them all."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as nd
    from numpyro.infer import SVI, TraceMeanField_ELBO

    nets = Networks()
    start = {
        f"{side}_{i}_{kind}": jnp.array(getattr(layer, kind).detach().numpy())
        for side, net in (("encoder", nets.encoder), ("decoder", nets.decoder))
        for i, layer in ((0, net[0]), (1, net[2]))
        for kind in ("weight", "bias")
    }

    def dense(side: str, x: Any) -> Any:
        w = {k: numpyro.param(k, v) for k, v in start.items() if k.startswith(side)}
        h = jax.nn.softplus(x @ w[f"{side}_0_weight"].T + w[f"{side}_0_bias"])
        return h @ w[f"{side}_1_weight"].T + w[f"{side}_1_bias"]

    def model(x: Any) -> None:
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", nd.Normal(jnp.zeros(LATENT), 1.0).to_event(1))
            numpyro.sample("x", nd.Bernoulli(logits=dense("decoder", z)).to_event(1), obs=x)

    def guide(x: Any) -> None:
        loc, log_scale = jnp.split(dense("encoder", x), 2, -1)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("z", nd.Normal(loc, jnp.exp(log_scale)).to_event(1))

    svi = SVI(model, guide, numpyro.optim.Adam(LR), TraceMeanField_ELBO())
    data = jnp.stack([jnp.array(b.numpy()) for b in batches])
    state = svi.init(jax.random.PRNGKey(0), data[0])

    @jax.jit
    def loop(state: Any, start_at: int) -> Any:
        def body(i: int, state: Any) -> Any:
            return svi.update(state, data[(start_at + i) % len(batches)])[0]

        return jax.lax.fori_loop(0, block, body, state)

    def step(i: int) -> None:
        nonlocal state
        state = jax.block_until_ready(loop(state, i))

    def elbo(x: Tensor) -> float:
        return -float(svi.evaluate(state, jnp.array(x.numpy()))) / len(x)

    return step, elbo


def gemm_rate(size: int = 1024, dtype: torch.dtype = torch.float32, device: str = "cpu") -> float:
    """Floating-point operations a second of a large matrix product, the best of several."""
    a, b = (torch.randn(size, size).to(device, dtype) for _ in range(2))
    best = 1e9
    for _ in range(10):
        started = time.perf_counter()
        a @ b
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--rounds", type=int, default=30, help="turns of each competitor")
    parser.add_argument("--block", type=int, default=10, help="steps in a turn")
    options = parser.parse_args()
    console = Console()
    rate = gemm_rate()
    weights = sum(p.numel() for p in Networks().parameters() if p.dim() == 2)
    console.print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"matrix products at {rate / 1e9:.0f} GFLOP/s"
    )
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
            "pyro_vae": partial(ours, batches),
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
        ms = {name: 1e3 * sorted(s)[len(s) // 2] for name, s in seconds.items()}
        # forward, gradient by input and gradient by weight; the encoder's input has no gradient
        flops = 2 * size * (3 * weights - DATA * HIDDEN)
        table = Table(title=f"batch {size}")
        for column in ("", "ms a step", "/ Pyro", "/ PyTorch", "GEMM share", "first 3 steps s", f"ELBO at {done}"):
            table.add_column(column, justify="right" if column else "left")
        x = torch.cat(batches)
        for name, value in ms.items():
            if name in nets:
                with torch.no_grad(), fork_rng(0):
                    elbo = -float(nets[name].loss(x)) / len(x)
            else:
                elbo = elbo_of(x) if elbo_of else float("nan")
            share = flops / (value / 1e3) / rate
            ratios = f"{value / ms['Pyro']:.2f}", f"{value / ms['PyTorch']:.2f}"
            table.add_row(name, f"{value:.2f}", *ratios, f"{share:.0%}", f"{first[name]:.1f}", f"{elbo:.2f}")
        console.print(table)


if __name__ == "__main__":
    main()
