"""Do critics make the aggregate posterior q(z) fit the prior? VAE, AAE, VGH and VGH++ on MNIST, by parts of the KL.

    python examples/vgh.py                                                      # MNIST
    python examples/vgh.py --data digits --latent_dims 2 --steps 600            # no download

The KL of the ELBO, averaged over the data, is the mutual information I(n; z) of datum and code plus KL(q(z) || p(z)) of
the aggregate posterior, the mixture of q(z|x) over the data. A VAE pays for both; a critic on the codes sees the second
alone. Rosca et al. 2018 (arXiv 1802.06847) compare hybrids by it, estimated by a classifier. Here it is bracketed:

- from above by the mixture itself, at draws from it. `pv.latent_report` gives it for N test data, where I(n; z) is at
  most log N; the mixture over all training data is finer, and its KL smaller.
- from below by the same mixture at codes of test data, which is less by KL(q_test(z) || q_train(z)). With two latents
  the two are near each other; with ten the mixture is no use, and the second may be negative.
- from below by a classifier of draws from q(z) and p(z), trained on codes of training data, as the Donsker-Varadhan
  bound E_q[T] - log E_p[exp T] of its logit T, at codes of test data. It needs no density, and sees little fine detail.

All four pairs are the same VAE, whose guide has a density, with a Gaussian likelihood; only objectives differ.

Measured with `--latent_dims 10`, one objective at a time (2-core CPU, busy with other work, one thread; seed 0), nats:

             ELBO     KL  I(n; z)   above   below  classifier  Frechet  coverage  seconds
    VAE      94.3  17.87     8.38    7.91   -3.12        1.85     80.7      0.40       22
    AAE      61.5  48.88     8.52   39.07   -773         1.96     42.7      0.58       73
    VGH    -352.8   0.35     0.05    0.29    0.28        0.27     79.3      0.29       60
    VGH++    74.5  47.99     8.52   38.11  -1156         2.52     66.1      0.42       80

VGH has no use for its codes. AAE and VGH++ lose the noise of their guide, and the mixture says nothing of them; what
the classifier tells apart is no less than for the VAE. It sees too little, though: with two latents, for the VAE, it
finds 0.13 where the mixture has 0.57 from above and 0.39 from below (KL 5.97, I(n; z) 5.40). The other three have not
been measured there with these settings.
"""

import math
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import softplus

import pyro_vae as pv
from pyro_vae.elbo.adversarial import Critic
from pyro_vae.evaluate import train_features

from common import make_parser
from games import fit_objective, health

OBJECTIVES: dict[str, dict[str, Any]] = {
    "mean_field": {},
    "aae": {"average": 0.995},
    "vgh": {"r1": 0.1, "average": 0.995},
    "vgh++": {"r1": 0.1, "average": 0.995},
}
LABELS = {"mean_field": "VAE", "aae": "AAE", "vgh": "VGH", "vgh++": "VGH++"}


@torch.no_grad()
def log_mixture(vae: Any, data: Tensor, z: Tensor) -> Tensor:
    """log q(z) of draws `(M, D)` under the mixture over data of a diagonal normal posterior."""
    q = vae.encode(data).base_dist
    precision = q.scale.pow(-2)
    constant = -q.scale.log().sum(1) - 0.5 * (q.loc.square() * precision).sum(1)
    parts = [
        (part @ (q.loc * precision).T - 0.5 * part.square() @ precision.T + constant).logsumexp(1)
        for part in z.split(200)
    ]
    return torch.cat(parts) - math.log(len(data)) - 0.5 * z.shape[1] * math.log(2 * math.pi)


@torch.no_grad()
def marginal_kls(vae: Any, train: Tensor, test: Tensor) -> tuple[float, float]:
    """Upper and lower bounds on KL(q(z) || p(z)): the mixture over training data at codes of training and test data."""
    found = []
    for data in (train[torch.randperm(len(train))[: len(test)]], test):
        z = vae.encode(data).sample()
        found.append(float((log_mixture(vae, train, z) - vae.prior().log_prob(z)).mean()))
    return found[0], found[1]


def classifier_bound(vae: Any, train: Tensor, test: Tensor, steps: int, seed: int) -> float:
    """The Donsker-Varadhan bound on KL(q(z) || p(z)) by a classifier."""
    torch.manual_seed(seed)
    critic = Critic(vae.latent_dim, hidden=(200, 200))
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3, fused=True)

    def draws(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return vae.encode(x).sample(), vae.prior().sample((len(x),))

    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (1 - step / steps)
        of_q, of_p = draws(train[torch.randint(len(train), (256,))])
        optimizer.zero_grad()
        (softplus(-critic(of_q)).mean() + softplus(critic(of_p)).mean()).backward()
        optimizer.step()
    of_q, _ = draws(test)
    of_p = vae.prior().sample((50_000,))  # many, for the mean of an exponential
    with torch.no_grad():
        return float(critic(of_q).mean() - (critic(of_p).logsumexp(0) - math.log(len(of_p))))


def main() -> None:
    parser = make_parser(__doc__, steps=1200, batch_size=64, lr=1e-3)
    parser.add_argument("--data", default="mnist", help="a data set's name or file, with labels")
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=list(OBJECTIVES))
    parser.add_argument("--latent_dims", nargs="+", type=int, default=[2, 10])
    parser.add_argument("--hidden", nargs="+", type=int, default=[256, 256])
    parser.add_argument("--num_data", type=int, default=5000, help="test data that the KL is measured on")
    options = parser.parse_args()

    data = pv.data.load(options.data)
    labels: Any = data.train.y
    colors: Any = data.test.y
    net = train_features(data.train.x, labels, steps=min(1000, options.steps), seed=options.seed)
    test = data.test.x[: options.num_data]
    marginal = ["N test data", "training data", "test codes", "classifier"]
    table = Table("latents", "", "ELBO", "KL", "I(n; z)", *marginal, "Fréchet", "coverage", "seconds")
    samples: dict[str, Tensor] = {"data": data.test.x[:12]}
    figure = Figure(figsize=(3 * len(options.objectives), 3.2), layout="constrained")
    axes = list(figure.subplots(1, len(options.objectives), squeeze=False)[0])
    for dim in options.latent_dims:
        for name in options.objectives:
            torch.manual_seed(options.seed)
            vae = pv.VAE(
                data.shape, dim, options.hidden, "leaky_relu", likelihood=pv.conditionals.Normal(data.shape, 0.3)
            ).start_at_mean(data.mean)
            critic = partial(Critic, hidden=(256, 128), channels=())
            # networks this small do not need a GPU
            history, objective = fit_objective(vae, data.train.x, name, OBJECTIVES[name], critic, options, device="cpu")
            report = pv.latent_report(vae.model, vae.guide, test, num_samples=2, seed=0)
            above, below = marginal_kls(vae, data.train.x, test[:2000])
            seen = classifier_bound(vae, data.train.x, test, 2 * options.steps, options.seed)
            elbo = pv.bound(vae.model, vae.guide, test, seed=0).mean
            made = vae.sample(1000, mean=True).clamp(0, 1)
            quality = pv.sample_quality(data.test.x[:2000], made, net, seed=0).samples
            values = [
                f"{elbo:.1f}",
                f"{report.kl:.2f}",
                f"{report.mutual_information:.2f}",
                f"<= {report.marginal_kl:.2f}",
                f"<= {above:.2f}",
                f">= {below:.2f}",
                f">= {seen:.2f}",
                f"{quality.frechet:.1f}",
                f"{quality.coverage:.2f}",
                f"{history[-1].seconds:.0f}",
            ]
            table.add_row(str(dim), LABELS[name], *values)
            print(dim, LABELS[name], *values, health(objective) or "", flush=True)
            samples[f"{LABELS[name]}, {dim} latents"] = made[:12]
            if dim == options.latent_dims[0]:
                ax, codes = axes.pop(0), report.draws["z"]
                ax.scatter(*codes[:, :2].T.cpu().numpy(), c=colors[: len(codes)].cpu().numpy(), cmap="tab10", s=1)
                ax.set(title=f"{LABELS[name]}: q(z)", aspect="equal", xlim=(-4, 4), ylim=(-4, 4))
    Console(width=120).print(table)
    print(pv.plots.save(figure, options.pictures / f"vgh_codes_{options.data}.png"))
    print(pv.plots.save(pv.plots.image_rows(samples), options.pictures / f"vgh_{options.data}.png"))


if __name__ == "__main__":
    main()
