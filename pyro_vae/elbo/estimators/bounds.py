"""The two standard ELBO estimators, free of host synchronization and with vectorized particles."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pyro
import pyro.infer
import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import MultiFrameTensor
from torch import Tensor

from pyro_vae.elbo.estimators.terms import kl_sites
from pyro_vae.pair.particles import Particles, particles_of
from pyro_vae.pair.plates import independent_plates
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.tracing import PARTICLE_PLATE, PairTrace, Site, draw_log_prob, log_prob, sample_sites, trace_pair
from pyro_vae.support.arguments import checked

__all__ = ["Differentiable", "MeanField", "TensorELBO", "Trace", "observed_log_prob", "scaled_alike", "scaled_kl"]

KL_WEIGHTS = "_pyro_vae_kl_weights"  # where a latent site keeps its scale before weights on the KL, and these


class Differentiable(pyro.infer.ELBO):
    """A Pyro ELBO whose other methods follow from its `differentiable_loss`."""

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Negative objective in nats, summed over the data, as a tensor whose gradient is the estimator's."""
        raise NotImplementedError(f"{type(self).__name__} must define differentiable_loss(model, guide, *args)")

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """The value of `differentiable_loss` without a gradient, a 0-d tensor."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *args, **kwargs)

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the loss, add its gradients to the parameters' `.grad`, and return it as a 0-d tensor."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return loss.detach()

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("this objective makes its traces itself")


class TensorELBO(Differentiable):
    """A Pyro ELBO whose loss is one differentiable tensor: the base of this library's own estimators.

    A subclass defines `particle_loss(traces)`: the negative objective of one run of the pair, in nats, summed over the
    data, and over vectorized particles. `loss`, `loss_and_grads` and `differentiable_loss` follow from it. Losses stay
    on the device: nothing here waits for a GPU.

    Args:
        num_particles: Number of draws from the guide per step, K >= 1.
        vectorize_particles: True runs the K particles in one pass, False one after the other. None (default) tries the
            first and falls back to the second, with a warning, if the pair's networks do not take a leading dimension.

    Raises:
        ValueError: For `num_particles` below 1.
    """

    needs_path: ClassVar[bool] = False  # whether every latent site must be reparameterized
    for_discrete: ClassVar[bool] = False  # whether it is meant for latents that cannot be reparameterized
    bound: ClassVar[str] = "elbo"  # which bound the value is: the ELBO, that of IWAE, or another one ("own")

    @checked
    def __init__(self, num_particles: int = 1, vectorize_particles: bool | None = None, **kwargs: Any) -> None:
        if num_particles < 1:
            raise ValueError(f"num_particles must be at least 1, got {num_particles}")
        super().__init__(num_particles=num_particles, **kwargs)
        self.vectorize_particles = vectorize_particles
        self._plan: tuple[Program, Program, Particles] | None = None

    def particle_loss(self, traces: PairTrace) -> Tensor:
        """Negative objective, summed over data and particles, with the sites' scales applied."""
        raise NotImplementedError(f"{type(self).__name__} must define particle_loss(traces)")

    @property
    def rows(self) -> int:
        """How many particles run for one loss: K, unless each has branches."""
        return self.num_particles

    def layout(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: Any) -> tuple[int, int | None]:
        """How the K particles run: the number of runs, and the batch dimension of the particles within one."""
        if self.rows == 1:
            return 1, None
        # planned once for a pair, since the probe costs a few forward passes
        if self._plan is None or self._plan[:2] != (model, guide):
            particles = particles_of(model, guide, (args, kwargs), self.vectorize_particles)
            self._plan = (model, guide, particles)
        particles = self._plan[2]
        return (1, -1 - particles.nesting) if particles.vectorize else (self.rows, None)

    def programs(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: Any
    ) -> tuple[int, int | None, Program, Program]:
        """`layout`, and the pair to run: inside a plate over the particles where one run has them all."""
        runs, dim = self.layout(model, guide, args, kwargs)
        if dim is not None:
            particles = pyro.plate(PARTICLE_PLATE, self.rows, dim=dim)
            model, guide = particles(model), particles(guide)
        return runs, dim, model, guide

    def traces(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: Any) -> Iterator[PairTrace]:
        """The runs of the pair that one loss needs: one with K vectorized particles, or K plain ones."""
        runs, dim = self.layout(model, guide, args, kwargs)
        for _ in range(runs):
            if dim is None:
                yield trace_pair(model, guide, args, kwargs)
            else:
                yield trace_pair(model, guide, args, kwargs, num_particles=self.num_particles, nesting=-1 - dim)

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Negative objective in nats, summed over the data, as a tensor whose gradient is the estimator's."""
        losses = [self.particle_loss(traces) for traces in self.traces(model, guide, args, kwargs)]
        return (
            losses[0]
            if len(losses) == 1 and self.num_particles == 1
            else sum(losses[1:], losses[0]) / self.num_particles
        )


class Trace(TensorELBO):
    r"""The Monte Carlo ELBO with pathwise gradients, `log p(x, z) - log q(z|x)` averaged over the particles.

    .. math:: L = E_{q(z|x)}[\log p(x, z) - \log q(z|x)]

    Unbiased for the ELBO and for its gradient. The variance includes that of the KL term, which `MeanField` integrates
    out. A site that cannot be reparameterized gets a score-function term instead, weighted with all that stands in its
    plates (of those whose elements no later site of the guide brings together). Scales and masks are in these weights;
    the score is that of the density that drew, without them.

    Args:
        num_particles: K, draws from the guide per step.
        vectorize_particles: As for `TensorELBO`.

    Reference: Kingma and Welling 2014, arXiv 1312.6114, eq. 6 (estimator A); Ranganath et al. 2014, arXiv 1401.0118
    (score function).
    """

    def particle_loss(self, traces: PairTrace) -> Tensor:
        score = {
            name: site
            for name, site in sample_sites(traces.guide)
            if not site["fn"].has_rsample and not site["is_observed"]
        }
        elbo, terms = torch.zeros(()), MultiFrameTensor()
        for name, site, sign in traces.sites():
            value = sign * scale_and_mask(log_prob(name, site), site["scale"])
            if score:
                terms.add((site["cond_indep_stack"], value.detach()))
                if sign < 0 and name in score:
                    value = value.detach()  # the gradient of log q has mean zero
            elbo = elbo + value.sum()
        plates = independent_plates(traces.guide) if score else {}
        for name, site in score.items():
            log_q = draw_log_prob(name, site)
            weight = terms.sum_to(plates[name])
            elbo = elbo + (weight * (log_q - log_q.detach())).sum()
        return -elbo


class MeanField(TensorELBO):
    r"""The ELBO with the KL in closed form wherever that is right, and pathwise gradients.

    .. math:: L = E_{q(z|x)}[\log p(x|z)] - KL(q(z|x) \| p(z))

    Unbiased. Where a closed form exists the variance is usually below that of `Trace`, except close to the posterior,
    where the value of `Trace` hardly varies. A site is integrated out only if nothing it conditions on is drawn after
    it in the guide (see `kl_sites`). So the number is right for a guide in another order than the model, too, where
    Pyro's `TraceMeanField_ELBO` only warns.

    Args:
        num_particles: K, draws from the guide per step.
        vectorize_particles: As for `TensorELBO`.

    Raises:
        ValueError: For a latent site that cannot be reparameterized: use "trace" for the score-function gradient.

    Reference: Kingma and Welling 2014, arXiv 1312.6114, eq. 7 (estimator B).
    """

    needs_path: ClassVar[bool] = True

    def particle_loss(self, traces: PairTrace) -> Tensor:
        analytic = kl_sites(traces)
        loss: Any = 0.0
        for name, q in sample_sites(traces.guide):
            if q["is_observed"]:
                loss = loss + scaled_kl(name, q, None, None).sum()
                continue
            if not q["fn"].has_rsample:
                raise ValueError(
                    f"site {name!r} is drawn from {type(q['fn']).__name__}, which has no reparameterized gradient, and "
                    "the mean-field ELBO needs one: use elbo='trace' (score function) or a relaxed distribution"
                )
            loss = loss + scaled_kl(name, q, traces.model.nodes.get(name), analytic.get(name)).sum()
        return torch.as_tensor(loss - observed_log_prob(traces))


def scaled_kl(name: str, q: Site, p: Site | None, analytic: Tensor | None) -> Tensor:
    """A draw of `E_q[a log q - b log p]` of one site with scales a in the guide and b in the model, batch-shaped.

    That is `a KL(q || p)`, from the `analytic` KL if that is known, plus `(a - b) E_q[log p]` at the site's draw.
    Without `p`, for an auxiliary site, `a log q`.
    """
    if p is None:
        return scale_and_mask(log_prob(name, q), q["scale"])
    if analytic is None:
        return scale_and_mask(log_prob(name, q), q["scale"]) - scale_and_mask(log_prob(name, p), p["scale"])
    value = scale_and_mask(analytic, q["scale"])
    return value if scaled_alike(q, p) else value + scale_and_mask(log_prob(name, p), q["scale"] - p["scale"])


def scaled_alike(q: Site, p: Site) -> bool:
    """Whether a site is known to have one scale in guide and model.

    Two tensors are the same only if they are known to be: to compare their values would wait for a GPU. A weight on
    the KL is.
    """
    bases, weights = zip(*(site.get(KL_WEIGHTS, (site["scale"], ())) for site in (q, p)), strict=True)
    if len(weights[0]) != len(weights[1]) or not all(a is b for a, b in zip(*weights, strict=True)):
        return False
    return bases[0] is bases[1] or (not any(isinstance(base, Tensor) for base in bases) and bases[0] == bases[1])


def observed_log_prob(traces: PairTrace) -> Tensor:
    """Log-density of all observations, scaled and summed, a 0-d tensor."""
    sites = ((name, traces.model.nodes[name]) for name in traces.observed)
    return sum(
        (scale_and_mask(log_prob(name, site), site["scale"]).sum() for name, site in sites), start=torch.zeros(())
    )
