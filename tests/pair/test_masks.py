"""Masks of latents on one side only."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import pyro_vae as pv

X = torch.tensor([0.3, -1.0, 0.8, 1.9])
KEEP: Any = torch.tensor([True, False, True, False])


def partly_observed(x: Tensor, keep: Any) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=keep)


def unmasked(x: Tensor, keep: Any) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.5 * x * keep, 0.8))
        pyro.sample("x_unobserved", dist.Normal(pyro.param("fill", torch.tensor(0.0)), 1.4))


def masked(x: Tensor, keep: Any) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.5 * x * keep, 0.8))
        with poutine.mask(mask=~keep):
            pyro.sample("x_unobserved", dist.Normal(pyro.param("fill", torch.tensor(0.0)), 1.4))


def test_what_the_guide_counts_and_the_model_does_not_is_said() -> None:
    pyro.clear_param_store()
    with pytest.warns(UserWarning, match="masked_in_model"):
        report = pv.preflight(partly_observed, unmasked, X, KEEP)
    assert [(issue.code, issue.site) for issue in report.issues] == [("masked_in_model", "x_unobserved")]
    options: dict[str, Any] = {
        "estimators": ["trace"],
        "num_particles": [1],
        "repeats": 2,
        "num_samples": 20,
        "seed": 0,
    }
    with pytest.warns(UserWarning, match="masks elements of 'x_unobserved' that the guide counts"):
        pv.compare_elbos(partly_observed, unmasked, X, KEEP, **options)


@pytest.mark.filterwarnings("error")
def test_the_same_mask_on_both_sides_is_right() -> None:
    pyro.clear_param_store()
    assert pv.preflight(partly_observed, masked, X, KEEP).issues == []
    options: dict[str, Any] = {"num_particles": [1], "repeats": 200, "num_samples": 500, "seed": 0}
    row = pv.compare_elbos(partly_observed, masked, X, KEEP, estimators=["trace"], **options).rows[0]
    bound = pv.bound(partly_observed, masked, X, KEEP, num_samples=2000, seed=0).mean
    assert abs(row.value - bound) < 5 * row.value_error + 0.02
