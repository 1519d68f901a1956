"""The ELBO of pairs with Bernoulli latents, with its gradient from many draws that avoid each other."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.elbo.estimators.antithetic import check_independent, is_bernoulli, per_element
from pyro_vae.elbo.estimators.bounds import TensorELBO
from pyro_vae.elbo.estimators.densities import weights_of
from pyro_vae.pair.plates import data_plate
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.site_masks import base_distribution
from pyro_vae.pair.tracing import checked_pair, sample_sites
from pyro_vae.support.arguments import checked

__all__ = ["ARMS"]

COUPLED = "_pyro_vae_coupled"  # key of a site's K draws in the trace


class ARMS(TensorELBO):
    r"""The ELBO with a gradient for Bernoulli latents from K draws, each pair of them negatively correlated (ARMS).

    .. math:: \frac{\partial L}{\partial \alpha_i} = E\Big[\frac{1}{K-1} \sum_k \Big(f(b_k) - \frac1K \sum_j f(b_j)\Big)
        \frac{b_{ki} - p_i}{1 - \rho_i}\Big]

    with `alpha` the logits and `p` the probabilities of q(b|x), `f(b) = log p(x, b) - log q(b|x)` of each datum, and
    `rho` the correlation of two of the draws. For each element the draws come from a Dirichlet copula: with
    `d ~ Dirichlet(1, ..., 1)` of K parts and `m = min(p, 1 - p)`, draw k has the rarer value where
    `(1 - d_k)^(K-1) < m`. Then

    .. math:: \rho = \frac{P - m^2}{m (1 - m)}, \qquad P = \max(0,\, 2 m^{1/(K-1)} - 1)^{K-1}

    where `P` is the probability that two given draws both have the rarer value. Each draw is from q. With K = 2 this is
    `DisARM` with one pair. Independent draws would have rho = 0, which gives `VarGrad`.

    Unbiased for the ELBO's gradient. `f` contains alpha itself through `-log q`; what that contributes has expectation
    zero and is left out. f counts each site with its scale and its mask; p and the draws are those of the density that
    drew, without them. Other sites must be reparameterized. All K draws share their values, and they get the pathwise
    gradient.

    Args:
        num_particles: K >= 2. The guide runs once, the model K times, one after the other.

    Raises:
        ValueError: For fewer than two particles, a latent site that is neither Bernoulli nor reparameterized, and a
            guide in which a site depends on a Bernoulli draw of another.

    Reference: Dimitriev and Zhou 2021, arXiv 2105.14141.
    """

    _independent: tuple[Program, Program] | None = None

    for_discrete: ClassVar[bool] = True
    min_particles: ClassVar[int] = 2

    @checked
    def __init__(self, num_particles: int = 2) -> None:
        if num_particles < 2:
            raise ValueError(
                f"ARMS compares particles with each other: num_particles must be at least 2, got {num_particles}"
            )
        super().__init__(num_particles=num_particles)

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        if self._independent != (model, guide):
            check_independent(guide, is_bernoulli, "Bernoulli", "arms", args, kwargs)
            self._independent = (model, guide)
        k = self.num_particles
        drawn = traced(_Coupled(k)(guide), args, kwargs)
        runs = []
        for i in range(k):
            one: Any = drawn.copy()
            for name, site in sample_sites(drawn):
                if COUPLED in site:
                    one.nodes[name] = {**site, "value": site[COUPLED][i]}
            runs.append(checked_pair(traced(model, args, kwargs, on=one), one))
        plate = data_plate(runs[0], len(args[0]))
        weights = [weights_of(run, plate) for run in runs]
        log_w = torch.cat([w.log_w.detach() for w in weights])  # (K, N)
        signal = (log_w - log_w.mean(0)) / (k - 1)
        # log q of the Bernoulli sites has no gradient here, since its expectation is zero
        surrogate = torch.stack([w.path.sum() for w in weights]).sum() / k
        for _, site in sample_sites(runs[0].guide):
            if COUPLED in site:
                base = base_distribution(site["fn"])
                probs, event_dim = base.probs.detach(), site["fn"].event_dim
                direction = sum(
                    per_element(signal[i : i + 1], plate, None, event_dim) * (b - probs)
                    for i, b in enumerate(site[COUPLED])
                )
                surrogate = surrogate + (direction * _over_one_less_correlation(probs, k) * base.logits).sum()
        return -plate.subsampling * (surrogate - surrogate.detach() + log_w.mean(0).sum())


class _Coupled(Messenger):
    """Draws every Bernoulli latent K times, by a Dirichlet copula."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or not is_bernoulli(msg["fn"]):
            return
        with torch.no_grad():
            probs = base_distribution(msg["fn"]).probs
            parts = torch.empty(self.count, *probs.shape, dtype=probs.dtype, device=probs.device).exponential_()
            uniform = (1 - parts / parts.sum(0)) ** (self.count - 1)
            rarer = uniform < torch.minimum(probs, 1 - probs)
            msg[COUPLED] = torch.where(probs <= 0.5, rarer, ~rarer).to(probs.dtype)
            msg["value"], msg["done"] = msg[COUPLED][0], True


def _over_one_less_correlation(probs: Tensor, count: int) -> Tensor:
    """`1 / (1 - rho)` of two of K coupled draws: `(1 - m) / (1 - P / m)`."""
    m = torch.minimum(probs, 1 - probs).clamp_min(torch.finfo(probs.dtype).tiny)
    both = (2 * m ** (1 / (count - 1)) - 1).clamp_min(0) ** (count - 1)
    return (1 - m) / (1 - both / m)
