"""The true posterior of a VAE with two latents, the encoder's, and the optimal ones of three families.

    python examples/true_posterior_2d.py                  # MNIST
    python examples/true_posterior_2d.py --data digits    # no download

With two latents p(z|x) can be computed and plotted on a grid, as in figure 2 of Cremer, Li and Duvenaud 2018 (arXiv
1801.03558). Each row is a test image; its posterior is seldom a normal with axes along the coordinates. The encoder
gives the second column; `fit_local` the others: the best diagonal normal, the best normal, an inverse autoregressive
flow with weights of its own for each image. Each is marked with KL(q || p(z|x)) = log p(x) - ELBO, log p(x) being the
sum over the grid; black lines repeat the true posterior. From left to right the KL can only fall, but for local optima:
first without amortization, then with richer families.

Measured (2-core CPU, shared, one thread; seed 0; 72 seconds in all, 25 of them training to a test ELBO of -152.2). The
KL in nats of the four images shown, chosen among those with large gaps: encoder 14.79, 7.21, 2.22, 1.29; diagonal
normal 0.04, 0.33, 0.00, 0.03; full normal 0.03, 0.01, 0.00, 0.00; flow 0.03, 0.00, 0.00, 0.01. What costs most is
amortization. The first image has a second mode that no fit found.
"""

import math
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

import pyro_vae as pv

from common import make_parser

GRID = 200


def main() -> None:
    parser = make_parser(__doc__, data="mnist", epochs=10)
    parser.add_argument("--num_data", type=int, default=4, help="test images to show")
    parser.add_argument("--max_steps", type=int, default=20_000, help="local steps per image")
    options = parser.parse_args()

    data = pv.data.load(options.data, binarize="dynamic", flatten=True, valid=0.02)
    torch.manual_seed(options.seed)
    vae = pv.VAE(data.shape, latent_dim=2).start_at_mean(data.mean)
    training: dict[str, Any] = {"batch_size": min(200, len(data.train)), "lr": 2e-3, "lr_schedule": "cosine"}
    history = pv.fit(vae.model, vae.guide, data, epochs=options.epochs, seed=options.seed, device="cpu", **training)
    print(f"trained for {history[-1].seconds:.0f} seconds, {pv.bound(vae.model, vae.guide, data.test.x[:1000])}")

    x = data.test.x[:200]
    with torch.no_grad():  # some images with large gaps, whose posteriors the encoder approximates badly
        weights = pv.log_marginal(vae.model, vae.guide, x, num_samples=500, seed=0)
        elbo = pv.bound(vae.model, vae.guide, x, num_samples=100, seed=0).elbo
    x = x[(weights.log_prob - elbo).argsort(descending=True)[5 :: 200 // (3 * options.num_data)][: options.num_data]]

    def flow(size: int) -> pv.conditionals.Conditional:
        return pv.conditionals.posterior("iaf", size, num_flows=4, hidden=(16, 16))

    columns: dict[str, Any] = {"encoder": vae.encode(x)}
    elbos = {"encoder": pv.bound(vae.model, vae.guide, x, num_samples=1000, seed=0).elbo}
    families: dict[str, Any] = {"diagonal normal": "diagonal_normal", "full normal": "full_normal", "flow": flow}
    for name, family in families.items():
        local = pv.fit_local(vae.model, vae.guide, x, family=family, max_steps=options.max_steps, seed=0, progress=None)
        print(f"\n{name}\n{local}")
        (site,) = local.posterior
        columns[name], elbos[name] = site(), local.elbo

    figure = Figure(figsize=(10, 2 * len(x)), layout="constrained")
    axes = figure.subplots(len(x), 2 + len(columns), squeeze=False)
    with torch.no_grad():
        for i, row in enumerate(axes):
            z, log_joint = grid(vae, x[i])
            across, up = z.unbind(-1)
            log_cell = math.log(float((z[0, 1] - z[0, 0]).norm() * (z[1, 0] - z[0, 0]).norm()))
            log_p = float(log_joint.flatten().logsumexp(0)) + log_cell
            row[0].imshow(x[i].reshape(math.isqrt(x.shape[-1]), -1).numpy(), cmap="gray_r")
            row[0].set_ylabel(f"log p(x) = {log_p:.1f}", fontsize=8)
            shown = {"true posterior": log_joint - log_p}
            for name, q in columns.items():
                log_q = q.log_prob(z.reshape(-1, 1, 2).expand(-1, len(x), 2))[:, i].reshape(GRID, GRID)
                shown[name] = log_q
            for ax, (name, log_density) in zip(row[1:], shown.items(), strict=True):
                density = log_density.exp().numpy()
                levels = [float(density.max()) * math.exp(-t * t / 2) for t in (3.0, 2.0, 1.0, 0.3)]
                ax.contourf(across.numpy(), up.numpy(), density, [*levels, 1.001 * float(density.max())], cmap="Blues")
                if name != "true posterior":
                    true = shown["true posterior"].exp().numpy()
                    outer = [float(true.max()) * math.exp(-t * t / 2) for t in (3.0, 1.0)]
                    ax.contour(across.numpy(), up.numpy(), true, outer, colors="black", linewidths=0.6)
                    kl = log_p - float(elbos[name][i])
                    ax.text(0.04, 0.04, f"KL {max(kl, 0):.2f}", transform=ax.transAxes, fontsize=8)
                if i == 0:
                    ax.set_title(name, fontsize=9)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    print(pv.plots.save(figure, options.pictures / f"true_posterior_2d_{options.data}.png"))


def grid(vae: pv.VAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Points that cover the posterior of one image, `(GRID, GRID, 2)`, and log p(x, z) there."""
    low, high = torch.tensor([-5.0, -5.0]), torch.tensor([5.0, 5.0])
    for _ in range(2):  # once to find where the posterior is
        lines = [torch.linspace(float(a), float(b), GRID) for a, b in zip(low, high, strict=True)]
        z = torch.stack(torch.meshgrid(*lines, indexing="xy"), -1)
        rows = [vae.prior().log_prob(part) + vae.decode(part).log_prob(x) for part in z]
        log_joint = torch.stack(rows)
        near = z[log_joint > log_joint.max() - 12]
        step = torch.stack([z[0, 1, 0] - z[0, 0, 0], z[1, 0, 1] - z[0, 0, 1]])
        low, high = near.min(0).values - step, near.max(0).values + step
    return z, log_joint


if __name__ == "__main__":
    main()
