"""A seed means the same in every question."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import pyro_vae as pv
from pyro_vae.oracles import LinearGaussian

PAIR = LinearGaussian()
X = PAIR.simulate(30)
HOLED = torch.where(torch.eye(30, 4) > 0, torch.nan, X)
CODES = torch.linspace(-2, 2, 90).sin().reshape(30, 3)
FACTORS = torch.cartesian_prod(torch.arange(5), torch.arange(6))
IMAGES = torch.linspace(0, 30, 40 * 16).sin().abs().reshape(40, 1, 4, 4)
SHORT: dict[str, Any] = {"num_particles": [2], "repeats": 2, "num_samples": 10, "estimators": ["trace"]}

QUESTIONS: dict[str, Callable[[int | None], Any]] = {
    "bound": lambda s: pv.bound(PAIR.model, PAIR.guide, X, seed=s).elbo.tolist(),
    "calibration": lambda s: pv.calibration(PAIR.model, PAIR.guide, X, num_simulations=20, seed=s).to_dict(),
    "check_estimator": lambda s: pv.check_estimator("trace", repeats=10, seed=s).to_dicts(),
    "compare_elbos": lambda s: pv.compare_elbos(PAIR.model, PAIR.guide, X, seed=s, **SHORT).rows[0].value,
    "disentanglement": lambda s: pv.disentanglement(CODES, FACTORS, seed=s).to_dict(),
    "embed": lambda s: pv.evaluate.embed(CODES, perplexity=5, seed=s).tolist(),
    "fit_local": lambda s: pv.fit_local(PAIR.model, None, X, max_steps=2, seed=s).elbo.tolist(),
    "impute": lambda s: pv.impute(PAIR.model, PAIR.guide, HOLED, num_samples=5, seed=s).to_dict(),
    "latent_report": lambda s: pv.latent_report(PAIR.model, PAIR.guide, X, seed=s).to_dict(),
    "log_marginal": lambda s: pv.log_marginal(PAIR.model, PAIR.guide, X, num_samples=5, seed=s).log_prob.tolist(),
    "sample_quality": lambda s: pv.sample_quality(IMAGES, IMAGES[20:] ** 2, seed=s).samples,
    "summarize": lambda s: pv.summarize(PAIR.model, PAIR.guide, X, num_samples=5, seed=s).to_dict(),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_number_repeats_the_call_and_leaves_the_generator(name: str) -> None:
    state = torch.get_rng_state()
    first = QUESTIONS[name](3)
    torch.rand(1)
    assert repr(QUESTIONS[name](3)) == repr(first)
    torch.set_rng_state(state)
    QUESTIONS[name](3)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", QUESTIONS)
def test_none_goes_on_with_the_generator(name: str) -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = QUESTIONS[name](None)
    assert not torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(state)
    assert repr(QUESTIONS[name](None)) == repr(first)
