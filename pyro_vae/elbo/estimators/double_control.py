"""The ELBO of pairs with discrete latents, with a second control variate on top of the leave-one-out baseline."""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_vae.elbo.estimators.antithetic import is_bernoulli, per_element
from pyro_vae.elbo.estimators.bounds import TensorELBO
from pyro_vae.elbo.estimators.control import continued
from pyro_vae.elbo.estimators.densities import Densities, Weights, weights_of
from pyro_vae.elbo.estimators.relaxed import is_relaxable
from pyro_vae.pair.names import unique_name
from pyro_vae.pair.plates import DataPlate, data_plate
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.site_masks import base_distribution
from pyro_vae.pair.tracing import checked_pair, sample_sites
from pyro_vae.support.arguments import checked

__all__ = ["DoubleCV"]


class DoubleCV(TensorELBO):
    r"""The ELBO with a leave-one-out score function and, on top, a Taylor expansion at the other particles' draws.

    .. math:: \nabla_\phi L = E\Big[\frac1K \sum_k \Big(h_k - \frac{1}{K-1} \sum_{j \ne k} h_j\Big)
        \nabla_\phi \log q(b_k|x) + \frac{\alpha}{K} \sum_k \bar g_{-k} \cdot \nabla_\phi \mu_k\Big]

    .. math:: h_k = f(b_k) - \alpha\, \bar g_{-k} \cdot (b_k - \mu_k), \qquad
        \bar g_{-k} = \frac{1}{K-1} \sum_{j \ne k} \nabla_b f(b_j)

    with `f = log p(x, b) - log q(b|x)` of each datum and `mu` the mean of a site given what the guide drew before it.
    The first control variate is the other particles' mean. The second takes the part of f that is linear in b out of
    the particle's own signal and out of that mean. What it contributes through the score is the gradient of the mean,
    which is added exactly. The discrete densities are continued linearly between their values, as in `REBAR`. The slope
    may be any function of the other particles, so this leaves no bias.

    Unbiased for the ELBO's gradient with every alpha, whichever site of the guide depends on which. alpha = 0 is the
    score function of `VarGrad`. For an f that is linear in b, under sites independent given x, alpha = 1 leaves the
    guide's gradient no variance. Where the slope at a draw says little about the change to another draw, alpha = 1 has
    more variance than `VarGrad`: learn it.

    The signal f and its slope count each site with its scale and its mask. The score and the means are those of the
    density that drew, without them. Bernoulli and one-hot sites have the second control variate, other sites that
    cannot be reparameterized the first alone. Reparameterized sites get the pathwise gradient.

    Args:
        num_particles: K >= 2, draws from the guide per datum and step.
        alpha: The factor on the second control variate, fixed or where learning starts.
        learn: Train alpha along with the pair, by the gradient of the estimator's variance with respect to the logits.
            The estimator stays unbiased.
        vectorize_particles: As for `TensorELBO`.

    Raises:
        ValueError: For fewer than two particles, or an alpha that is not finite.

    Reference: Titsias and Shi 2022, arXiv 2111.05300 (where alpha has the other sign).
    """

    for_discrete: ClassVar[bool] = True
    min_particles: ClassVar[int] = 2

    @checked
    def __init__(
        self,
        num_particles: int = 2,
        alpha: float = 0.5,
        learn: bool = True,
        vectorize_particles: bool | None = None,
    ) -> None:
        if num_particles < 2:
            raise ValueError(
                f"DoubleCV compares particles with each other: num_particles must be at least 2, got {num_particles}"
            )
        if not math.isfinite(alpha):
            raise ValueError(f"alpha must be a finite number, got {alpha}")
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self.learn = learn
        self.control = nn.ParameterDict({"alpha": torch.tensor(float(alpha))}).requires_grad_(learn)

    @property
    def alpha(self) -> float:
        """The current factor on the second control variate."""
        return float(self.control["alpha"].detach())

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        count, dim, model, guide = self.programs(model, guide, args, kwargs)
        runs = [_run(model, guide, dim, args, kwargs) for _ in range(count)]
        scale = runs[0].plate.subsampling
        log_w = torch.cat([run.weights.log_w.detach() for run in runs])  # (K, N)
        value = log_w.sum()
        if not torch.is_grad_enabled():
            return -scale * value / self.num_particles
        slopes = [run.slopes() for run in runs]
        controls = [self._others(run, slopes, i) for i, run in enumerate(runs)]
        alpha = self.control["alpha"].detach().to(log_w)
        first = self._centered(log_w, count)
        second = self._centered(torch.cat([run.linear(c) for run, c in zip(runs, controls, strict=True)]), count)
        surrogate = log_w.new_zeros(())
        for run, control, own, linear in zip(runs, controls, first, second, strict=True):
            # log q of the scored sites has no gradient in the weight, since its expectation is zero
            signal = own - alpha * linear
            surrogate = surrogate + run.weights.path.sum() + (signal * run.weights.drawn["score"]()).sum()
            surrogate = surrogate + alpha * sum((c * run.draws[name].mean).sum() for name, c in control.items())
        if self.learn and runs[0].draws:
            pyro.module(f"{unique_name(self)}.control", self.control.to(value.device))
            surrogate = surrogate - self._slope_of_variance(runs, controls, first, second) * self.control["alpha"]
        return -scale * (surrogate - surrogate.detach() + value) / self.num_particles

    def _centered(self, rows: Tensor, count: int) -> tuple[Tensor, ...]:
        """Each of K rows less the mean of the others, by run."""
        k = self.num_particles
        return ((rows - rows.mean(0)) * (k / (k - 1))).split(k // count)

    def _others(self, run: _Run, slopes: list[dict[str, Tensor]], i: int) -> dict[str, Tensor]:
        """The mean slope of the other particles, by site, laid out as the site's draws."""
        others = self.num_particles - 1
        if run.dim is None:
            rest = slopes[:i] + slopes[i + 1 :]
            return {name: torch.stack([each[name] for each in rest]).sum(0) / others for name in run.draws}
        dims = {name: run.dim - draw.event_dim for name, draw in run.draws.items()}
        return {name: (s.sum(dims[name], keepdim=True) - s) / others for name, s in slopes[i].items()}

    def _slope_of_variance(
        self, runs: list[_Run], controls: list[dict[str, Tensor]], first: Any, second: Any
    ) -> Tensor:
        """The derivative by alpha of the squared gradient with respect to the logits, summed over the particles."""
        alpha = self.control["alpha"].detach().to(first[0])
        slope = first[0].new_zeros(())
        for name in runs[0].draws:
            plain, control = [], []
            for run, own, linear, by_name in zip(runs, first, second, controls, strict=True):
                plain.append(run.by_logits(name, own))
                control.append(run.by_logits(name, -linear) + run.moved_mean(name, by_name[name]))
            a, b = sum(plain[1:], plain[0]), sum(control[1:], control[0])
            slope = slope + 2 * ((a + alpha * b) * b).sum()
        return slope.detach()


class _Draw(NamedTuple):
    """A discrete draw as a leaf of the graph, and the mean of its distribution, of one shape."""

    value: Tensor
    mean: Tensor
    event_dim: int
    one_hot: bool


class _Run(NamedTuple):
    """One run of the pair, with the draws that have the second control variate."""

    weights: Weights
    plate: DataPlate
    densities: Densities
    draws: dict[str, _Draw]
    dim: int | None

    def slopes(self) -> dict[str, Tensor]:
        """The derivatives of the log-weights by the draws, shaped like these."""
        if not self.draws:
            return {}
        values = [draw.value for draw in self.draws.values()]
        found = torch.autograd.grad(self.weights.log_w.sum(), values, retain_graph=True, materialize_grads=True)
        return dict(zip(self.draws, found, strict=True))

    def linear(self, slopes: dict[str, Tensor]) -> Tensor:
        """The linear part of the log-weights by given slopes, `(K, N)`, with mean zero."""
        parts = []
        for name, draw in self.draws.items():
            part = slopes[name] * (draw.value - draw.mean).detach()
            parts.append(part.flatten(part.dim() - draw.event_dim).sum(-1) if draw.event_dim else part)
        total = self.densities.total(parts)
        return torch.zeros_like(self.weights.log_w) if total is None else total.detach()

    def by_logits(self, name: str, signal: Tensor) -> Tensor:
        """A signal `(K, N)` times the score of a site's logits, summed over this run's particles."""
        draw = self.draws[name]
        value = per_element(signal, self.plate, self.dim, draw.event_dim) * (draw.value - draw.mean).detach()
        return self._over_particles(value, draw)

    def moved_mean(self, name: str, slope: Tensor) -> Tensor:
        """A slope times the derivative of a site's mean by its logits, summed over this run's particles."""
        draw = self.draws[name]
        mean = draw.mean.detach()
        inner = (mean * slope).sum(-1, keepdim=True) if draw.one_hot else mean * slope
        return self._over_particles(mean * (slope - inner), draw)

    def _over_particles(self, value: Tensor, draw: _Draw) -> Tensor:
        return value if self.dim is None else value.sum(self.dim - draw.event_dim, keepdim=True)


def _run(model: Program, guide: Program, dim: int | None, args: Any, kwargs: Any) -> _Run:
    drawn = traced(_Leaves()(guide), args, kwargs)
    traces = checked_pair(traced(model, args, kwargs, on=drawn), drawn, dim)
    draws = {}
    for name, site in sample_sites(traces.guide):
        if site["is_observed"] or not is_relaxable(site["fn"]):
            continue
        mean = base_distribution(site["fn"]).mean.expand_as(site["value"])
        draws[name] = _Draw(site["value"], mean, site["fn"].event_dim, not is_bernoulli(site["fn"]))
        for trace in (traces.guide, traces.model):
            if name in trace.nodes:
                trace.nodes[name] = {**trace.nodes[name], "fn": continued(trace.nodes[name]["fn"])}
    plate = data_plate(traces, len(args[0]))
    return _Run(weights_of(traces, plate), plate, Densities(traces, plate), draws, dim)


class _Leaves(Messenger):
    """Draws every Bernoulli and one-hot latent as a leaf of the graph, so that a slope can be taken there."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or not is_relaxable(msg["fn"]):
            return
        value = msg["fn"].sample().detach().clone()
        msg["value"], msg["done"] = value.requires_grad_(torch.is_grad_enabled()), True
