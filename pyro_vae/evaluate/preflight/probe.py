"""One run of a model/guide pair under watch, and how to read its sites."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.infer
import torch
from pyro import poutine
from pyro.distributions import MaskedDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.infer.autoguide import AutoGuide, AutoGuideList
from pyro.poutine.broadcast_messenger import BroadcastMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace as PyroTrace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch import distributions as td
from torch.nn.parameter import is_lazy

from pyro_vae.evaluate.preflight.result import PreflightIssue
from pyro_vae.pair.networks import modules_of
from pyro_vae.pair.parameters import offered_tensor, parameters_kept, stale
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.tracing import sample_sites

__all__ = [
    "Program",
    "Run",
    "Site",
    "chain",
    "core",
    "counted",
    "family",
    "fits",
    "frames_of",
    "fresh_guide",
    "nonfinite_parts",
    "parameters",
    "shape",
    "shapes_of",
    "sizes_of",
    "some",
    "unchanged",
]

Site = dict[str, Any]


class _Params(Messenger):
    """Notes every parameter statement: the tensor that the store trains, and the one that it was offered."""

    def __init__(self) -> None:
        super().__init__()
        self.trained: dict[str, Tensor] = {}
        self.offered: list[tuple[str, Tensor]] = []
        self.stale: dict[str, str] = {}
        self.shapes: dict[str, torch.Size] = {}  # of the first value given, or of the parameter

    def _pyro_post_param(self, msg: Any) -> None:
        value, name = msg["value"], msg["name"]
        whole = getattr(value, "_pyro_unconstrained_param", None)  # inside a subsampled plate
        held = getattr(value, "unconstrained", lambda: value)() if whole is None else whole
        if name not in self.trained and (text := stale(msg, held)):
            self.stale[name] = text
        self.trained[name] = held
        offered = offered_tensor(msg)
        self.shapes.setdefault(name, held.shape if offered is None else offered.shape)
        if len(msg["args"]) > 1 and isinstance(msg["args"][1], Tensor):
            self.offered.append((name, msg["args"][1]))


@dataclass
class Run:
    """The traces of one run, as far as it came, and the problems found in them."""

    n: int  # number of data
    params: _Params
    guide: PyroTrace = field(default_factory=PyroTrace)
    model: PyroTrace = field(default_factory=PyroTrace)
    raised: tuple[str, Exception] | None = None
    problems: list[PreflightIssue] = field(default_factory=list)
    faulty: set[str] = field(default_factory=set)  # sites that later checks would only misread

    @classmethod
    def of(cls, n: int, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Run:
        run = cls(n, _Params())
        values = PyroTrace()
        where = "the guide"
        try:
            with run.params, poutine.trace() as tracer:
                run.guide = tracer.trace
                guide(*args, **kwargs)
            for name, site in sample_sites(run.guide):
                if not site["is_observed"]:
                    values.add_node(name, **site)
            where = "the model"
            with run.params, poutine.trace() as tracer, poutine.replay(trace=values):
                run.model = tracer.trace
                model(*args, **kwargs)
        except Exception as error:  # whatever the user's code raises, what ran before it is still checked
            run.raised = where, error
        run.guide, run.model = prune_subsample_sites(run.guide), prune_subsample_sites(run.model)
        return run

    def error(self, code: str, site: str | None, message: str) -> None:
        self.problems.append(PreflightIssue("error", code, site, message))
        if site is not None:
            self.faulty.add(site)

    def warn(self, code: str, site: str | None, message: str) -> None:
        self.problems.append(PreflightIssue("warning", code, site, message))

    @property
    def sound(self) -> bool:
        return self.raised is None and all(problem.level != "error" for problem in self.problems)

    def sites(self) -> Iterator[tuple[str, str, Site]]:
        """The sites that have a density, in order of execution: ("guide" or "model", name, site)."""
        for where, trace in (("guide", self.guide), ("model", self.model)):
            for name, site in sample_sites(trace):
                if isinstance(site["fn"], td.Distribution):
                    yield where, name, site

    def sites_of(self, program: str) -> dict[str, Site]:
        return {name: site for where, name, site in self.sites() if where == program}

    def latents(self) -> dict[str, tuple[Site, Site]]:
        """The latent sites that both sample, in the model's order: name -> (guide's, model's)."""
        guide = self.sites_of("guide")
        latent = {name: p for name, p in self.sites_of("model").items() if not p["is_observed"] and name in guide}
        return {name: (guide[name], p) for name, p in latent.items() if not guide[name]["is_observed"]}


def fresh_guide(guide: Program) -> Program:
    """The guide, or a copy of an autoguide not yet set up: it takes its sizes from the first batch that it sees."""
    if not isinstance(guide, AutoGuide) or isinstance(guide, AutoGuideList) or guide.prototype_trace is not None:
        return guide
    held = guide._model  # Pyro drops it from the original, too, when copying
    try:
        fresh = copy.deepcopy(guide)
    finally:
        guide._model = held
    fresh._model = held
    return fresh


@contextmanager
def unchanged(model: Program, guide: Program) -> Iterator[None]:
    """Run without Pyro's validation, which says less than the checks here, and restore buffers and parameter store."""
    store = pyro.get_param_store()
    known = set(store.keys())
    owners = [part for net in modules_of(model, guide).values() for part in net.modules()]
    buffers = [(m, k, b, b.clone()) for m in owners for k, b in m._buffers.items() if b is not None and not is_lazy(b)]
    messenger: Any = BroadcastMessenger
    broadcast = messenger._pyro_sample

    def lenient(msg: Any) -> None:
        with suppress(ValueError):  # a batch shape that does not fit its plates stays as it is, to be reported
            broadcast(msg)

    with pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was not registered in the param store")  # frozen weights
        messenger._pyro_sample = staticmethod(lenient)
        try:
            with parameters_kept():
                yield
        finally:
            messenger._pyro_sample = staticmethod(broadcast)
            with torch.no_grad():
                for module, key, buffer, kept in buffers:
                    module._buffers[key] = buffer.copy_(kept)
            for name in set(store.keys()) - known:
                with suppress(KeyError):  # one tensor under two names
                    del store[name]


def chain(fn: Any) -> Iterator[Any]:
    yield fn
    while isinstance(fn, td.Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
        yield fn


def core(site: Site) -> Any:
    return list(chain(site["fn"]))[-1]


def family(site: Site) -> str:
    return type(core(site)).__name__


def shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def shapes_of(site: Site) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(site["fn"].batch_shape), tuple(site["fn"].event_shape)


def frames_of(site: Site) -> dict[int, Any]:
    return {frame.dim: frame for frame in site["cond_indep_stack"] if frame.vectorized}


def sizes_of(site: Site) -> dict[int, int]:
    return {dim: frame.size for dim, frame in frames_of(site).items()}


def fits(batch: tuple[int, ...], sizes: dict[int, int]) -> bool:
    return all(b in (1, sizes.get(d)) for d, b in zip(range(-len(batch), 0), batch, strict=True))


def parameters(fn: Any) -> Iterator[tuple[str, Tensor]]:
    for key, value in vars(fn).items():
        if isinstance(value, td.Distribution):
            yield from parameters(value)
        elif isinstance(value, Tensor) and key in fn.arg_constraints:
            yield key, value


def counted(what: str, value: Any) -> list[str]:
    value = torch.as_tensor(value)
    counts = ((int(value.isnan().sum()), "NaN"), (int(value.isinf().sum()), "infinite"))
    found = [f"{count} {kind}" for count, kind in counts if count]
    return [f"{what} has {' and '.join(found)} of {value.numel()}"] if found else []


def nonfinite_parts(site: Site) -> list[str]:
    parts = [p for key, value in parameters(site["fn"]) for p in counted(f"{family(site)} {key}", value)]
    return list(dict.fromkeys([*parts, *counted("value", site["value"])]))


def some(names: Iterable[str], limit: int = 4) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
