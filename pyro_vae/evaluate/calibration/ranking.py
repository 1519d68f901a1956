"""Ranks of the truth among the guide's draws, for each scalar latent and for functions of all latents."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pyro_vae.evaluate.calibration.classes import indicators
from pyro_vae.evaluate.calibration.drawing import Draws
from pyro_vae.evaluate.calibration.joint import distances, flat

__all__ = ["JOINT", "LIKELIHOOD", "Quantity", "joint_scale", "rank_all", "together"]

Quantity = Callable[[dict[str, Tensor]], Tensor]
LIKELIHOOD, JOINT = "log p(x|z)", "all latents"


def rank_all(
    found: Draws, quantities: Mapping[str, Quantity], scale: Tensor | None, num_samples: int, first: int
) -> dict[str, Tensor]:
    """Ranks by quantity, `(units,)` each, -1 where a mask leaves an element out.

    Of L + 1 draws the first is the reference of the distances between latents, so that ranks are among L.

    Args:
        found: Truth and draws.
        quantities: Functions of the latents.
        scale: Of the distances, `(E,)`; None leaves them out.
        num_samples: The greatest rank. Without weights, the number of draws but the first.
        first: Index of the first unit, for a message.
    """
    ranks: dict[str, Tensor] = {}
    weights = None if found.weights is None else found.weights[1:] / found.weights[1:].sum(0)

    def ranked(truth: Tensor, draws: Tensor) -> Tensor:
        return _ranks(truth, draws) if weights is None else _weighted_ranks(truth, draws, weights, num_samples)

    for name, truth in found.truth.items():
        if name in found.probabilities:
            continue
        draws = found.draws[name][1:]
        _check_finite(name, draws, first)
        rank = torch.where(found.keep[name], ranked(truth, draws), -1)
        for index, each in zip(
            itertools.product(*map(range, truth.shape[1:])), rank.reshape(len(rank), -1).unbind(1), strict=True
        ):
            ranks[element_name(name, index)] = each
    for name, function in quantities.items():
        if name in ranks or name in (LIKELIHOOD, JOINT):
            raise ValueError(f"the quantity {name!r} has the name of what is ranked in any case: give it another one")
        of_truth = _values(name, function, found.truth)
        size = len(of_truth)
        rows = {key: value[1:].flatten(0, 1) for key, value in found.draws.items()}
        ranks[name] = ranked(of_truth, _values(name, function, rows).reshape(-1, size))
    ranks[LIKELIHOOD] = ranked(found.truth_likelihood, found.likelihood[1:])
    _check_finite(LIKELIHOOD, found.likelihood, first)
    if scale is not None:
        truth, draws = together(found, found.draws)
        ranks[JOINT] = ranked(distances(truth, draws[0], scale), distances(draws[1:], draws[0], scale))
    return ranks


def joint_scale(found: Draws) -> Tensor | None:
    """The scale of each element of all latents, `(E,)`: the mean deviation of the guide; None of a single element."""
    draws = together(found, found.draws)[1]
    if draws.shape[-1] < 2:
        return None
    scale = draws.std(0).mean(0)
    return torch.where(scale > 1e-9, scale, 1.0)


def element_name(name: str, index: tuple[int, ...]) -> str:
    """The name of an element of a site, `z[0, 3]`; that of the site if it has no shape."""
    return f"{name}[{', '.join(map(str, index))}]" if index else name


def together(found: Draws, chosen: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """All elements of all latents, `(units, E)` of the truth and `(L, units, E)` of some draws; 0 where masked."""
    truths, draws = [], []
    for name, truth in found.truth.items():
        drawn, keep = chosen[name], found.keep[name]
        if name in found.probabilities:
            like = found.probabilities[name]
            truth, drawn = indicators(truth, like), indicators(drawn, like.unsqueeze(0))
            keep = keep.reshape(keep.shape + (1,) * (truth.dim() - keep.dim()))
        truths.append(flat(torch.where(keep, truth, 0), 1))
        draws.append(flat(torch.where(keep, drawn, 0), 2))
    return torch.cat(truths, -1), torch.cat(draws, -1)


def _ranks(truth: Tensor, draws: Tensor) -> Tensor:
    """The number of draws below the truth, `(units, *)` of `(units, *)` and `(L, units, *)`; ties fall at random."""
    below, equal = (draws < truth).sum(0), (draws == truth).sum(0)
    return below + (torch.rand(below.shape, device=below.device) * (equal + 1)).floor().long().clamp(max=equal)


def _weighted_ranks(truth: Tensor, draws: Tensor, weights: Tensor, num_samples: int) -> Tensor:
    """The share of the weights below the truth as one of `num_samples + 1` ranks; the truth counts as a mean weight.

    Of equal weights these are as uniform as ranks. With the truth's own weight in its place they would be uniform for
    any guide, and say nothing of what weights mend.
    """
    weights = weights.reshape(*weights.shape, *[1] * (draws.dim() - 2))
    below, equal = (weights * (draws < truth)).sum(0), (weights * (draws == truth)).sum(0)
    own = 1 / len(draws)
    share = (below + torch.rand_like(below) * (equal + own)) / (1 + own)
    return (share * (num_samples + 1)).floor().long().clamp(max=num_samples)


def _values(name: str, function: Quantity, latents: dict[str, Tensor]) -> Tensor:
    rows = len(next(iter(latents.values())))
    value = function(latents)
    if not isinstance(value, Tensor) or value.shape != (rows,):
        came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"the quantity {name!r} must be a function of a dictionary of latents, each of shape (R, ...), here R = "
            f"{rows}, that returns a tensor of shape (R,), got {came}"
        )
    return value


def _check_finite(name: str, values: Tensor, first: int) -> None:
    if bool(values.isnan().any()):
        raise ValueError(
            f"{name} is NaN for some of the {values.shape[1]} simulated data from number {first}: "
            "pv.preflight(model, guide, x) names the site whose network gives NaN"
        )
