"""What test_ranks.py runs in one process and in two: `python two_ranks.py FOLDER DEVICES [SCENARIO ...]`."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.optim
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.oracles import LinearGaussian

FOLDER, DEVICES = Path(), 1
Found = dict[str, Any]


def rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0")) if DEVICES > 1 else 0


def bits(n: int = 103, dims: int = 12, seed: int = 1) -> Tensor:
    return torch.rand(n, dims, generator=torch.Generator().manual_seed(seed)).round()


def fit(pair: Any, data: Any, **options: Any) -> pv.History:
    settings: dict[str, Any] = {"epochs": 2, "batch_size": 20, "seed": 0, "device": "cpu", "devices": DEVICES}
    settings |= {"preflight": False, "progress": False, **options}
    return pv.fit(pair.model, pair.guide, data, **settings)


def metrics(history: pv.History) -> list[dict[str, Any]]:
    return [{k: v for k, v in asdict(epoch).items() if k != "seconds"} for epoch in history]


def weights(*nets: nn.Module) -> Tensor:
    return torch.cat([t.detach().double().flatten() for net in nets for t in net.state_dict().values()])


def own_start() -> None:
    """Weights begin differently on each rank, where those of rank 0 must win."""
    torch.manual_seed(rank())


class Plain:
    """A pair without noise, of two plain functions, with a batch normalization and a label as an extra argument."""

    def __init__(self, dims: int = 12, norm: bool = False) -> None:
        pyro.clear_param_store()
        own_start()
        self.there = nn.Sequential(nn.Linear(dims, 5), nn.BatchNorm1d(5) if norm else nn.Tanh())
        self.back = nn.Linear(6, dims)
        self.seen: list[Tensor] = []

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("back", self.back)
        if y is not None and torch.is_grad_enabled():
            self.seen.append(y.clone())
        label = torch.zeros(len(x), 1) if y is None else y.float().unsqueeze(-1)
        with pyro.plate("images", len(x)):
            code = pyro.sample("code", dist.Normal(0.0, 1.0).expand([5]).to_event(1))
            rate = self.back(torch.cat([code, label], -1)).exp()
            pyro.sample("counts", dist.Poisson(rate).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("there", self.there)
        with pyro.plate("images", len(x)):
            pyro.sample("code", dist.Delta(self.there(x), event_dim=1))


class Shared:
    """A latent that all data share, in a guide without noise, and a plate that scales a batch up."""

    def __init__(self, total: int | None) -> None:
        self.total = total

    def model(self, x: Tensor) -> None:
        center = pyro.sample("center", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
        with pyro.plate("data", self.total or len(x), subsample_size=len(x) if self.total else None):
            pyro.sample("x", dist.Normal(center, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        loc = pyro.param("loc", torch.full((x.shape[1],), float(rank())))
        pyro.sample("center", dist.Delta(loc, event_dim=1))


def trained(pair: Plain, history: pv.History) -> Found:
    return {"weights": weights(pair.there, pair.back), "history": metrics(history)}


def in_memory() -> Found:
    pair, x = Plain(), bits()
    y = torch.arange(103)
    history = fit(pair, (x, y / 103), valid=(x[:31], y[:31] / 103), elbo="trace", early_stopping=5)
    return trained(pair, history) | {"seen": torch.cat(pair.seen), "best": history.best}


def few_in_the_last_batch() -> Found:
    pair = Plain()
    return trained(pair, fit(pair, bits(41), elbo="trace"))


def start_as_identity(encoder: Any) -> None:
    nn.init.eye_(encoder.final.weight)
    nn.init.zeros_(encoder.final.bias)


def averages() -> Found:
    """Running averages of data that differ between the processes' shares: a codebook's, and of batch normalization."""
    torch.manual_seed(0)
    x = torch.randn(40, 4) + torch.tensor([4.0] * 20 + [-4.0] * 20).unsqueeze(1)
    vae = pv.models.VQVAE(4, codes=4, embedding_dim=4, hidden=(), positions=1, likelihood="normal", decay=0.9, revive=0)
    start_as_identity(vae.encoder)
    fit(vae, x, elbo="vq", epochs=60, batch_size=40, lr=1e-6)
    codebook: Any = vae.posterior.codebook
    found = {"uses": codebook.uses, "sums": codebook.sums, "vectors": codebook.vectors}
    counts = (x + 5).clamp_min(0).round()
    for name, momentum in (("norm", 0.3), ("cumulative", None)):
        pair = Plain(4)
        pair.there = nn.Sequential(nn.BatchNorm1d(4, momentum=momentum), nn.Linear(4, 5))
        fit(pair, counts, elbo="trace", batch_size=40, epochs=3, lr=1e-6)
        found |= {f"{name}.{key}": value for key, value in pair.there[0].state_dict().items()}
    return {name: value.detach().clone() for name, value in found.items()}


def revived() -> Found:
    """The first step moves every code to a datum: both shares have some."""
    torch.manual_seed(0)
    x = torch.tensor([4.0] * 20 + [-4.0] * 20).unsqueeze(1).expand(40, 4).clone()
    vae = pv.models.VQVAE(4, codes=6, embedding_dim=4, hidden=(), positions=1, likelihood="normal")
    start_as_identity(vae.encoder)
    fit(vae, x, elbo="vq", epochs=3, batch_size=40, lr=1e-6)
    return {"vectors": vae.posterior.codebook.vectors.clone()}


def accumulated() -> Found:
    pair = Plain()
    return trained(pair, fit(pair, bits(), elbo="trace", accumulate=3, clip_norm=0.5))


def averaged() -> Found:
    """The average of the weights, of the steps with a small gradient alone."""
    pair = Plain()
    history = fit(pair, bits(), elbo="trace", lr=0.03, ema=0.8, skip_norm=3.9)
    return trained(pair, history) | {"skipped": history.skipped}


def pyro_optimizer() -> Found:
    pair, svi_options = Plain(), {"lr": 1e-2}
    optimizer = pyro.optim.Adam(svi_options)  # type: ignore[attr-defined]
    svi = pv.SVI(pair.model, pair.guide, optimizer, pv.elbo.make("trace"))
    ranks = pv.launch(DEVICES, device="cpu")
    x = bits(40)
    svi.join(ranks, (x[:8],))
    first, last, share = ranks.rows(40)
    for _ in range(3):
        loss = svi.reduce(svi.gradients((x[first:last],), scale=share / (last - first)) * share / (last - first))
        svi.update()
    return {"weights": weights(pair.there, pair.back), "history": [{"loss": float(loss)}]}


def shared_latent() -> Found:
    pyro.clear_param_store()
    pair = Shared(103)
    history = fit(pair, torch.randn(103, 3, generator=torch.Generator().manual_seed(0)), elbo="trace", lr=0.05)
    return {"weights": pyro.param("loc").detach(), "history": metrics(history)}


def batch_norm() -> Found:
    pair = Plain(norm=True)
    return trained(pair, fit(pair, bits(104), elbo="trace"))


def loader() -> Found:
    pair = Plain()
    rows = TensorDataset(bits(), torch.arange(103) / 103)
    shuffled, in_order = DataLoader(rows, batch_size=10, shuffle=True), DataLoader(rows, batch_size=10)
    history = fit(pair, shuffled, valid=in_order, elbo="trace", epochs=1)
    return trained(pair, history) | {"seen": torch.cat(pair.seen)}


def noisy() -> Found:
    own_start()
    vae, before = pv.VAE(12, 3, hidden=(8,)), torch.get_rng_state()
    noise: list[Tensor] = []
    history = fit(vae, bits(), seed=None, callbacks=[])
    noise.append(torch.rand(3))
    torch.set_rng_state(before)
    return {"weights": weights(vae), "history": metrics(history), "noise": noise[0]}


def phases() -> Found:
    own_start()
    pyro.clear_param_store()
    vae = pv.VAE(12, 3, hidden=(8,))
    objective = pv.elbo.AAE()
    history = fit(vae, bits(), elbo=objective)
    return {"weights": weights(vae, *objective.critics.values()), "history": metrics(history)}


def early_end() -> Found:
    pair, called = Plain(), []

    def callback(state: Any) -> bool:
        called.append(state.epoch.epoch)
        return len(called) == 2

    history = fit(pair, bits(), elbo="trace", epochs=9, callbacks=[callback])
    return trained(pair, history) | {"called": called, "stopped": history.stopped}


def resumed() -> Found:
    def run(epochs: int, folder: str, *, resume: bool = False) -> tuple[Tensor, pv.History]:
        pyro.clear_param_store()
        own_start()
        vae = pv.VAE(12, 3, hidden=(8,))
        every = pv.Checkpoints(FOLDER / folder, steps=10)
        history = fit(vae, bits(), valid=bits(30, seed=2), epochs=epochs, checkpoints=every, resume=resume)
        return weights(vae), history

    straight = run(5, "straight")
    run(2, "halves")
    again = run(5, "halves", resume=True)
    found = {"weights": again[0], "straight": straight[0], "history": metrics(again[1])}
    found["straight_history"] = metrics(straight[1])
    if DEVICES == 2:
        try:
            pyro.clear_param_store()
            vae = pv.VAE(12, 3, hidden=(8,))
            fit(vae, bits(), devices=1, checkpoints=FOLDER / f"halves{rank()}", epochs=1)
            fit(vae, bits(), epochs=3, valid=bits(30, seed=2), checkpoints=FOLDER / "halves0", resume=True)
        except ValueError as error:
            found["refused"] = str(error)
    return found


def stopped_by_signal() -> Found:
    pair = Plain()

    def callback(state: Any) -> None:  # on rank 0 alone
        if state.epoch.epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    history = fit(pair, bits(), elbo="trace", epochs=50, checkpoints=FOLDER / "signal", callbacks=[callback])
    return trained(pair, history) | {"stopped": history.stopped, "epochs": len(history)}


class Explodes(Plain):
    """NaN for one datum, which only one rank has in a batch, at its third visit."""

    visits = 0

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        assert y is not None
        if torch.is_grad_enabled() and bool((y == 7).any()):
            self.visits += 1
            if self.visits == 3:
                x = x * math.nan
        super().model(x, y)


def exploding() -> Found:
    found: Found = {}
    for rollbacks in (0, 1):
        pair, y = Explodes(), torch.arange(103.0)
        try:
            with pyro.validation_enabled(False):
                history = fit(pair, (bits(), y), elbo="trace", epochs=5, rollbacks=rollbacks, lr=1e-4)
            found |= trained(pair, history)
        except pv.NonFiniteLoss as error:
            found["error"], found["step"] = str(error), error.step
            found["after_error"] = weights(pair.there, pair.back)
    return found


class Batches:
    """Re-iterable, but no loader of torch."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(bits(40).split(10))


class PerDatum:
    """A pair with parameters of its own for each datum."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        loc = pyro.param("locs", torch.zeros(10))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))


def refusals() -> Found:
    found: Found = {}

    def attempt(name: str, run: Callable[[], Any]) -> None:
        pyro.clear_param_store()
        try:
            run()
        except (ValueError, TypeError) as error:
            found[name] = f"{type(error).__name__}: {error}"

    attempt("loader", lambda: fit(Plain(), Batches(), elbo="trace"))
    attempt("data", lambda: fit(Plain(), bits(seed=rank()), elbo="trace"))
    attempt("shared", lambda: fit(Shared(None), torch.zeros(103, 3), elbo="trace"))
    attempt("per_datum", lambda: fit(PerDatum(), torch.zeros(10), batch_size=10, preflight=True))
    attempt("devices", lambda: fit(Plain(), bits(), devices=3))
    attempt("strategy", lambda: fit(Plain(), bits(), strategy="fsdp"))
    attempt("few", lambda: pv.log_marginal(PerDatum().model, None, bits(1), method="prior", ranks=pv.launch(DEVICES)))
    return found


def marginal() -> Found:
    torch.manual_seed(0)
    pair = LinearGaussian()
    x = pair.simulate(31)
    ranks = pv.launch(DEVICES, device="cpu")
    found: Found = {"exact": pair.log_prob(x).detach()}
    result = pv.log_marginal(pair.model, pair.wide_guide, x, num_samples=200, seed=0, ranks=ranks)
    found |= {"log_prob": result.log_prob, "error": result.std_error, "khat": result.khat, "bounds": result.bounds}
    chains = pv.log_marginal(pair.model, None, x, method=pv.AIS(num_temperatures=30, num_chains=4), ranks=ranks)
    summary = pv.summarize(pair.model, pair.wide_guide, x, num_samples=200, ranks=ranks, seed=0)
    return found | {"ais": chains.log_prob, "ais_error": chains.std_error, "summary": summary.log_prob}


SCENARIOS: dict[str, Callable[[], Found]] = {
    f.__name__: f
    for f in (
        *(in_memory, few_in_the_last_batch, accumulated, pyro_optimizer, shared_latent, batch_norm, loader, noisy),
        *(averaged, averages, revived, phases, early_end, resumed, stopped_by_signal, exploding, refusals, marginal),
    )
}


def main() -> None:
    global FOLDER, DEVICES
    FOLDER, DEVICES = Path(sys.argv[1]), int(sys.argv[2])
    for name in sys.argv[3:] or SCENARIOS:
        pyro.clear_param_store()
        found = SCENARIOS[name]()
        torch.save(found, FOLDER / f"{name}-{rank()}.pt")
    print(json.dumps({"rank": rank(), "of": DEVICES}))


if __name__ == "__main__":
    main()
