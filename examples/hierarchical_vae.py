"""Do more layers of latents help? One layer, two with a bottom-up guide, and a ladder, at equal epochs on MNIST.

    python examples/hierarchical_vae.py                              # MNIST, dynamic binarization
    python examples/hierarchical_vae.py --data digits --epochs 60    # no download

The sizes are those of Burda et al. 2016 (arXiv 1509.00519): z of 50, or of 100 and 50, networks of 200-200 and 100-100.
Its table 1 (3280 epochs) has 86.76 nats with one layer and 85.33 with two, and the second layer with 5 active units of
50; the ladder of Sønderby et al. 2016 (arXiv 1602.02282) keeps upper layers in use. Each is trained on the ELBO with a
KL warm-up over a third of the run, and compared by log p(x), which does not depend on the tightness of a bound.

Measured on MNIST at the defaults (2-core CPU, one thread, the other core busy; 36, 51 and 57 seconds of training; seed
0; 500 test images), ELBO and log p(x) (a bound L_500), with the nats of KL in each layer: one layer -101.64 and -96.67
(28.8), two bottom-up -98.47 and -93.41 (10.9 in z1, 14.2 in z2), the ladder -97.16 and -92.84 (14.3 and 8.5). A
second layer gains 3.3 nats and the ladder 0.6 more, after 12 epochs of the table's 3280. The importance samples are
few for so many dimensions (k-hat above 0.7 for almost all images): log p(x) itself is higher.

Measured with `--data digits --epochs 60 --num_samples 200` (2-core CPU, busy with other work, one thread, 26 seconds of
it in all; seed 0), ELBO and log p(x) (a bound L_200): one layer -24.17 and -23.58, two bottom-up -24.81 and -23.67
(KL 3.5 nats in z1 and 1.7 in z2), the ladder -23.54 and -23.07 (KL 4.6 and 0.4). With so few data and epochs a
second layer helps only with the ladder.
"""

import torch
from matplotlib.figure import Figure

import pyro_vae as pv
from pyro_vae.models import HierarchicalVAE, LadderVAE

from common import make_parser, plot_validation, train_and_measure


def main() -> None:
    options = make_parser(__doc__, data="mnist", epochs=12, num_samples=500, num_data=500).parse_args()

    data = pv.data.load(options.data, binarize="dynamic", flatten=True, valid=0.05)
    test, size = data.test.x[: options.num_data], data.shape[0]
    systems = {
        "one layer": lambda: HierarchicalVAE(size, (50,), ((200, 200),)),
        "two, bottom-up": lambda: HierarchicalVAE(size, (100, 50), ((200, 200), (100, 100))),
        "two, ladder": lambda: LadderVAE(size, (100, 50), ((200, 200), (100, 100)), activation="tanh"),
    }
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    curves, layers = figure.subplots(1, 2, width_ratios=(2, 1))
    histories = {}
    for i, (name, make) in enumerate(systems.items()):
        torch.manual_seed(options.seed)
        vae = make().start_at_mean(data.mean)
        warmup = pv.elbo.Warmup(options.epochs / 3)
        histories[name], elbo, _ = train_and_measure(
            name, vae, data, test, options, bound_samples=20, elbo="trace", kl_weight=warmup
        )
        kls = {site: float(kl.mean()) for site, kl in sorted(elbo.kl_sites.items())}
        print("  KL: " + ", ".join(f"{site} {kl:.2f}" for site, kl in kls.items()), flush=True)
        left = 0.0
        for j, (site, kl) in enumerate(kls.items()):
            layers.barh(i, max(kl, 0.0), left=left, color=f"C{4 + j}", label=site if i == 1 else None)
            left += max(kl, 0.0)
    plot_validation(curves, histories, skip=1 / 3)
    layers.set(xlabel="KL (nats per datum)", yticks=range(len(systems)), yticklabels=list(systems))
    layers.invert_yaxis()
    layers.legend(loc="upper center", bbox_to_anchor=(0.4, 1.15), ncols=2, frameon=False)
    print(pv.plots.save(figure, options.pictures / f"hierarchical_vae_{options.data}.png"))


if __name__ == "__main__":
    main()
