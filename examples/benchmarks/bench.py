"""What the benchmarks share: a network, its step in NumPyro, turns, medians, and what the machine can do.

Not a benchmark itself: the scripts beside it import it.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

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


def step_flops(batch: int) -> int:
    """Operations of a step's matrix products: forward, and gradients by weights and inputs, of which data need none."""
    weights = sum(p.numel() for p in Networks().parameters() if p.dim() == 2)
    return 2 * batch * (3 * weights - DATA * HIDDEN)


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


def machine() -> str:
    """A line that describes the machine."""
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def take_turns(steps: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each step, taken in turn, so that a slow moment of the machine affects all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median_high(s) for name, s in seconds.items()}


def make_table(title: str, *columns: str) -> Table:
    """A table of numbers; a column without a name has labels."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    return table
