"""Calls in their earlier form get the answer of the new one, and a warning that shows it."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch

import pyro_vae as pv
from pyro_vae.oracles import LinearGaussian

PAIR = LinearGaussian()
X = PAIR.simulate(6)
M, G = PAIR.model, PAIR.guide
IMAGES = torch.linspace(0, 30, 40 * 16).sin().abs().reshape(40, 1, 4, 4)
AIS: dict[str, Any] = {"num_chains": 2, "num_temperatures": 5}


def weak() -> pv.evaluate.LogMarginal:
    return pv.log_marginal(M, G, X, num_samples=20, seed=0)


FORMS: dict[str, tuple[Any, Any, str]] = {
    "bound": (
        lambda: pv.bound(M, G, X, num_particles=3, seed=0).elbo,
        lambda: pv.bound(M, G, X, num_samples=3, seed=0).elbo,
        "num_particles= is now num_samples=",
    ),
    "summarize": (
        lambda: pv.summarize(M, G, X, num_samples=5, num_particles=3, seed=0).elbo,
        lambda: pv.summarize(M, G, X, num_samples=5, num_elbo_samples=3, seed=0).elbo,
        "num_elbo_samples",
    ),
    "compare_elbos": (
        lambda: (
            pv.compare_elbos(M, G, X, ["trace"], args=(), num_particles=[1], repeats=3, reference_samples=20, seed=0)
            .rows[0]
            .value
        ),
        lambda: (
            pv.compare_elbos(M, G, X, estimators=["trace"], num_particles=[1], repeats=3, num_samples=20, seed=0)
            .rows[0]
            .value
        ),
        r"estimators=\[...\]",
    ),
    "fit_local": (
        lambda: pv.fit_local(M, "diagonal_normal", X, max_steps=3, seed=0).elbo,  # type: ignore[arg-type]
        lambda: pv.fit_local(M, None, X, family="diagonal_normal", max_steps=3, seed=0).elbo,
        "family=",
    ),
    "fit_local from a guide": (
        lambda: pv.fit_local(M, "diagonal_normal", X, start=G, max_steps=3, seed=0).elbo,  # type: ignore[arg-type]
        lambda: pv.fit_local(M, G, X, family="diagonal_normal", max_steps=3, seed=0).elbo,
        "family=",
    ),
    "repair": (
        lambda: pv.repair(M, G, weak(), X, seed=0).result.log_prob,  # type: ignore[call-arg]
        lambda: pv.repair(M, G, X, result=weak(), seed=0).result.log_prob,
        "result=",
    ),
    "log_marginal by annealing": (
        lambda: pv.log_marginal(M, G, X, method="ais", **AIS, seed=0).log_prob,
        lambda: pv.log_marginal(M, G, X, method=pv.AIS(**AIS), seed=0).log_prob,
        r"method=pv.AIS\(num_chains=2, num_temperatures=5\)",
    ),
    "log_marginal from both sides": (
        lambda: pv.log_marginal(M, G, X, method="bdmc", **AIS, seed=0).log_prob,
        lambda: pv.log_marginal(M, G, X, method=pv.BDMC(**AIS), seed=0).log_prob,
        r"method=pv.BDMC\(num_chains=2",
    ),
    "log_marginal, defensive": (
        lambda: pv.log_marginal(M, G, X, num_samples=20, defensive=0.5, seed=0).log_prob,
        lambda: pv.log_marginal(M, G, X, num_samples=20, method=pv.Importance(defensive=0.5), seed=0).log_prob,
        r"pv.Importance\(defensive=0.5\)",
    ),
    "inference_gaps": (
        lambda: pv.inference_gaps(M, G, X, num_samples=20, ais=False, seed=0).elbo,
        lambda: pv.inference_gaps(M, G, X, num_samples=20, seed=0).elbo,
        "method='ais'",
    ),
    "impute": (
        lambda: pv.impute(M, G, X, mask=X > 0, num_samples=5, num_draws=2, seed=0).draws,
        lambda: pv.impute(M, G, X, mask=X > 0, num_samples=5, num_imputations=2, seed=0).draws,
        "num_imputations=",
    ),
    "sample_quality": (
        lambda: torch.tensor(pv.sample_quality(IMAGES, IMAGES, neighbours=3, seed=0).samples.density),  # type: ignore[call-arg]
        lambda: torch.tensor(pv.sample_quality(IMAGES, IMAGES, neighbors=3, seed=0).samples.density),
        "neighbours= is now neighbors=",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_earlier_form_gives_the_same_answer(form: str) -> None:
    earlier, now, said = FORMS[form]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = earlier()
    assert all(issubclass(w.category, FutureWarning) for w in caught)
    assert any(re.search(said, str(w.message)) for w in caught)
    torch.testing.assert_close(found, now(), rtol=0, atol=0)


def test_an_option_of_another_method_is_refused_all_the_same() -> None:
    with pytest.raises(TypeError, match="num_chains"):
        pv.log_marginal(M, G, X, num_samples=5, num_chains=3)


def test_the_issues_of_preflight_have_their_earlier_name() -> None:
    report = pv.preflight(M, G, X)
    with pytest.warns(FutureWarning, match="is now .issues"):
        assert report.problems is report.issues
