"""How noisy is the score function? Its gradients against reparameterized ones, of the same ELBO at the same weights.

    python examples/score_function.py                               # MNIST
    python examples/score_function.py --data digits --epochs 20     # no download

A VAE with normal latents allows both, so here they can be compared; discrete latents leave only the first (see
discrete_latents.py). Both are unbiased. The variance is that of the guide's gradient of the mean loss over 100 fixed
test images, over the draws of z. Then the same VAE is trained under each of them, from the same weights.

Measured as above (784-200-200-z20, 4 epochs; 2-core CPU, shared, one thread; seed 0; 4 minutes). Variance of the
guide's gradient with one draw of z, and the best validation ELBO of the training, which begins at -217 nats:

    reparameterized: trace    8.4e2                                -106.7
    reparameterized: stl      3.0e2    0.36 times that of trace
    score, network (NVIL)     1.3e5     150 times                  -135.0
    score, running mean       4.8e5     575 times                  -225.3
    score, no baseline        7.3e6    8630 times                  -667.5

The two differ by four orders of magnitude, of which the best baseline for one draw removes two. Ten draws divide
all of these by ten; used as each other's baseline ("leave one out"), they leave 14 times the variance of ten
reparameterized draws. At a rate that is good for the pathwise gradient, 1e-3, training diverges without
the baseline of a network.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, StrMethodFormatter
from torch.nn.functional import mse_loss

import pyro_vae as pv
from pyro_vae.elbo import Reinforce, StickingTheLanding, Trace

from common import make_parser


def trained_baseline(vae: pv.VAE, data: pv.data.Data, steps: int) -> torch.nn.Module:
    """NVIL's network as it would be beside this VAE after long training: a regression of log w on the image."""
    x = data.train.head(min(10_000, len(data.train)))
    target = pv.bound(vae.model, vae.guide, x, seed=0).elbo
    net = new_baseline(data, float(target.mean()))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(steps):
        rows = torch.randint(len(x), (100,))
        optimizer.zero_grad()
        mse_loss(net(x[rows]).squeeze(-1), target[rows]).backward()
        optimizer.step()
    return net


def new_baseline(data: pv.data.Data, start: float) -> torch.nn.Module:
    """A network that initially predicts about `start` for every image."""
    net = pv.nets.MLP(data.shape, (100,), 1)
    net.set_output_bias(torch.tensor([start]))
    return net


def main() -> None:
    parser = make_parser(__doc__, data="mnist", latent_dim=20)
    parser.add_argument("--epochs", type=int, default=4, help="of each training run")
    parser.add_argument("--num_particles", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--num_data", type=int, default=100, help="images whose mean loss is differentiated")
    parser.add_argument("--repeats", type=int, default=100, help="gradients of each kind")
    parser.add_argument("--num_samples", type=int, default=200, help="importance samples for log p(x)")
    options = parser.parse_args()

    data = pv.data.load(options.data, binarize="dynamic", flatten=True, valid=0.02)
    batch_size = min(100, len(data.train))
    torch.manual_seed(options.seed)

    def build(seed: int) -> pv.VAE:
        return pv.VAE(data.shape, options.latent_dim, hidden=(200, 200)).start_at_mean(data.mean)

    vae = build(options.seed)
    start = pv.bound(vae.model, vae.guide, data.test.x, seed=0).mean  # where the baseline of a fresh VAE starts
    history = pv.fit(
        vae.model, vae.guide, data, epochs=options.epochs, batch_size=batch_size, seed=options.seed, device="cpu"
    )
    print(f"trained for {history[-1].seconds:.0f} seconds, ELBO {history[-1].monitored:.2f} nats per datum\n")

    nvil = trained_baseline(vae, data, steps=1000)
    jobs: dict[str, Any] = {}
    for k in options.num_particles:
        suffix = f", K={k}"
        jobs["reparameterized: trace" + suffix] = Trace(k)
        jobs["reparameterized: stl" + suffix] = StickingTheLanding(k)
        jobs["score, no baseline" + suffix] = Reinforce(k, every_site=True)
        jobs["score, running mean" + suffix] = Reinforce(k, "running", every_site=True)
        jobs["score, network (NVIL)" + suffix] = Reinforce(k, nvil, every_site=True)
        if k > 1:
            jobs["score, leave one out" + suffix] = Reinforce(k, "leave_one_out", every_site=True)
    comparison = pv.compare_elbos(
        vae.model,
        vae.guide,
        data.test.head(options.num_data),
        estimators=jobs,
        repeats=options.repeats,
        num_samples=options.num_samples,
        seed=options.seed,
        progress=None,
    )
    # the number of particles has its own column
    rows = [replace(row, estimator=row.estimator.split(", K=")[0]) for row in comparison.rows]
    comparison = replace(comparison, rows=rows)
    print(comparison)
    for row in rows:
        base = next(r for r in rows if r.num_particles == row.num_particles)
        if row is not base:
            ratio = row.guide_variance / base.guide_variance
            print(f"K = {row.num_particles}, {row.estimator}: {ratio:.3g} times the variance of {base.estimator}")

    runs = pv.compare_training(
        build,
        data,
        {
            "reparameterized: trace": Trace(),
            "score, no baseline": Reinforce(every_site=True),
            "score, running mean": Reinforce(baseline="running", every_site=True),
            "score, network (NVIL)": Reinforce(baseline=new_baseline(data, start), every_site=True),
        },
        seeds=[options.seed],
        epochs=options.epochs,
        batch_size=batch_size,
        num_samples=options.num_samples,
        device="cpu",
        progress=None,
    )
    print(f"\na fresh VAE: ELBO {start:.2f}")
    for run in runs.runs:
        print(f"{run.estimator:22} {run.epochs} epochs, {run.seconds:.0f} seconds: best ELBO {run.valid_elbo:.2f}")

    figure = Figure(figsize=(13, 4), layout="constrained")
    variance, signal, curves = figure.subplots(1, 3)
    best = min(rows, key=lambda row: row.guide_variance)
    norm = best.guide_snr * math.sqrt(best.guide_variance)
    names = list(dict.fromkeys(row.estimator for row in rows))
    colors = {name: f"C{i}" for i, name in enumerate(names)}
    height = 0.8 / len(options.num_particles)
    for row in rows:
        order = options.num_particles.index(row.num_particles)
        position = names.index(row.estimator) + (order - (len(options.num_particles) - 1) / 2) * height
        # all have the same expectation, whose norm is estimated by the least noisy one
        snr = norm / math.sqrt(row.guide_variance)
        for ax, value in ((variance, row.guide_variance), (signal, snr)):
            ax.barh(position, value, height=0.9 * height, color=colors[row.estimator], alpha=1 - 0.5 * order)
            ax.annotate(f" K = {row.num_particles}", (value, position), va="center", fontsize=7)
    for ax in (variance, signal):
        ax.set(xscale="log")
        ax.margins(x=0.2)
        ax.invert_yaxis()
    variance.set(yticks=range(len(names)), yticklabels=names, xlabel="variance of the guide's gradient")
    signal.set(yticks=[], xlabel="SNR of the guide's gradient")
    for run in runs.runs:
        curves.plot(
            [e.epoch for e in run.history],
            [-e.monitored for e in run.history],
            marker=".",
            color=colors[run.estimator],
            label=run.estimator,
        )
    curves.set(xlabel="epoch", ylabel="- validation ELBO (nats per datum)", yscale="log")
    curves.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    curves.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))  # labels where powers of ten are too few
    curves.xaxis.get_major_locator().set_params(integer=True)
    curves.legend(fontsize=8)
    print(pv.plots.save(figure, options.pictures / f"score_function_{options.data}.png"))
    print(comparison.save(options.pictures / f"score_function_{options.data}.csv"))


if __name__ == "__main__":
    main()
