"""A deep convolutional hierarchy: log p(x) by quadrature, each KL by its formula, sizes, stages without a latent."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.models import TopDownVAE
from pyro_vae.pair.particles import particles_agree
from pyro_vae.pair.tracing import trace_pair

DEEP: dict[str, Any] = {"channels": (4, 6, 6), "cells": (0, 2, 1), "latents": (1, 2, 3)}


def binary(n: int, *shape: int) -> Tensor:
    return (torch.rand(n, *shape) < 0.5).float()


def excited(vae: TopDownVAE, size: float = 0.7) -> Any:
    """The pair with weights far from their small initial ones, in double precision."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in vae.parameters():
            p.add_(size * torch.randn_like(p) / math.sqrt(max(p[0].numel(), 1)))
    return vae.double()


def test_log_marginal_and_bound_against_quadrature() -> None:
    vae = excited(TopDownVAE((1, 2, 2), channels=(4,), cells=(2,), latents=(1,)))  # two latents of one element
    x = binary(3, 1, 2, 2).double()
    z = torch.linspace(-9, 9, 121).double()
    grid = torch.cartesian_prod(z, z).reshape(-1, 2, 1, 1, 1)
    exact = []
    for datum in x:
        at = {"z2": grid[:, 0], "z1": grid[:, 1]}
        trace = pyro.poutine.trace(pyro.poutine.condition(vae.model, at)).get_trace(datum.expand(len(grid), 1, 2, 2))
        trace.compute_log_prob()
        joint = sum(trace.nodes[name]["log_prob"] for name in ("z1", "z2", "x"))
        exact.append(joint.detach().logsumexp(0) + 2 * math.log(float(z[1] - z[0])))
    found = pv.log_marginal(vae.model, vae.guide, x, num_samples=5_000, seed=0)
    assert float(found.std_error.max()) < 0.1
    assert ((found.log_prob - torch.stack(exact)).abs() < 5 * found.std_error + 1e-4).all()
    assert (pv.bound(vae.model, vae.guide, x, num_samples=500, seed=0).elbo < torch.stack(exact)).all()


def test_the_kl_of_a_correction_does_not_depend_on_the_prior() -> None:
    vae = excited(TopDownVAE((1, 6, 5), **DEEP), 0.2)
    x = binary(4, 1, 6, 5).double()
    traces, bound = trace_pair(vae.model, vae.guide, (x,)), pv.bound(vae.model, vae.guide, x, seed=0)
    assert list(traces.latents) == vae.latent_names == ["z3", "z2", "z1"]
    for name in vae.latent_names:
        p, q = (trace.nodes[name]["fn"].base_dist for trace in (traces.model, traces.guide))
        shift, factor = (q.loc - p.loc) / p.scale, q.scale / p.scale
        by_hand = (0.5 * (shift.square() + factor.square() - 1) - factor.log()).sum((-3, -2, -1))
        torch.testing.assert_close(torch.distributions.kl_divergence(q, p).sum((-3, -2, -1)), by_hand)
        assert (by_hand > 0).all()
    assert set(bound.kl_sites) == set(vae.latent_names)


def test_all_kls_are_in_closed_form_and_particles_run_at_once() -> None:
    vae, x = TopDownVAE((2, 7, 5), **DEEP), binary(4, 2, 7, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pv.preflight(vae.model, vae.guide, x, elbo="mean_field")
    assert particles_agree(vae.model, vae.guide, (x,))
    pv.elbo.make("iwae", num_particles=3).loss_and_grads(vae.model, vae.guide, x)
    assert [n for n, p in vae.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert vae.encode(x).event_shape == (2, 2, 2)
    assert vae.sample(3, mean=True).shape == vae.reconstruct(x[:3]).shape == (3, 2, 7, 5)
    assert set(vae.sample(3).unique().tolist()) <= {0.0, 1.0}


def test_bad_arguments() -> None:
    for options, message in (
        ({"cells": (1, 2)}, "cells must have 3 numbers from 0, at least one in the last stage"),
        ({"cells": (1, 2, 0)}, "cells must have 3 numbers from 0, at least one in the last stage"),
        ({"cells": (1, -2, 1)}, "cells must be a whole number from 0, got -2"),
        ({"latents": (1, 2)}, "latents must have 3 sizes"),
        ({"channels": ()}, "channels must hold positive sizes"),
        ({"activation": "sine"}, "unknown activation 'sine'"),
        ({"likelihood": pv.conditionals.Bernoulli(4)}, "the likelihood is over events of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            TopDownVAE((1, 4, 4), **{**DEEP, **options})
    with pytest.raises(ValueError, match="data_shape must have 3 sizes"):
        TopDownVAE((16,))
    with pytest.raises(ValueError, match=r"expected data of shape .* got \(3, 1, 4, 5\)"):
        TopDownVAE((1, 4, 4), **DEEP).guide(torch.zeros(3, 1, 4, 5))
