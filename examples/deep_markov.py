"""Time series: do neural transitions forecast better than linear ones, and are the intervals right?

    python examples/deep_markov.py                # an EEG, 4 channels, which matplotlib ships
    python examples/deep_markov.py --data counts  # simulated predators and prey, counted for 20 to 40 steps

Two deep Markov models (Krishnan, Shalit and Sontag 2017), one with the gated transition and one with a linear one.
Both have the same emission, guide and training, with a warm-up of the KL. Reported on test series: the ELBO, and log p
by importance sampling and by a particle filter, in nats per series; then forecasts of 8 steps from a particle filter:
the error of their means beside that of repeating the last value, in standard deviations of the training data, and the
share of what came inside their 90 % intervals.

Measured (2-core CPU, Intel Xeon, busy with other work, one thread; seed 0). EEG, gated and linear: ELBO -132.27 and
-135.19, log p by importance sampling -121.24 ± 0.10 and -122.52 ± 0.09, by a particle filter -123.83 ± 0.10 and
-124.69 ± 0.12; RMSE 1 step ahead 0.737 and 0.773 (last value 0.667), 8 steps ahead 1.370 and 1.342 (1.786); 81.0 % and
80.4 % inside; 118 and 95 seconds. Counts, with `--num_series 150 --epochs 40 --num_particles 100 --every 4`: ELBO
-237.67 and -245.49, importance sampling -227.33 ± 0.09 and -229.24 ± 0.12, filter -225.10 ± 0.08 and -222.28 ± 0.12;
RMSE 1 step ahead 0.907 and 0.811 (0.883), 8 steps ahead 1.176 and 1.257 (1.841); 66.1 % and 78.4 % inside; 42 and 25
seconds.
"""

import argparse

import torch
from matplotlib.cbook import get_sample_data
from matplotlib.figure import Figure
from torch import Tensor

import pyro_vae as pv
from pyro_vae.models import DeepMarkovModel

from common import make_parser

AHEAD = 8
Series = tuple[Tensor, Tensor]  # (N, T, D), and lengths (N,)


def main() -> None:
    parser = make_parser(__doc__, epochs=80, latent_dim=8, num_particles=300, num_data=40)
    parser.add_argument("--data", default="eeg", choices=["eeg", "counts"])
    parser.add_argument("--num_series", type=int, default=300, help="series to train on, at most")
    parser.add_argument("--every", type=int, default=1, help="steps of time between two stages of the filters")
    options = parser.parse_args()

    (x, lengths), (past, past_lengths), future = (eeg if options.data == "eeg" else counts)(options)
    spread = torch.cat([row[:n] for row, n in zip(x, lengths.tolist(), strict=True)]).std(0)
    print(f"{options.data}: {len(x)} series to train, {len(past)} to test, {x.shape[2]} variables")
    print(f"{'':8} {'ELBO':>9} {'importance':>18} {'particle filter':>18}   RMSE 1  RMSE {AHEAD}   in 90 %  seconds")
    last = past[torch.arange(len(past)), past_lengths - 1].unsqueeze(1)
    naive = ((last - future) / spread).square().mean((0, 2)).sqrt()
    print(f"{'last':8} {'':47}   {float(naive[0]):6.3f}  {float(naive[-1]):6.3f}")
    found = {}
    for transition in ("gated", "linear"):
        torch.manual_seed(options.seed)
        likelihood = pv.conditionals.Normal(x.shape[2], "shared") if options.data == "eeg" else "poisson"
        pair = DeepMarkovModel(x.shape[1:], options.latent_dim, transition=transition, likelihood=likelihood)
        history = pv.fit(
            pair.model,
            pair.guide,
            (x, lengths),
            epochs=options.epochs,
            batch_size=min(32, len(x)),
            lr=3e-3,
            lr_schedule="cosine",
            kl_weight=pv.elbo.Warmup(max(1, options.epochs // 5)),
            compile=False,  # steps in Python for each time: their graph would take minutes
            seed=options.seed,
        )
        test = (pair.model, pair.guide, past, past_lengths)
        elbo = pv.bound(*test, num_samples=20, seed=0).mean
        by_guide = pv.log_marginal(*test, num_samples=10 * options.num_particles, seed=0)
        filtered = pv.log_marginal(
            *test, method=pv.SMC(num_particles=options.num_particles, every=options.every), seed=0
        )
        found[transition] = ahead = pv.forecast(
            *test, steps=AHEAD, num_samples=options.num_particles, every=options.every, seed=0
        )
        error = ((ahead.mean - future) / spread).square().mean((0, 2)).sqrt()
        covered = float(ahead.coverage(future).mean())
        each = [f"{of.mean:9.2f} ± {of.mean_error:6.2f}" for of in (by_guide, filtered)]
        print(
            f"{transition:8} {elbo:9.2f} {each[0]:>18} {each[1]:>18}   {float(error[0]):6.3f}  {float(error[-1]):6.3f}"
            f"   {covered:7.1%}  {history[-1].seconds:7.0f}",
            flush=True,
        )
    print(pv.plots.save(picture(found, future), options.pictures / f"deep_markov_{options.data}.png"))


def eeg(options: argparse.Namespace) -> tuple[Series, Series, Tensor]:
    """Windows of an EEG of 800 samples: 24 steps each from the first 600, and 24 with the next 8 from the last 200."""
    with get_sample_data("eeg.dat") as file:
        values = torch.frombuffer(bytearray(file.read()), dtype=torch.float64).reshape(800, 4).float()
    values = (values - values[:600].mean(0)) / values[:600].std(0)
    train = values[:600].unfold(0, 24, 3).movedim(1, 2)[: options.num_series].contiguous()  # (N, T, D)
    test = values[600:].unfold(0, 24 + AHEAD, 4).movedim(1, 2)[: options.num_data].contiguous()
    past, future = test.split([24, AHEAD], 1)
    return (train, torch.full((len(train),), 24)), (past, torch.full((len(past),), 24)), future


def counts(options: argparse.Namespace) -> tuple[Series, Series, Tensor]:
    """Poisson counts of a noisy predator and its prey (Lotka and Volterra), of random lengths."""
    torch.manual_seed(options.seed)
    total, steps = options.num_series + options.num_data, 40 + AHEAD
    prey, predator = 10 + 10 * torch.rand(total), 5 + 5 * torch.rand(total)
    drawn = []
    for _ in range(steps):
        drawn.append(torch.poisson(torch.stack([prey, predator], -1)))
        for _ in range(10):
            noise = (0.03 * torch.randn(2, total)).exp()
            change = prey * (0.06 - 0.006 * predator), predator * (0.003 * prey - 0.04)
            prey, predator = (
                (prey + change[0]).clamp_min(0.1) * noise[0],
                (predator + change[1]).clamp_min(0.1) * noise[1],
            )
    x = torch.stack(drawn, 1)  # (N, T, 2)
    lengths = torch.randint(20, 41, (total,))
    ahead = lengths.unsqueeze(-1) + torch.arange(AHEAD)
    future = x.gather(1, ahead.unsqueeze(-1).expand(-1, -1, 2))
    train, test = slice(0, options.num_series), slice(options.num_series, None)
    return (x[train, :40], lengths[train]), (x[test, :40], lengths[test]), future[test]


def picture(found: dict[str, pv.evaluate.Forecast], future: Tensor) -> Figure:
    """Three test series by both models: what came, means, and intervals."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    some = torch.linspace(0, len(future) - 1, 3).int().tolist()
    for row, axes in zip(some, figure.subplots(3, 2, sharey="row", squeeze=False), strict=True):
        for ax, (name, ahead) in zip(axes, found.items(), strict=True):
            end = int(ahead.lengths[row])
            after = list(range(end + 1, end + AHEAD + 1))
            ax.plot(range(1, end + 1), ahead.past[row, :end, 0], color="black", lw=1)
            for level in (0.9, 0.5):
                low, high = (each[row, :, 0] for each in ahead.interval(level))
                ax.fill_between(after, low, high, color="#0072B2", alpha=0.25, lw=0, label=f"{level:.0%} interval")
            ax.plot(after, ahead.mean[row, :, 0], color="#0072B2", label="mean of the forecast")
            ax.plot(after, future[row, :, 0], color="#D55E00", ls="--", label="what came")
            if row == some[0]:
                ax.set(title=f"{name} transition")
            ax.set(xlabel="time" if row == some[-1] else "")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


if __name__ == "__main__":
    main()
