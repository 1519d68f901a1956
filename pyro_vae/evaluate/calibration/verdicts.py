"""What is wrong with a guide, in words, from the ranks of the truth among its draws."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy

from pyro_vae.evaluate.calibration.bands import uniformity

__all__ = ["ball_coverage", "central_coverage", "shift_and_scale", "shape_verdict"]

NOTICEABLE = 3.0  # standard errors from which a shift or a scale is named as what is wrong
LEAST_INSIDE = 30  # ranks inside, of which something can be said
INTERIOR, EVEN = 0.001, 2.5  # p-value and standard errors of the scale from which ranks inside do not count as even


def shift_and_scale(ranks: np.ndarray, num_samples: int) -> tuple[float, float, float, float]:
    r"""How far the guide lies above the truth, and how wide it is, from ranks.

    With :math:`v = \Phi^{-1}\big((r + \tfrac12) / (L + 1)\big)`, of mean 0 and known variance for uniform ranks, the
    shift is `-E v` and the scale `sd(v uniform) / sd(v)`. Where guide and posterior are normal, these are the shift
    of the guide's mean in standard deviations of the guide, and its standard deviation over the posterior's. The finite
    number of draws pulls the scale towards 1.

    Returns:
        The shift, the scale, and by how many standard errors each differs from that of uniform ranks: positive for a
        guide that is too high, and for one that is too wide.
    """
    size = len(ranks)
    scores, variance, noise = _scores(num_samples)
    v = scores[ranks]
    shift, spread = -float(v.mean()), float(v.var())
    z_shift = shift / np.sqrt(max(spread, 1e-12) / size)
    z_scale = -(spread - variance) / np.sqrt(noise / size)
    return shift, float(np.sqrt(variance / max(spread, 1e-12))), float(z_shift), float(z_scale)


def shape_verdict(ranks: np.ndarray, num_samples: int) -> str:
    """What is wrong with ranks that are not uniform: "too narrow", "biased up", "misses a mode", or several of these.

    "misses a mode": the truth is often outside all draws, and evenly spread among them otherwise. "misshapen" is what
    has neither a shift nor a wrong width.
    """
    outside = (ranks == 0) | (ranks == num_samples)
    inside = ranks[~outside] - 1
    often = outside.mean() > 10 / (num_samples + 1) and len(inside) >= max(LEAST_INSIDE, 0.1 * len(ranks))
    if often and _is_even(inside, num_samples - 2):  # without their ends the ranks are as those among L - 2 draws
        return "misses a mode"
    _, _, shift, scale = shift_and_scale(ranks, num_samples)
    found = []
    if abs(scale) > max(NOTICEABLE, abs(shift) / 4):
        found.append("too wide" if scale > 0 else "too narrow")
    if abs(shift) > max(NOTICEABLE, abs(scale) / 4):
        found.append("biased up" if shift > 0 else "biased down")
    return ", ".join(found) or "misshapen"


def _is_even(ranks: np.ndarray, num_samples: int) -> bool:
    """Whether ranks are uniform, above all not denser towards both ends."""
    if num_samples < 2 or shift_and_scale(ranks, num_samples)[3] < -EVEN:
        return False
    return uniformity(ranks, num_samples) > INTERIOR


def central_coverage(ranks: np.ndarray, num_samples: int, level: float) -> tuple[float, float]:
    """How often the truth lies in the central interval of the draws; the nominal level nearest to `level` and that.

    Of L draws the intervals between order statistics have the levels m / (L + 1) alone.
    """
    trim = round((1 - level) * (num_samples + 1) / 2)
    inside = (ranks >= trim) & (ranks <= num_samples - trim)
    return 1 - 2 * trim / (num_samples + 1), float(inside.mean()) if len(ranks) else float("nan")


def ball_coverage(ranks: np.ndarray, num_samples: int, level: float) -> tuple[float, float]:
    """How often the ball around a random point that holds a share of the draws holds the truth; the share, and that.

    Args:
        ranks: Of the distance of the truth among those of the draws.
        num_samples: L.
        level: The share, which becomes the nearest m / (L + 1).
    """
    inside = round(level * (num_samples + 1))
    return inside / (num_samples + 1), float((ranks < inside).mean()) if len(ranks) else float("nan")


@lru_cache(maxsize=64)
def _scores(num_samples: int) -> tuple[np.ndarray, float, float]:
    """The normal scores of the ranks, their variance, and that of their squares."""
    scores = scipy.stats.norm.ppf((np.arange(num_samples + 1) + 0.5) / (num_samples + 1))
    squares = scores**2
    return scores, float(squares.mean()), float(squares.var())
