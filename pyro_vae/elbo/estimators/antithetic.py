"""The ELBO of pairs with Bernoulli latents, with its gradient from antithetic draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.elbo.estimators.bounds import TensorELBO
from pyro_vae.elbo.estimators.densities import weights_of
from pyro_vae.pair.plates import DataPlate, data_plate
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.site_masks import base_distribution
from pyro_vae.pair.tracing import checked_pair, draw_log_prob, sample_sites
from pyro_vae.support.random import fork_rng

__all__ = ["DisARM", "check_independent", "per_element"]

ANTITHETIC = "_pyro_vae_antithetic"  # key of a site's antithetic draw in the trace


class DisARM(TensorELBO):
    r"""The ELBO with a gradient for Bernoulli latents from pairs of antithetic draws (DisARM, also known as U2G).

    .. math:: \frac{\partial L}{\partial \alpha_i} = E\Big[\tfrac12 \big(f(b) - f(\tilde b)\big) (-1)^{\tilde b_i}
        1[b_i \ne \tilde b_i]\, \sigma(|\alpha_i|)\Big], \qquad b_i = 1[1 - u_i < \sigma(\alpha_i)], \;
        \tilde b_i = 1[u_i < \sigma(\alpha_i)]

    with `u` uniform, `alpha` the logits of q(b|x) and `f(b) = log p(x, b) - log q(b|x)` of each datum. Both draws are
    from q, and as dependent as possible. The antithetic score-function gradient (ARM) is averaged
    over all `u` that give the same pair of draws, which leaves the factor above. `f` contains alpha itself through
    `-log q`; what that contributes is `-E[d log q(b|x) / d alpha] = 0`, and it is left out. The model's gradient is
    the mean over the two draws.

    Unbiased for the ELBO's gradient. An element whose two draws agree contributes nothing, so the variance falls as q
    becomes certain; it is at most ARM's, and far below the plain score function's.

    Every Bernoulli site of the guide is drawn this way, with any event dimensions and plates inside the data plate.
    Other sites must be reparameterized; both draws of a pair share their values and they get the pathwise gradient.

    Args:
        num_particles: Number of antithetic pairs K: the guide runs K times, the model 2 K times.

    Raises:
        ValueError: For a latent site that is neither Bernoulli nor reparameterized, and for a guide in which a site
            depends on a Bernoulli draw of another: the two draws would then come from different distributions.

    Reference: Dong, Mnih and Tucker 2020, arXiv 2006.10680; Yin et al. 2020, arXiv 2006.06448 (U2G); Yin and Zhou
    2019, arXiv 1807.11143 (ARM).
    """

    _independent: tuple[Program, Program] | None = None

    for_discrete: ClassVar[bool] = True

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        if self._independent != (model, guide):
            check_independent(guide, is_bernoulli, "Bernoulli", "disarm", args, kwargs)
            self._independent = (model, guide)
        runs, dim, model, guide = self.programs(model, guide, args, kwargs)
        losses = [self._pair_loss(model, guide, dim, args, kwargs) for _ in range(runs)]
        return torch.stack(losses).sum() / self.num_particles

    def _pair_loss(self, model: Program, guide: Program, dim: int | None, args: Any, kwargs: Any) -> Tensor:
        drawn = traced(_Antithetic()(guide), args, kwargs)
        antithetic: Any = drawn.copy()
        for name, site in sample_sites(drawn):
            if ANTITHETIC in site:
                antithetic.nodes[name] = {**site, "value": site[ANTITHETIC]}
        runs = [checked_pair(traced(model, args, kwargs, on=trace), trace, dim) for trace in (drawn, antithetic)]
        plate = data_plate(runs[0], len(args[0]))
        first, second = (weights_of(run, plate) for run in runs)
        signal = (first.log_w - second.log_w).detach() / 2  # (K, N)
        value = (first.log_w + second.log_w).detach().sum() / 2
        # log q of the Bernoulli sites has no gradient here, since its expectation is zero
        surrogate = (first.path + second.path).sum() / 2
        for _, site in sample_sites(runs[0].guide):
            if ANTITHETIC in site:
                b, other, logits = site["value"], site[ANTITHETIC], base_distribution(site["fn"]).logits
                sign = (1 - 2 * other) * (b != other)
                weight = per_element(signal, plate, dim, site["fn"].event_dim) * sign * logits.detach().abs().sigmoid()
                surrogate = surrogate + (weight * logits).sum()
        return -plate.subsampling * (surrogate - surrogate.detach() + value)


class _Antithetic(Messenger):
    """Draws every Bernoulli latent twice from one uniform variable."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or not is_bernoulli(msg["fn"]):
            return
        with torch.no_grad():
            probs = base_distribution(msg["fn"]).probs
            u = torch.rand_like(probs)
            msg["value"], msg[ANTITHETIC] = (1 - u < probs).to(probs.dtype), (u < probs).to(probs.dtype)
        msg["done"] = True


def is_bernoulli(fn: Any) -> bool:
    """Whether a distribution is a Bernoulli, of any event shape."""
    return isinstance(base_distribution(fn), torch.distributions.Bernoulli)


def per_element(signal: Tensor, plate: DataPlate, particle_dim: int | None, event_dim: int) -> Tensor:
    """Lay out a `(K, N)` signal along the dimensions of a site, so that it broadcasts with the site's elements."""
    dims = {plate.dim: signal.shape[1]} | ({particle_dim: signal.shape[0]} if particle_dim is not None else {})
    shape = [dims.get(d, 1) for d in range(min(dims), 0)]
    return signal.reshape(*shape, *[1] * event_dim)


def check_independent(
    guide: Program, is_discrete: Callable[[Any], bool], kinds: str, name: str, args: Any, kwargs: Any
) -> None:
    """Raise if a guide's site is neither discrete of these kinds nor reparameterized, or depends on a discrete draw.

    The guide is run on its own draw, on zeros and on ones (for one-hot vectors: the first and the last class), and
    must give the same distributions each time.
    """
    with torch.no_grad():
        with fork_rng():
            drawn = prune_subsample_sites(traced(guide, args, kwargs))
        for site_name, site in sample_sites(drawn):
            if not is_discrete(site["fn"]) and not site["fn"].has_rsample:
                kind = type(base_distribution(site["fn"])).__name__
                raise ValueError(
                    f"site {site_name!r} is drawn from {kind}, and {name!r} draws {kinds} and reparameterized sites "
                    "only: use 'vimco' or 'reinforce' for other sites"
                )
        found = []
        for index in (None, 0, -1):
            changed: Any = drawn.copy()
            for site_name, site in sample_sites(drawn):
                if index is not None and is_discrete(site["fn"]):
                    changed.nodes[site_name] = {**site, "value": _extreme(site["fn"], site["value"], index)}
            with fork_rng(0):  # the same noise for whatever else the guide draws
                run = traced(guide, args, kwargs, on=changed)
            found.append({n: _summary(n, s, is_discrete) for n, s in sample_sites(prune_subsample_sites(run))})
    for site_name, value in found[0].items():
        for other in found[1:]:
            if site_name not in other or not torch.equal(value, other[site_name]):
                raise ValueError(
                    f"the distribution of site {site_name!r} in the guide depends on the draw of another discrete "
                    f"site, and {name!r} needs discrete sites on which nothing else in the guide depends: use "
                    "'reinforce', 'vimco' or 'gumbel'"
                )


def _extreme(fn: Any, value: Tensor, index: int) -> Tensor:
    if isinstance(base_distribution(fn), dist.Bernoulli):
        return torch.full_like(value, float(index != 0))
    result = torch.zeros_like(value)
    result[..., index] = 1.0
    return result


def _summary(name: str, site: Any, is_discrete: Callable[[Any], bool]) -> Tensor:
    return base_distribution(site["fn"]).logits if is_discrete(site["fn"]) else draw_log_prob(name, site)
