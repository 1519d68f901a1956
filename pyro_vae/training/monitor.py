"""The true ELBO measured while training, whatever is being optimised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pyro_vae.elbo import Trace
from pyro_vae.elbo.estimators.bounds import observed_log_prob
from pyro_vae.evaluate.bounds import bound
from pyro_vae.pair.arguments import take
from pyro_vae.pair.networks import eval_mode
from pyro_vae.pair.plates import data_plate
from pyro_vae.pair.tracing import trace_pair
from pyro_vae.support.random import fork_rng
from pyro_vae.training.batches import Feed

__all__ = ["Meter"]

TRAIN_HEAD = 1000  # training data on which the ELBO is measured
ALL_AT_ONCE = 2**62  # bytes
SEED = 0  # the same noise at every measurement, so that epochs differ by their weights alone


class Meter:
    """Measures a pair on the first training data and on all validation data.

    A pair with latent variables shared by all data has no ELBO per datum; its total is divided by the number of data.
    Of several processes each measures its share of the data, and all get the same figures.
    """

    def __init__(
        self, model: Callable[..., Any], guide: Callable[..., Any], train: Feed, valid: Feed | None, *, parts: int = 1
    ) -> None:
        self.model, self.guide, self.train, self.valid = model, guide, train, valid
        # parameters made for each datum only fit the whole data, if that is not cut in parts
        full_batch = train.batch_size is not None and train.batch_size == train.num_data and parts == 1
        self._head = train.head(train.batch_size if full_batch and train.batch_size else TRAIN_HEAD)
        self.few = self._head if full_batch else tuple(a[:8] if isinstance(a, torch.Tensor) else a for a in self._head)
        self._chunks = not full_batch
        self._subsampled: int | None = None
        self._per_datum = True
        self._looked, self._parts = False, parts
        self._seed = SEED + train.ranks.rank

    def _look(self) -> None:
        """Find the plate over the data, and whether it scales minibatches up."""
        self._looked = True
        with torch.no_grad(), eval_mode(self.model, self.guide), fork_rng(SEED):
            traces = trace_pair(self.model, self.guide, self.few)
        try:
            plate = data_plate(traces, len(self.few[0]))
        except ValueError:
            self._per_datum = False
            frames = [f for name in traces.observed[:1] for f in traces.model.nodes[name]["cond_indep_stack"]]
            full = [f.full_size for f in frames if f.full_size not in (None, f.size)]
        else:
            full = [plate.full_size] if plate.full_size != plate.size else []
        self._subsampled = full[0] if full else None
        if self._parts > 1 and not self._per_datum and not full:
            raise ValueError(
                f"a batch is taken in {self._parts} parts, and each would count the latents once that all data share: "
                "give the plate over the data its full size, pyro.plate(name, N, subsample_size=len(x))"
            )

    def divisor(self, batch: tuple[Any, ...]) -> float:
        """What turns the loss of a batch into nats per datum."""
        if not self._looked:
            self._look()
        return self._subsampled or len(batch[0])

    def measure(self) -> dict[str, Any]:
        """`train_elbo`, `valid_elbo`, and the validation data's `log_likelihood` and `kl`, in nats per datum."""
        train = self._elbo(self.train, self._head)
        result = train if self.valid is None else self._elbo(self.valid, None)
        return {
            "train_elbo": train[0],
            "valid_elbo": None if self.valid is None else result[0],
            "log_likelihood": result[1],
            "kl": result[1] - result[0],
        }

    def _elbo(self, source: Feed, args: tuple[Any, ...] | None) -> tuple[float, float]:
        """Mean ELBO and log-likelihood term on `args`, or on all that `source` has."""
        measure = self._of_data if self._per_datum else self._of_total
        if args is None or not self._per_datum:
            parts = [source.head(source.num_data)] if source.in_memory and source.num_data else source.batches()
        else:
            parts = [args]
        ranks = self.train.ranks
        sums = torch.zeros(3, dtype=torch.float64)
        for part in parts:
            if self._shared and source.in_memory:
                start, stop, _ = ranks.rows(len(part[0]))
                part = take(part, {}, start, stop)[0]
            sums += torch.tensor([*measure(part), len(part[0])], dtype=torch.float64)
        if self._shared or not source.in_memory:
            sums = sums.to(ranks.device)
            ranks.sum_([sums])
        elbo, log_likelihood = (sums[:2] / sums[2]).tolist()
        return elbo, log_likelihood

    @property
    def _shared(self) -> bool:
        """Whether each rank measures its own share of the data, and not all of them the same."""
        return self.train.ranks.size > 1 and self._per_datum and self._chunks

    def _of_data(self, args: tuple[Any, ...]) -> tuple[float, float]:
        memory = None if self._chunks else ALL_AT_ONCE
        result = bound(self.model, self.guide, *args, memory=memory, seed=self._seed)
        return float(result.elbo.double().sum()), float(result.log_likelihood.double().sum())

    def _of_total(self, args: tuple[Any, ...]) -> tuple[float, float]:
        with torch.no_grad(), eval_mode(self.model, self.guide), fork_rng(SEED):
            traces = trace_pair(self.model, self.guide, args)
            elbo = -float(Trace().particle_loss(traces))
            likelihood = float(observed_log_prob(traces))
        # a subsampled plate scales any number of data up to the full size
        share = len(args[0]) / (self._subsampled or len(args[0]))
        return elbo * share, likelihood * share
