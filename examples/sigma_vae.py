"""The variance of a Gaussian decoder: four choices on gray MNIST, as in the sigma-VAE paper.

    python examples/sigma_vae.py                              # MNIST
    python examples/sigma_vae.py --data digits --epochs 60    # no download

A normal likelihood with variance one, and with a variance that is learned: one for all pixels, the optimal one for each
batch (its mean squared error), one for each pixel from the network. Shown is the bound on -log p(x), a density: the
lower the better, and negative where the variance is small. Rybkin et al. 2021 (arXiv 2006.13202, table 3, MNIST): 740.5
with variance one, -896.1 shared, -2895 per pixel, with other networks and on images of 32 x 32 pixels; only the
order can be compared. A good density is not a good picture: there the per-pixel model has by far the best bound and the
worst samples.

Measured at the defaults (2-core CPU, one thread, the other core busy; 53 to 101 seconds for each; seed 0; 5000 test
images), the bound on -log p(x) and the root mean squared error of a pixel: variance one 740.5 and 0.195, shared -554.1
and 0.111, optimal -548.0 and 0.112, per pixel -2264.5 and 0.232: in the paper's order, shared and optimal within a
per cent. After 3 epochs the shared scale had not converged (-187.4, optimal -457.2); the optimal scale is always
converged. In the picture the per-pixel model loses whole strokes, and variance one blurs.
"""

from typing import Any

import torch

import pyro_vae as pv

from common import make_parser

SCALES: dict[str, Any] = {"variance 1": 1.0, "shared": "shared", "optimal": "optimal", "per pixel": "pixel"}


def main() -> None:
    parser = make_parser(__doc__, data="mnist", latent_dim=20, epochs=12, num_data=5000)
    parser.add_argument("--scales", nargs="+", default=list(SCALES), choices=list(SCALES))
    options = parser.parse_args()

    data = pv.data.load(options.data, flatten=True, valid=0)
    test, size = data.test.x[: options.num_data], data.shape[0]
    rows = {"test images": test[:10]}
    print(f"{'scale':12}{'-ELBO':>10}{'-log p(x|z)':>14}{'KL':>8}{'RMSE':>8}{'seconds':>9}")
    for name in options.scales:
        scale = SCALES[name]
        torch.manual_seed(options.seed)
        vae = pv.VAE(
            size, options.latent_dim, hidden=(400, 400), likelihood=pv.conditionals.Normal(size, scale=scale)
        ).start_at_mean(data.mean)
        history = pv.fit(
            vae.model,
            vae.guide,
            data,
            epochs=options.epochs,
            batch_size=min(128, len(data.train)),
            lr=1e-3,
            clip_norm=None if scale == 1.0 else 1e3,
            seed=options.seed,
        )
        vae.eval()  # the optimal scale is that of the batch in training mode, and a running mean in evaluation mode
        elbo = pv.bound(vae.model, vae.guide, test, seed=0).to_dict()
        rmse = float((vae.reconstruct(test) - test).square().mean().sqrt())
        print(
            f"{name:12}{-elbo['elbo']:10.1f}{-elbo['log_likelihood']:14.1f}{elbo['kl']:8.1f}{rmse:8.3f}"
            f"{history[-1].seconds:9.0f}",
            flush=True,
        )
        torch.manual_seed(options.seed)
        rows |= {name: vae.reconstruct(test[:10]), f"{name}, samples": vae.sample(10, mean=True)}
    picture = pv.plots.image_rows(rows, title="reconstructions and samples")
    print(pv.plots.save(picture, options.pictures / f"sigma_vae_{options.data}.png"))


if __name__ == "__main__":
    main()
