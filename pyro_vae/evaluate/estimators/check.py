"""A check of any ELBO estimator on a pair whose exact values are known."""

from __future__ import annotations

import copy
import math
from typing import Any

import pyro
import pyro.infer
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from pyro_vae import elbo as elbos
from pyro_vae.evaluate.estimators.expectations import Expected, expected
from pyro_vae.evaluate.estimators.verdict import CheckLine, EstimatorCheck
from pyro_vae.oracles import LinearGaussian, Oracle
from pyro_vae.pair.running import Running
from pyro_vae.support.arguments import checked
from pyro_vae.support.random import fork_rng, seed_or_draw

__all__ = ["check_estimator"]

DATA = 4  # distinct data
LEVEL = 1e-4  # probability that a line rejects a correct estimator
TOLERANCE = 1e-5  # nats per datum, of quadrature and finite differences
STEP = 1e-4  # of finite differences


@checked
def check_estimator(
    elbo: elbos.Estimator,
    oracle: Oracle | None = None,
    *,
    num_particles: int = 1,
    repeats: int = 100,
    copies: int = 50,
    seed: int | None = None,
) -> EstimatorCheck:
    """Check the value and the gradient of an ELBO estimator on a pair whose exact values are known.

    The estimator's class attribute `bound` states its expected value: "elbo" (the default), "iwae" (the
    importance-weighted bound of its `num_particles`), or "own" (something else). The gradient is compared with the
    exact gradient of that bound, separately for the parameters of the model and of the guide. For "own" it is compared
    with finite differences of the estimator's value under the same noise, on a reparameterized oracle.

    Of this library's own classes more is known than `bound` says: the exact value of bounds between the ELBO and the
    importance-weighted one, of `WeightedKL`, `FreeBits` and `Capacity`, and of a relaxed bit; and the exact gradients
    of `PIWAE`, `RWS` and `TailAdaptive`, which belong to another objective than the value by design. A line is left
    out where nothing is known. An estimator of your own with such a gradient fails this check.

    At the posterior (where the oracle's family contains it) the ELBO and every importance-weighted bound equal log
    p(x). The standard deviation of the guide's gradient there is reported; it is 0 for an estimator that sticks the
    landing.

    Args:
        elbo: An ELBO object, of this library, of Pyro or your own, a name (`pv.elbo.names()`), or a dictionary by
            site. Particles can only be averaged wrongly where there are several: check it with more than one.
        oracle: The pair, by default `LinearGaussian(seed=3)`. For an estimator of discrete latents take `Discrete()`
            or `BitsAndClasses()`, and for both kinds, scaled or masked, `Interleaved()`. It is left as it is.
        num_particles: For a name.
        repeats: Gradients taken, each of a batch of four data with so many `copies` of each.
        copies: More of them average the noise. What an estimator makes of a batch as a whole, as a baseline that is the
            batch's own mean, has a bias of one part in the batch: take one copy, and a thousand repeats, to see it.
        seed: Of data and noise. A number makes the call reproducible, None takes one from torch's generator.

    Raises:
        ValueError: For fewer than ten repeats or one copy, an unknown name or `bound`, or an estimator that does not
            support the oracle's latents.
    """
    if repeats < 10:
        raise ValueError(f"repeats must be at least 10 to estimate standard errors, got {repeats}")
    if copies < 1:
        raise ValueError(f"copies must be at least 1, got {copies}")
    objective = elbos.make(elbo, num_particles=num_particles)
    pair = copy.deepcopy(LinearGaussian(seed=3) if oracle is None else oracle)
    bound = getattr(objective, "bound", "elbo")
    if bound == "none":
        raise ValueError(
            f"the loss of {type(objective).__name__} is not a bound on log p(x), so it has no gradient to check"
        )
    if bound not in ("elbo", "iwae", "own"):
        raise ValueError(f"{type(objective).__name__}.bound must be 'elbo', 'iwae' or 'own', got {bound!r}")
    base_seed = seed_or_draw(seed)
    with pyro.get_param_store().scope():
        run = _Estimator(objective, pair, base_seed, copies)
        lines = _check_lines(run, expected(objective, pair, run.x), bound != "own", repeats)
        posterior = pair.at_posterior()
        if posterior is not None:
            lines += _check_lines_at_posterior(
                _Estimator(objective, posterior, base_seed, copies), bound != "own", repeats
            )
    name = f"{elbos.label(objective)}(num_particles={objective.num_particles})"
    return EstimatorCheck(name, type(pair).__name__, lines)


def _check_lines(run: _Estimator, exact: Expected | None, bounded: bool, repeats: int) -> list[CheckLine]:
    """The checks at the oracle's own parameters."""
    values, grads = run.gradients(repeats)
    lines = []
    if exact is not None and exact.value is not None:
        lines.append(_compare("value", values, exact.value.detach()))
    below = bounded and run.pair.is_bound
    lines.append(_compare("value <= log p(x)", values, run.mean("log_prob"), side=1, tested=below))
    lines.append(_compare("value >= ELBO", values, run.mean("elbo"), side=-1, tested=bounded))
    differences = run.finite_differences(grads) if exact is None and run.is_smooth else None
    for program, mask in (("model", ~run.guide_mask), ("guide", run.guide_mask)):
        value = None if exact is None else getattr(exact, program)
        target = differences if value is None else run.exact_gradient(value).expand_as(grads)
        if target is not None:
            lines.append(_compare(f"gradient of the {program}", grads[:, mask], target[:, mask]))
    plain, trained = float(run.value(run.seed)), float(run.gradient(run.seed)[0])
    agree = math.isclose(plain, trained, rel_tol=1e-6, abs_tol=1e-9)
    return [*lines, CheckLine("loss_and_grads = loss", trained, plain, passed=agree)]


def _check_lines_at_posterior(run: _Estimator, tested: bool, repeats: int) -> list[CheckLine]:
    values, grads = run.gradients(repeats)
    return [
        _compare("value at posterior", values, run.mean("log_prob"), tested=tested),
        CheckLine("guide's gradient there, s.d.", float(grads[:, run.guide_mask].var(0).sum().sqrt())),
    ]


def _compare(check: str, draws: Tensor, exact: Tensor, *, side: int = 0, tested: bool = True) -> CheckLine:
    """Compare the mean over the first dimension with the exact value.

    `side` 1 tests only for a mean that is too great, -1 only for one that is too small, 0 for both. An `exact` with the
    same first dimension is paired with the draws.
    """
    repeats = len(draws)
    draws, exact = draws.reshape(repeats, -1).double(), exact.to(draws).double()
    paired = exact.expand(repeats, *draws.shape[1:]) if exact.dim() < 2 else exact
    excess = draws - paired
    mean, error = excess.mean(0), excess.std(0) / math.sqrt(repeats)
    away = side * mean if side else mean.abs()
    z = float(((away - TOLERANCE).clamp_min(0) / error.clamp_min(TOLERANCE / 10)).max())
    from scipy.special import stdtrit  # the quantile of Student's t; scipy is slow to import

    limit = float(stdtrit(repeats - 1, 1 - LEVEL / (2 * len(mean))))

    def size(vector: Tensor) -> float:
        return float(vector.norm()) if len(mean) > 1 else float(vector)

    passed = bool(z <= limit) if tested else None  # False for a NaN
    return CheckLine(check, size(draws.mean(0)), size(paired.mean(0)), size(error), z, limit, passed)


class _Estimator:
    """One estimator on one pair: values in nats per datum, and gradients as one vector, by seed."""

    def __init__(self, objective: Any, pair: Oracle, seed: int, copies: int) -> None:
        self.objective, self.pair, self.seed = objective, pair, seed
        with fork_rng(seed):
            self.x = pair.simulate(DATA)
        self.batch = self.x.repeat(copies, *[1] * (self.x.dim() - 1))
        named = dict(pair.named_parameters())
        self.params = list(named.values())
        self.guide_mask = torch.cat([torch.full((p.numel(),), n in pair.guide_parameters) for n, p in named.items()])

    def mean(self, what: str) -> Tensor:
        """The mean over the data of one of the oracle's exact values."""
        with torch.no_grad():
            return getattr(self.pair, what)(self.x).mean()

    @property
    def is_smooth(self) -> bool:
        """Whether the value under the same noise is differentiable in the parameters."""
        relaxed = type(self.objective) is elbos.Relaxed and not self.objective.straight_through
        return self.pair.reparameterized or relaxed

    def exact_gradient(self, value: Tensor) -> Tensor:
        """The gradient of an exact value."""
        found = torch.autograd.grad(value, self.params, allow_unused=True, materialize_grads=True, retain_graph=True)
        return torch.cat([g.flatten() for g in found])

    def value(self, seed: int) -> Tensor:
        """One draw of the value, from `loss`."""
        with fork_rng(seed), torch.no_grad(), Running():
            loss = self.objective.loss(self.pair.model, self.pair.guide, self.batch)
        return torch.as_tensor(loss, dtype=torch.float64) / -self.pair.num_data(self.batch)

    def gradient(self, seed: int) -> tuple[Tensor, Tensor]:
        """One draw of the value and its gradient, from `loss_and_grads`."""
        self.pair.zero_grad()
        with fork_rng(seed), Running():
            loss = self.objective.loss_and_grads(self.pair.model, self.pair.guide, self.batch)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]
        n = -self.pair.num_data(self.batch)
        return torch.as_tensor(loss, dtype=torch.float64) / n, torch.cat([g.flatten() for g in grads]) / n

    def gradients(self, repeats: int) -> tuple[Tensor, Tensor]:
        """Repeated draws: values `(R,)`, gradients `(R, P)`."""
        values, grads = zip(*(self.gradient(self.seed + 1 + r) for r in range(repeats)), strict=True)
        return torch.stack(values), torch.stack(grads)

    def finite_differences(self, grads: Tensor) -> Tensor:
        """Targets for the draws of the gradient, from finite differences of the value under the same noise.

        Each draw is corrected along one random direction; averaged over directions, this corrects all of it.
        """
        result = grads.clone()
        for r, grad in enumerate(grads):
            with fork_rng(self.seed + 1 + r):
                direction = torch.randint(0, 2, grad.shape).to(grad) * 2 - 1
            plus, minus = (self._shifted_value(sign * STEP * direction, self.seed + 1 + r) for sign in (1, -1))
            result[r] -= (grad @ direction - (plus - minus) / (2 * STEP)) * direction
        return result

    def _shifted_value(self, shift: Tensor, seed: int) -> Tensor:
        start = parameters_to_vector(self.params).detach()
        vector_to_parameters(start + shift, self.params)
        value = self.value(seed)
        vector_to_parameters(start, self.params)
        return value
