"""The true ELBO measured while training, whatever is being optimized."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro.infer
import torch
from pyro.poutine.util import prune_subsample_sites

from pyro_vae.compilation.mode import recording
from pyro_vae.elbo.estimators.bounds import Trace, observed_log_prob
from pyro_vae.evaluate.bounds import bound
from pyro_vae.pair.arguments import take
from pyro_vae.pair.networks import eval_mode
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.scale import DataScale
from pyro_vae.pair.tracing import sample_sites, trace_pair
from pyro_vae.support.random import fork_rng
from pyro_vae.training.batches import Batches, Head, nonfinite_values

__all__ = ["SEED", "Monitor"]


ALL_AT_ONCE = 2**62  # bytes
SEED = 0  # the same noise at every measurement, so that epochs differ only by their weights


class Monitor:
    """Measures the ELBO of a pair on the first training data and on all validation data.

    A pair with latent variables shared by all data has no ELBO per datum; its total is divided by the number of data.
    With several processes, each measures its shard of the data, and all get the same values.

    Args:
        model, guide: The pair.
        head: Training data.
        valid: Validation data.
        scale: The plate over the data.
        summing: The estimator whose bound is measured in place of `bound`, for a pair whose model has latents that it
            sums out. Its KL is NaN if the guide samples others.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        head: Head,
        valid: Batches | None,
        scale: Callable[[], DataScale],
        summing: pyro.infer.ELBO | None = None,
    ) -> None:
        self.model, self.guide = model, guide
        self._summing: Any = summing
        self._head, self._valid, self._scale = head, valid, scale
        self._ranks = head.source.ranks
        self._seed = SEED + self._ranks.rank

    def measure(self) -> dict[str, Any]:
        """`train_elbo`, `valid_elbo`, and the validation data's `log_likelihood` and `kl`, in nats per datum."""
        train = self._elbo(self._head.source, self._head.args)
        result = train if self._valid is None else self._elbo(self._valid, None)
        return {
            "train_elbo": train[0],
            "valid_elbo": None if self._valid is None else result[0],
            "log_likelihood": result[1],
            "kl": result[1] - result[0],
        }

    def _elbo(self, source: Batches, args: tuple[Any, ...] | None) -> tuple[float, float]:
        """Mean ELBO and log-likelihood term on `args`, or on all data of `source`."""
        measure = self._sum_per_datum if self._scale().per_datum else self._total
        if args is None or not self._scale().per_datum:
            parts = [source.head(source.num_data)] if source.in_memory and source.num_data else source.batches()
        else:
            parts = [args]
        sums = torch.zeros(3, dtype=torch.float64)
        for i, part in enumerate(parts):
            if self._is_sharded and source.in_memory:
                start, stop, _ = self._ranks.rows(len(part[0]))
                part = take(part, {}, start, stop)[0]
            with _named(f"{'training' if source is self._head.source else 'validation'} data, batch {i}", part):
                values = measure(part)
                if math.isnan(values[0]) and nonfinite_values(part):
                    raise ValueError("the ELBO is NaN")
            sums += torch.tensor([*values, len(part[0])], dtype=torch.float64)
        if self._is_sharded or not source.in_memory:
            sums = sums.to(self._ranks.device)
            self._ranks.sum_([sums])
        elbo, log_likelihood = (sums[:2] / sums[2]).tolist()
        return elbo, log_likelihood

    @property
    def _is_sharded(self) -> bool:
        """Whether each rank measures its own shard of data in memory, rather than all of them."""
        return self._ranks.size > 1 and self._scale().per_datum and not self._head.is_whole

    def _summed_out(self, args: tuple[Any, ...]) -> tuple[float, float]:
        with torch.no_grad(), eval_mode(self.model, self.guide), fork_rng(SEED), recording():
            trace = prune_subsample_sites(traced(self.guide, args, {}))
            elbo = -float(self._summing.loss(self.model, self.guide, *args))
        elbo *= len(args[0]) / self._scale().num_data(args)
        return elbo, math.nan if any(sample_sites(trace)) else elbo

    def _sum_per_datum(self, args: tuple[Any, ...]) -> tuple[float, float]:
        if self._summing is not None:
            return self._summed_out(args)
        memory = ALL_AT_ONCE if self._head.is_whole else None
        result = bound(self.model, self.guide, *args, memory=memory, seed=self._seed)
        return float(result.elbo.double().sum()), float(result.log_likelihood.double().sum())

    def _total(self, args: tuple[Any, ...]) -> tuple[float, float]:
        if self._summing is not None:
            return self._summed_out(args)
        with torch.no_grad(), eval_mode(self.model, self.guide), fork_rng(SEED):
            traces = trace_pair(self.model, self.guide, args)
            elbo = -float(Trace().particle_loss(traces))
            likelihood = float(observed_log_prob(traces))
        # a subsampled plate scales any number of data up to the full size
        fraction = len(args[0]) / self._scale().num_data(args)
        return elbo * fraction, likelihood * fraction


@contextmanager
def _named(where: str, args: tuple[Any, ...]) -> Iterator[None]:
    """A context that says on which data an error was raised, and whether they have NaN values."""
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if problem := nonfinite_values(args):
            raise ValueError(f"{where}: {problem}: remove or impute them") from error
        error.add_note(f"while measuring the ELBO of the {where}")
        raise
