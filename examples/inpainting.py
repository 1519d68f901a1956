"""The hidden part of an image given the visible part: a conditional VAE against a plain network.

    python examples/inpainting.py                              # MNIST
    python examples/inpainting.py --data digits --epochs 40    # no download

The task of Sohn, Lee and Yan 2015 and of Pyro's CVAE example: 1, 2 or 3 quadrants of a digit are visible, and the
model gives the density of the others, p(hidden | seen). The baseline has the same networks without a latent. Its pixels
are independent given the visible quadrants, so it averages over possible completions and blurs them. Pyro's tutorial
has -log p on MNIST of 100.4, 61.9 and 25.4 for its network and 71.8, 51.0 and 24.2 for its CVAE, for 1, 2 and 3
quadrants; networks, binarization and estimates differ.

Measured with the defaults on MNIST (2-core CPU, busy with other work, one thread; seed 0; 364 seconds in all, of which
the CVAEs take 74 to 94 each and the networks 23 to 30; 1000 test images, 500 samples each), 1, 2 and 3 quadrants:
network 110.28, 67.30 and 31.45, CVAE 68.72, 46.02 and 22.97 (its ELBO 72.30, 48.45 and 23.92). On the digits, with
`--data digits --epochs 30 --num_samples 200`: network 19.32, 12.98 and 6.37, CVAE 18.39, 12.36 and 6.26.
"""

import pyro
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.models import ConditionalVAE, Quadrants

from common import make_parser


class Baseline(torch.nn.Module):
    """p(hidden | seen) by one network, without latents."""

    def __init__(self, hidden: int, seen: int) -> None:
        super().__init__()
        self.net = pv.nets.MLP(seen, (400, 400), hidden, "relu")
        self.likelihood = pv.conditionals.Bernoulli(hidden)

    def model(self, x: Tensor, seen: Tensor) -> None:
        pyro.module("baseline", self.net)
        with pyro.plate("data", len(x)):
            pyro.sample("x", self.likelihood(self.net(seen)), obs=x)

    def guide(self, x: Tensor, seen: Tensor) -> None:
        pass


def main() -> None:
    parser = make_parser(__doc__, data="mnist", latent_dim=30, epochs=8, num_samples=500, num_data=1000)
    parser.add_argument("--quadrants", type=int, nargs="+", default=[1, 2, 3], help="numbers of visible quadrants")
    options = parser.parse_args()

    data = pv.data.load(options.data, binarize="static", valid=0.05)
    channels, height, width = data.shape
    rows: dict[str, Tensor] = {}
    for visible in options.quadrants:
        pyro.clear_param_store()
        cut = Quadrants((channels, height, width), visible)
        train, valid, test = (cut.split(x) for x in (data.train.x, data.valid.x, data.test.x[: options.num_data]))
        torch.manual_seed(options.seed)
        sizes = test[0].shape[1], test[1].shape[1]
        cvae = ConditionalVAE(sizes[0], sizes[1:], options.latent_dim, hidden=(400, 400), activation="relu")
        baseline = Baseline(*sizes)
        for pair in (baseline, cvae):
            history = pv.fit(
                pair.model,
                pair.guide,
                train,
                valid=valid,
                epochs=options.epochs,
                batch_size=min(128, len(data.train)),
                lr=1e-3,
                lr_schedule="cosine",
                seed=options.seed,
            )
            print(f"{type(pair).__name__}, {visible} seen: {history[-1].seconds:.0f} seconds", flush=True)
        plain = -pv.bound(baseline.model, baseline.guide, *test).mean
        found = pv.log_marginal(cvae.model, cvae.guide, *test, num_samples=options.num_samples, seed=0, progress=None)
        bound = -pv.bound(cvae.model, cvae.guide, *test, num_samples=10, seed=0).mean
        print(
            f"-log p(hidden | {visible} seen): network {plain:.2f}, "
            f"CVAE {-found.log_prob.mean():.2f} (-ELBO {bound:.2f})",
            flush=True,
        )

        torch.manual_seed(options.seed)
        hidden, seen = (part[:10] for part in test)
        rows[f"{visible} seen"] = cut.join(torch.full_like(hidden, 0.5), seen)
        rows[f"{visible}: network"] = cut.join(baseline.likelihood(baseline.net(seen)).mean.detach(), seen)
        for i in range(3):
            rows[f"{visible}: CVAE, {i + 1}"] = cut.join(cvae.sample(len(seen), condition=seen, mean=True), seen)
    picture = pv.plots.image_rows(rows, title="inpainted quadrants")
    print(pv.plots.save(picture, options.pictures / f"inpainting_{options.data}.png"))


if __name__ == "__main__":
    main()
