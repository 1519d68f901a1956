"""Scripts of Pyro with one import changed, against themselves: time per step and losses.

    python examples/benchmarks/drop_in.py
    python examples/benchmarks/drop_in.py --scripts vae --batch_size 128 --rounds 30

Each script is written for `pyro.infer.SVI`, with Pyro's own objectives and optimizers, and run with the two classes
named `SVI`: Pyro's, and this library's, eager and compiled. All begin with the same weights and the same seed. "worst
loss" is the largest relative difference from Pyro's losses in the first steps. Then they take turns, a few steps each,
in one process; the table shows medians and the ratio to Pyro. By default `pv.SVI` runs 1000 steps eagerly before it
compiles; here `compile` says at once what is measured.

- vae: 784-400-z50-400-784, softplus, `Trace_ELBO`, `Adam`.
- semi_supervised: ten classes enumerated in the guide, hidden layers of 500, `TraceEnum_ELBO`; one batch in four has
  classes. A second `SVI`, with `Trace_ELBO`, trains the classifier and shares the optimizer, `Adam`.
- markov: a deep Markov model of 88 notes over ten time steps, unrolled, with a GRU, `Trace_ELBO`, `ClippedAdam`. Its
  3000 operations take more than eight minutes to compile on a busy machine, so that it is done only with `--long`.

On a 2-core AMD EPYC with AVX-512, one thread, its cores shared with five other jobs, at batch 128, as fractions of
Pyro's time: vae 0.80 eager and 0.54 compiled, semi_supervised 0.95 and 0.72, markov 1.08; losses differ by 2e-7.
"""

import argparse
import itertools
import time
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import torch
from rich.console import Console
from torch import Tensor, nn

import pyro_vae as pv

from bench import machine, make_table, take_turns

Script = Callable[..., tuple[Callable[[int], float], list[Any]]]
OPTIM: Any = pyro.optim


def mlp(*sizes: int) -> nn.Sequential:
    layers = [layer for a, b in itertools.pairwise(sizes[:-1]) for layer in (nn.Linear(a, b), nn.Softplus())]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


def images(size: int, generator: torch.Generator) -> list[Tensor]:
    probabilities = torch.rand(784, generator=generator) ** 3
    return [(torch.rand(size, 784, generator=generator) < probabilities).float() for _ in range(8)]


def vae(svi_class: Any, size: int, name: str, **options: Any) -> tuple[Callable[[int], float], list[Any]]:
    encoder, decoder = mlp(784, 400, 100), mlp(50, 400, 784)

    def model(x: Tensor) -> None:
        pyro.module(f"decoder_{name}", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 50), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module(f"encoder_{name}", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    batches = images(size, torch.Generator().manual_seed(0))
    svi = svi_class(model, guide, OPTIM.Adam({"lr": 1e-3}), loss=pyro.infer.Trace_ELBO(), **options)
    return lambda i: float(svi.step(batches[i % 8])), [svi]


def joined(*parts: Tensor) -> Tensor:
    """The last dimensions side by side, the others broadcast."""
    shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*shape, part.shape[-1]) for part in parts], -1)


def semi_supervised(svi_class: Any, size: int, name: str, **options: Any) -> tuple[Callable[[int], float], list[Any]]:
    nets = nn.ModuleDict({"classifier": mlp(784, 500, 10), "encoder": mlp(794, 500, 100), "decoder": mlp(60, 500, 784)})

    def model(x: Tensor, y: Tensor | None = None) -> None:
        pyro.module(f"nets_{name}", nets)
        with pyro.plate("data", len(x)):
            label = pyro.sample("y", dist.OneHotCategorical(x.new_ones(10) / 10), obs=y)
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 50), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=nets["decoder"](joined(label, z))).to_event(1), obs=x)

    @pyro.infer.config_enumerate
    def guide(x: Tensor, y: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=nets["classifier"](x)))
            loc, log_scale = nets["encoder"](joined(x, y)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def classify(x: Tensor, y: Tensor) -> None:
        pyro.module(f"nets_{name}", nets)
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=46.0):
            pyro.sample("y", dist.OneHotCategorical(logits=nets["classifier"](x)), obs=y)

    generator = torch.Generator().manual_seed(0)
    batches = images(size, generator)
    labels = torch.eye(10)[torch.randint(10, (8, size), generator=generator)]
    optimizer = OPTIM.Adam({"lr": 4e-4})
    enum = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    basic = svi_class(model, guide, optimizer, loss=enum, **options)
    auxiliary = svi_class(classify, lambda x, y: None, optimizer, loss=pyro.infer.Trace_ELBO(), **options)

    def step(i: int) -> float:
        x, y = batches[i % 8], labels[i % 8]
        if i % 4:
            return float(basic.step(x))
        return float(basic.step(x, y)) + float(auxiliary.step(x, y))

    return step, [basic, auxiliary]


def markov(svi_class: Any, size: int, name: str, **options: Any) -> tuple[Callable[[int], float], list[Any]]:
    length = 10
    nets = nn.ModuleDict({"transition": mlp(40, 100, 80), "emission": mlp(40, 100, 88), "combiner": mlp(140, 100, 80)})
    reader = nn.GRU(88, 100, batch_first=True)

    def model(x: Tensor, mask: Tensor) -> None:
        pyro.module(f"nets_{name}", nets)
        z = x.new_zeros(len(x), 40)
        with pyro.plate("data", len(x)):
            for t in range(length):
                loc, log_scale = nets["transition"](z).chunk(2, -1)
                z = pyro.sample(f"z{t}", dist.Normal(loc, log_scale.exp()).mask(mask[:, t, None]).to_event(1))
                emission = dist.Bernoulli(logits=nets["emission"](z)).mask(mask[:, t, None]).to_event(1)
                pyro.sample(f"x{t}", emission, obs=x[:, t])

    def guide(x: Tensor, mask: Tensor) -> None:
        pyro.module(f"nets_{name}", nets)
        pyro.module(f"reader_{name}", reader)
        states, z = reader(x.flip(1))[0].flip(1), x.new_zeros(len(x), 40)
        with pyro.plate("data", len(x)):
            for t in range(length):
                loc, log_scale = nets["combiner"](joined(states[:, t], z)).chunk(2, -1)
                z = pyro.sample(f"z{t}", dist.Normal(loc, log_scale.exp()).mask(mask[:, t, None]).to_event(1))

    generator = torch.Generator().manual_seed(0)
    batches = [(torch.rand(size, length, 88, generator=generator) < 0.1).float() for _ in range(8)]
    mask = torch.arange(length) < torch.randint(3, length + 1, (size, 1), generator=generator)
    optimizer = OPTIM.ClippedAdam({"lr": 3e-4, "clip_norm": 10.0, "lrd": 0.99996, "weight_decay": 0.1})
    svi = svi_class(model, guide, optimizer, loss=pyro.infer.Trace_ELBO(), **options)
    return lambda i: float(svi.step(batches[i % 8], mask)), [svi]


SCRIPTS: dict[str, Script] = {"vae": vae, "semi_supervised": semi_supervised, "markov": markov}
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "pyro.infer.SVI": (pyro.infer.SVI, {}),
    "pv.SVI, eager": (pv.SVI, {"compile": False}),
    "pv.SVI, compiled": (pv.SVI, {"compile": True}),
}


def measure(name: str, size: int, options: argparse.Namespace, console: Console) -> None:
    steps: dict[str, Callable[[int], float]] = {}
    curves, first, notes = {}, {}, {}
    kinds = [k for k, (_, more) in KINDS.items() if name != "markov" or options.long or not more.get("compile")]
    for kind in kinds:
        svi_class, more = KINDS[kind]
        torch.manual_seed(0)
        step, svis = SCRIPTS[name](svi_class, size, str(len(steps)), **more)
        torch.manual_seed(1)
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*run eagerly, not compiled.*")  # which the table shows
            curves[kind] = torch.tensor([step(i) for i in range(options.warm_up)])
        first[kind] = time.perf_counter() - started
        steps[kind] = step
        compilations = [svi.compilation for svi in svis if isinstance(svi, pv.SVI)] if more.get("compile") else []
        notes[kind] = "; ".join(map(str, compilations))
    counts = dict.fromkeys(steps, options.warm_up)

    def block(kind: str) -> None:
        for _ in range(options.block):
            steps[kind](counts[kind])
            counts[kind] += 1

    seconds = take_turns({kind: lambda kind=kind: block(kind) for kind in steps}, options.rounds)
    baseline, expected = seconds["pyro.infer.SVI"], curves["pyro.infer.SVI"]
    columns = ("ms a step", "/ Pyro", "steps a second", f"first {options.warm_up} s", "worst loss")
    table = make_table(f"{name}, batch {size}", "", *columns, "")
    for kind, value in seconds.items():
        worst = float(((curves[kind] - expected) / expected).abs().max())
        per_step = value / options.block
        row = f"{1e3 * per_step:.2f}", f"{value / baseline:.2f}", f"{1 / per_step:.0f}", f"{first[kind]:.1f}"
        table.add_row(kind, *row, f"{worst:.0e}", notes[kind])
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scripts", nargs="+", choices=SCRIPTS, default=list(SCRIPTS))
    parser.add_argument("--batch_size", type=int, nargs="+", default=[128])
    parser.add_argument("--rounds", type=int, default=15, help="turns of each")
    parser.add_argument("--block", type=int, default=8, help="steps in a turn")
    parser.add_argument("--warm_up", type=int, default=210, help="steps before, whose losses are compared")
    parser.add_argument("--long", action="store_true", help="compile the deep Markov model, too")
    options = parser.parse_args()
    console = Console(width=160)
    console.print(machine())
    for name in options.scripts:
        for size in options.batch_size:
            pyro.clear_param_store()
            measure(name, size, options, console)


if __name__ == "__main__":
    main()
