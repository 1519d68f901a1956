"""Does a learned prior help? A VampPrior, a mixture and others against the standard normal at equal epochs, MNIST.

    python examples/priors.py                              # MNIST, dynamic binarization
    python examples/priors.py --data digits --epochs 30    # no download
    python examples/priors.py --priors standard_normal mixture flow autoregressive

The VAEs start with the same decoder and encoder, see the same batches, and differ only in the prior. They are compared
by log p(x) on the same test images, paired. pythae's table for MNIST with the fixed binarization (500 epochs, another
network) has 89.78 nats with the standard prior and 85.79 with a VampPrior of 500 pseudo-inputs (Tomczak and Welling
2018, arXiv 1705.07120).

Measured (2-core CPU, busy with other work, one thread; seed 0; 58 and 243 seconds of training; 500 test images):
standard normal ELBO -96.82, log p(x) -92.67; VampPrior with 100 pseudo-inputs, initialized by training images, ELBO
-93.17, log p(x) -89.31: better by 3.36 ± 0.17 nats, paired by image, after these 12 epochs, and ahead at each of them.
The effective sample size is about 7 of 300, so both are bounds L_300.
"""

import torch
from matplotlib.figure import Figure

import pyro_vae as pv
from pyro_vae.priors import Prior, VampPrior

from common import make_parser, mean_and_error, plot_validation, train_and_measure


def make_prior(name: str, latent_dim: int, components: int, data: pv.data.Data) -> Prior:
    arguments = {"components": components} if name in ("vamp", "mixture") else {}
    prior = pv.priors.prior(name, latent_dim, data.shape, **arguments)
    if isinstance(prior, VampPrior):
        prior.start_at(data.train.head(components))
    return prior


def main() -> None:
    parser = make_parser(__doc__, data="mnist", latent_dim=40, epochs=12, num_samples=300, num_data=500)
    parser.add_argument("--priors", nargs="+", default=["standard_normal", "vamp"], help="names")
    parser.add_argument("--components", type=int, default=100, help="of a mixture, and pseudo-inputs")
    options = parser.parse_args()

    data = pv.data.load(options.data, binarize="dynamic", flatten=True, valid=0.05)
    test = data.test.x[: options.num_data]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    curves, gains = figure.subplots(1, 2)
    baseline, weights, histories = None, None, {}
    for i, name in enumerate(options.priors):
        torch.manual_seed(options.seed)
        prior = make_prior(name, options.latent_dim, options.components, data)
        vae = pv.VAE(data.shape, options.latent_dim, hidden=(200, 200), prior=prior).start_at_mean(data.mean)
        # the priors draw different random numbers at construction; the networks have to be equal
        weights = weights or [{k: v.clone() for k, v in net.state_dict().items()} for net in (vae.encoder, vae.decoder)]
        vae.encoder.load_state_dict(weights[0])
        vae.decoder.load_state_dict(weights[1])
        histories[name], _, marginal = train_and_measure(name, vae, data, test, options, elbo="trace")
        if baseline is None:
            baseline = marginal.log_prob
            continue
        gain = marginal.log_prob - baseline
        print(f"  over {options.priors[0]}: {mean_and_error(gain)} nats in log p(x)", flush=True)
        gains.hist(gain.cpu(), bins=40, color=f"C{i}", alpha=0.6, label=name)

    plot_validation(curves, histories)
    gains.axvline(0.0, color="gray", lw=0.8, ls=":")
    gains.set(xlabel=f"log p(x) minus that under {options.priors[0]} (nats)", ylabel="test images")
    gains.legend()
    print(pv.plots.save(figure, options.pictures / f"priors_{options.data}.png"))


if __name__ == "__main__":
    main()
