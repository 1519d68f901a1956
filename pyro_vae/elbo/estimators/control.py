"""The ELBO of pairs with discrete latents, with a relaxation as the control variate of its gradient."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions.utils import clamp_probs

from pyro_vae.elbo.estimators.antithetic import check_independent, is_bernoulli, per_element
from pyro_vae.elbo.estimators.bounds import TensorELBO
from pyro_vae.elbo.estimators.densities import weights_of
from pyro_vae.elbo.estimators.relaxed import is_relaxable
from pyro_vae.pair.names import unique_name
from pyro_vae.pair.plates import DataPlate, data_plate
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.site_masks import base_distribution
from pyro_vae.pair.tracing import Site, checked_pair, sample_sites
from pyro_vae.support.arguments import checked

__all__ = ["REBAR", "continued"]

NOISY_LOGITS = "_pyro_vae_noisy"  # key of a site's noisy logits z in the trace


class REBAR(TensorELBO):
    r"""The ELBO with an unbiased score-function gradient whose control variate is the relaxed objective.

    .. math:: \nabla_\phi L = E\Big[\big(f(b) - \eta f(y_{\tilde z})\big) \nabla_\phi \log q(b|x)
        + \eta \nabla_\phi f(y_z) - \eta \nabla_\phi f(y_{\tilde z})\Big]

    where `f = log p(x, .) - log q(.|x)` of each datum, `z` are the logits of q plus Logistic (Bernoulli) or Gumbel
    (one-hot) noise, `b` the draw that z decides, `y_z` the relaxed draw `sigmoid(z / tau)` or `softmax(z / tau)`, and
    `z~` a draw of z given b. The terms with eta have expectation zero together, for any eta and tau, since z and z~
    have one distribution. As in the paper's code, the noise of z~ is tied to that of z, so that z~ equals z in value
    and only its derivative differs:

    .. math:: \frac{\partial \tilde z_i}{\partial \alpha_i} = (1 - e^{-|z_i|})\, \sigma(\pm \alpha_i)
        \;\text{(+ for } b_i = 1\text{)}, \qquad
        \frac{\partial \tilde z_i}{\partial \log \pi_i} = 1 - e^{z_i - \max_j z_j}

    which takes one run of the model on relaxed values in addition to the one on b. At relaxed values the discrete
    densities are continued linearly (any continuation leaves the estimator unbiased). `f(y)` acts through y alone: what
    it contributes through other parameters has expectation zero. The value and the model's gradient are of b alone.

    Unbiased for the ELBO's gradient. The variance is far below the plain score function's if the relaxed model
    resembles the discrete one; eta = 0 is the score function without baseline. RELAX is the same estimator with a
    free network added to the control variate, which is not offered here. Other latent sites must be reparameterized.

    Args:
        num_particles: Number of draws K: the guide runs K times, the model 2 K times.
        temperature, eta: tau > 0 and eta, fixed or where learning starts.
        learn: Train both along with the pair, by the gradient of the estimator's variance with respect to the logits.
            The estimator stays unbiased. It needs second derivatives of the model.

    Raises:
        ValueError: For a latent site that is neither Bernoulli, one-hot nor reparameterized, and for a guide in which a
            site depends on a discrete draw of another.

    Reference: Tucker et al. 2017, arXiv 1703.07370; Grathwohl et al. 2018, arXiv 1711.00123 (RELAX, learned eta and
    tau).
    """

    for_discrete: ClassVar[bool] = True

    @checked
    def __init__(
        self,
        num_particles: int = 1,
        temperature: float = 0.5,
        eta: float = 1.0,
        learn: bool = False,
        vectorize_particles: bool | None = None,
    ) -> None:
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be a finite number > 0, got {temperature}")
        if not math.isfinite(eta):
            raise ValueError(f"eta must be a finite number, got {eta}")
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self.learn = learn
        self.control = nn.ParameterDict(
            {"eta": torch.tensor(float(eta)), "log_temperature": torch.tensor(math.log(temperature))}
        ).requires_grad_(learn)
        self._independent: tuple[Program, Program] | None = None

    @property
    def temperature(self) -> float:
        """The current temperature of the control variate."""
        return math.exp(float(self.control["log_temperature"].detach()))

    @property
    def eta(self) -> float:
        """The current factor on the control variate."""
        return float(self.control["eta"].detach())

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        if self._independent != (model, guide):
            check_independent(guide, is_relaxable, "Bernoulli, OneHotCategorical", "rebar", args, kwargs)
            self._independent = (model, guide)
        runs, dim, model, guide = self.programs(model, guide, args, kwargs)
        losses = [self._run_loss(model, guide, dim, args, kwargs) for _ in range(runs)]
        return torch.stack(losses).sum() / self.num_particles

    def _run_loss(self, model: Program, guide: Program, dim: int | None, args: Any, kwargs: Any) -> Tensor:
        drawn = traced(_Noisy()(guide), args, kwargs)
        scored = traced(model, args, kwargs, on=drawn)
        traces = checked_pair(scored, drawn, dim)
        plate = data_plate(traces, len(args[0]))
        weights = weights_of(traces, plate)
        scale = plate.subsampling
        value = weights.log_w.detach().sum()
        if not torch.is_grad_enabled():
            return -scale * value
        # log q of the discrete sites has no gradient here, since its expectation is zero
        surrogate = weights.path.sum()
        sites = {name: site for name, site in sample_sites(traces.guide) if NOISY_LOGITS in site}
        if sites:
            if self.learn:
                pyro.module(f"{unique_name(self)}.control", self.control.to(value.device))
            factors = self._factors(weights.log_w.detach(), sites, drawn, model, plate, dim, args, kwargs)
            surrogate = surrogate + sum(
                (factor.detach() * base_distribution(site["fn"]).logits).sum()
                for factor, site in zip(factors, sites.values(), strict=True)
            )
            if self.learn:
                params = list(self.control.values())
                variance = torch.stack([factor.square().sum() for factor in factors]).sum()
                slopes = torch.autograd.grad(variance, params)
                surrogate = surrogate - sum((slope * p).sum() for slope, p in zip(slopes, params, strict=True))
        return -scale * (surrogate - surrogate.detach() + value)

    def _factors(
        self,
        log_w: Tensor,
        sites: dict[str, Site],
        drawn: Any,
        model: Program,
        plate: DataPlate,
        dim: int | None,
        args: Any,
        kwargs: Any,
    ) -> list[Tensor]:
        """The estimator's gradient with respect to the logits of each discrete site."""
        eta, temperature = self.control["eta"], self.control["log_temperature"].exp()
        relaxed_guide = drawn.copy()
        noisy = {name: site[NOISY_LOGITS].clone().requires_grad_() for name, site in sites.items()}
        for name, z in noisy.items():
            y = z / temperature
            value = y.sigmoid() if is_bernoulli(sites[name]["fn"]) else y.softmax(-1)
            relaxed_guide.nodes[name] = {**relaxed_guide.nodes[name], "value": value}
        relaxed_model = traced(model, args, kwargs, on=relaxed_guide)
        for trace in (relaxed_model, relaxed_guide):
            for name in sites:
                trace.nodes[name] = {**trace.nodes[name], "fn": continued(trace.nodes[name]["fn"])}
        relaxed_log_w = weights_of(checked_pair(relaxed_model, relaxed_guide, dim), plate).log_w
        slopes = torch.autograd.grad(
            relaxed_log_w.sum(), list(noisy.values()), create_graph=self.learn, materialize_grads=True
        )
        signal = log_w - eta * (relaxed_log_w if self.learn else relaxed_log_w.detach())
        factors = []
        for site, slope in zip(sites.values(), slopes, strict=True):
            base, b, z = base_distribution(site["fn"]), site["value"], site[NOISY_LOGITS]
            logits, probs = base.logits.detach(), base.probs.detach()
            if is_bernoulli(site["fn"]):
                rest = 1 - (1 - (-z.abs()).exp()) * ((2 * b - 1) * logits).sigmoid()  # d z - d z~
            else:
                rest = (z - z.amax(-1, keepdim=True)).exp()
            factor = per_element(signal, plate, dim, site["fn"].event_dim) * (b - probs) + eta * slope * rest
            if not is_bernoulli(site["fn"]):
                factor = factor - probs * factor.sum(-1, keepdim=True)  # a shift of all logits changes nothing
            factors.append(factor)
        return factors


class _Noisy(Messenger):
    """Draws every Bernoulli and one-hot latent as the sign or the maximum of its noisy logits, and stores these."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or not is_relaxable(msg["fn"]):
            return
        with torch.no_grad():
            logits = base_distribution(msg["fn"]).logits
            u = clamp_probs(torch.rand_like(logits))
            if is_bernoulli(msg["fn"]):
                z = logits + u.logit()
                msg["value"] = (z > 0).to(z.dtype)
            else:
                z = logits - (-u.log()).log()
                msg["value"] = torch.zeros_like(z).scatter_(-1, z.argmax(-1, keepdim=True), 1.0)
            msg[NOISY_LOGITS] = z
        msg["done"] = True


class _LinearOneHot(dist.OneHotCategorical):
    """A one-hot distribution whose log-density is continued linearly to the simplex."""

    def log_prob(self, value: Tensor) -> Tensor:
        """`sum_i y_i log pi_i`."""
        return (value * self.logits).sum(-1)


def continued(fn: Any) -> Any:
    """A discrete distribution whose log-density accepts relaxed values."""
    if isinstance(fn, torch.distributions.Independent):
        return dist.Independent(continued(fn.base_dist), fn.reinterpreted_batch_ndims, validate_args=False)
    if isinstance(fn, dist.MaskedDistribution):
        return continued(fn.base_dist).mask(fn._mask)
    if isinstance(fn, torch.distributions.Bernoulli):
        return dist.Bernoulli(logits=fn.logits, validate_args=False)
    if isinstance(fn, torch.distributions.OneHotCategorical):
        return _LinearOneHot(logits=fn.logits, validate_args=False)
    return fn
