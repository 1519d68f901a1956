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


@pytest.mark.filterwarnings("error")
def test_estimators_are_compared_under_the_model_masks() -> None:
    """Whatever the guide masks, theirs are the values of the guide with the model's masks, for the same seed."""
    estimators: list[Any] = ["trace", "mean_field", "iwae", "trace_graph", "reinforce", pyro.infer.Trace_ELBO()]
    options: dict[str, Any] = {"num_particles": [2], "repeats": 10, "num_samples": 100, "seed": 0}

    def rows(guide: Any, model: Any = partly_observed) -> list[Any]:
        pyro.clear_param_store()
        return pv.compare_elbos(model, guide, X, KEEP, estimators=estimators, **options).rows

    for ours, theirs in zip(rows(unmasked), rows(masked), strict=True):
        assert ours.value == pytest.approx(theirs.value, abs=1e-6)
        assert ours.guide_variance == pytest.approx(theirs.guide_variance, rel=1e-5)

    def whole(x: Tensor, keep: Any) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def plain(x: Tensor, keep: Any) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * x * keep, 0.8))

    def in_part(x: Tensor, keep: Any) -> None:
        with poutine.mask(mask=keep):
            plain(x, keep)

    for ours, theirs in zip(rows(in_part, whole), rows(plain, whole), strict=True):
        assert ours.value == pytest.approx(theirs.value, abs=1e-6)


def test_masks_that_move_with_the_draws_are_said() -> None:
    def gated(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            is_on: Any = z > 0
            with poutine.mask(mask=is_on):
                u = pyro.sample("u", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(torch.where(is_on, u, z), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * x, 0.8))
            pyro.sample("u", dist.Normal(0.0, 1.0))

    options: dict[str, Any] = {"num_particles": [1], "repeats": 2, "num_samples": 20, "seed": 0}
    with pytest.warns(UserWarning, match="the model masks other elements of a latent than the guide"):
        pv.compare_elbos(gated, guide, X, estimators=["trace"], **options)


@pytest.mark.filterwarnings("error")
def test_the_same_mask_on_both_sides_is_right() -> None:
    pyro.clear_param_store()
    assert pv.preflight(partly_observed, masked, X, KEEP).issues == []
    options: dict[str, Any] = {"num_particles": [1], "repeats": 200, "num_samples": 500, "seed": 0}
    row = pv.compare_elbos(partly_observed, masked, X, KEEP, estimators=["trace"], **options).rows[0]
    bound = pv.bound(partly_observed, masked, X, KEEP, num_samples=2000, seed=0).mean
    assert abs(row.value - bound) < 5 * row.value_error + 0.02
