"""Objectives with a penalty on how the latents of a batch are distributed: sparse activations, and the MMD."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import pyro.distributions
import torch
from torch import Tensor

from pyro_vae.elbo.estimators.bounds import MeanField, observed_log_prob
from pyro_vae.pair.plates import DataPlate, data_plate
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.tracing import PairTrace, sample_sites
from pyro_vae.support.arguments import checked

__all__ = ["WAE", "InfoVAE", "Sparse", "mmd"]

Kernel = Literal["imq", "rbf"]


class _Penalized(MeanField):
    """`MeanField` less a function of all draws in the batch, evaluated per particle and averaged over particles."""

    bound: ClassVar[str] = "own"

    def penalty(self, run: PairTrace, plate: DataPlate, prior: Callable[[], Tensor]) -> Tensor:
        """What is added to the loss, in nats per datum, summed over the particles of a run; a 0-d tensor.

        `prior` draws the latents from the model: `(K, N, D)`, in the layout of `latents`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define penalty(run, plate, prior)")

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Negative objective in nats, summed over the data, as a tensor whose gradient is the estimator's."""
        runs = list(self.traces(model, guide, args, kwargs))
        plate = data_plate(runs[0], len(args[0]))
        loss = torch.zeros(())
        for run in runs:

            def prior(run: PairTrace = run) -> Tensor:
                names = [name for name in run.latents if name in run.model.nodes]
                if len(names) == 1:  # its own prior; the guide's draw is not needed
                    fn = run.model.nodes[names[0]]["fn"]
                    drawn = {names[0]: fn.rsample() if fn.has_rsample else fn.sample()}
                else:
                    vectorized_model = self.programs(model, guide, args, kwargs)[2]
                    trace = traced(vectorized_model, args, kwargs)
                    drawn = {name: trace.nodes[name]["value"] for name in names}
                return _rows(run, plate, drawn)

            loss = loss + self.particle_loss(run) + plate.full_size * self.penalty(run, plate, prior)
        return loss / self.num_particles

    def latents(self, run: PairTrace, plate: DataPlate) -> Tensor:
        """The draws of all latents that are in the model, concatenated: `(K, N, D)`.

        Raises:
            ValueError: For a site without a reparameterized gradient.
        """
        drawn = {}
        for name, q in sample_sites(run.guide):
            if not q["fn"].has_rsample:
                raise ValueError(
                    f"site {name!r} is drawn from {type(q['fn']).__name__}, which has no reparameterized gradient, and "
                    f"{type(self).__name__} needs one: use elbo='trace' (score function) or a relaxed distribution"
                )
            if name in run.model.nodes:
                drawn[name] = q["value"]
        return _rows(run, plate, drawn)


def _rows(run: PairTrace, plate: DataPlate, drawn: dict[str, Tensor]) -> Tensor:
    """Values of latent sites as `(K, N, D)`, with K = 1 for a single particle."""
    rows = []
    for name, value in drawn.items():
        event = run.guide.nodes[name]["fn"].event_dim
        if run.particle_dim is None:
            value = value.movedim(plate.dim - event, 0).unsqueeze(0)
        else:
            value = value.movedim((run.particle_dim - event, plate.dim - event), (0, 1))
        rows.append(value.reshape(*value.shape[:2], -1))
    return torch.cat(rows, -1)


class Sparse(_Penalized):
    r"""The ELBO with a penalty that holds the mean activation of each latent element at a small rate.

    .. math:: L = \mathrm{ELBO} - \beta \sum_j KL\big(\mathrm{Bernoulli}(\rho) \,\|\, \mathrm{Bernoulli}(\hat\rho_j)
        \big), \quad \hat\rho_j = \frac1N \sum_n z_{nj}

    For latents in [0, 1], as those of `Autoencoder(..., code=torch.nn.Sigmoid())`; the mean is over the batch. For an
    L1 penalty take a `LaplacePrior`, for exactly k elements a `TopK` code; neither needs an objective.

    Args:
        num_particles: K, draws from the guide per step.
        rate: rho, in (0, 1).
        weight: beta, in nats per datum.
        vectorize_particles: As for `TensorELBO`.

    Raises:
        ValueError: For a rate outside (0, 1) or a negative weight; for latents outside [0, 1], while Pyro validates
            values.

    Reference: Ng 2011, CS294A lecture notes "Sparse autoencoder"; Lee, Ekanadham and Ng 2008, NIPS 20.
    """

    @checked
    def __init__(
        self,
        num_particles: int = 1,
        rate: float = 0.05,
        weight: float = 1.0,
        vectorize_particles: bool | None = None,
    ) -> None:
        if not 0 < rate < 1:
            raise ValueError(f"rate must be between 0 and 1, got {rate}")
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight must be a number >= 0, got {weight}")
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self.rate, self.weight = rate, weight

    def penalty(self, run: PairTrace, plate: DataPlate, prior: Callable[[], Tensor]) -> Tensor:
        active = self.latents(run, plate)
        if pyro.distributions.is_validation_enabled() and not bool(((active >= 0) & (active <= 1)).all()):
            raise ValueError(
                f"the latents {run.latents} take values from {float(active.min()):.3g} to {float(active.max()):.3g}, "
                "and Sparse needs activations in [0, 1]: use Autoencoder(..., code=torch.nn.Sigmoid())"
            )
        mean = active.mean(1).clamp(1e-6, 1 - 1e-6)  # (K, D)
        off = (1 - self.rate) * (math.log(1 - self.rate) - torch.log1p(-mean))
        return self.weight * (self.rate * (math.log(self.rate) - mean.log()) + off).sum()


class InfoVAE(_Penalized):
    r"""The InfoVAE objective: less of the KL of each datum, and a distance between aggregate posterior and prior.

    .. math:: L = E_{q(z|x)}[\log p(x|z)] - (1 - \alpha) \, KL(q(z|x) \| p(z))
        - (\alpha + \lambda - 1) \, \mathrm{MMD}^2(q(z), p(z))

    The squared maximum mean discrepancy is estimated without bias, see `mmd`, from the draws of the batch (all latents
    concatenated) and as many draws from the model's prior. `alpha=0, weight=1` is the ELBO.

    Args:
        num_particles: K, draws from the guide per step.
        alpha: alpha <= 1; at 1 there is no KL, and the guide may be a point mass.
        weight: lambda, in nats per datum.
        kernel: "imq" (inverse multiquadratic) or "rbf" (Gaussian).
        length: The kernel's length scale, see `mmd`.
        vectorize_particles: As for `TensorELBO`.

    Raises:
        ValueError: For a site that cannot be reparameterized, a prior that cannot be drawn from, latents outside the
            plate over the data; unless `alpha <= 1` and `alpha + weight >= 1`.

    Reference: Zhao, Song and Ermon 2017, arXiv 1706.02262, eq. 6.
    """

    @checked
    def __init__(
        self,
        num_particles: int = 1,
        alpha: float = 0.0,
        weight: float = 10.0,
        kernel: Kernel = "rbf",
        length: float | None = None,
        vectorize_particles: bool | None = None,
    ) -> None:
        if not (alpha <= 1 and alpha + weight >= 1 and weight < math.inf):
            raise ValueError(f"expected alpha <= 1 and alpha + weight >= 1, got alpha={alpha}, weight={weight}")
        _check_kernel(kernel, length)
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self.alpha, self.weight, self.kernel, self.length = alpha, weight, kernel, length

    def particle_loss(self, traces: PairTrace) -> Tensor:
        likelihood = observed_log_prob(traces)
        if self.alpha == 1:
            return -likelihood
        return (1 - self.alpha) * super().particle_loss(traces) - self.alpha * likelihood

    def penalty(self, run: PairTrace, plate: DataPlate, prior: Callable[[], Tensor]) -> Tensor:
        distance = mmd(self.latents(run, plate), prior(), kernel=self.kernel, length=self.length)  # (K,)
        return (self.alpha + self.weight - 1) * distance.sum()


class WAE(InfoVAE):
    r"""The Wasserstein autoencoder with an MMD penalty: reconstruction, and q(z) = p(z) for all data together.

    .. math:: L = E_{q(z|x)}[\log p(x|z)] - \lambda \, \mathrm{MMD}^2(q(z), p(z))

    There is no KL, so codes of different data need not overlap, and the guide may be a point mass,
    `posterior=Point(D)`. With `Normal(shape, scale)` for the likelihood the cost is the squared error divided by twice
    the squared scale.

    Args:
        num_particles, kernel, length, vectorize_particles: As for `InfoVAE`.
        weight: lambda, in nats per datum.

    Raises:
        ValueError: For a negative weight, and as `InfoVAE` does.

    Reference: Tolstikhin et al. 2018, arXiv 1711.01558, algorithm 2.
    """

    @checked
    def __init__(
        self,
        num_particles: int = 1,
        weight: float = 10.0,
        kernel: Kernel = "imq",
        length: float | None = None,
        vectorize_particles: bool | None = None,
    ) -> None:
        if not weight >= 0:
            raise ValueError(f"weight must be a number >= 0, got {weight}")
        super().__init__(num_particles, 1.0, weight, kernel, length, vectorize_particles)


@checked
def mmd(x: Tensor, y: Tensor, *, kernel: Kernel = "imq", length: float | None = None) -> Tensor:
    r"""The squared maximum mean discrepancy between two samples `(*, N, D)` and `(*, M, D)`, without bias: `(*,)`.

    .. math:: \frac{\sum_{i \ne j} k(x_i, x_j)}{N (N - 1)} + \frac{\sum_{i \ne j} k(y_i, y_j)}{M (M - 1)}
        - \frac{2 \sum_{ij} k(x_i, y_j)}{N M}

    "rbf": `k = exp(-d^2 / (2 l^2))`. "imq": `k = sum_s C / (C + d^2)` with `C = 2 s l^2`, s = .1, .2, .5, 1, 2, 5, 10.
    By default `l^2 = D`, so that for D independent elements of variance one the expected squared distance, 2 D, is
    2 l^2. Since it is unbiased, it can be negative. For a sample of size one there is no estimate, and it is zero.

    Raises:
        ValueError: For samples with different numbers of elements, an unknown kernel, or a length that is not positive.

    Reference: Gretton et al. 2012, JMLR 13, eq. 3; the kernel of Tolstikhin et al. 2018, arXiv 1711.01558.

    >>> mmd(torch.zeros(5, 2), torch.ones(5, 2), kernel="rbf", length=1.0)  # 2 - 2 / e
    tensor(1.2642)
    """
    _check_kernel(kernel, length)
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"expected samples (*, N, D) and (*, M, D), got samples of {x.shape[-1]} and {y.shape[-1]} elements"
        )
    n, m = x.shape[-2], y.shape[-2]
    if n < 2 or m < 2:
        return x.new_zeros(x.shape[:-2])
    square = x.shape[-1] if length is None else length**2

    def k(a: Tensor, b: Tensor) -> Tensor:
        # not torch.cdist: its root has no gradient at zero, where the diagonal is
        d = a.square().sum(-1).unsqueeze(-1) + b.square().sum(-1).unsqueeze(-2) - 2 * a @ b.mT
        d = d.clamp_min(0)
        if kernel == "rbf":
            return torch.exp(-d / (2 * square))
        return sum((c / (c + d) for c in (2 * s * square for s in _SCALES)), start=torch.zeros(()))

    def others(a: Tensor) -> Tensor:
        within, count = k(a, a), a.shape[-2]
        return (within.sum((-1, -2)) - within.diagonal(dim1=-1, dim2=-2).sum(-1)) / (count * (count - 1))

    return others(x) + others(y) - 2 * k(x, y).mean((-1, -2))


_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def _check_kernel(kernel: str, length: float | None) -> None:
    if kernel not in ("imq", "rbf"):
        raise ValueError(f"kernel must be 'imq' or 'rbf', got {kernel!r}")
    if length is not None and not 0 < length < math.inf:
        raise ValueError(f"length must be positive and finite, got {length}")
