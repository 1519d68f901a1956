"""Score-function estimators, for latents that cannot be reparameterized."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.elbo.estimators.importance import log_mean
from pyro_vae.elbo.estimators.surrogate import Coefficients, SurrogateELBO
from pyro_vae.pair.names import unique_name
from pyro_vae.support.arguments import checked

__all__ = ["OVIS", "VIMCO", "Reinforce", "VarGrad"]

Baseline = Literal["none", "running", "leave_one_out"]


class Reinforce(SurrogateELBO):
    r"""The ELBO with the score-function gradient, and a baseline that reduces its variance.

    .. math:: \nabla_\phi L = E\big[(\log w - b)\, \nabla_\phi \log q(z|x)\big]

    The signal is each datum's own `log w`, with scales and masks; q is what drew, without them. Sites that can be
    reparameterized keep the gradient through their draws, unless `every_site` is set. Unbiased with every baseline.

    Args:
        num_particles: K, draws from the guide per datum and step.
        baseline: b: "none"; "running", an exponential average of the mean of log w; "leave_one_out", the mean of the
            other particles (needs two); or a network `(N, ...) -> (N,)` or `(N, 1)` of the data, trained along with the
            pair to predict log w: NVIL (Mnih and Gregor 2014).
        decay: Decay of the running average, in [0, 1).
        every_site: Use the score function for reparameterized sites as well, for comparison.
        vectorize_particles: As for `TensorELBO`.

    Raises:
        ValueError: For an unknown baseline, "leave_one_out" with one particle, or a decay outside [0, 1).

    Reference: Williams 1992, Machine Learning 8; Mnih and Gregor 2014, arXiv 1402.0030; Kool et al. 2019
    (leave-one-out).
    """

    for_discrete: ClassVar[bool] = True

    @checked
    def __init__(
        self,
        num_particles: int = 1,
        baseline: Baseline | nn.Module = "none",
        decay: float = 0.9,
        every_site: bool = False,
        vectorize_particles: bool | None = None,
    ) -> None:
        if isinstance(baseline, str) and baseline not in ("none", "running", "leave_one_out"):
            raise ValueError(f"baseline must be 'none', 'running', 'leave_one_out' or a network, got {baseline!r}")
        if baseline == "leave_one_out" and num_particles < 2:
            raise ValueError(
                "the leave_one_out baseline is the mean of the other particles: num_particles must be >= 2"
            )
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self.baseline, self.decay, self.every_site = baseline, decay, every_site
        # tensors, changed in place, since a compiled step writes to the same tensors
        self._average, self._steps = torch.zeros(()), torch.zeros(())

    def coefficients(self, log_w: Tensor, *args: Any) -> Coefficients:
        k = len(log_w)
        even = torch.full_like(log_w, 1 / k)
        signal = (log_w - self.baseline_of(log_w, *args)) / k
        if self.every_site:
            return Coefficients(log_w.mean(0), model=even, score=signal, score_r=signal)
        return Coefficients(log_w.mean(0), model=even, path=even, guide=-even, score=signal)

    def baseline_of(self, log_w: Tensor, *args: Any) -> Tensor | float:
        """What is taken from the signals `(K, N)` of the particles: broadcasts to them."""
        if self.baseline == "none":
            return 0.0
        if self.baseline == "leave_one_out":
            return (log_w.sum(0) - log_w) / (len(log_w) - 1)
        if self.baseline == "running":
            # the average of earlier steps: with this step's draws in it the gradient would be biased
            self._average, self._steps = self._average.to(log_w), self._steps.to(log_w.device)
            before = self._average.clone()
            self._average.lerp_(log_w.mean(), torch.where(self._steps > 0, 1 - self.decay, 1.0).to(log_w))
            self._steps.add_(1)
            return before
        return self._predict(*args)

    def _predict(self, *args: Any) -> Tensor:
        assert isinstance(self.baseline, nn.Module)
        return self.baseline.to(args[0].device)(args[0]).reshape(len(args[0]))

    def extra_loss(self, log_w: Tensor, *args: Any) -> Tensor | float:
        if not isinstance(self.baseline, nn.Module):
            return 0.0
        pyro.module(f"{unique_name(self)}.baseline", self.baseline)
        error = (log_w.mean(0) - self._predict(*args)).square().sum()
        return error - error.detach()  # trained, but not part of the bound


class VarGrad(Reinforce):
    r"""The ELBO with the score-function gradient whose baseline is the mean of the other particles.

    .. math:: \nabla_\phi L = E\Big[\frac{1}{K-1} \sum_k \Big(\log w_k - \frac1K \sum_j \log w_j\Big)
        \nabla_\phi \log q(z_k|x)\Big]

    The same estimator has two sources: REINFORCE with a leave-one-out baseline, and the gradient of half the variance
    of log w, the log-variance divergence, with the draws held fixed (VarGrad). It is
    `Reinforce(baseline="leave_one_out")` by name. Unbiased. At the posterior all log w of a datum are equal and its
    variance is zero.

    Args:
        num_particles: K >= 2, draws from the guide per datum and step.
        vectorize_particles: As for `TensorELBO`.

    Raises:
        ValueError: For fewer than two particles.

    Reference: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!", ICLR workshop; Richter et al.
    2020, arXiv 2010.10436, section 3 (VarGrad).
    """

    min_particles: ClassVar[int] = 2

    @checked
    def __init__(self, num_particles: int = 2, vectorize_particles: bool | None = None) -> None:
        if num_particles < 2:
            raise ValueError(
                f"VarGrad compares particles with each other: num_particles must be at least 2, got {num_particles}"
            )
        super().__init__(num_particles, "leave_one_out", vectorize_particles=vectorize_particles)


class VIMCO(SurrogateELBO):
    r"""The importance-weighted bound with a score-function gradient whose baseline is the other particles.

    .. math:: \nabla_\phi L_K = E\Big[\sum_k (L_K - L_K^{-k}) \nabla_\phi \log q(z_k|x)
        - \tilde w_k \nabla_\phi \log q(z_k|x)\Big]

    where `L_K^{-k}` is the bound with `log w_k` replaced by the mean of the other log-weights. Unbiased. Sites that
    can be reparameterized keep the gradient through their draws.

    Args:
        num_particles: K >= 2, draws from the guide per datum and step.
        vectorize_particles: As for `TensorELBO`.

    Raises:
        ValueError: For fewer than two particles.

    Reference: Mnih and Rezende 2016, arXiv 1602.06725, eq. 9 and 10.
    """

    for_discrete: ClassVar[bool] = True
    bound: ClassVar[str] = "iwae"
    follows_value: ClassVar[bool] = True
    min_particles: ClassVar[int] = 2

    def coefficients(self, log_w: Tensor, *args: Any) -> Coefficients:
        k = len(log_w)
        value, w = log_mean(log_w), log_w.softmax(0)
        others = (log_w.sum(0) - log_w) / (k - 1)
        # L^{-k}: row k of a (K, K, N) table has the k-th weight replaced
        swapped = log_w.expand(k, *log_w.shape) + torch.diag_embed((others - log_w).T).permute(1, 2, 0)
        without = swapped.logsumexp(1) - math.log(k)
        return Coefficients(value, model=w, path=w, guide=-w, score=value - without, guide_s=-w)


class OVIS(SurrogateELBO):
    r"""The importance-weighted bound with a score function whose baseline is nearly the optimal one.

    .. math:: \nabla_\phi L_K = E\Big[\sum_k (\hat L_K - v_k - c_k)\, \nabla_\phi \log q(z_k|x)\Big], \qquad
        c_k = \frac1S \sum_{s=1}^S (\hat L_K - v_k)(z_{-k}, z^{(s)})

    with `v_k` the normalized weights. The baseline of particle k is what its signal is on average over another draw in
    its place, estimated by S further draws that serve for nothing else. It takes the mean of the signal given the other
    particles away, where `VIMCO` puts their geometric mean into the bound alone. Unbiased. With it the signal-to-noise
    ratio of the guide's gradient grows like sqrt(K), as `DReG`'s does where that exists. Sites that can be
    reparameterized keep the gradient through their draws.

    With `gamma` the baseline is the asymptotic one, without further draws:

    .. math:: c_k = \log \frac{1}{K-1} \sum_{l \ne k} w_l - \gamma v_k + (1 - \gamma) \log(1 - 1/K)

    for gamma = 0 unbiased (effective sample size near 1), for gamma > 0 biased, as `v_k` depends on the draw itself
    (gamma = 1: a large effective sample size).

    Args:
        num_particles: K >= 2, draws from the guide per datum and step.
        auxiliary: S >= 1, further draws from the guide; none with `gamma`.
        gamma: None, or a number in [0, 1].
        vectorize_particles: As for `TensorELBO`.

    Raises:
        ValueError: For fewer than two particles, no auxiliary draw, or gamma outside [0, 1].

    Reference: Liévin et al. 2020, arXiv 2008.01998, eq. 12 (S draws) and 17 (gamma).
    """

    for_discrete: ClassVar[bool] = True
    follows_value: ClassVar[bool] = True
    min_particles: ClassVar[int] = 2
    bound: ClassVar[str] = "iwae"

    @checked
    def __init__(
        self,
        num_particles: int = 2,
        auxiliary: int = 1,
        gamma: float | None = None,
        vectorize_particles: bool | None = None,
    ) -> None:
        if auxiliary < 1:
            raise ValueError(f"auxiliary must be at least 1, got {auxiliary}")
        if gamma is not None and not 0 <= gamma <= 1:
            raise ValueError(f"gamma must be in [0, 1], got {gamma}")
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self.auxiliary, self.gamma = auxiliary, gamma

    @property
    def rows(self) -> int:
        return self.num_particles + (self.auxiliary if self.gamma is None else 0)

    def coefficients(self, log_w: Tensor, *args: Any) -> Coefficients:
        k = self.num_particles
        log_w, others = log_w[:k], log_w[k:]
        value, v = log_mean(log_w), log_w.softmax(0)
        score = value - self._baseline(log_w.detach(), others.detach())
        if len(others):
            v, score = (torch.cat([each, torch.zeros_like(others)]) for each in (v, score))
        return Coefficients(value, model=v, path=v, guide=-v, score=score, guide_s=-v)

    def _baseline(self, log_w: Tensor, others: Tensor) -> Tensor:
        k = len(log_w)
        itself = torch.eye(k, dtype=torch.bool, device=log_w.device).unsqueeze(-1)
        rest = log_w.expand(k, *log_w.shape).masked_fill(itself, -math.inf).logsumexp(1)  # of all but particle k
        if self.gamma is not None:
            v = log_w.softmax(0)
            return rest - math.log(k - 1) - self.gamma * v + (1 - self.gamma) * math.log(1 - 1 / k)
        swapped = others.unsqueeze(1)  # (S, 1, N), in the place of each particle
        total = torch.logaddexp(rest, swapped)
        return (total - math.log(k) - (swapped - total).exp()).mean(0)
