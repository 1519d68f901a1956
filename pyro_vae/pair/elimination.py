"""Models without the discrete latents that they enumerate: summed out exactly, at each value of the others."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from opt_einsum import get_symbol, shared_intermediates  # type: ignore[import-untyped]
from pyro import poutine
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine.indep_messenger import IndepMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.pair.planning import run_on_examples
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.subsampling import give_sizes
from pyro_vae.pair.tracing import Site, log_prob, plate_nesting, sample_sites
from pyro_vae.support.random import fork_rng

__all__ = ["enumerated_alone", "without_enumerated"]

FACTOR = "summed out"  # the site of the factor that takes the place of the sites that were summed out
OUTER_PLATES = 2  # that questions may put around a pair: over the particles, and over all data together


def enumerated_alone(model: Program, guide: Program | None, data: Data) -> tuple[list[str], int]:
    """The latents that the model enumerates in parallel and the guide does not draw; the number of plate dimensions."""

    def run(some: Data) -> tuple[list[str], int]:
        args, kwargs = some
        drawn: Any = None if guide is None else traced(guide, args, kwargs)
        trace = traced(model, args, kwargs, on=drawn)
        names = [
            name
            for name, site in sample_sites(trace)
            if not site["is_observed"]
            and site["infer"].get("enumerate") == "parallel"
            and (drawn is None or name not in drawn.nodes)
        ]
        return names, plate_nesting(trace, *(() if drawn is None else (drawn,)))

    with torch.no_grad(), fork_rng():
        return run_on_examples(run, data)[0]


def without_enumerated(model: Program, guide: Program | None, data: Data) -> Program:
    """The model with the latents of `enumerated_alone` summed out; the model itself if there are none.

    What depends on them becomes one factor. The densities of latents that do are part of it.
    """
    names, nesting = enumerated_alone(model, guide, data)
    return _Eliminated(model, frozenset(names), -1 - nesting - OUTER_PLATES) if names else model


class _Eliminated:
    """A model that sums some of its latents out.

    Args:
        model: The model.
        names: The latents to sum out.
        first: The first dimension left of all plates.
    """

    def __init__(self, model: Program, names: frozenset[str], first: int) -> None:
        self.model, self.names, self.first = model, names, first

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        chosen = poutine.infer_config(self.model, self._only_these)
        with poutine.block(hide_fn=self._hides), _Latents(self.first) as latents, poutine.trace() as inner:
            poutine.enum(chosen, first_available_dim=self.first)(*args, **kwargs)
        give_sizes(inner.trace)
        sites = {
            name: {**site, "fn": latents.densities.get(name, site["fn"])}
            for name, site in sample_sites(inner.trace)
            if site["is_observed"] or name in self.names or name in latents.densities
        }
        value, frames = _summed_log_prob(sites, self.first)
        with ExitStack() as plates:
            for frame in frames:
                plates.enter_context(IndepMessenger(frame.name, frame.size, frame.dim))
            pyro.factor(FACTOR, value)

    def _only_these(self, site: Any) -> Any:
        return {} if site["name"] in self.names else {"enumerate": None}

    def _hides(self, site: Any) -> bool:
        return site["type"] == "sample" and (site["is_observed"] or site["name"] in self.names)


class _Latents(Messenger):
    """Lets the other latents out, and those whose prior depends on an enumerated one without a density."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first
        self.densities: dict[str, Any] = {}  # of these

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if msg["is_observed"] or "_enumerate_dim" in msg["infer"] or len(getattr(fn, "batch_shape", ())) < -self.first:
            return
        self.densities[msg["name"]] = fn
        own = self.first + 1 + OUTER_PLATES  # the dimensions of the model's plates; others are added around it
        msg["fn"] = _Unscored(fn, fn.batch_shape[own:] if own < 0 else torch.Size())


class _Unscored(dist.TorchDistribution):
    """Draws of a distribution, at the first of the values that it was enumerated for, with a log-density of 0."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, fn: Any, batch_shape: torch.Size) -> None:
        self.fn = fn
        super().__init__(batch_shape, fn.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.fn.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Unscored:
        return _Unscored(self.fn, torch.Size(batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        value = self.fn.sample(sample_shape)
        while value.dim() > len(sample_shape) + len(self.batch_shape) + len(self.event_shape):
            value = value.select(len(sample_shape), 0)
        return value.expand(torch.Size(sample_shape) + self.batch_shape + self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return value.new_zeros(self.batch_shape)


def _summed_log_prob(sites: dict[str, Site], first: int) -> tuple[Tensor, list[Any]]:
    """Log of the sum of the sites' joint density over all enumerated values, and the plates that it splits over."""
    # without the plates around the model: only the latents that are let out stand in them
    own = first + 1 + OUTER_PLATES
    stacks = [{f for f in site["cond_indep_stack"] if f.vectorized and f.dim >= own} for site in sites.values()]
    common = sorted(set.intersection(*stacks), key=lambda f: f.dim)
    symbols = _Symbols()
    terms: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    enumerated: set[str] = set()
    for (name, site), frames in zip(sites.items(), stacks, strict=True):
        value = log_prob(name, site)
        inner = {f for f in frames if f not in common}
        sizes = {f.dim: f.size for f in frames}
        value = value.expand(
            torch.broadcast_shapes(value.shape, [sizes.get(d, 1) for d in range(min(sizes, default=0), 0)])
        )
        ids = site["infer"].get("_dim_to_id", {})
        names: dict[int, str] = {}
        for dim in range(-value.dim(), 0):
            if dim <= first:
                names[dim] = symbols["enum", ids.get(dim, dim)]
                if value.shape[dim] > 1:
                    enumerated.add(names[dim])
            else:
                frame = next((f for f in inner if f.dim == dim), None)
                names[dim] = symbols["dim", dim] if frame is None else symbols["plate", frame.name]
                symbols.dims[names[dim]] = dim
        ordinal = frozenset(symbols["plate", f.name] for f in inner if f.size > 1)
        terms.setdefault(ordinal, []).append(packed.pack(value, names))
    with shared_intermediates() as cache:
        summed = contract_tensor_tree(terms, enumerated, cache=cache)
    total = torch.zeros(())
    for ordinal, found in summed.items():
        for term in found:
            value = packed.unpack(term, symbols.dims)
            inner_dims = [symbols.dims[s] for s in ordinal if s in symbols.dims and value.dim() >= -symbols.dims[s]]
            total = total + (value.sum(inner_dims, keepdim=True) if inner_dims else value)
    return total, common


class _Symbols:
    """A letter for each dimension."""

    def __init__(self) -> None:
        self._found: dict[Any, str] = {}
        self._new: Iterator[int] = itertools.count()
        self.dims: dict[str, int] = {}

    def __getitem__(self, key: Any) -> str:
        if key not in self._found:
            self._found[key] = get_symbol(next(self._new))
        return self._found[key]
