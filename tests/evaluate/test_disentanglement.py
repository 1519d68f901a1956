"""Measures of disentanglement on codes whose scores are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.evaluate.disentanglement import scores

N = 3000


@pytest.fixture(scope="module")
def factors() -> Tensor:
    g = torch.Generator().manual_seed(3)
    return torch.stack([torch.randint(k, (N,), generator=g) for k in (4, 6, 10)], 1)


def perfect(factors: Tensor) -> Tensor:
    """Each factor in one dimension, scaled and mirrored, and one dimension of next to nothing."""
    g = torch.Generator().manual_seed(4)
    codes = factors.double() * torch.tensor([2.0, -0.5, 1.0]) / torch.tensor([1.2, 1.9, 3.0])
    return torch.cat([codes, 1e-4 * torch.randn(N, 1, generator=g)], 1)


def rotated(factors: Tensor) -> Tensor:
    """The same information, spread evenly over all dimensions."""
    z = factors.double()
    z = (z - z.mean(0)) / z.std(0)
    r, c = 3**-0.5, 1.0
    turn = torch.tensor([[r, r, r], [c / 2**0.5, -c / 2**0.5, 0.0], [c / 6**0.5, c / 6**0.5, -2 * c / 6**0.5]])
    return z @ turn.double()


def useless(factors: Tensor) -> Tensor:
    return torch.randn(N, 4, generator=torch.Generator().manual_seed(5))


def test_a_perfect_code(factors: Tensor) -> None:
    found = pv.disentanglement(perfect(factors), factors, names=["a", "b", "c"], seed=0)
    assert found.beta_vae > 0.99
    assert found.factor_vae > 0.99
    assert found.mig > 0.97  # what the fourth dimension seems to tell is the bias of few data
    assert found.sap > 0.98
    assert found.dci_disentanglement > 0.97
    assert found.dci_completeness > 0.97
    assert found.dci_informativeness > 0.97
    assert found.information.argmax(0).tolist() == [0, 1, 2]
    torch.testing.assert_close(found.information.diagonal(), torch.ones(3).double(), atol=1e-6, rtol=0)


def test_a_useless_code(factors: Tensor) -> None:
    found = pv.disentanglement(useless(factors), factors, seed=0)
    assert found.beta_vae < 0.45  # chance is a third
    assert found.factor_vae < 0.45
    assert found.mig < 0.02
    assert found.sap < 0.01
    assert found.dci_disentanglement < 0.05
    assert found.dci_completeness < 0.05
    assert found.dci_informativeness < 0.25


def test_a_rotated_code_is_informative_and_not_disentangled(factors: Tensor) -> None:
    turned, straight = (pv.disentanglement(code(factors), factors, seed=0) for code in (rotated, perfect))
    assert turned.dci_informativeness > 0.6
    assert turned.beta_vae > 0.9  # linear, so that a rotation does not hide the factors
    for name in ("factor_vae", "mig", "sap", "dci_disentanglement", "dci_completeness"):
        assert getattr(turned, name) < getattr(straight, name) - 0.2, name


def test_mutual_information_is_that_of_a_table() -> None:
    """A binary code that errs in a tenth of the data, and a constant one: H(v) - H(error)."""
    v = torch.arange(2).repeat(5000)
    wrong = torch.arange(10_000) % 20 < 2  # both values equally often
    z = torch.where(wrong, 1 - v, v).double()
    found, entropies = scores.mutual_information(torch.stack([z, torch.ones_like(z)], 1), v.unsqueeze(1))
    two = torch.tensor(2.0, dtype=torch.float64).log()
    error = torch.tensor([0.1, 0.9], dtype=torch.float64)
    assert float(entropies[0]) == pytest.approx(float(two))
    assert float(found[0, 0]) == pytest.approx(float(two + (error * error.log()).sum()))
    assert float(found[1, 0]) == 0.0
    assert scores.mutual_information_gap(found, entropies) == pytest.approx(float(found[0, 0] / two))


def test_sap_is_the_lead_in_squared_correlation() -> None:
    v = torch.arange(8).repeat(50).unsqueeze(1)
    z = torch.cat([v.double(), (v.double() - 3.5).square(), torch.zeros(400, 1).double()], 1)
    assert scores.sap(z, v) == pytest.approx(1.0)  # a parabola has no straight line
    assert scores.sap(torch.cat([v, v], 1).double(), v) == pytest.approx(0.0)  # a copy leaves no lead
    assert scores.sap(v.double(), v) == pytest.approx(1.0)


def test_dci_of_tables() -> None:
    assert scores.dci_scores(torch.eye(3).double()) == pytest.approx((1.0, 1.0))
    assert scores.dci_scores(torch.ones(4, 3).double() / 4) == pytest.approx((0.0, 0.0))
    # two dimensions for one factor each, half and half: disentangled, not complete
    both = torch.tensor([[0.5, 0.0], [0.5, 0.0], [0.0, 0.5], [0.0, 0.5]]).double()
    assert scores.dci_scores(both) == pytest.approx((1.0, 0.5))
    assert scores.dci_scores(both.T) == pytest.approx((0.5, 1.0))


def test_mates_share_the_factor(factors: Tensor) -> None:
    groups, g = scores._Groups(factors), torch.Generator().manual_seed(0)
    index, factor = torch.randint(N, (2000,), generator=g), torch.randint(3, (2000,), generator=g)
    draw_same_value = groups.draw_same_value(index, factor, g)
    assert torch.equal(factors[draw_same_value, factor], factors[index, factor])
    assert (draw_same_value != index).double().mean() > 0.95
    assert len(groups.draw_same_value(torch.zeros(5000).long(), torch.zeros(5000).long(), g).unique()) > 0.9 * N / 4


def test_the_result(factors: Tensor, tmp_path: Path) -> None:
    codes = perfect(factors)
    found = pv.disentanglement(codes, factors, names=["size", "turn", "place"], seed=1)
    assert "I / H of turn: dimension 1" in repr(found)
    assert found.save(tmp_path / "scores.json").is_file()
    assert pv.plots.save(found.plot(), tmp_path / "scores.png").stat().st_size > 1000
    before = torch.random.get_rng_state()
    assert pv.disentanglement(codes, factors, names=["size", "turn", "place"], seed=1) == found
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("codes", "labels", "options", "message"),
    [
        (torch.zeros(20), torch.zeros(20, 1).long(), {}, r"codes \(N, D\) and factors"),
        (torch.rand(20, 2), torch.rand(20, 1), {}, "factors must be integers"),
        (torch.rand(20, 2), torch.zeros(20, 1).long(), {}, "the same value in all data"),
        (torch.zeros(20, 2), torch.arange(20).unsqueeze(1), {}, "all codes are equal"),
        (torch.rand(20, 2) / 0, torch.arange(20).unsqueeze(1), {}, "not finite"),
        (torch.rand(5, 2), torch.arange(5).unsqueeze(1), {}, "at least 10 data"),
        (torch.rand(20, 2), torch.arange(20).unsqueeze(1), {"names": ["a", "b"]}, "2 names for 1 factors"),
    ],
)
def test_bad_arguments(codes: Tensor, labels: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pv.disentanglement(codes, labels, **options)


def test_units_do_not_matter(factors: Tensor) -> None:
    """Millimeters in one dimension and kilometers in the next; a constant dimension never counts."""
    codes = perfect(factors)[:, :3]
    constant = torch.full((N, 1), 1e4).double()
    units = torch.tensor([1e-7, 1.0, 1e5]).double()
    plain, scaled = (
        pv.disentanglement(torch.cat([z, constant], 1), factors, seed=0) for z in (codes, codes * units + 3 * units)
    )
    for name in ("beta_vae", "factor_vae", "mig", "sap"):
        assert getattr(scaled, name) == pytest.approx(getattr(plain, name), abs=0.01), name
        assert getattr(scaled, name) > 0.97, name
    assert scaled.information[3].tolist() == [0.0, 0.0, 0.0]
