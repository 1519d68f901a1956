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

POOL = 10  # draws from the guide for each that is kept after re-weighting


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
        ess: Effective sample size of the importance weights of each unit, `(units,)`; None without re-weighting.
    """

    truth: dict[str, Tensor]
    keep: dict[str, Tensor]
    draws: dict[str, Tensor]
    truth_likelihood: Tensor
    likelihood: Tensor
    probabilities: dict[str, Tensor]
    ess: Tensor | None

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
        num_samples: L, the draws for each unit.
        reweight: Whether these are taken from ten times as many by their importance weights.
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
        ess = None
        if self.reweight:
            log_weights = torch.cat([run["log_weights"] for run in runs]).double()
            weights = log_weights.softmax(0)
            ess = 1 / weights.square().sum(0)
            probabilities = {name: _mean(indicators(values[name], c), weights) for name, c in classes.items()}
            chosen = _without_replacement(log_weights, self.num_samples)
            values = {name: _take(value, chosen) for name, value in values.items()}
            likelihood = likelihood.gather(0, chosen)
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
            ess,
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


def _without_replacement(log_weights: Tensor, count: int) -> Tensor:
    """Indices `(count, units)` of draws taken by their weights without replacement, in random order.

    Of equal weights this is a random part of the draws, so that an exact guide stays exact.
    """
    uniform = torch.rand_like(log_weights).clamp_min(1e-300)
    return (log_weights - (-uniform.log()).log()).topk(count, dim=0).indices


def _take(value: Tensor, index: Tensor) -> Tensor:
    index = index.reshape(*index.shape, *[1] * (value.dim() - 2))
    return value.gather(0, index.expand(*index.shape[:2], *value.shape[2:]))
