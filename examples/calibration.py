"""Is the encoder right: ranks of the truth among its draws, and what importance weights mend.

Trains a VAE, draws latents and images from its decoder, and asks where the truth lies among the draws of the encoder:
uniformly, if these come from the posterior. The first picture is of the encoder as it is, the second of the same draws
re-weighted, the third of an encoder whose deviations are all multiplied by `--scale`.

Run: python examples/calibration.py --epochs 30
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_vae as pv

import common


def main() -> None:
    parser = common.make_parser(
        __doc__, data="digits", epochs=30, latent_dim=10, scale=0.7, num_simulations=1000, num_samples=100
    )
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    data = pv.data.load(options.data, binarize="dynamic", flatten=True)
    vae = pv.VAE(data.shape, latent_dim=options.latent_dim, hidden=(100,)).start_at_mean(data.mean)
    pv.fit(vae.model, vae.guide, data, epochs=options.epochs, lr=3e-3, seed=options.seed)

    def scaled(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            q: Any = vae.encode(x)
            pyro.sample("z", dist.Normal(q.mean, options.scale * q.stddev).to_event(1))

    test = (data.test or data.train).x
    asked: dict[str, tuple[Any, bool]] = {
        "encoder": (vae.guide, False),
        "reweighted": (vae.guide, True),
        "scaled": (scaled, False),
    }
    for name, (guide, reweight) in asked.items():
        result = pv.calibration(
            vae.model,
            guide,
            test,
            num_simulations=options.num_simulations,
            num_samples=options.num_samples,
            quantities={"norm of z": lambda latents: latents["z"].norm(dim=-1)},
            reweight=reweight,
            seed=0,
        )
        print(f"\n{name}\n{result}")
        print(pv.plots.save(result.plot(), options.pictures / f"calibration_{options.data}_{name}.png"))


if __name__ == "__main__":
    main()
