"""How many modes does a generator find? GAN, ALI and VEEGAN on mixtures of Gaussians, five seeds.

    python examples/veegan_modes.py                                    # the ring of 8 and the grid of 25
    python examples/veegan_modes.py --data high                        # ten modes in 1200 dimensions, see below
    python examples/veegan_modes.py --noise 0                          # the critic as in the papers

The protocol is that of the VEEGAN paper (Srivastava et al. 2017, arXiv 1705.07761, table 1): 2500 samples; a sample is
of high quality within 3 standard deviations of the nearest mode; a mode is found if a sample of high quality is nearest
to it. Ring: radius 1, standard deviation 0.01; grid: spacing 2, standard deviation 0.05; networks of two layers of 128.
All seeds are trained at once, as one pair with a plate over the runs: each has networks, data and noise of its own.

Measured as it stands (2-core CPU, two threads; 208 seconds in all, compiling included), modes found and fraction of
high quality, means over five seeds; in brackets those of the paper:

            ring of 8                grid of 25
    GAN     8.0, 96 % (1, 99 %)      24.8, 65 % (3.3, 0.5 %)
    ALI     8.0, 85 % (2.8, 0.1 %)   24.6, 75 % (15.8, 1.6 %)
    VEEGAN  8.0, 86 % (8, 53 %)      25.0, 80 % (24.6, 40 %)

VEEGAN finds every mode with every seed. So does nearly our GAN, where the paper's found one mode in eight: that
baseline is known to depend on details (Lin et al. 2018, arXiv 1712.04086, find 6.3 of 8 for theirs), and these two
tasks hardly tell the three apart.

What differs from the paper, all three alike: two latents; a leaky critic (slope 0.2) on the points as they are, with
spacing 2; Adam at rate 1e-3 (beta 0.5, 0.99), constant for half of 8000 steps of 128 points and then linearly to zero;
the non-saturating loss. And, for the two whose critic sees latents: it sees them through Gaussian noise of standard
deviation 1 (`--noise`), on both sides. The result depends on this noise: without it VEEGAN finds 10.4 modes of the grid
(4 to 16), 14 % of high quality. Its reconstructor learns from samples only, and sends data unlike any sample to latents
that the prior hardly has; the critic needs no more to know them, so nothing draws the generator there. Latents of 16
and more dimensions, a reconstructor of unit variance as in the authors' code, one of learned variance, one whose output
is standardized, and less weight for the latents were tried without the noise, for 5000 steps: none found more than 22
modes, and none of those with 20 and more had over 11 % of high quality.

Ten Gaussians of 700 dimensions in 1200 (`--data high --latent_dim 16 --lr 3e-4 --steps 3000 --batch_size 64`; five
seeds; modes about 36 apart, standard deviation 0.2): GAN 1.0 modes, 45 % of high quality; ALI 0.8, 9 %; VEEGAN 1.0,
24 % (59, 83 and 75 seconds of CPU).
None finds more than one mode; the paper has 1.6 (2 %), 3 (5.4 %) and 5.5 (28.3 %), and VEEGAN's 5.5 are NOT reached.
Perhaps 700 dimensions of noise around one mode have room for all latents. High quality is up to 40 standard deviations
here: the paper's 10 would leave out the data, whose distance is 26. Tried with one seed: a penalty on the critic's
gradient (r1 of 0.01 to 1), more weight for the latents, rates from 1e-4 to 1e-3, and 2 latents.
"""

import argparse
import itertools
import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

import pyro_vae as pv

from common import make_parser
from games import train_on_draws


class Networks(nn.Module):
    """A perceptron for each run, side by side: `(N, runs, in) -> (N, runs, out)`."""

    def __init__(self, runs: int, sizes: Sequence[int], slope: float = 0.0) -> None:
        super().__init__()
        self.slope = slope
        shapes = list(itertools.pairwise(sizes))
        self.weights = nn.ParameterList([torch.randn(runs, i, o) * math.sqrt(2 / (i + o)) for i, o in shapes])
        self.biases = nn.ParameterList([torch.zeros(runs, 1, o) for _, o in shapes])

    def forward(self, x: Tensor) -> Tensor:
        h = x.transpose(0, 1)  # (runs, N, in)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, leaky_relu(h, self.slope) if layer else h, weight)
        return h.transpose(0, 1)


class Judges(nn.Module):
    """A critic for each run. A row has the points of all runs, followed by their latents if the critic sees these."""

    def __init__(self, runs: int, dim: int, hidden: int, shape: torch.Size) -> None:
        super().__init__()
        self.runs, self.dim = runs, dim
        self.networks = Networks(runs, (shape.numel() // runs, hidden, hidden, 1), slope=0.2)

    def forward(self, rows: Tensor) -> Tensor:
        x, z = rows.flatten(1).tensor_split([self.runs * self.dim], 1)
        inputs = [part.reshape(len(rows), self.runs, -1) for part in (x, z) if part.shape[1]]
        return self.networks(torch.cat(inputs, -1)).squeeze(-1)  # (N, runs)


class Runs(nn.Module):
    """As many pairs as there are runs: points from a Gaussian latent, and latents from points."""

    def __init__(self, runs: int, mixture: "Mixture", latent_dim: int, hidden: int, guide_scale: float) -> None:
        super().__init__()
        self.runs, self.mixture, self.latent_dim, self.guide_scale = runs, mixture, latent_dim, guide_scale
        self.generator = Networks(runs, (latent_dim, hidden, hidden, mixture.dim))
        self.reconstructor = Networks(runs, (mixture.dim, hidden, hidden, latent_dim))

    def model(self, x: Tensor) -> None:
        pyro.module("generator", self.generator)
        with pyro.plate("data", len(x), dim=-2), pyro.plate("runs", self.runs, dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent_dim), 1.0).to_event(1))
            loc = self.mixture.unit * self.generator(z)
            pyro.sample("x", dist.Normal(loc, self.mixture.scale).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("reconstructor", self.reconstructor)
        with pyro.plate("data", len(x), dim=-2), pyro.plate("runs", self.runs, dim=-1):
            loc = self.reconstructor(x / self.mixture.unit)
            pyro.sample("z", dist.Normal(loc, self.guide_scale).to_event(1))


class Mixture:
    """Gaussians of equal weight around `modes`, `(M, dim)`; up to `near` standard deviations count as high quality."""

    def __init__(self, name: str) -> None:
        self.near = 3
        self.noise: Tensor | None = None
        if name == "ring":
            angle = torch.arange(8) * (2 * math.pi / 8)
            self.modes, self.scale = torch.stack([angle.cos(), angle.sin()], 1), 0.01
        elif name == "grid":
            index = torch.arange(25)
            self.modes, self.scale = torch.stack([index // 5, index % 5], 1) * 2.0 - 4.0, 0.05
        else:
            generator = torch.Generator().manual_seed(0)
            plane = torch.linalg.qr(torch.randn(1200, 700, generator=generator)).Q  # 700 orthonormal directions
            self.modes, self.scale, self.near = torch.randn(10, 700, generator=generator) @ plane.T, 0.2, 40
            self.noise = torch.randn(10_000, 700, generator=generator) @ plane.T
        self.dim = self.modes.shape[1]
        self.unit = float(self.modes.square().mean().sqrt())

    def draw(self, n: int, runs: int, generator: torch.Generator) -> Tensor:
        """`(n, runs, dim)`; in many dimensions the noise is one of 10,000 draws."""
        which = torch.randint(len(self.modes), (n, runs), generator=generator)
        if self.noise is None:
            noise = torch.randn(n, runs, self.dim, generator=generator)
        else:
            noise = self.noise[torch.randint(len(self.noise), (n, runs), generator=generator)]
        return self.modes[which] + self.scale * noise

    def score(self, x: Tensor) -> tuple[int, float]:
        """The number of modes that samples `(N, dim)` find, and the fraction of samples of high quality."""
        distance, nearest = torch.cdist(x, self.modes).min(1)
        good = distance < self.near * self.scale
        return len(nearest[good].unique()), float(good.float().mean())


def train(mixture: Mixture, elbo: str, options: argparse.Namespace) -> Tensor:
    """2500 samples of each run, `(2500, runs, dim)`."""
    pyro.clear_param_store()  # another pair with networks of the same names
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    runs = options.runs
    pair = Runs(runs, mixture, options.latent_dim, options.hidden, options.guide_scale)
    more: dict[str, Any] = {} if elbo == "gan" else {"noise": options.noise}
    if elbo == "veegan":
        # of half the squared error, and a mean over the runs, as the critics' is
        more["weight"] = options.weight * options.guide_scale**2 / runs
    critic = partial(Judges, runs, mixture.dim, options.hidden)
    objective: Any = pv.elbo.make(elbo, critic=critic, game="non_saturating", r1=options.r1, **more)

    def draw(n: int) -> Tensor:
        return mixture.draw(n, runs, generator)

    # compiling takes as long as a few thousand of these small steps
    train_on_draws(pair, objective, draw, options, compile=options.steps >= 2000)
    with pyro.validation_enabled(False):
        return pv.sample(pair.model, torch.zeros(2500, runs, mixture.dim), mean=True)


def main() -> None:
    parser = make_parser(__doc__, latent_dim=2, hidden=128, steps=8000, batch_size=128)
    parser.add_argument("--data", nargs="+", default=["ring", "grid"], choices=["ring", "grid", "high"])
    parser.add_argument("--objectives", nargs="+", default=["gan", "ali", "veegan"])
    parser.add_argument("--runs", type=int, default=5, help="seeds")
    parser.add_argument("--guide_scale", type=float, default=0.1, help="standard deviation of z given x")
    parser.add_argument("--noise", type=float, default=1.0, help="on the latents that the critic sees")
    parser.add_argument("--weight", type=float, default=1.0, help="of half the squared error of the latents")
    parser.add_argument("--r1", type=float, default=0.0, help="penalty on the critic's gradient")
    parser.add_argument("--lr", type=float, default=1e-3, help="constant at first, then linearly to zero")
    options = parser.parse_args()

    rows, columns = len(options.data), len(options.objectives)
    figure = Figure(figsize=(3.4 * columns, 3.5 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for (i, name), (j, elbo) in itertools.product(enumerate(options.data), enumerate(options.objectives)):
        mixture, started = Mixture(name), time.process_time()
        samples = train(mixture, elbo, options)
        found = [mixture.score(samples[:, run]) for run in range(options.runs)]
        modes, good = torch.tensor(found).mean(0).tolist()
        seconds = time.process_time() - started
        each = ", ".join(f"{m} ({g:.0%})" for m, g in found)
        print(
            f"{name}, {elbo}: {modes:.1f} modes, {good:.1%} of high quality, {seconds:.0f} s of CPU; each: {each}",
            flush=True,
        )
        # in many dimensions, along the first two principal components of the modes
        center = mixture.modes.mean(0)
        plane = torch.eye(2) if mixture.dim == 2 else torch.linalg.svd(mixture.modes - center).Vh[:2].T
        seen, modes_seen = (samples[:, 0] - center) @ plane, (mixture.modes - center) @ plane
        axes[i][j].scatter(*modes_seen.T, s=60, facecolors="none", edgecolors="C3", lw=0.8)
        axes[i][j].scatter(*seen.T, s=1, alpha=0.4)
        reach = 1.3 * float(modes_seen.abs().max())
        axes[i][j].set(title=f"{elbo}: {modes:.1f} modes, {good:.0%}", aspect="equal")
        axes[i][j].set(xlim=(-reach, reach), ylim=(-reach, reach))
    print(pv.plots.save(figure, options.pictures / f"veegan_modes_{'_'.join(options.data)}.png"))


if __name__ == "__main__":
    main()
