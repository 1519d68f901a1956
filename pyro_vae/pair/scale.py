"""Conversion of a pair's sums over a batch to nats per datum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger

from pyro_vae.pair.networks import eval_mode
from pyro_vae.pair.plates import data_plate
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.tracing import trace_pair
from pyro_vae.support.random import fork_rng

__all__ = ["DataScale", "Unscaled", "data_scale"]


class Unscaled(Messenger):
    """Take every site at its own weight: scales belong to objectives, not to densities."""

    def _pyro_sample(self, msg: Any) -> None:
        msg["scale"] = 1.0
        # an objective may read off a plate how many data each one stands for
        msg["cond_indep_stack"] = tuple(f._replace(full_size=f.size) for f in msg["cond_indep_stack"])


@dataclass(frozen=True)
class DataScale:
    """How a sum over a batch converts to a value per datum.

    Attributes:
        per_datum: Whether every site is in the plate over the data. A pair with global latents has no number per
            datum.
        full_size: The number of data to which the plate scales a minibatch up, None if it does not.
    """

    per_datum: bool
    full_size: int | None

    def num_data(self, batch: tuple[Any, ...]) -> int:
        """The number of data that a loss summed over a batch represents."""
        return self.full_size or len(batch[0])


def data_scale(model: Program, guide: Program, example_args: tuple[Any, ...], seed: int) -> DataScale:
    """Run a pair on a few data, with the noise of `seed`, and find the plate over them."""
    with torch.no_grad(), eval_mode(model, guide), fork_rng(seed):
        traces = trace_pair(model, guide, example_args)
    try:
        plate = data_plate(traces, len(example_args[0]))
    except ValueError:
        frames = [f for name in traces.observed[:1] for f in traces.model.nodes[name]["cond_indep_stack"]]
        full = [f.full_size for f in frames if f.full_size not in (None, f.size)]
        return DataScale(False, full[0] if full else None)
    return DataScale(True, plate.full_size if plate.full_size != plate.size else None)
