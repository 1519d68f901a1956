"""Objectives that allow the KL a certain size: free bits and capacity annealing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.elbo.estimators.bounds import TensorELBO, observed_log_prob
from pyro_vae.elbo.estimators.terms import elements_of, kl_sites, mask_elements
from pyro_vae.pair.plates import DataPlate, data_plate
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.site_masks import base_distribution
from pyro_vae.pair.tracing import PairTrace, sample_sites
from pyro_vae.support.arguments import checked

__all__ = ["Capacity", "FreeBits"]

Site = dict[str, Any]


class _MeanKL(TensorELBO):
    """An objective in which a function of the batch's mean KL replaces the KL.

    The mean is over the data and the particles, also where these run one by one. Every KL must have a closed form: the
    function is not linear, so a one-sample estimate would change its expectation. A masked element has KL 0.
    """

    bound: ClassVar[str] = "own"
    needs_path: ClassVar[bool] = True
    elementwise: bool = False  # whether `penalty` wants the KL of each latent dimension

    def penalty(self, kl: list[tuple[Tensor, float]]) -> Tensor:
        """What is subtracted, in nats per datum, a 0-d tensor.

        `kl` has for each site the mean KL, of each element or of the site, and the number of elements that each one
        represents: more than 1 in a subsampled plate inside the data's.
        """
        raise NotImplementedError(f"{type(self).__name__} must define penalty(kl)")

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Negative objective in nats, summed over the data, as a tensor whose gradient is the estimator's."""
        runs = list(self.traces(model, guide, args, kwargs))
        plate = data_plate(runs[0], len(args[0]))
        found = [self._kl(run, plate) for run in runs]
        kl = [(torch.stack([value for value, _ in site]).mean(0), site[0][1]) for site in zip(*found, strict=True)]
        loss = plate.full_size * self.penalty(kl)
        for run in runs:
            loss = loss - observed_log_prob(run) / self.num_particles
        return loss

    def _kl(self, run: PairTrace, plate: DataPlate) -> list[tuple[Tensor, float]]:
        analytic, result = kl_sites(run), []
        for name, q in sample_sites(run.guide):
            if not q["fn"].has_rsample:
                kind = type(base_distribution(q["fn"])).__name__
                raise ValueError(
                    f"site {name!r} is drawn from {kind}, which has no reparameterized gradient, and "
                    f"{type(self).__name__} needs one: use 'vimco' or 'reinforce' for such sites"
                )
            if name not in analytic:
                raise ValueError(
                    f"site {name!r} ({type(q['fn']).__name__} in the guide) has no KL in closed form here, and "
                    f"{type(self).__name__} needs one: it has to be drawn after all that its prior depends on, and "
                    "torch has to know the KL of the two families. Use 'mean_field' or 'trace' with a KL weight"
                )
            p = run.model.nodes[name]
            kl = self._elements(name, q, p) if self.elementwise else analytic[name]
            event = q["fn"].event_dim if self.elementwise else 0
            batch = [plate.dim] if run.particle_dim is None else [plate.dim, run.particle_dim]
            kl = kl.mean([dim - event for dim in batch])
            times = self._plate_scale(name, q, p) * plate.size / plate.full_size
            result.append((kl, times) if self.elementwise else (kl.sum() * times, 1.0))
        return result

    def _elements(self, name: str, q: Site, p: Site) -> Tensor:
        """The KL of every element of the site, its batch shape followed by its event shape."""
        a, b = elements_of(q["fn"], p["fn"])
        if a.event_shape or b.event_shape:
            raise ValueError(
                f"site {name!r} has one KL for its whole event ({type(a).__name__} in the guide, {type(b).__name__} in "
                f"the model), not one per dimension: use {type(self).__name__}(per='site'), or independent dimensions "
                "with .to_event(k) in both"
            )
        kl = kl_divergence(a, b).expand(torch.broadcast_shapes(a.batch_shape, b.batch_shape))
        return mask_elements(kl, q)

    def _plate_scale(self, name: str, q: Site, p: Site) -> float:
        """The factor by which the site's plates are subsampled, if that is all there is."""
        expected = math.prod(f.full_size / f.size for f in q["cond_indep_stack"] if f.full_size)
        for site in (q, p):
            # a weight on the KL is stored in a tensor, whose value is not read: that would wait for a GPU
            if isinstance(site["scale"], Tensor) or not math.isclose(site["scale"], expected, rel_tol=1e-6):
                raise ValueError(
                    f"site {name!r} has a weight of its own (kl_weight, WeightedKL or poutine.scale), and "
                    f"{type(self).__name__} already changes the KL: a weight inside and one outside are two different "
                    "objectives. Use one of them"
                )
        return expected


class FreeBits(_MeanKL):
    r"""The ELBO with a floor under the KL of each latent dimension: below it a smaller KL gains nothing.

    .. math:: L = E_{q(z|x)}[\log p(x|z)] - \sum_j \max\Big(\lambda,\;
        \frac1N \sum_n KL(q(z_j|x_n) \| p(z_j))\Big)

    The mean over the batch is taken before the maximum, so a dimension has to have lambda nats on average, not for
    every datum. A dimension below the floor gets no gradient from its KL, which keeps it from collapsing to the prior
    early in training. The value is at most the ELBO, so it is a bound, too. Its gradient depends on the batch size.

    Args:
        num_particles: K, draws from the guide per step.
        bits: lambda, the floor, in nats (as in the paper, despite the name): 1 bit is 0.69 nats.
        per: What has a floor: each latent "dimension" (each element of a site, for which q and p must be independent
            over dimensions), or each "site", a group of dimensions with one floor for their sum.
        vectorize_particles: As for `TensorELBO`.

    Raises:
        ValueError: For a site that cannot be reparameterized or has no closed-form KL; for a site with a KL weight,
            `WeightedKL` around this objective included; for a site outside the plate over the data.

    Reference: Kingma et al. 2016, arXiv 1606.04934, eq. 15.
    """

    @checked
    def __init__(
        self,
        num_particles: int = 1,
        bits: float = 0.25,
        per: Literal["dimension", "site"] = "dimension",
        vectorize_particles: bool | None = None,
    ) -> None:
        if not 0 <= bits < math.inf:
            raise ValueError(f"bits must be a number of nats >= 0, got {bits}")
        if per not in ("dimension", "site"):
            raise ValueError(f"per must be 'dimension' or 'site', got {per!r}")
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self.bits, self.per = bits, per
        self.elementwise = per == "dimension"

    def penalty(self, kl: list[tuple[Tensor, float]]) -> Tensor:
        return sum((times * each.clamp_min(self.bits).sum() for each, times in kl), start=torch.zeros(()))


class Capacity(_MeanKL):
    r"""The ELBO with the KL held near a capacity C, which is raised during training.

    .. math:: L = E_{q(z|x)}[\log p(x|z)]
        - \gamma \,\Big|\frac1N \sum_n KL(q(z|x_n) \| p(z)) - C\Big|

    The KL is summed over all latents. It is averaged over the batch inside the absolute value, so that easy data may
    take less than C and hard ones more; the paper writes the formula for one datum. Where the KL is C the value is C
    above the ELBO: it is not a bound on log p(x).

    Assign `.capacity` between steps, or let `fit` do so after each epoch. Then keep the last weights, since the best
    ELBO may belong to another capacity:

    >>> import pyro_vae as pv
    >>> objective = Capacity(gamma=30.0)
    >>> options = {"callbacks": [objective.follow(pv.elbo.Warmup(10, end=25.0))], "keep_best": False}

    Args:
        num_particles: K, draws from the guide per step.
        capacity: The initial C, nats per datum.
        gamma: Weight of the distance between the KL and C.
        vectorize_particles: As for `TensorELBO`.

    Raises:
        ValueError: As `FreeBits`.

    Reference: Burgess et al. 2018, arXiv 1804.03599, eq. 8 (gamma = 1000, C from 0 to 25 nats).
    """

    @checked
    def __init__(
        self,
        num_particles: int = 1,
        capacity: float = 0.0,
        gamma: float = 1000.0,
        vectorize_particles: bool | None = None,
    ) -> None:
        if not 0 <= gamma < math.inf:
            raise ValueError(f"gamma must be a number >= 0, got {gamma}")
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self.gamma = gamma
        self._capacity = torch.zeros((), dtype=torch.float64)
        self.capacity = capacity

    @property
    def capacity(self) -> float:
        """C, nats per datum."""
        return float(self._capacity)

    @capacity.setter
    def capacity(self, value: float) -> None:
        if not 0 <= value < math.inf:
            raise ValueError(f"the capacity must be a number of nats >= 0, got {value}")
        self._capacity.fill_(value)

    def follow(self, schedule: Callable[[float], float]) -> Callable[[Any], None]:
        """A callback for `fit` that sets the capacity to `schedule(epochs done)` after each epoch; now to the first."""
        self.capacity = schedule(0.0)

        def callback(state: Any) -> None:
            self.capacity = schedule(float(state.epoch.epoch))

        return callback

    def penalty(self, kl: list[tuple[Tensor, float]]) -> Tensor:
        total = sum((times * each.sum() for each, times in kl), start=torch.zeros(()))
        return self.gamma * (total - self._capacity.to(total)).abs()
