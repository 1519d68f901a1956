"""Which codes? Codebooks with and without restarts, the rotation trick, residual codes and scalar levels, at one rate.

    python examples/quantization.py                      # digits, no download
    python examples/quantization.py --data mnist --levels 256 --epochs 5 --num_data 2000

Each VQ-VAE spends at most 9 bits on a position: one of 512 vectors, three of 8 that are summed, or three scalars of 8
levels. The message of a datum has two parts, its codes at the uniform rate of 9 bits and the datum given these; bits
per dimension are those of both. The perplexity is the number of codes that are used, in effect: the cube of that of one
codebook where three codes make one vector, as if they were independent.

Measured at the defaults (2-core CPU, very busy with other work, one thread; 56 seconds of the processor in all; seed 0;
359 test images), bits per dimension, of which 2.25 for the codes, and perplexity:

    codebook, no restarts     3.763     24
    codebook                  3.587    417
    codebook, rotation        3.547    376
    residual, 3 of 8          3.512    412
    scalars, 3 of 8 levels    3.726     83

Without restarts 24 codes of the 512 are used. The encodings begin near zero, where the scalars have few levels, and
after 20 epochs they use 83 of them. One run of each: differences of a few hundredths may be chance.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

import pyro_vae as pv
from pyro_vae.models import VQVAE

from common import make_parser, sheet

KINDS: dict[str, dict[str, Any]] = {
    "codebook, no restarts": {"codes": 512, "revive": 0.0},
    "codebook": {"codes": 512},
    "codebook, rotation": {"codes": 512, "gradient": "rotation"},
    "residual, 3 of 8": {"codes": 8, "depth": 3},
    "scalars, 3 of 8 levels": {"levels": (8, 8, 8)},
}


def measure(vae: VQVAE, x: Tensor) -> tuple[float, float, float]:
    """Bits per dimension of the message, those of its codes, and the perplexity of the codes of a position."""
    found, dims = pv.bound(vae.model, vae.guide, x, memory=2**28, seed=0), x[0].numel() * math.log(2)
    return -found.mean / dims, float(found.kl.mean()) / dims, vae.perplexity(x) ** vae.posterior.codebook.depth


def picture(rows: dict[str, Tensor], found: dict[str, tuple[float, float, float]]) -> Figure:
    figure = Figure(figsize=(13, 4), layout="constrained")
    images, bits, uses = figure.subplots(1, 3)
    images.imshow(sheet(torch.cat(list(rows.values())), 10).numpy(), cmap="gray", vmin=0, vmax=1)
    height = sheet(rows["test"], 10).shape[0]
    images.set_yticks([(i + 0.5) * height for i in range(len(rows))], list(rows))
    images.set_xticks([])
    names = list(found)
    bits.barh(names, [total for total, _, _ in found.values()], color="C0", label="the datum given its codes")
    bits.barh(names, [codes for _, codes, _ in found.values()], color="C1", label="its codes")
    bits.set(xlabel="bits per dimension")
    bits.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    uses.barh(names, [perplexity for _, _, perplexity in found.values()], color="C2")
    uses.axvline(512, color="gray", lw=0.8, ls=":")
    uses.set(xlabel="perplexity of the codes, of 512", yticks=[])
    bits.invert_yaxis()
    uses.invert_yaxis()
    return figure


def train(kind: dict[str, Any], data: pv.data.Data, options: argparse.Namespace) -> tuple[VQVAE, pv.History]:
    torch.manual_seed(options.seed)
    likelihood = pv.conditionals.DiscretizedLogistic(data.shape, mixtures=2, levels=options.levels)
    vae = VQVAE(data.shape, channels=options.channels, embedding_dim=8, likelihood=likelihood, **kind)
    history = pv.fit(
        vae.start_at_mean(data.mean).model,
        vae.guide,
        data,
        elbo="vq",
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=2e-3,
        lr_schedule="cosine",
        seed=options.seed,
        compile=False,  # which takes longer than runs as short as these
    )
    return vae, history


def main() -> None:
    parser = make_parser(__doc__, data="digits", epochs=20, batch_size=64, levels=17, num_data=1000)
    parser.add_argument("--channels", type=int, nargs="+", default=[48], help="each halves height and width")
    options = parser.parse_args()

    data = pv.data.load(options.data, valid=0.1)
    test = data.test.x[: options.num_data]
    rows, found = {"test": test[:10]}, {}
    for name, kind in KINDS.items():
        vae, history = train(kind, data, options)
        found[name] = total, codes, perplexity = measure(vae, test)
        rows[name] = vae.reconstruct(test[:10])
        print(
            f"{name}: {total:.3f} bits/dim, of which codes {codes:.3f}, perplexity {perplexity:.0f}, "
            f"{history[-1].seconds:.0f} s",
            flush=True,
        )
    print(pv.plots.save(picture(rows, found), options.pictures / f"quantization_{options.data}.png"))


if __name__ == "__main__":
    main()
