"""Missing values: does a VAE trained on the incomplete data impute them better than means or chained regressions?

    python examples/imputation.py
    python examples/imputation.py --data wine --missing 0.5      # other tables that scikit-learn ships

Values of a table are deleted at random. The VAE maximizes the importance-weighted bound of the remaining values (MIWAE,
Mattei and Frellsen 2019, arXiv 1812.02633), then imputes posterior means by self-normalized importance sampling. For
comparison: the mean of each column, and scikit-learn's IterativeImputer, which regresses each column on all others in
turn. Columns are standardized, so that the mean has an error of about 1. All methods get the same incomplete
table, and no hyperparameter was chosen by the deleted values. The last column is the fraction of deleted values inside
the central 90 % of 200 multiple imputations, a check of the spread of the draws.

Measured (2-core CPU busy with other work, one thread; 60 to 110 seconds for each fraction), RMSE of mean, iterative and
VAE: 10 % missing 0.969, 0.328, 0.374; 30 % 0.972, 0.410, 0.419; 50 % 1.006, 0.543, 0.507; 70 % 1.003, 0.804, 0.589.
With few values missing, linear regressions on nearly collinear columns are hard to beat; with many missing the VAE is
better by far. Between 87 and 89 % of the values lie inside the 90 % intervals. One seed.
"""

import argparse
import time

import torch
from matplotlib.figure import Figure
from sklearn import datasets
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import pyro_vae as pv

from common import make_parser


def main() -> None:
    parser = make_parser(__doc__, epochs=200)
    parser.add_argument("--data", default="breast_cancer", choices=["breast_cancer", "wine", "diabetes"])
    parser.add_argument(
        "--missing", type=float, nargs="+", default=[0.1, 0.3, 0.5, 0.7], help="fractions of the values"
    )
    parser.add_argument("--num_particles", type=int, default=20, help="importance samples while training")
    parser.add_argument("--num_samples", type=int, default=2000, help="importance samples per datum for imputation")
    options = parser.parse_args()

    table = getattr(datasets, f"load_{options.data}")().data
    x = torch.tensor(StandardScaler().fit_transform(table), dtype=torch.float32)
    print(f"{options.data}: {len(x)} rows, {x.shape[1]} columns\nmissing    mean  iterative     VAE  in 90 %  seconds")
    found = []
    for fraction in options.missing:
        mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(options.seed)) >= fraction

        def rmse(filled: Tensor, mask: Tensor = mask) -> float:
            return float((filled - x)[~mask].square().mean().sqrt())

        incomplete = x.masked_fill(~mask, torch.nan)
        means = incomplete.nanmean(0).expand_as(x)
        # the sweeps do not quite converge, which makes no difference here
        chained = IterativeImputer(max_iter=20, tol=0.02, random_state=options.seed).fit_transform(incomplete.numpy())
        started = time.perf_counter()
        filled = impute(x, mask, options)
        assert filled.mean is not None
        low, high = filled.draws.quantile(0.05, 0), filled.draws.quantile(0.95, 0)
        covered = float(((low <= x) & (x <= high))[~mask].double().mean())
        found.append((rmse(means), rmse(torch.tensor(chained, dtype=x.dtype)), rmse(filled.mean)))
        seconds = time.perf_counter() - started
        mean, iterative, vae = found[-1]
        print(f"{fraction:7.0%}  {mean:6.3f}  {iterative:9.3f}  {vae:6.3f}  {covered:7.1%}  {seconds:7.0f}")

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    errors, scatter = figure.subplots(1, 2)
    for name, values in zip(("mean", "iterative", "VAE"), zip(*found, strict=True), strict=True):
        errors.plot(options.missing, values, marker="o", label=name)
    errors.set(xlabel="fraction of values missing", ylabel="RMSE of the missing values (s.d.)", ylim=(0, None))
    errors.legend()
    assert filled.mean is not None
    scatter.scatter(x[~mask], filled.mean[~mask], s=3, alpha=0.3, lw=0)
    scatter.axline((0, 0), slope=1, color="gray", lw=0.8)
    scatter.set(xlabel="deleted value", ylabel="VAE's posterior mean", title=f"{fraction:.0%} missing", xlim=(-3, 5))
    scatter.set(ylim=(-3, 5))
    print(pv.plots.save(figure, options.pictures / f"imputation_{options.data}.png"))


def impute(x: Tensor, mask: Tensor, options: argparse.Namespace) -> pv.evaluate.Imputation:
    """Train on the known values, and impute the others."""
    torch.manual_seed(options.seed)
    likelihood = pv.conditionals.Normal(x.shape[1], scale="shared")
    vae = pv.VAE(x.shape[1], latent_dim=10, hidden=(128, 128), activation="tanh", likelihood=likelihood)
    pv.fit(
        *pv.elbo.with_missing(vae.model, vae.guide),
        (x.masked_fill(~mask, 0), mask),
        elbo="iwae",
        num_particles=options.num_particles,
        epochs=options.epochs,
        batch_size=64,
        seed=options.seed,
    )
    return pv.impute(
        vae.model, vae.guide, x, mask=mask, num_samples=options.num_samples, num_imputations=200, seed=options.seed
    )


if __name__ == "__main__":
    main()
