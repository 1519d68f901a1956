"""What the runs of a calibration leave behind: ranks, discrete draws, and latents for the classifier."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from pyro_vae.evaluate.calibration.classes import indicators
from pyro_vae.evaluate.calibration.drawing import Draws
from pyro_vae.evaluate.calibration.joint import flat
from pyro_vae.evaluate.calibration.ranking import LIKELIHOOD, Quantity, joint_scale, rank_all, together
from pyro_vae.evaluate.calibration.simulating import Simulated

__all__ = ["Collected"]


class Collected:
    """Ranks, and what else the tests need, of all simulations.

    Args:
        quantities: Functions of the latents that are ranked.
        keep_latents: Whether latents and data are kept, for a classifier.
        num_samples: The greatest rank.
        left_out: Latents that are no part of any test; neither is log p(x|z) then.

    Attributes:
        ranks: By quantity, `(S,)`.
        probabilities: By discrete site, a list of arrays `(units, E)`.
        ess: The median effective sample size, NaN without re-weighting.
    """

    def __init__(
        self, quantities: Mapping[str, Quantity], keep_latents: bool, num_samples: int, left_out: Sequence[str]
    ) -> None:
        self.quantities, self.keep_latents = quantities, keep_latents
        self.num_samples, self.left_out = num_samples, left_out
        self.scale: Tensor | None = None
        self.ess = math.nan
        self.probabilities: dict[str, list[np.ndarray]] = {}
        self.ranks: dict[str, np.ndarray] = {}
        self._ranks: dict[str, list[Tensor]] = {}
        self._ess: list[Tensor] = []
        self._truths: dict[str, list[np.ndarray]] = {}
        self._draws: dict[str, list[np.ndarray]] = {}
        self._latents: list[list[np.ndarray]] = [[], [], []]

    def prepare(self, found: Draws) -> None:
        """Set the scale of distances from draws that are not ranked."""
        self.scale = joint_scale(found.without(self.left_out))

    def add(self, found: Draws, simulated: Simulated, first: int, counted: int) -> None:
        """Add the first `counted` units of a run, the first of which is number `first`."""
        found = found.without(self.left_out)
        for name, rank in rank_all(found, self.quantities, self.scale, self.num_samples, first).items():
            if name == LIKELIHOOD and self.left_out:
                continue
            self._ranks.setdefault(name, []).append(rank[:counted].cpu())
        if found.ess is not None:
            self._ess.append(found.ess[:counted].cpu())
        for name, probability in found.probabilities.items():
            keep = found.keep[name].reshape(
                found.keep[name].shape + (1,) * (probability.dim() - found.keep[name].dim())
            )
            known = torch.where(keep, probability.double(), math.nan)
            truth = indicators(found.truth[name], probability)
            draws = indicators(found.picked(name, self.num_samples), probability.unsqueeze(0))
            self.probabilities.setdefault(name, []).append(flat(known, 1)[:counted].cpu().numpy())
            self._truths.setdefault(name, []).append(flat(truth, 1)[:counted].cpu().numpy())
            self._draws.setdefault(name, []).append(flat(draws, 2)[:, :counted].cpu().numpy().astype(np.int8))
        if self.keep_latents:
            truth, draws = together(found, {name: found.picked(name, 1) for name in found.draws})
            leaves = [a for a in tree_flatten(simulated.data)[0] if isinstance(a, Tensor) and a.dim() > 0]
            n = len(leaves[0])  # the data come first
            x = torch.cat([a.double().reshape(len(truth), -1) for a in leaves if len(a) == n], 1)
            for parts, value in zip(self._latents, (truth, draws[0], x), strict=True):
                parts.append(value[:counted].cpu().numpy())

    def finish(self) -> None:
        """Join the runs."""
        self.ranks = {name: torch.cat(parts).numpy() for name, parts in self._ranks.items()}
        if self._ess:
            self.ess = float(torch.cat(self._ess).median())

    def too_few(self) -> float:
        """The share of the simulations whose effective sample size is below the number of ranks."""
        return float((torch.cat(self._ess) < self.num_samples).double().mean())

    def classes(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Probabilities and truth `(S, E)` and draws `(L, S, E)` of a discrete site."""
        probabilities, truth = (np.concatenate(each[name]) for each in (self.probabilities, self._truths))
        return probabilities, truth, np.concatenate(self._draws[name], 1)

    def counted(self, name: str) -> int:
        """How many probabilities of a discrete site no mask leaves out."""
        return sum(int((~np.isnan(part)).sum()) for part in self.probabilities[name])

    def latents(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The truth, one draw, and the data of each simulation, `(S, E)`, `(S, E)` and `(S, D)`."""
        truth, draw, data = (np.concatenate(parts) for parts in self._latents)
        return truth, draw, data
