"""An estimator on every draw of a discrete latent."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.oracles import BitsAndClasses
from tests.helpers.relaxed_draws import X


def check_each_draw(elbo: Any, pair: BitsAndClasses, copies: int = 60_000) -> None:
    """The mean of many draws of the gradient with respect to the logits themselves, each read off alone."""
    x = X[:1]
    size = pair.bits + pair.classes
    start = torch.linspace(-1.0, 1.5, size, dtype=torch.float64)
    logits = nn.Parameter(start.repeat(copies, 1))

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            if pair.bits:
                pyro.sample("b", dist.Bernoulli(logits=logits[:, : pair.bits]).to_event(1))
            if pair.classes:
                pyro.sample("c", dist.OneHotCategorical(logits=logits[:, pair.bits :]))

    loss = elbo.differentiable_loss(pair.model, guide, x.repeat(copies, 1))
    found = -torch.autograd.grad(loss, logits)[0]  # (copies, size)
    alpha = start.clone().requires_grad_()
    bits, classes = alpha.split([pair.bits, pair.classes])
    b, c = pair.states().split([pair.bits, pair.classes], -1)
    log_q = (b * bits).sum(-1) - torch.nn.functional.softplus(bits).sum()
    log_q = log_q + (c * classes.log_softmax(-1)).sum(-1) if pair.classes else log_q
    log_p = pair.log_weights(x)[0].detach()[0]
    exact = torch.autograd.grad((log_q.exp() * (log_p - log_q)).sum(), alpha)[0]
    z_scores = (found.mean(0) - exact) / (found.std(0) / copies**0.5)
    assert float(z_scores.abs().max()) < 4.5, z_scores
