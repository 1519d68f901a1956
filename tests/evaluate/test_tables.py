"""Scores of imputations and of synthetic rows: values by hand, and what good and bad rows must score."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.data import Column
from pyro_vae.evaluate import imputation_scores, impute_without_model, table_fidelity

COLUMNS = [
    Column("a", "real"),
    Column("b", "categorical", levels=("x", "y", "z"), shares=(0.4, 0.3, 0.3)),
    Column("c", "count", mean=4.0),
]


def test_scores_by_hand() -> None:
    truth = torch.tensor([[1.0, 0.0, 3.0], [3.0, 2.0, 5.0], [-1.0, 1.0, math.nan], [1.0, 1.0, 0.0]])
    filled = torch.tensor([[1.0, 1.0, 3.0], [1.0, 2.0, 4.0], [-1.0, 1.0, 2.0], [2.0, 1.0, 0.0]])
    mask = torch.tensor([[True, False, True], [False, False, False], [True, False, False], [False, True, True]])
    found = imputation_scores(truth, filled, mask, COLUMNS)
    a, b, c = found.columns
    assert (a.missing, b.missing, c.missing) == (2, 3, 1)  # what was never known is not judged
    assert a.rmse == pytest.approx(math.sqrt((4 + 1) / 2))
    assert a.nrmse == pytest.approx(a.rmse / math.sqrt(2))
    assert b.accuracy == pytest.approx(2 / 3)
    assert c.rmse == pytest.approx(1)
    assert found.nrmse == pytest.approx((a.nrmse + c.nrmse) / 2)
    assert found.accuracy == b.accuracy
    with pytest.raises(ValueError, match="nothing was missing"):
        imputation_scores(truth, filled, torch.ones_like(mask), COLUMNS)
    with pytest.raises(ValueError, match=r"of one shape \(N, 3\)"):
        imputation_scores(truth, filled[:2], mask, COLUMNS)


def rows(n: int, seed: int = 0) -> Tensor:
    """A latent behind three columns."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, generator=generator)
    level = (z > -0.5).float() + (z > 0.5).float()
    return torch.stack([z + 0.2 * torch.randn(n, generator=generator), level, (2 * z.exp()).round()], 1)


def test_imputers_of_scikit_learn() -> None:
    x = rows(200)
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.8
    scores = {}
    for method in ("mean", "knn", "iterative"):
        filled = impute_without_model(x.masked_fill(~mask, math.nan), mask, COLUMNS, method=method, seed=0)
        assert torch.equal(filled[mask], x[mask])
        assert filled.isfinite().all()
        assert set(filled[:, 1].tolist()) <= {0.0, 1.0, 2.0}
        assert (filled[:, 2] >= 0).all()
        scores[method] = imputation_scores(x, filled, mask, COLUMNS)
    known = x[mask[:, 0], 0]
    mean = impute_without_model(x, mask, COLUMNS)
    torch.testing.assert_close(mean[~mask[:, 0], 0], known.mean().expand(int((~mask[:, 0]).sum())))
    most = x[mask[:, 1], 1].mode().values
    assert (mean[~mask[:, 1], 1] == most).all()
    assert scores["mean"].columns[0].nrmse == pytest.approx(1, abs=0.2)
    assert max(scores["knn"].nrmse, scores["iterative"].nrmse) < 0.8 * scores["mean"].nrmse
    with pytest.raises(ValueError, match="column 'c' has no known value"):
        impute_without_model(x, mask & torch.tensor([True, True, False]), COLUMNS)


def test_fidelity_of_good_and_bad_rows() -> None:
    real, good, test = rows(300), rows(300, 1), rows(300, 2)
    shuffled = torch.stack(
        [real[torch.randperm(300, generator=torch.Generator().manual_seed(j)), j] for j in range(3)], 1
    )
    fine = table_fidelity(real, good, COLUMNS, test=test, seed=0)
    poor = table_fidelity(real, shuffled, COLUMNS, test=test, seed=0)
    assert poor.distance == pytest.approx(0, abs=1e-12)  # each column is that of the data, in another order
    assert fine.distance < 0.1
    assert fine.correlation < 0.05 < 0.5 < poor.correlation
    assert fine.discriminator < 0.6 < 0.85 < poor.discriminator
    assert fine.target == "b"
    assert fine.on_synthetic == pytest.approx(fine.on_real, abs=0.08)
    assert poor.on_synthetic < fine.on_synthetic - 0.2
    moved = table_fidelity(
        real, torch.stack([good[:, 0] + 100, good[:, 1] * 0, good[:, 2]], 1), COLUMNS, target="c", seed=0
    )
    a, b, _ = moved.columns
    assert a.distance == 1
    assert b.distance == pytest.approx((real[:, 1] != 0).double().mean().item())
    assert math.isnan(moved.on_real)
    with pytest.raises(ValueError, match="target is 'd', but the columns are a, b, c"):
        table_fidelity(real, good, COLUMNS, target="d")
    with pytest.raises(ValueError, match=r"synthetic must be at least 20 rows of shape \(N, 3\)"):
        table_fidelity(real, good[:5], COLUMNS)


def test_rows_of_a_model_with_missing_values_in_the_real_ones() -> None:
    x = rows(60)
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.8
    found = table_fidelity(x.masked_fill(~mask, 1.0), rows(80, 3), COLUMNS, mask=mask, test=x, test_mask=mask, seed=0)
    assert 0.2 < found.discriminator < 0.8
    assert pv.evaluate.TableFidelity is type(found)
