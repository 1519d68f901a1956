"""What each check says of an estimator or a pair, as a set of findings: none where nothing is wrong."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.oracles import Oracle
from tests.helpers.paths import ROOT

__all__ = ["by_calibration", "by_check", "by_comparison", "by_fit", "by_preflight", "by_tests", "outcome"]

SEED = 0
SIGMAS = 5.0  # of a value above log p(x)


def guarded(ask: Callable[[], set[str]]) -> set[str]:
    """The findings, or the error that a check ends with, and warnings as findings of their own."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = ask()
        except Exception as error:
            found = {f"raises {type(error).__name__}"}
    ours = [w for w in caught if issubclass(w.category, UserWarning | RuntimeWarning)]
    return found | {f"warns: {str(w.message)[:60]}" for w in ours}


def outcome(objective: Any, pair: Oracle) -> list[Tensor]:
    """The loss and all gradients of one batch, under one seed."""
    pyro.clear_param_store()
    torch.manual_seed(SEED)
    x = pair.simulate(8)
    pair.zero_grad()
    loss = objective.loss_and_grads(pair.model, pair.guide, x)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in pair.parameters()]
    pair.zero_grad()
    return [torch.as_tensor(loss, dtype=torch.float64), *grads]


def by_check(objective: Any, pair: Oracle, **options: Any) -> set[str]:
    """`check_estimator`: the lines that failed."""

    def ask() -> set[str]:
        result = pv.check_estimator(objective, pair, seed=SEED, **options)
        return {line.check for line in result.lines if line.passed is False}

    return guarded(ask)


def by_comparison(objective: Any, model: Any, guide: Any, x: Tensor) -> set[str]:
    """`compare_elbos`: a bias, or a value above log p(x)."""

    def ask() -> set[str]:
        result = pv.compare_elbos(
            model, guide, x, estimators={"it": objective}, repeats=30, num_samples=500, by_site=False, seed=SEED
        )
        (row,) = result.rows
        found = {f"bias of the {p}" for p in ("model", "guide") if getattr(row, f"{p}_bias") != 0}
        error = (row.value_error**2 + result.reference.mean_error**2) ** 0.5
        return found | ({"above log p(x)"} if not row.gap > -SIGMAS * error - 1e-6 else set())

    return guarded(ask)


def by_tests(files: tuple[str, ...], keyword: str) -> set[str]:
    """A selection of the test suite, in this process, up to the first failure: of the estimator, by its name."""
    devnull, out, err = os.open(os.devnull, os.O_WRONLY), os.dup(1), os.dup(2)
    os.dup2(devnull, 1)
    os.dup2(devnull, 2)
    try:
        paths = [str(ROOT / "tests" / file) for file in files]
        options = ["-x", "-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *(["-k", keyword] if keyword else [])]
        code = pytest.main([*options, *paths])
    finally:
        for kept, to in ((out, 1), (err, 2)):
            os.dup2(kept, to)
            os.close(kept)
        os.close(devnull)
    return {"a test fails"} if code == pytest.ExitCode.TESTS_FAILED else set()


def by_preflight(made: Any) -> set[str]:
    """`preflight` of eight data: the codes of its issues."""

    def ask() -> set[str]:
        return {
            issue.code
            for issue in pv.preflight(made.model, made.guide, made.x[:8], elbo=made.elbo, strict=False).issues
        }

    return guarded(ask)


def by_fit(made: Any) -> set[str]:
    """`fit`, without preflight: that it ends in an error, or warns."""

    def ask() -> set[str]:
        options: dict[str, Any] = {
            "batch_size": 64,
            "lr": 0.03,
            "compile": False,
            "preflight": False,
            "progress": False,
        }
        pv.fit(made.model, made.guide, made.x, elbo=made.elbo, epochs=EPOCHS, threads=1, seed=SEED, **options)
        return set()

    return guarded(ask)


def by_calibration(model: Any, guide: Any, x: Tensor) -> set[str]:
    """`calibration` of a trained pair: verdicts on the guide, and statistics of the data."""

    def ask() -> set[str]:
        result = pv.calibration(model, guide, x, num_simulations=300, num_samples=40, alpha=0.01, seed=SEED)
        guide_faults = {f"{row.quantity} {row.verdict}" for row in result.faults}
        return guide_faults | {f"data: {row.quantity} {row.verdict}" for row in result.misfits}

    return guarded(ask)


EPOCHS = 50
