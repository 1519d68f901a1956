"""Do more particles help the guide? The signal-to-noise ratio of its gradient, under IWAE and DReG, on MNIST.

    python examples/signal_to_noise.py
    python examples/signal_to_noise.py --data digits --num_data 16      # seconds, no download

As K grows the bound tightens, and what is left for the guide to improve shrinks like 1/K. IWAE's gradient noise for the
guide shrinks only like 1/sqrt(K), so its signal-to-noise ratio (SNR) falls like 1/sqrt(K) (Rainforth et al. 2018, arXiv
1802.04537); DReG's noise shrinks like K^-1.5, and its SNR rises like sqrt(K) (Tucker et al. 2019, arXiv 1810.04152).
Both are laws of large K: they hold once L_K is near log p(x). The model's gradient gains from particles under both.

Two pairs are measured. In the first both laws hold from the first particles: probabilistic PCA, whose posterior is
known, with a guide close to it. The second is a VAE after a few epochs: its guide is far from the posterior, a
few importance weights dominate each average, and the SNR of the guide does not rise with K, not even for DReG.

Measured with the defaults (2-core CPU, busy with other work, one thread; seed 0; about 12 minutes), SNR of the guide's
gradient at K = 1, 4, 16, 64, 256. PCA: iwae 0.37, 0.21, 0.11, 0.07, 0.03; dreg 2.2, 3.7, 5.4, 7.5, 9.4 (its bound is
within 0.002 nats of log p(x) at the end). VAE: iwae 3.3, 3.1, 2.8, 2.6, 2.3; dreg 6.2, 5.2, 4.4, 3.4, 2.9, with a gap
of 0.12 nats left. The model's SNR rises from 8 to 116 and from 4 to 9.
"""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import pyro_vae as pv

from common import make_parser


class PCA(nn.Module):
    """Probabilistic PCA at its maximum likelihood, and a guide that is the exact posterior plus a perturbation."""

    def __init__(self, x: Tensor, latent_dim: int, perturbation: float) -> None:
        super().__init__()
        values, vectors = torch.linalg.eigh(torch.cov(x.T))
        values, vectors = values.flip(0), vectors.flip(1)
        noise = float(values[latent_dim:].mean())
        weight = vectors[:, :latent_dim] * (values[:latent_dim] - noise).sqrt()
        self.scale = noise**0.5
        self.decoder = nn.Linear(latent_dim, x.shape[1])
        self.encoder = nn.Linear(x.shape[1], latent_dim)
        self.log_scale = nn.Parameter(0.5 * (noise / values[:latent_dim]).log())
        with torch.no_grad():
            self.decoder.weight.copy_(weight)
            self.decoder.bias.copy_(x.mean(0))
            self.encoder.weight.copy_((weight / values[:latent_dim]).T)
            self.encoder.bias.copy_(-self.encoder.weight @ x.mean(0))
            # along the principal axes, in units of the posterior's scale
            self.encoder.bias.add_(perturbation * self.log_scale.exp() * torch.randn(latent_dim))
            self.log_scale.add_(perturbation * torch.randn(latent_dim))

    def model(self, x: Tensor) -> None:
        """The generative model of `x`, `(N, D)`."""
        pyro.module("pca_decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(self.log_scale), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), self.scale).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """The guide."""
        pyro.module("pca_encoder", self.encoder)
        pyro.param("pca_log_scale", self.log_scale)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), self.log_scale.exp()).to_event(1))


def main() -> None:
    parser = make_parser(__doc__, data="mnist", latent_dim=5)
    parser.add_argument("--num_data", type=int, default=64, help="test images in the batch")
    parser.add_argument("--perturbation", type=float, default=0.1, help="of the first guide, in posterior scales")
    parser.add_argument("--epochs", type=int, default=5, help="of the second pair's training")
    parser.add_argument("--num_particles", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument("--repeats", type=int, default=200, help="gradients of each kind")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    data = pv.data.load(options.data, binarize="dynamic", flatten=True, valid=0.02)
    gray = pv.data.load(options.data, flatten=True)
    pca = PCA(gray.train.x, options.latent_dim, options.perturbation)
    vae = pv.VAE(data.shape, options.latent_dim, hidden=(200, 200)).start_at_mean(data.mean)
    pv.fit(vae.model, vae.guide, data, epochs=options.epochs, lr=2e-3, seed=options.seed)
    pairs: dict[str, tuple[Any, Tensor]] = {
        "PCA, guide near the posterior": (pca, gray.test.x[: options.num_data]),
        f"VAE after {options.epochs} epochs": (vae, data.test.x[: options.num_data]),
    }
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    for ax, (title, (pair, x)) in zip(figure.subplots(1, len(pairs)), pairs.items(), strict=True):
        comparison = pv.compare_elbos(
            pair.model,
            pair.guide,
            x,
            estimators=["iwae", "dreg"],
            num_particles=options.num_particles,
            repeats=options.repeats,
            num_samples=1000,
            seed=options.seed,
            progress=None,
        )
        print(f"{title}\n{comparison}")
        for i, name in enumerate(("iwae", "dreg")):
            rows = [row for row in comparison.rows if row.estimator == name]
            k = [row.num_particles for row in rows]
            ax.plot(k, [row.guide_snr for row in rows], f"C{i}o-", label=f"{name}, guide")
            # the law, from the first point on
            first, power = rows[0].guide_snr, (-0.5, 0.5)[i]
            ax.plot(k, [first * (n / k[0]) ** power for n in k], f"C{i}", ls=":", lw=0.8, label=("1/√K", "√K")[i])
        ax.plot(k, [row.model_snr for row in rows], "s--", color="gray", ms=3, lw=0.8, label="model (both)")
        ax.set(title=title, xscale="log", yscale="log", xlabel="particles K", ylabel="signal-to-noise ratio")
        ax.set_xticks(k, [str(n) for n in k])
        ax.minorticks_off()
        ax.legend(fontsize=8)
    print(pv.plots.save(figure, options.pictures / f"signal_to_noise_{options.data}.png"))


if __name__ == "__main__":
    main()
