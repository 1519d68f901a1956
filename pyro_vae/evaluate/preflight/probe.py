"""One recorded run of a model/guide pair, and access to its sites."""

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
from pyro.distributions.torch_distribution import ExpandedDistribution, TorchDistributionMixin
from pyro.infer.autoguide import AutoGuide, AutoGuideList
from pyro.poutine.broadcast_messenger import BroadcastMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace as PyroTrace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch import distributions as td
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from pyro_vae.evaluate.preflight.inputs import Inputs
from pyro_vae.evaluate.preflight.result import PreflightIssue
from pyro_vae.pair.forms import InForm
from pyro_vae.pair.indices import SameIndicesAs
from pyro_vae.pair.networks import modules_of
from pyro_vae.pair.parameters import offered_tensor, stale
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.running import Running
from pyro_vae.pair.subsampling import give_sizes
from pyro_vae.pair.tracing import drop_likelihood, sample_sites
from pyro_vae.pair.untouched import kept_store

__all__ = [
    "Program",
    "Run",
    "Site",
    "wrapped_distributions",
    "base_distribution",
    "count_nonfinite",
    "family",
    "fits",
    "plate_frames",
    "fresh_guide",
    "nonfinite_parts",
    "distribution_parameters",
    "shape",
    "site_shapes",
    "plate_sizes",
    "shorten",
    "preserve_state",
]

Site = dict[str, Any]


class _Params(Messenger):
    """Records every parameter statement: the tensor that the store trains, and the one that the program passed."""

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
    """The traces of one run, up to an error, and the problems found in them.

    Attributes:
        n: The number of data.
        params: What the run did with parameters.
        guide, model: The traces, without the sites at which plates draw indices.
        raised: The program that raised, in words, and its error.
        changed: What each program changed of its arguments in place: ("guide" or "model", the argument). The arguments
            have their values back.
        problems: The issues found so far.
        faulty: Sites that later checks skip.
    """

    n: int
    params: _Params
    guide: PyroTrace = field(default_factory=PyroTrace)
    model: PyroTrace = field(default_factory=PyroTrace)
    raised: tuple[str, Exception] | None = None
    changed: list[tuple[str, str]] = field(default_factory=list)
    problems: list[PreflightIssue] = field(default_factory=list)
    faulty: set[str] = field(default_factory=set)  # sites that later checks skip
    other_sizes: set[int] = field(default_factory=set)  # along further axes of the first argument, or inside of it

    @classmethod
    def record(
        cls,
        n: int,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        values: PyroTrace | None = None,
    ) -> Run:
        """Run the guide, then the model on its values; an error of either is recorded.

        With `values`, latents have the values of this trace in place of draws.
        """
        run, inputs = cls(n, _Params(), other_sizes=other_sizes(args)), Inputs(args, kwargs)
        latents = PyroTrace()
        where = "guide"
        try:
            with run.params, poutine.trace() as tracer, poutine.replay(trace=values or PyroTrace()):
                run.guide = tracer.trace
                guide(*args, **kwargs)
            run.changed += [(where, text) for text in inputs.restore()]
            replayed = {} if values is None else dict(sample_sites(values))
            for name, site in (replayed | dict(sample_sites(run.guide))).items():
                if not site["is_observed"]:
                    latents.add_node(name, **site)
            where, same = "model", SameIndicesAs(latents, by_value=True)
            with run.params, poutine.trace() as tracer, poutine.replay(trace=latents), same:
                run.model = tracer.trace
                model(*args, **kwargs)
        except Exception as error:  # the sites before any error are still checked
            run.raised = f"the {where}", error
        run.changed += [(where, text) for text in inputs.restore()]
        run.guide, run.model = prune_subsample_sites(run.guide), prune_subsample_sites(run.model)
        give_sizes(run.guide, run.model)
        drop_likelihood(run.guide)
        return run

    @property
    def latent_values(self) -> PyroTrace:
        """A trace of the latents of both programs, to run the pair on the same values again."""
        values = PyroTrace()
        for _, name, site in self.sites():
            if not site["is_observed"] and name not in values.nodes:
                values.add_node(name, **site)
        return values

    def error(self, code: str, site: str | None, message: str) -> None:
        """Add an error; later checks skip its site."""
        self.problems.append(PreflightIssue("error", code, site, message))
        if site is not None:
            self.faulty.add(site)

    def warn(self, code: str, site: str | None, message: str) -> None:
        """Add a warning."""
        self.problems.append(PreflightIssue("warning", code, site, message))

    @property
    def sound(self) -> bool:
        """Whether the pair ran and has no errors so far."""
        return self.raised is None and all(problem.level != "error" for problem in self.problems)

    def sites(self) -> Iterator[tuple[str, str, Site]]:
        """The sites that have a density, in order of execution: ("guide" or "model", name, site)."""
        for where, trace in (("guide", self.guide), ("model", self.model)):
            for name, site in sample_sites(trace):
                if isinstance(site["fn"], TorchDistributionMixin):
                    yield where, name, site

    def sites_of(self, program: str) -> dict[str, Site]:
        """The sites of "guide" or "model" by name."""
        return {name: site for where, name, site in self.sites() if where == program}

    def latents(self) -> dict[str, tuple[Site, Site]]:
        """The latent sites that both sample, in the model's order: name -> (guide's, model's)."""
        guide = self.sites_of("guide")
        latent = {name: p for name, p in self.sites_of("model").items() if not p["is_observed"] and name in guide}
        return {name: (guide[name], p) for name, p in latent.items() if not guide[name]["is_observed"]}


def other_sizes(args: tuple[Any, ...]) -> set[int]:
    """Sizes that data may have elsewhere than in rows: along the second axis of a matrix, or in a container."""
    if not args:
        return set()
    if isinstance(args[0], Tensor):
        return set(args[0].shape[1:]) if args[0].dim() == 2 else set()
    return {size for leaf in tree_leaves(args[0]) if isinstance(leaf, Tensor) for size in leaf.shape}


def fresh_guide(guide: Program) -> Program:
    """The guide itself; for an autoguide before its first run, a copy, since the first batch would fix its sizes."""
    if isinstance(guide, InForm):
        inner = fresh_guide(guide.program)
        return guide if inner is guide.program else InForm(inner, guide.form)
    if not isinstance(guide, AutoGuide) or isinstance(guide, AutoGuideList) or guide.prototype_trace is not None:
        return guide
    wrapped = guide._model  # copying drops it from the original, too
    try:
        fresh = copy.deepcopy(guide)
    finally:
        guide._model = wrapped
    fresh._model = wrapped
    return fresh


@contextmanager
def preserve_state(model: Program, guide: Program) -> Iterator[None]:
    """Run without Pyro's validation, whose messages are less specific; restores the buffers and the parameter store."""
    owners = [part for net in modules_of(model, guide).values() for part in net.modules()]
    buffers = [(m, k, b, b.clone()) for m in owners for k, b in m._buffers.items() if b is not None and not is_lazy(b)]
    messenger: Any = BroadcastMessenger
    broadcast = messenger._pyro_sample

    def lenient(msg: Any) -> None:
        with suppress(ValueError):  # a batch shape that does not fit its plates is reported later
            broadcast(msg)

    with pyro.validation_enabled(False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was not registered in the param store")  # frozen weights
        messenger._pyro_sample = staticmethod(lenient)
        try:
            with kept_store(), Running():
                yield
        finally:
            messenger._pyro_sample = staticmethod(broadcast)
            for _, param in pyro.get_param_store().named_parameters():  # what the store has tied to them again
                vars(param).pop("unconstrained", None)
            with torch.no_grad():
                for module, key, buffer, saved in buffers:
                    module._buffers[key] = buffer.copy_(saved)


def wrapped_distributions(fn: Any) -> Iterator[Any]:
    """A distribution, then those that it wraps, from the outside in."""
    yield fn
    while isinstance(fn, td.Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
        yield fn


def base_distribution(site: Site) -> Any:
    """The innermost distribution of a site."""
    return list(wrapped_distributions(site["fn"]))[-1]


def family(site: Site) -> str:
    """The class name of a site's innermost distribution."""
    return type(base_distribution(site)).__name__


def shape(value: Any) -> str:
    """The shape of a tensor, or the type of anything else, for a message."""
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def site_shapes(site: Site) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The batch shape and the event shape of a site."""
    return tuple(site["fn"].batch_shape), tuple(site["fn"].event_shape)


def plate_frames(site: Site) -> dict[int, Any]:
    """The vectorized plates around a site, by dimension."""
    return {frame.dim: frame for frame in site["cond_indep_stack"] if frame.vectorized}


def plate_sizes(site: Site) -> dict[int, int]:
    """The sizes of the vectorized plates around a site, by dimension."""
    return {dim: frame.size for dim, frame in plate_frames(site).items()}


def fits(batch: tuple[int, ...], sizes: dict[int, int]) -> bool:
    """Whether every batch dimension has the size of its plate, or 1."""
    return all(b in (1, sizes.get(d)) for d, b in zip(range(-len(batch), 0), batch, strict=True))


def distribution_parameters(fn: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors that parameterize a distribution, by name, those of wrapped distributions included."""
    for key, value in vars(fn).items():
        if isinstance(value, td.Distribution):
            yield from distribution_parameters(value)
        elif isinstance(value, Tensor) and key in fn.arg_constraints:
            yield key, value


def count_nonfinite(what: str, value: Any) -> list[str]:
    """One phrase with the numbers of NaN and infinite elements, or none if all are finite."""
    value = torch.as_tensor(value)
    counts = ((int(value.isnan().sum()), "NaN"), (int(value.isinf().sum()), "infinite"))
    found = [f"{count} {kind}" for count, kind in counts if count]
    return [f"{what} has {' and '.join(found)} of {value.numel()}"] if found else []


def nonfinite_parts(site: Site) -> list[str]:
    """Phrases for the parameters and the value of a site that are not finite."""
    found = distribution_parameters(site["fn"])
    parts = [phrase for key, value in found for phrase in count_nonfinite(f"{family(site)} {key}", value)]
    return list(dict.fromkeys([*parts, *count_nonfinite("value", site["value"])]))


def shorten(names: Iterable[str], limit: int = 4) -> str:
    """The first names, and the number of the others."""
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
