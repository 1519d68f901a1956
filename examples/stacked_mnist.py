"""How many of 1000 modes does a generator of images find? GAN, ALI and VEEGAN on stacked MNIST.

    python examples/stacked_mnist.py
    python examples/stacked_mnist.py --data digits --steps 3000 --lr 1e-3  # no download, 8 x 8 pixels

Each image is three random digits, one a channel, so that there are 1000 modes. A classifier, trained on single digits,
says which mode each of 26,000 samples is of; the metrics of the VEEGAN paper (Srivastava et al. 2017, arXiv 1705.07761,
table 2) are the modes found and the KL of their distribution from the uniform one: DCGAN 99 modes (3.4), ALI 16 (5.4),
VEEGAN 150 (2.95). The classifier names any image, noise as well. Therefore the same metrics are given for images with
shuffled pixels, and the modes found by those samples of which it is certain: 90 % or more for each of the three digits.

The networks are small, without batch normalization; the three objectives have them, their rates and a penalty on the
critic's gradient (r1 = 1) in common, without which the critic tells everything apart and the samples collapse. The
critic of ALI and VEEGAN sees the latents through noise, as in `veegan_modes.py`.

Measured as it stands, one seed (2-core CPU, busy with other work, one thread; 2500 steps in 96 and 198 seconds of CPU),
and on 8 x 8 digits as above (47 and 60 seconds), modes, KL, fraction of certain samples and their modes:

                       MNIST                        digits
    data               1000   0.02   82 %   1000    1000   0.02   99 %   1000
    shuffled pixels     151   5.38    1 %      3     999   0.59   12 %    708
    GAN                 656   1.48    1 %     45     576   1.64   16 %    228
    VEEGAN              973   0.53    1 %    149     967   0.67    8 %    521

VEEGAN leaves hardly a mode out and the GAN a third or more. But neither makes clean digits after so few steps: the
picture has their first strokes, the classifier is certain of them about as seldom as of shuffled pixels, and so the
counts say that samples differ, not that they are digits. So counts above those of the paper are not a better result.
"""

import argparse
import time
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.elbo.adversarial import Critic
from pyro_vae.evaluate import train_features

from common import make_parser
from games import health, train_on_draws


class JointCritic(nn.Module):
    """Convolutions of the image, which stands first in a row, and then a perceptron on their result and the latents."""

    def __init__(self, image: torch.Size, channels: tuple[int, ...], hidden: int, shape: torch.Size) -> None:
        super().__init__()
        self.image = image
        self.image_net = pv.nets.ConvEncoder(image, hidden, channels, hidden, "leaky_relu")
        self.joint_net = pv.nets.MLP(hidden + shape.numel() - image.numel(), (hidden,), 1, "leaky_relu")

    def forward(self, rows: Tensor) -> Tensor:
        x, z = rows.tensor_split([self.image.numel()], 1)
        return self.joint_net(torch.cat([self.image_net(x.unflatten(1, self.image)), z], 1)).squeeze(-1)


class Stacks:
    """Images of three random digits, one a channel."""

    def __init__(self, images: Tensor, seed: int) -> None:
        self.images, self.generator = images, torch.Generator().manual_seed(seed)
        self.shape = torch.Size([3, *images.shape[2:]])

    def draw(self, n: int) -> Tensor:
        """`(n, 3, H, W)`."""
        index = torch.randint(len(self.images), (3 * n,), generator=self.generator)
        return self.images[index].reshape(n, *self.shape)

    def shuffled(self, n: int) -> Tensor:
        """`(n, 3, H, W)`, each pixel from another image: no digits, but the right brightness everywhere."""
        x = self.draw(n).flatten(1)
        rows = torch.randint(n, x.shape, generator=self.generator)
        return x.gather(0, rows).reshape(n, *self.shape)


def modes(classifier: nn.Module, x: Tensor, sure: float = 0.0) -> Tensor:
    """How often each of the 1000 modes is among images `(N, 3, H, W)`, of those with three digits that are `sure`."""
    single = x.flatten(0, 1).unsqueeze(1)  # (3 N, 1, H, W)
    with torch.no_grad():
        found = torch.cat([classifier(part).softmax(1) for part in single.split(3000)]).reshape(len(x), 3, -1)
    confidence, digits = found.max(2)
    return (digits * torch.tensor([100, 10, 1])).sum(1)[confidence.amin(1) >= sure].bincount(minlength=1000)


def score(counts: Tensor) -> tuple[int, float]:
    """The modes found, and the KL of their distribution from the uniform one, in nats."""
    frequency = counts / counts.sum()
    return int((counts > 0).sum()), float(torch.special.xlogy(frequency, 1000 * frequency).sum())


def report(name: str, classifier: nn.Module, x: Tensor, seconds: str = "") -> None:
    """Print what the classifier finds in images `(N, 3, H, W)`."""
    found, kl = score(modes(classifier, x))
    certain = modes(classifier, x, sure=0.9)
    good = float(certain.sum()) / len(x)
    print(
        f"{name}: {found} modes, KL {kl:.2f}; certain {good:.0%}, {int((certain > 0).sum())} modes{seconds}", flush=True
    )


def train(stacks: Stacks, elbo: str, options: argparse.Namespace) -> pv.VAE:
    """A pair trained by one objective."""
    pyro.clear_param_store()
    torch.manual_seed(options.seed)
    channels, shape = tuple(options.channels), stacks.shape
    nets = {"hidden": options.hidden, "activation": "leaky_relu"}
    vae = pv.VAE(
        shape,
        options.latent_dim,
        encoder=partial(pv.nets.ConvEncoder, channels=channels, **nets),
        decoder=partial(pv.nets.ConvDecoder, channels=channels[::-1], **nets),
        posterior=pv.conditionals.Normal(options.latent_dim, 0.1),
        likelihood="bernoulli",  # whose mean, in [0, 1], is what the critic sees
    )
    more: dict[str, Any] = {"critic": partial(Critic, hidden=(options.hidden,), channels=channels)}
    if elbo != "gan":
        more = {"critic": partial(JointCritic, shape, channels, options.hidden), "noise": options.noise}
    if elbo == "veegan":
        more["weight"] = options.weight * 0.1**2
    objective: Any = pv.elbo.make(elbo, game="non_saturating", r1=options.r1, **more)
    train_on_draws(vae, objective, stacks.draw, options, compile=options.steps >= 1000)
    print(elbo, health(objective))
    return vae


def main() -> None:
    parser = make_parser(__doc__, latent_dim=32, hidden=128, steps=2500, batch_size=64)
    parser.add_argument("--data", default="mnist", help="a data set's name or file, with labels 0 to 9")
    parser.add_argument("--objectives", nargs="+", default=["gan", "veegan"], choices=["gan", "ali", "veegan"])
    parser.add_argument("--noise", type=float, default=1.0, help="on the latents that the critic sees")
    parser.add_argument("--weight", type=float, default=0.1, help="of half the squared error of the latents")
    parser.add_argument("--r1", type=float, default=1.0, help="penalty on the critic's gradient")
    parser.add_argument("--channels", nargs="+", type=int, default=[16, 32])
    parser.add_argument("--lr", type=float, default=5e-4, help="constant at first, then linearly to zero")
    parser.add_argument("--num_samples", type=int, default=26_000)
    options = parser.parse_args()

    data = pv.data.load(options.data)
    labels: Any = data.train.y
    classifier = train_features(data.train.x, labels, steps=min(1000, options.steps), seed=options.seed)
    stacks = Stacks(data.train.x, options.seed)
    pictures = {"data": stacks.draw(10)}
    sizes = [len(part) for part in torch.empty(options.num_samples).split(1000)]
    for name, draw in (("data", stacks.draw), ("shuffled pixels", stacks.shuffled)):
        report(name, classifier, torch.cat([draw(size) for size in sizes]))
    for elbo in options.objectives:
        started = time.process_time()
        vae = train(stacks, elbo, options)
        seconds = f", {time.process_time() - started:.0f} s of CPU"
        samples = torch.cat([vae.sample(size, mean=True) for size in sizes])
        report(elbo, classifier, samples, seconds)
        pictures[elbo] = samples[:10]
    print(pv.plots.save(pv.plots.image_rows(pictures), options.pictures / f"stacked_{options.data}.png"))


if __name__ == "__main__":
    main()
