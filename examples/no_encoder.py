"""A VAE without an encoder: the guide has a posterior for each training datum, and test data get theirs afterwards.

    python examples/no_encoder.py

The guide has two rows of parameters for each training digit, looked up by its index. Nothing is amortized, so there
is no amortization gap, neither in training nor in what the decoder learns. For new data, `fit_local` finds the
posteriors for a fixed decoder; with them as proposals log p(x) is estimated as for any pair. The comparison is a VAE
with the same initial decoder, trained for as many steps on the same digits and evaluated in the same way.

Measured (2-core CPU, shared by several jobs, one thread; seed 0): without an encoder 32 seconds of training to a
training ELBO of -21.57, with one 42 seconds to -22.33. Of 200 test digits, the local posteriors took 28 seconds (1688
steps on average) to an ELBO of -23.27; the encoder's is -23.48. In test log p(x), -22.79 and -22.84, the two do not
differ: by 0.05 ± 0.07 nats, paired by digit. The training ELBO is better by the amortization gap, not by a better
model.
"""

import copy
import time
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import Tensor

import pyro_vae as pv

from common import make_parser, mean_and_error


def main() -> None:
    parser = make_parser(__doc__, latent_dim=10)
    parser.add_argument("--steps", type=int, default=1000, help="gradient steps, each on all training digits")
    parser.add_argument("--num_samples", type=int, default=1000, help="importance samples per test digit")
    parser.add_argument("--num_data", type=int, default=200, help="test digits")
    parser.add_argument("--max_steps", type=int, default=20_000, help="local steps per test digit")
    options = parser.parse_args()

    # fixed binarization: a local posterior is for one datum, not for one that changes in each epoch
    data = pv.data.load("digits", binarize="static", flatten=True)
    x, test = data.train.x, data.test.x[: options.num_data]
    n, size = len(x), options.latent_dim
    torch.manual_seed(options.seed)
    decoder = pv.nets.MLP(size, (200, 200), 64)

    def model(x: Tensor, index: Tensor | None = None) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(size), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor, index: Tensor) -> None:
        loc = pyro.param("loc", 0.1 * torch.randn(n, size))
        log_scale = pyro.param("log_scale", torch.zeros(n, size))
        with pyro.plate("data", len(x)):
            scale = pv.conditionals.bounded_exp(log_scale[index])
            pyro.sample("z", dist.Normal(loc[index], scale).to_event(1))

    def adam(params: list[Tensor]) -> torch.optim.Optimizer:
        # a row of the guide may have a higher rate than a weight for all data
        rows = {True: [p for p in params if p.shape == (n, size)], False: [p for p in params if p.shape != (n, size)]}
        groups: list[dict[str, Any]] = [{"params": rows[True], "lr": 0.05}, {"params": rows[False], "lr": 2e-3}]
        return torch.optim.Adam(groups, fused=True)

    training: dict[str, Any] = {"steps": options.steps, "batch_size": n, "seed": options.seed, "device": "cpu"}
    training["lr_schedule"] = "cosine"
    vae = pv.VAE(64, size, activation="relu", decoder=copy.deepcopy(decoder))
    history = pv.fit(model, guide, (x, torch.arange(n)), optim=adam, **training)
    print(f"without an encoder: {history[-1].seconds:.0f} s, training ELBO {history[-1].train_elbo:.2f}")
    amortized = pv.fit(vae.model, vae.guide, x, lr=2e-3, **training)
    print(f"with an encoder: {amortized[-1].seconds:.0f} s, training ELBO {amortized[-1].train_elbo:.2f}")

    started = time.perf_counter()
    local = pv.fit_local(
        model, None, test, family="diagonal_normal", max_steps=options.max_steps, seed=0, progress=None
    )
    print(f"local posteriors of {len(test)} test digits in {time.perf_counter() - started:.0f} s\n{local}\n")
    found = [
        pv.log_marginal(pair[0], pair[1], test, num_samples=options.num_samples, seed=0)
        for pair in ((model, local.guide), (vae.model, vae.guide))
    ]
    elbo = pv.bound(vae.model, vae.guide, test, num_samples=100, seed=0)
    print(f"without an encoder: {found[0]}\nwith an encoder: {elbo}\n{found[1]}")
    gain = found[0].log_prob - found[1].log_prob
    print(f"without over with, test log p(x): {mean_and_error(gain)} nats per datum")

    figure = Figure(figsize=(9, 3.8), layout="constrained")
    curves, scatter = figure.subplots(1, 2)
    for name, h in (("without an encoder", history), ("with an encoder", amortized)):
        curves.plot([e.step for e in h], [e.train_elbo for e in h], label=name)
    late = [e.train_elbo for h in (history, amortized) for e in list(h)[len(h) // 10 :]]
    curves.set(xlabel="gradient step", ylabel="training ELBO (nats per datum)", ylim=(min(late) - 1, max(late) + 1))
    curves.legend(loc="lower right")
    scatter.scatter(found[1].log_prob, found[0].log_prob, s=10, alpha=0.6)
    ends = [float(f.log_prob.min()) for f in found] + [float(f.log_prob.max()) for f in found]
    scatter.axline((max(ends), max(ends)), slope=1, color="black", lw=0.8, ls=":")
    scatter.set(xlabel="with an encoder", ylabel="without an encoder", title="log p(x) of test digits (nats)")
    scatter.set_aspect("equal")
    print(pv.plots.save(figure, options.pictures / "no_encoder.png"))


if __name__ == "__main__":
    main()
