"""The test that ranks are uniform, its bands, and the words for what is wrong with ranks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import binom, norm

from pyro_vae.evaluate.calibration.bands import adjusted, band, grid, uniformity
from pyro_vae.evaluate.calibration.verdicts import central_coverage, shape_verdict, shift_and_scale


def statistic(ranks: tuple[int, ...], num_samples: int) -> float:
    """The least doubled tail probability over all points, written out."""
    found = []
    for point in range(num_samples):
        count, share = sum(rank <= point for rank in ranks), (point + 1) / (num_samples + 1)
        found.append(2 * min(binom.cdf(count, len(ranks), share), binom.sf(count - 1, len(ranks), share)))
    return min(found)


@pytest.mark.parametrize(("size", "num_samples"), [(3, 4), (5, 2), (2, 9)])
def test_the_p_value_is_that_of_all_outcomes(size: int, num_samples: int) -> None:
    outcomes = list(itertools.product(range(num_samples + 1), repeat=size))
    statistics = np.array([statistic(ranks, num_samples) for ranks in outcomes])
    for ranks in outcomes[:: max(1, len(outcomes) // 40)]:
        exact = (statistics <= statistic(ranks, num_samples) + 1e-9).mean()
        assert uniformity(np.array(ranks), num_samples) == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize(("size", "num_samples"), [(200, 50), (1000, 100), (60, 9)])
def test_false_alarms_of_the_bands_are_as_many_as_they_should_be(size: int, num_samples: int) -> None:
    rng = np.random.default_rng(0)
    lower, upper = band(size, num_samples, 0.1)
    points, repeats, outside, rejected = grid(num_samples), 1000, 0, 0
    for _ in range(repeats):
        ranks = rng.integers(0, num_samples + 1, size)
        ecdf = (ranks[:, None] <= points).mean(0)
        left = bool(((ecdf < lower - 1e-9) | (ecdf > upper + 1e-9)).any())
        outside += left
        if rejected < 20:  # test and band are one thing
            assert left == (uniformity(ranks, num_samples) <= 0.1)
            rejected += left
    assert abs(outside / repeats - 0.1) < 4 * np.sqrt(0.09 / repeats)


def test_a_tiny_p_value_is_a_number() -> None:
    ranks = np.zeros(1000, dtype=int)
    assert 0 <= uniformity(ranks, 100) < 1e-100
    assert np.isnan(uniformity(ranks[:0], 100))


def test_holm() -> None:
    found = adjusted(np.array([0.01, 0.04, np.nan, 0.03, 0.5]))
    np.testing.assert_allclose(found, [0.04, 0.09, np.nan, 0.09, 0.5])


def ranks_of(scale: float = 1.0, shift: float = 0.0, size: int = 4000, num_samples: int = 100) -> np.ndarray:
    rng = np.random.default_rng(1)
    draws = shift + scale * rng.normal(size=(num_samples, size))
    return (draws < rng.normal(size=size)).sum(0)


@pytest.mark.parametrize(
    ("scale", "shift", "words"),
    [
        (0.7, 0.0, "too narrow"),
        (1.4, 0.0, "too wide"),
        (1.0, 0.5, "biased up"),
        (1.0, -0.5, "biased down"),
        (0.6, 0.5, "too narrow, biased up"),
        (0.05, 0.0, "too narrow"),
    ],
)
def test_normal_guides_are_told_for_what_they_are(scale: float, shift: float, words: str) -> None:
    ranks = ranks_of(scale, shift)
    assert uniformity(ranks, 100) < 1e-6
    assert shape_verdict(ranks, 100) == words


def test_shift_and_scale_are_those_of_normal_guides() -> None:
    for scale, shift in ((0.8, 0.0), (1.3, 0.0), (1.0, 0.4), (1.0, 0.0)):
        found = shift_and_scale(ranks_of(scale, shift), 100)
        assert found[0] == pytest.approx(shift / scale, abs=0.06)
        assert found[1] == pytest.approx(scale, abs=0.06)


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.4])
@pytest.mark.parametrize("level", [0.5, 0.9])
def test_coverage_is_that_of_normal_intervals(scale: float, level: float) -> None:
    nominal, held = central_coverage(ranks_of(scale, size=20000, num_samples=999), 999, level)
    assert nominal == pytest.approx(level, abs=1e-3)
    exact = 2 * norm.cdf(scale * norm.ppf((1 + level) / 2)) - 1
    assert held == pytest.approx(exact, abs=4 * np.sqrt(0.25 / 20000))


@pytest.mark.parametrize("one_side", [True, False])
def test_a_missed_mode_is_no_narrow_guide(one_side: bool) -> None:
    rng = np.random.default_rng(2)
    truth = 4 * rng.choice([-1, 1], 1000) + rng.normal(size=1000)
    found = 4 * (1 if one_side else rng.choice([-1, 1], 1000)) + rng.normal(size=(100, 1000))
    assert shape_verdict((found < truth).sum(0), 100) == "misses a mode"


def test_what_has_no_shift_and_the_right_width_is_misshapen() -> None:
    rng = np.random.default_rng(3)
    draws = rng.laplace(size=(100, 4000)) / np.sqrt(2)
    ranks = (draws < rng.normal(size=4000)).sum(0)
    assert uniformity(ranks, 100) < 1e-6
    assert "biased" not in shape_verdict(ranks, 100)
