"""Draws from the guide for simulated data, beside the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyro_vae.evaluate.calibration.classes import class_probabilities, has_classes, indicators
from pyro_vae.evaluate.calibration.simulating import Simulated
from pyro_vae.evaluate.calibration.units import Units
from pyro_vae.pair.arguments import slices
from pyro_vae.pair.masks import kept_elements
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.tracing import PairTrace, Site, sample_sites, trace_pair

__all__ = ["POOL", "Drawer", "Draws"]

POOL = 10  # times as many draws where they are re-weighted


@dataclass
class Draws:
    """Truth and draws of some units.

    Attributes:
        truth: The latents that the data were drawn from, by site: `(units, *rest)`.
        keep: Which of their elements count, of the same shapes.
        draws: Those of the guide, `(L, units, *rest)`.
        truth_likelihood, likelihood: log p(x|z) at these, `(units,)` and `(L, units)`, nats.
        probabilities: Of discrete sites with classes: q(z = c|x), `(units, *rest, C)`, or `(units, *rest)` of a
            Bernoulli or one-hot site.
        weights: The importance weights of the draws, `(L, units)`, with sum 1; None without re-weighting.
    """

    truth: dict[str, Tensor]
    keep: dict[str, Tensor]
    draws: dict[str, Tensor]
    truth_likelihood: Tensor
    likelihood: Tensor
    probabilities: dict[str, Tensor]
    weights: Tensor | None

    @property
    def ess(self) -> Tensor | None:
        """Effective sample size of the weights of each unit, `(units,)`."""
        return None if self.weights is None else 1 / self.weights.square().sum(0)

    def picked(self, name: str, count: int) -> Tensor:
        """Draws of a site without weights, `(count, units, *rest)`: some of them, or some by their weights."""
        draws = self.draws[name]
        if self.weights is None:
            return draws[1 : count + 1]
        index = torch.multinomial(self.weights.T, count, replacement=True).T
        index = index.reshape(*index.shape, *[1] * (draws.dim() - 2))
        return draws.gather(0, index.expand(*index.shape[:2], *draws.shape[2:]))

    def without(self, names: Sequence[str]) -> Draws:
        """The same without some sites."""
        if not names:
            return self

        def others(parts: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: value for name, value in parts.items() if name not in names}

        return replace(
            self,
            truth=others(self.truth),
            keep=others(self.keep),
            draws=others(self.draws),
            probabilities=others(self.probabilities),
        )


@dataclass(frozen=True)
class Drawer:
    """Draws from the guide for given data.

    Attributes:
        num_samples: L, the draws for each unit; ten times as many with weights.
        reweight: Whether draws get importance weights.
        vectorize: Whether draws run together, or one at a time.
        rows: Data times draws per run.
    """

    num_samples: int
    reweight: bool
    vectorize: bool
    rows: int

    def __call__(self, model: Program, guide: Program, simulated: Simulated, units: Units) -> Draws:
        """Draws for simulated data."""
        args, kwargs = simulated.data
        hidden = {name: site for name, site in sample_sites(simulated.truth) if not site["is_observed"]}
        count = self.num_samples * (POOL if self.reweight else 1)
        together = max(1, self.rows // len(args[0])) if self.vectorize else 1
        runs: list[dict[str, Any]] = []
        for start, stop in slices(count, together):
            traces = trace_pair(
                model,
                guide,
                args,
                kwargs,
                num_particles=stop - start if self.vectorize else None,
                nesting=units.nesting,
            )
            runs.append(self._read(traces, hidden, units))
        values = {name: torch.cat([run["values"][name] for run in runs]) for name in hidden}
        likelihood = torch.cat([run["likelihood"] for run in runs])
        classes = {name: torch.cat([run["classes"][name] for run in runs]) for name in runs[0]["classes"]}
        weights = None
        if self.reweight:
            weights = torch.cat([run["log_weights"] for run in runs]).double().softmax(0)
            probabilities = {name: _mean(indicators(values[name], c), weights) for name, c in classes.items()}
        else:
            probabilities = {name: value.mean(0) for name, value in classes.items()}
        return Draws(
            {name: units.values(site["value"], site)[0] for name, site in hidden.items()},
            {
                name: units.values(kept_elements(site).expand(site["value"].shape), site)[0]
                for name, site in hidden.items()
            },
            values,
            units.log_likelihood(simulated.truth)[0],
            likelihood,
            probabilities,
            weights,
        )

    def _read(self, traces: PairTrace, hidden: dict[str, Site], units: Units) -> dict[str, Any]:
        found = {name: site for name, site in sample_sites(traces.guide) if name in hidden}
        return {
            "values": {name: units.values(site["value"], site) for name, site in found.items()},
            "likelihood": units.log_likelihood(traces.model, traces.particle_dim),
            "log_weights": units.log_weights(traces) if self.reweight else None,
            "classes": {
                name: class_probabilities(site, units) for name, site in found.items() if has_classes(site["fn"])
            },
        }


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (weights.reshape(*weights.shape, *[1] * (values.dim() - 2)) * values).sum(0)
