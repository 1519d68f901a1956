"""The ELBO of a pair whose discrete latents are replaced by their continuous relaxations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.util import scale_and_mask, sum_rightmost
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical
from torch.distributions.utils import clamp_probs

from pyro_vae.compilation.mode import is_recording
from pyro_vae.elbo.estimators.bounds import TensorELBO, observed_log_prob, scaled_alike, scaled_kl
from pyro_vae.elbo.estimators.terms import kl_sites
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.site_masks import base_distribution
from pyro_vae.pair.tracing import PairTrace, Site, sample_sites
from pyro_vae.support.arguments import checked

__all__ = ["Cooling", "Relaxed", "as_discrete", "discrete_kl", "is_relaxable", "relaxed_sites"]

DISCRETE = "_pyro_vae_discrete"  # key of a relaxed site's discrete distribution in the trace


class LogitConcrete(dist.Logistic):
    """The binary Concrete variable before its sigmoid, with draws that are always finite."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw by inversion; uniform draws of exactly 0 occur in float32, for which Pyro's gives -inf."""
        uniform = torch.rand(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
        return self.icdf(clamp_probs(uniform))


class BernoulliStraightThrough(dist.Bernoulli):
    """A Bernoulli variable whose draws have the gradient of its mean, as in `OneHotCategoricalStraightThrough`."""

    has_rsample = True

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Exactly 0 or 1, with the derivative of the probability."""
        return self.sample(sample_shape) + (self.probs - self.probs.detach())


class LogConcrete(ExpRelaxedCategorical, TorchDistributionMixin):
    """The logarithm of a Concrete (Gumbel-Softmax) variable, as a Pyro distribution."""


@checked
@dataclass(frozen=True)
class Cooling:
    """Exponential annealing of a temperature over gradient steps, `max(end, start exp(-rate step))`.

    Args:
        start, end: Initial temperature, and the lowest one.
        rate: Decay per gradient step.

    Raises:
        ValueError: Unless `start >= end > 0` and `rate >= 0`.

    Reference: Jang et al. 2017, arXiv 1611.01144, section 4.2.

    >>> [round(Cooling(rate=1e-4)(step), 2) for step in (0, 1000, 5000, 10_000)]
    [1.0, 0.9, 0.61, 0.5]
    """

    start: float = 1.0
    end: float = 0.5
    rate: float = 3e-5

    def __post_init__(self) -> None:
        if not (self.start >= self.end > 0 and self.rate >= 0):
            raise ValueError(f"cooling needs start >= end > 0 and rate >= 0, got {self}")

    def __call__(self, step: int) -> float:
        """The temperature after `step` gradient steps."""
        return max(self.end, self.start * math.exp(-self.rate * step))


class Relaxed(TensorELBO):
    r"""The ELBO with every Bernoulli and one-hot latent replaced by its Concrete (Gumbel-Softmax) relaxation.

    .. math:: b = \sigma\big((\alpha + \ell) / \tau\big), \; \ell \sim \mathrm{Logistic}(0, 1); \qquad
        y = \mathrm{softmax}\big((\log \pi + g) / \tau\big), \; g_i \sim \mathrm{Gumbel}(0, 1)

    The pair is written with `Bernoulli` and `OneHotCategorical` and need not be changed: the sites are replaced in both
    guide and model while they run, so that discrete and relaxed densities are never mixed. Densities are computed
    before the sigmoid or softmax, where they are finite at any temperature; the map cancels between guide and model.
    Other latent sites must be reparameterized. The gradient is pathwise: biased for the discrete ELBO, of low
    variance. As the temperature falls the bias goes to zero (with the discrete prior) and the variance grows.

    Args:
        num_particles: K, draws from the guide per step.
        temperature: tau > 0, or a function of the number of gradient steps so far, as `Cooling`. Assign `.temperature`
            to change it between steps, which ends such a schedule; it is stored in a tensor.
        straight_through: Give the programs the discrete draw, exactly 0 or 1. True (straight-through Gumbel-Softmax):
            differentiate as if it were the relaxed draw. "mean" (the straight-through estimator): as if it were the
            probabilities of q, whatever the temperature; right on average where the likelihood is linear in the draw.
            With `prior="discrete"` the value then is unbiased for the discrete ELBO itself; the gradient is biased.
        prior: The KL term. "discrete" (Jang et al.): the analytic KL between the discrete guide and prior, as in most
            implementations; the value is not a bound for any model. "relaxed" (Maddison et al.): the densities of the
            relaxed variables, which make the value a lower bound on log p(x) of the relaxed model. Their KL is larger
            than the discrete one at every temperature (with equal temperatures it does not even depend on it), so this
            value does not go to the discrete ELBO.
        prior_temperature: Temperature of the relaxed prior, with `prior="relaxed"`; default that of the guide.
        vectorize_particles: As for `TensorELBO`.

    Raises:
        ValueError: For a `Categorical` latent (its values are indices, which cannot be relaxed), for any other latent
            without a reparameterized gradient, for a site that is discrete on one side only, and with
            `prior="discrete"` where the KL is not known given the latents drawn before it (a guide ordered unlike the
            model).

    Reference: Maddison et al. 2017, arXiv 1611.00712; Jang et al. 2017, arXiv 1611.01144, section 2; Bengio et al.
    2013, arXiv 1308.3432 (straight-through).
    """

    for_discrete: ClassVar[bool] = True
    bound: ClassVar[str] = "own"

    @checked
    def __init__(
        self,
        num_particles: int = 1,
        temperature: float | Callable[[int], float] = 0.5,
        straight_through: bool | Literal["mean"] = False,
        prior: Literal["discrete", "relaxed"] = "discrete",
        prior_temperature: float | None = None,
        vectorize_particles: bool | None = None,
    ) -> None:
        if prior not in ("discrete", "relaxed"):
            raise ValueError(f"prior must be 'discrete' or 'relaxed', got {prior!r}")
        if straight_through not in (False, True, "mean"):
            raise ValueError(f"straight_through must be False, True or 'mean', got {straight_through!r}")
        if straight_through == "mean" and prior == "relaxed":
            raise ValueError(
                "straight_through='mean' relaxes no draw, so there is no relaxed density: use prior='discrete'"
            )
        if prior_temperature is not None and prior == "discrete":
            raise ValueError("prior_temperature needs a relaxed prior: pass prior='relaxed' as well")
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self.straight_through, self.prior = straight_through, prior
        self._temperature = torch.ones(())
        self.temperature = temperature(0) if callable(temperature) else temperature
        self._prior_temperature: Tensor | None = None
        if prior_temperature is not None:
            self._prior_temperature = torch.tensor(_positive(float(prior_temperature)))
        self._schedule = temperature if callable(temperature) else None
        self.steps = 0
        self._wrapped: tuple[Program, Program, Program, Program] | None = None

    @property
    def temperature(self) -> float:
        """The current temperature of the guide's relaxation."""
        return float(self._temperature)

    @temperature.setter
    def temperature(self, value: float) -> None:
        self._temperature.fill_(_positive(value))
        self._schedule = None

    def advance(self) -> None:
        """Move on to the temperature of the next gradient."""
        if self._schedule is not None:
            self._temperature.fill_(_positive(self._schedule(self.steps)))
        self.steps += 1

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        if torch.is_grad_enabled() and not is_recording():
            self.advance()
        return super().differentiable_loss(*self._relaxed(model, guide), *args, **kwargs)

    def layout(self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: Any) -> tuple[int, int | None]:
        # planned for the pair itself: its densities are defined at its own draws, not at relaxed ones
        if self._wrapped is not None and (model, guide) == self._wrapped[2:]:
            model, guide = self._wrapped[:2]
        return super().layout(model, guide, args, kwargs)

    def _relaxed(self, model: Program, guide: Program) -> tuple[Program, Program]:
        if self._wrapped is None or self._wrapped[:2] != (model, guide):
            self._wrapped = (model, guide, *self.relaxing(model, guide))
        return self._wrapped[2:]

    def relaxing(self, model: Program, guide: Program, only: frozenset[str] | None = None) -> tuple[Program, Program]:
        """The pair with its discrete latents relaxed, or `only` these."""
        prior_temperature = self._temperature if self._prior_temperature is None else self._prior_temperature
        keep = self.prior == "discrete"
        in_model = _Relax(prior_temperature, self.straight_through, in_guide=False, keep=keep, only=only)
        in_guide = _Relax(self._temperature, self.straight_through, in_guide=True, keep=False, only=only)
        return in_model(model), in_guide(guide)

    def particle_loss(self, traces: PairTrace) -> Tensor:
        relaxed = relaxed_sites(traces)
        discrete = self.prior == "discrete"
        analytic = kl_sites(as_discrete(traces, relaxed) if discrete else traces)
        loss = torch.zeros(())
        for name, q in sample_sites(traces.guide):
            p = traces.model.nodes.get(name)
            if discrete and name in relaxed:
                kl = discrete_kl(name, q, p, analytic)
            else:
                kl = scaled_kl(name, q, p, analytic.get(name))
            loss = loss + kl.sum()
        return loss - observed_log_prob(traces)


class _Relax(Messenger):
    """Draws relaxed values at the discrete latent sites of a program, which gets points in [0, 1].

    The trace has the values before the sigmoid or softmax, or the discrete draws where these have the gradient of
    their mean. `keep` leaves the site's own distribution in place. `only` these sites are relaxed, where that is given.
    """

    def __init__(
        self,
        temperature: Tensor,
        straight_through: bool | Literal["mean"],
        *,
        in_guide: bool,
        keep: bool,
        only: frozenset[str] | None,
    ) -> None:
        super().__init__()
        self.only = only
        self.temperature, self.straight_through = temperature, straight_through
        self.in_guide, self.keep = in_guide, keep

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if msg["is_observed"] or site_is_subsample(msg) or (self.only is not None and msg["name"] not in self.only):
            return
        if is_relaxable(fn):
            msg[DISCRETE] = fn  # not under "infer", which a replay overwrites
            if not self.keep:
                # a copy, so that the temperature may be set before the gradient is taken
                msg["fn"] = relax(fn, None if self.straight_through == "mean" else self.temperature.clone())
        elif isinstance(base_distribution(fn), dist.Categorical) or (self.in_guide and not fn.has_rsample):
            raise ValueError(_not_relaxable(msg["name"], fn))

    def _pyro_post_sample(self, msg: Any) -> None:
        # runs after the surrounding trace has copied the site
        if DISCRETE not in msg or self.straight_through == "mean":
            return
        is_bernoulli = isinstance(base_distribution(msg[DISCRETE]), dist.Bernoulli)
        soft = msg["value"].sigmoid() if is_bernoulli else msg["value"].softmax(-1)
        if self.straight_through:
            if is_bernoulli:
                hard = soft.round()
            else:
                hard = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
            soft = hard.detach() + (soft - soft.detach())
        msg["value"] = soft


def is_relaxable(fn: Any) -> bool:
    """Whether a distribution is over Bernoulli variables or one-hot vectors."""
    return isinstance(base_distribution(fn), torch.distributions.Bernoulli | torch.distributions.OneHotCategorical)


def relax(fn: Any, temperature: Tensor | None) -> Any:
    """The distribution of the relaxed variable before its sigmoid or softmax, with the shapes of `fn`.

    Without a temperature it is `fn`, with draws that have the gradient of its mean.
    """
    if isinstance(fn, torch.distributions.Independent):
        return relax(fn.base_dist, temperature).to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.MaskedDistribution):
        return relax(fn.base_dist, temperature).mask(fn._mask)
    is_bernoulli = isinstance(fn, torch.distributions.Bernoulli)
    if temperature is None:
        return (BernoulliStraightThrough if is_bernoulli else dist.OneHotCategoricalStraightThrough)(logits=fn.logits)
    if is_bernoulli:
        return LogitConcrete(fn.logits / temperature, torch.ones_like(fn.logits) / temperature)
    return LogConcrete(temperature, logits=fn.logits)


def _not_relaxable(name: str, fn: Any) -> str:
    kind = type(base_distribution(fn)).__name__
    fix = "use 'vimco' or 'reinforce' for such sites"
    if kind == "Categorical":
        fix = "write it as OneHotCategorical (and index by a product with the one-hot vector) in model and guide"
    return f"site {name!r} is drawn from {kind}, and only Bernoulli and OneHotCategorical sites are relaxed: {fix}"


def relaxed_sites(traces: PairTrace) -> list[str]:
    """Names of the relaxed sites, which are the same in model and guide."""
    for name, q in sample_sites(traces.guide):
        p = traces.model.nodes.get(name)
        if p is None:
            continue
        kinds = [type(base_distribution(site.get(DISCRETE, site["fn"]))).__name__ for site in (p, q)]
        if (DISCRETE in p) != (DISCRETE in q) or (DISCRETE in p and kinds[0] != kinds[1]):
            raise ValueError(
                f"site {name!r} is {kinds[0]} in the model and {kinds[1]} in the guide: write it as Bernoulli or "
                "OneHotCategorical in both, this ELBO relaxes both"
            )
    return [name for name, q in sample_sites(traces.guide) if DISCRETE in q]


def discrete_kl(name: str, q: Site, p: Site, known: dict[str, Tensor]) -> Tensor:
    """`E_q[a log q - b log p]` of a discrete site in closed form, from the `known` KLs that no handler masked.

    a and b are the scales under the masks, in the guide and in the model.
    """
    if name not in known:
        raise ValueError(
            f"the KL of site {name!r} between the discrete guide and prior is not known: it needs the site in the "
            "model, all that the model draws before it drawn before it in the guide, and the same mask in both "
            "distributions. Use prior='relaxed'"
        )
    analytic = known[name]
    if q["mask"] is p["mask"] and scaled_alike(q, p):
        return scale_and_mask(analytic, q["scale"], q["mask"])
    entropy = _entropy(q[DISCRETE].expand(q["fn"].batch_shape))
    of_q = scale_and_mask(entropy, q["scale"], q["mask"])
    return scale_and_mask(analytic + entropy, p["scale"], p["mask"]) - of_q


def _entropy(fn: Any) -> Tensor:
    if isinstance(fn, torch.distributions.Independent):
        return sum_rightmost(_entropy(fn.base_dist), fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.MaskedDistribution):
        return scale_and_mask(_entropy(fn.base_dist), 1.0, fn._mask)
    return fn.entropy()


def as_discrete(traces: PairTrace, relaxed: list[str]) -> PairTrace:
    """The pair with the guide's own distributions back in place, of whose values nothing may be asked.

    Handlers' masks are taken off the relaxed sites.
    """
    model, guide = traces.model.copy(), traces.guide.copy()
    for name in relaxed:
        site: Site = guide.nodes[name]
        # plates outside the pair (the particles') have only widened what replaced them
        guide.nodes[name] = {**site, "fn": site[DISCRETE].expand(site["fn"].batch_shape), "mask": None}
        if name in model.nodes:
            model.nodes[name] = {**model.nodes[name], "mask": None}
    return PairTrace(model, guide, traces.particle_dim)


def _positive(value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"a temperature must be a finite number > 0, got {value}")
    return value
