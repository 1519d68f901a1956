"""Which ELBO estimator for this VAE? Five of them, three numbers of particles, on binarised MNIST.

    python examples/compare_estimators.py                  # MNIST
    python examples/compare_estimators.py --data digits    # seconds, no download

A VAE is trained briefly, then every estimator gives its bound and many gradients at the same weights.
RESULT
"""

import argparse
from pathlib import Path

import torch

import pyro_vae as pv

ESTIMATORS = ["trace", "mean_field", "stl", "iwae", "dreg"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist", help="a data set's name or file")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--num_data", type=int, default=256, help="test images on which to compare")
    parser.add_argument("--num_particles", type=int, nargs="+", default=[1, 5, 50])
    parser.add_argument("--repeats", type=int, default=100, help="gradients of each kind")
    parser.add_argument("--num_samples", type=int, default=1000, help="importance samples for log p(x)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=Path, default=Path("pictures"))
    options = parser.parse_args()

    data = pv.data.load(options.data, binarize="dynamic", flatten=True, valid=0.02)
    torch.manual_seed(options.seed)
    vae = pv.VAE(data.shape, latent_dim=50, hidden=(200, 200)).start_at_mean(data.mean)
    batch_size = min(100, len(data.train))
    history = pv.fit(vae.model, vae.guide, data, epochs=options.epochs, batch_size=batch_size, seed=options.seed)
    print(f"trained for {history[-1].seconds:.0f} seconds, ELBO {history[-1].monitored:.2f} nats per datum\n")

    comparison = pv.compare_elbos(
        vae.model,
        vae.guide,
        data.test.x[: options.num_data],
        ESTIMATORS,
        num_particles=options.num_particles,
        repeats=options.repeats,
        reference_samples=options.num_samples,
        seed=options.seed,
        progress=None,
    )
    print(comparison)
    name = f"compare_estimators_{options.data}"
    print(pv.plots.save(comparison.plot(), options.pictures / f"{name}.png"))
    print(comparison.save(options.pictures / f"{name}.csv"))


if __name__ == "__main__":
    main()
