"""Distributions of Pyro whose numbers fail where decoders go, exchanged for exact ones while a pair runs."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from pyro.distributions import Independent, MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch.distributions import Independent as TorchIndependent

from pyro_vae.support.continuous_bernoulli import ExactContinuousBernoulli

__all__ = ["ExactDistributions"]


class ExactDistributions(Messenger):
    """Draw and score every `dist.ContinuousBernoulli` as an `ExactContinuousBernoulli` of the same logits.

    Pyro's own clamps its probabilities to the precision: its log-density is off by 0.2 nats at a logit of 20, by 7
    at 100, and its KL turns negative there, so that an ELBO would be no bound.
    """

    def _pyro_sample(self, msg: Any) -> None:
        msg["fn"] = _exact(msg["fn"])


def _exact(fn: Any) -> Any:
    if type(fn) is dist.ContinuousBernoulli:
        return ExactContinuousBernoulli(logits=fn.logits, validate_args=fn._validate_args)
    if isinstance(fn, TorchIndependent):
        base = _exact(fn.base_dist)
        return fn if base is fn.base_dist else Independent(base, fn.reinterpreted_batch_ndims)
    if isinstance(fn, MaskedDistribution):
        base = _exact(fn.base_dist)
        return fn if base is fn.base_dist else MaskedDistribution(base, fn._mask)
    return fn
