"""Checks of a model/guide pair before training: what is wrong, at which site, and the line that fixes it."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal
from unittest import mock

import pyro
import pyro.infer
import torch
from pyro import poutine
from pyro.distributions import MaskedDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.infer.autoguide import AutoGuide, AutoGuideList
from pyro.poutine.broadcast_messenger import BroadcastMessenger
from pyro.poutine.messenger import Messenger, unwrap
from pyro.poutine.trace_struct import Trace as PyroTrace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints
from torch.nn.parameter import is_lazy

from pyro_vae import elbo as elbos
from pyro_vae.elbo.tracing import fork_rng, log_prob, particles_agree, sample_sites
from pyro_vae.evaluate.modules import modules_of

__all__ = ["Problem", "Report", "find_nonfinite", "modules_of", "preflight"]

Program = Callable[..., Any]
Site = dict[str, Any]
RELAXED = (td.RelaxedBernoulli, td.RelaxedOneHotCategorical)
DISCRETE = (td.Bernoulli, td.Categorical, td.OneHotCategorical)


@dataclass(frozen=True)
class Problem:
    """One finding: an "error" makes numbers or training wrong, a "warning" is legal but seldom meant."""

    level: Literal["error", "warning"]
    code: str
    site: str | None
    message: str

    def __str__(self) -> str:
        return f"{self.level} [{self.code}]: {self.message}"


@dataclass(frozen=True)
class Report:
    """What `preflight` found; prints itself as one paragraph per problem and, without errors, a table of the sites."""

    problems: list[Problem]
    sites: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings do not count."""
        return all(problem.level != "error" for problem in self.problems)

    def __str__(self) -> str:
        if not self.problems:
            head = "preflight: the pair is sound"
        else:
            errors = sum(problem.level == "error" for problem in self.problems)
            head = f"preflight: {errors} error(s), {len(self.problems) - errors} warning(s)"
        paragraphs = [head, *map(str, self.problems)]
        if self.ok and self.sites:
            rows = [("site", "model", "guide", "batch", "event", "plates"), *self.sites]
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
            paragraphs.append("\n".join(lines))
        return "\n\n".join(paragraphs)


def preflight(
    model: Program,
    guide: Program,
    *args: Any,
    elbo: str | pyro.infer.ELBO = "mean_field",
    strict: bool = True,
    num_particles: int = 1,
    **kwargs: Any,
) -> Report:
    """Check any pair on a small batch `args[0]`, shape `(N, ...)`, before training.

    The pair runs once, in its present train or eval mode. Nothing is left behind: random generators, gradients,
    buffers, weights and the parameter store are as before.

    Parameters
    ----------
    model, guide
        The pair.
    args, kwargs
        What the pair takes; the data come first. A few data are enough.
    elbo
        The estimator that will train the pair, by name (`pv.elbo.names()`) or as an object.
    strict
        Raise on errors and issue warnings with `warnings.warn`; False only returns the report.
    num_particles
        Number of particles to train with: for more than one, check that the networks take a leading dimension.

    Raises
    ------
    ValueError
        With `strict`, if the report has errors. Always, if the model or the guide itself raises: chained to its error.

    Examples
    --------
    >>> import pyro, torch, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     loc = pyro.param("loc", torch.zeros(len(x)))
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(loc, 0.7))
    >>> print(preflight(model, guide, torch.tensor([2.0, -4.0])))
    preflight: the pair is sound
    <BLANKLINE>
    site  model   guide     batch  event  plates
    z     Normal  Normal    (2,)   ()     data
    x     Normal  observed  (2,)   ()     data
    """
    if not args or not hasattr(args[0], "__len__") or (isinstance(args[0], Tensor) and args[0].dim() == 0):
        came = type(args[0]).__name__ if args else "nothing"
        raise TypeError(
            f"preflight needs a batch of data with a length after the pair, {came} came: preflight(model, guide, x[:8])"
        )
    estimator = elbos.make(elbo, num_particles=num_particles) if isinstance(elbo, str) else elbo
    particles = max(num_particles, estimator.num_particles)
    with fork_rng(), torch.enable_grad(), _unchanged(model, guide):
        run = _Run.of(model, _fresh(guide), args, kwargs)
        _check_plates(run)
        _check_sites(run, _inner(estimator))
        _check_shapes(run, _inner(estimator))
        _check_support(run)
        _check_estimator(run, _inner(estimator))
        log_probs = _check_finite(run, args, kwargs)
        _check_networks(run, log_probs, _parameter_names(model, guide), [*args, *kwargs.values()])
        if particles > 1 and run.sound and getattr(estimator, "vectorize_particles", None) is not False:
            _check_vectorized(run, model, guide, args, kwargs)
    report = Report(run.problems, _table(run))
    if run.raised:
        where, error = run.raised
        shapes = ", ".join([_shape(a) for a in args] + [f"{k}={_shape(a)}" for k, a in kwargs.items()])
        found = f"\n\nBefore that:\n\n{report}" if run.problems else ""
        raise ValueError(f"{where} raised {type(error).__name__} on ({shapes}): {error}{found}") from error
    if strict:
        if not report.ok:
            raise ValueError(str(report))
        for problem in report.problems:
            warnings.warn(str(problem), stacklevel=2)
    return report


def find_nonfinite(model: Program, guide: Program, *args: Any, **kwargs: Any) -> list[str]:
    """The sites of one run whose value, distribution parameters or log-probability are NaN or infinite, in order.

    The guide comes first. The run takes its noise from the present state of the random generators. If the pair raises,
    the last entry is its error.
    """
    with torch.no_grad(), _unchanged(model, guide):
        run = _Run.of(model, guide, args, kwargs)
        lines = []
        for where, name, site in run.sites():
            try:
                density = log_prob(name, site)
            except Exception as error:
                parts = [*_nonfinite_parts(site), f"log-probability fails: {error}"]
            else:
                parts = [*_nonfinite_parts(site), *_counted("log-probability", density)]
            if parts:
                lines.append(f"{where} site {name!r}: {', '.join(parts)}")
    if run.raised:
        lines.append(f"{run.raised[0]} raised {type(run.raised[1]).__name__}: {run.raised[1]}")
    return lines


# One run of the pair -------------------------------------------------------------------------------------------------


class _Params(Messenger):
    """Notes every parameter statement: what the store trains, and which tensors it was offered but did not take."""

    def __init__(self) -> None:
        super().__init__()
        self.trained: dict[str, Tensor] = {}
        self.offered: list[tuple[str, Tensor]] = []

    def _pyro_post_param(self, msg: Any) -> None:
        value = msg["value"]
        subsampled = getattr(value, "_pyro_unconstrained_param", None)  # inside a subsampled plate
        unconstrained = getattr(value, "unconstrained", lambda: value)
        self.trained[msg["name"]] = unconstrained() if subsampled is None else subsampled
        if len(msg["args"]) > 1 and isinstance(msg["args"][1], Tensor):
            self.offered.append((msg["name"], msg["args"][1]))


@dataclass
class _Run:
    """The traces of one run, as far as it came, and the problems found in them."""

    n: int
    params: _Params
    guide: PyroTrace = field(default_factory=PyroTrace)
    model: PyroTrace = field(default_factory=PyroTrace)
    raised: tuple[str, Exception] | None = None
    problems: list[Problem] = field(default_factory=list)
    faulty: set[str] = field(default_factory=set)  # sites that later checks would only misread

    @classmethod
    def of(cls, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Run:
        run = cls(len(args[0]), _Params())
        values = PyroTrace()
        try:
            where = "the guide"
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
            run.raised = (where, error)
        run.guide, run.model = prune_subsample_sites(run.guide), prune_subsample_sites(run.model)
        return run

    def error(self, code: str, site: str | None, message: str) -> None:
        self.problems.append(Problem("error", code, site, message))
        if site is not None:
            self.faulty.add(site)

    def warn(self, code: str, site: str | None, message: str) -> None:
        self.problems.append(Problem("warning", code, site, message))

    @property
    def sound(self) -> bool:
        return self.raised is None and all(problem.level != "error" for problem in self.problems)

    def sites(self) -> Iterator[tuple[str, str, Site]]:
        """The sites that have a density, in order of execution: (guide or model, name, site)."""
        for where, trace in (("guide", self.guide), ("model", self.model)):
            for name, site in sample_sites(trace):
                if isinstance(site["fn"], td.Distribution) and not site["infer"].get("_deterministic"):
                    yield where, name, site

    def latents(self) -> dict[str, tuple[Site, Site]]:
        """The latent sites in both traces: name -> (guide's, model's)."""
        q = {name: site for where, name, site in self.sites() if where == "guide" and not site["is_observed"]}
        return {
            name: (q[name], site)
            for where, name, site in self.sites()
            if where == "model" and name in q and not site["is_observed"]
        }


def _inner(estimator: pyro.infer.ELBO) -> pyro.infer.ELBO:
    while isinstance(estimator, elbos.WeightedKL):
        estimator = estimator.elbo
    return estimator


def _fresh(guide: Program) -> Program:
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
def _unchanged(model: Program, guide: Program) -> Iterator[None]:
    """Run without Pyro's validation, which says less than the checks here, and restore buffers and parameter store."""
    store = pyro.get_param_store()
    known = set(store.keys())
    owners = [part for net in modules_of(model, guide).values() for part in net.modules()]
    buffers = [(m, k, b, b.clone()) for m in owners for k, b in m._buffers.items() if b is not None and not is_lazy(b)]
    broadcast = BroadcastMessenger._pyro_sample

    def lenient(msg: Any) -> None:
        with suppress(ValueError):  # a batch shape that does not fit its plates stays as it is, to be reported
            broadcast(msg)

    with (
        pyro.validation_enabled(False),
        mock.patch.object(BroadcastMessenger, "_pyro_sample", staticmethod(lenient)),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message=".*was not registered in the param store")  # frozen weights
        try:
            yield
        finally:
            with torch.no_grad():
                for module, key, buffer, kept in buffers:
                    module._buffers[key] = buffer.copy_(kept)
            for name in set(store.keys()) - known:
                with suppress(KeyError):  # one tensor under two names
                    del store[name]


# Reading a site ------------------------------------------------------------------------------------------------------


def _chain(fn: Any) -> Iterator[Any]:
    yield fn
    while isinstance(fn, td.Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
        yield fn


def _core(fn: Any) -> Any:
    return list(_chain(fn))[-1]


def _family(site: Site) -> str:
    return type(_core(site["fn"])).__name__


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _frames(site: Site) -> dict[int, Any]:
    return {frame.dim: frame for frame in site["cond_indep_stack"] if frame.vectorized}


def _fits(batch: tuple[int, ...], sizes: dict[int, int]) -> bool:
    return all(
        size in (1, sizes.get(i - len(batch))) or sizes.get(i - len(batch)) == -1 for i, size in enumerate(batch)
    )


def _parameters(fn: Any) -> Iterator[tuple[str, Tensor]]:
    for key, value in vars(fn).items():
        if isinstance(value, td.Distribution):
            yield from _parameters(value)
        elif isinstance(value, Tensor) and key in fn.arg_constraints:
            yield key, value


def _counted(what: str, value: Any) -> list[str]:
    value = torch.as_tensor(value)
    nan, inf = int(value.isnan().sum()), int(value.isinf().sum())
    found = [f"{count} {kind}" for count, kind in ((nan, "NaN"), (inf, "infinite")) if count]
    return [f"{what} has {' and '.join(found)} of {value.numel()}"] if found else []


def _nonfinite_parts(site: Site) -> list[str]:
    parts = [p for key, v in _parameters(site["fn"]) for p in _counted(f"{_family(site)} {key}", v)]
    return list(dict.fromkeys([*parts, *_counted("value", site["value"])]))


def _some(names: Iterable[str], limit: int = 4) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _table(run: _Run) -> list[tuple[str, ...]]:
    guide = {name: site for where, name, site in run.sites() if where == "guide"}
    model = {name: site for where, name, site in run.sites() if where == "model"}
    rows = []
    for name, site in (guide | model).items():
        families = [
            _family(trace[name]) if name in trace else ("observed" if site["is_observed"] else "-")
            for trace in (model, guide)
        ]
        shapes = [str(tuple(shape)) for shape in (site["fn"].batch_shape, site["fn"].event_shape)]
        rows.append((name, *families, *shapes, ", ".join(f.name for f in _frames(site).values()) or "-"))
    return rows


# The checks ----------------------------------------------------------------------------------------------------------


def _check_plates(run: _Run) -> None:
    """Plates of the wrong size, batch dimensions that no plate holds, no plate over the data."""
    over_data = {f.name for _, _, site in run.sites() for f in _frames(site).values() if f.size == run.n}
    wrong: set[tuple[str, str]] = set()
    for where, name, site in run.sites():
        frames, batch = _frames(site), tuple(site["fn"].batch_shape)
        for frame in frames.values():
            if (where, frame.name) not in wrong and _misses_the_data(frame, site, run.n, over_data):
                wrong.add((where, frame.name))
                plate = repr(frame.name)
                run.error(
                    "plate_size",
                    name,
                    f"the plate {plate} around the {where}'s site {name!r} has size {frame.size}, but the batch has "
                    f"{run.n} data: write `with pyro.plate({plate}, len(x)):`, or for minibatches of a data set `with "
                    f"pyro.plate({plate}, num_data, subsample_size=len(x)):`",
                )
        if any((where, frame.name) in wrong for frame in frames.values()):
            run.faulty.add(name)
        elif not _fits(batch, {dim: frame.size for dim, frame in frames.items()}):
            plates = " and ".join(f"{f.name!r} (size {f.size}, dim {f.dim})" for f in frames.values())
            run.error(
                "batch_outside_plate",
                name,
                f"the {where}'s site {name!r} has batch shape {batch}, which does not fit its plates, "
                f"{plates or 'of which there are none'}: {_batch_fix(site, run.n, over_data)}",
            )
    _check_plate_sizes_agree(run, wrong)
    if not over_data and run.sound:
        have = sorted({f"{f.name!r} (size {f.size})" for _, _, site in run.sites() for f in site["cond_indep_stack"]})
        run.warn(
            "no_data_plate",
            None,
            f"no site stands in a vectorised plate over the {run.n} data (plates: {_some(have) or 'none'}). The pair can "
            "be trained, but has no numbers per datum: write `with pyro.plate('data', len(x)):` around the sites of "
            "each datum",
        )


def _check_plate_sizes_agree(run: _Run, wrong: set[tuple[str, str]]) -> None:
    sizes: dict[str, dict[str, int]] = defaultdict(dict)
    for where, _, site in run.sites():
        for frame in site["cond_indep_stack"]:
            sizes[frame.name][where] = frame.full_size or frame.size
    for plate, size in sizes.items():
        if len(set(size.values())) > 1 and not wrong & {("guide", plate), ("model", plate)}:
            run.error(
                "plate_size",
                None,
                f"the plate {plate!r} has size {size['model']} in the model and {size['guide']} in the guide, so Pyro "
                "weights the terms of the two differently: write the same line in both, `with "
                f"pyro.plate({plate!r}, len(x)):`, or for minibatches of a data set `with pyro.plate({plate!r}, "
                "num_data, subsample_size=len(x)):`",
            )


def _misses_the_data(frame: Any, site: Site, n: int, over_data: set[str]) -> bool:
    """Whether a plate that is not of size n was meant to be: by its name, or as it would fit the shapes if it were."""
    if frame.size in (n, -1):
        return False
    if frame.name in over_data or (frame.name == "data" and not over_data):
        return True
    sizes = {dim: f.size for dim, f in _frames(site).items()}
    shapes = [tuple(site["fn"].batch_shape)]
    if site["is_observed"]:
        value = torch.as_tensor(site["value"])
        shapes.append(tuple(value.shape[: value.dim() - site["fn"].event_dim]))
    for shape in shapes:
        # with another plate over the data, a missing .to_event is the likelier mistake
        for k in range(1 if over_data else len(shape) + frame.dim + 1):
            batch = shape[: len(shape) - k]
            if len(batch) >= -frame.dim and batch[frame.dim] == n and _fits(batch, sizes | {frame.dim: n}):
                return True
    return False


def _batch_fix(site: Site, n: int, over_data: set[str]) -> str:
    frames, batch = _frames(site), tuple(site["fn"].batch_shape)
    sizes = {dim: frame.size for dim, frame in frames.items()}
    k = next(k for k in range(1, len(batch) + 1) if _fits(batch[: len(batch) - k], sizes))
    declared = sum(f.reinterpreted_batch_ndims for f in _chain(site["fn"]) if isinstance(f, td.Independent))
    if sorted(sizes.values()) == sorted(batch):
        dims = [f"`pyro.plate({f.name!r}, ..., dim={batch.index(f.size) - len(batch)})`" for f in frames.values()]
        return f"the plates count dimensions from the right, so name them: {' and '.join(dims)}"
    if n in batch and n not in batch[: len(batch) - k]:
        if sizes:
            outside = [d for d in range(-len(batch), 0) if batch[d] not in (1, sizes.get(d))]
            inner = [f"`with pyro.plate('inner', {batch[d]}, dim={d}):`" for d in outside]
            return f"open a plate for the other dimensions: {' '.join(inner)}"
        event = len(batch) - 1 - batch.index(n) + declared
        declare = f" and write `dist.{_family(site)}(...).to_event({event})`" if event else ""
        return f"put it inside `with pyro.plate({min(over_data, default='data')!r}, len(x)):`{declare}"
    return f"declare the last {k} as dimensions of one datum: `dist.{_family(site)}(...).to_event({k + declared})`"


def _check_sites(run: _Run, estimator: pyro.infer.ELBO) -> None:
    """Latents that only one of the two samples."""
    guide = {name: site for where, name, site in run.sites() if where == "guide"}
    model = {name: site for where, name, site in run.sites() if where == "model"}
    drawn = [name for name, site in guide.items() if not site["is_observed"]]
    latent = [name for name, site in model.items() if not site["is_observed"]]
    for name in latent:
        enumerated = isinstance(estimator, pyro.infer.TraceEnum_ELBO) and model[name]["infer"].get("enumerate")
        if name not in drawn and not enumerated:
            why = (
                "observes"
                if name in guide
                else "has as a pyro.param"
                if name in run.params.trained
                else "never samples"
            )
            run.error(
                "missing_in_guide",
                name,
                f"the model samples the latent site {name!r}, which the guide {why} (the guide samples "
                f"{drawn or 'nothing'}): add `pyro.sample({name!r}, dist.{_family(model[name])}(...))` to the guide, or "
                "observe it in the model with `obs=...`",
            )
    if run.raised:  # the model may not have come to its last sites
        return
    for name, site in guide.items():
        if name not in latent and not site["infer"].get("is_auxiliary"):
            why = (
                "observes: remove it from the guide" if name in model else f"never samples (it has {latent}): rename it"
            )
            run.error(
                "missing_in_model",
                name,
                f"the guide samples the site {name!r}, which the model {why}, or mark it as the guide's own: "
                f"`pyro.sample({name!r}, ..., infer={{'is_auxiliary': True}})`",
            )


def _check_shapes(run: _Run, estimator: pyro.infer.ELBO) -> None:
    """Families and shapes of the model against those of the guide, and of observations."""
    for name, (q, p) in run.latents().items():
        if name in run.faulty:
            continue
        q_event, p_event = tuple(q["fn"].event_shape), tuple(p["fn"].event_shape)
        # leading dimensions of size 1 do not matter
        q_batch, p_batch = (tuple(itertools.dropwhile(lambda b: b == 1, s["fn"].batch_shape)) for s in (q, p))
        if isinstance(_core(q["fn"]), RELAXED) and isinstance(_core(p["fn"]), DISCRETE):
            if not (_is_mean_field(estimator) and _has_kl(q["fn"], p["fn"])):
                run.error(
                    "relaxed_guide",
                    name,
                    f"site {name!r} is {_family(q)} in the guide and {_family(p)} in the model: a density over relaxed "
                    "values and the probability of a discrete one, whose ratio is no KL. Use the relaxed family in "
                    f"both, `pyro.sample({name!r}, dist.{type(_core(q['fn'])).__name__}(temperature, ...))`, or a "
                    f"discrete guide, whose KL is exact: `dist.{_family(p)}(logits=...)` with elbo='trace' or 'enum'",
                )
        elif q_event != p_event:
            run.error(
                "event_shape",
                name,
                f"site {name!r} has event shape {p_event} in the model and {q_event} in the guide: give both the same "
                f"sizes and the same number of event dimensions, here `dist.{_family(p)}(...).to_event(k)` with one k",
            )
        elif q_batch != p_batch:
            run.error(
                "plates_differ",
                name,
                f"site {name!r} has batch shape {p_batch} in the model and {q_batch} in the guide, which count its KL "
                "differently often: put it inside the same plates in both, `with pyro.plate('data', len(x)):`",
            )
    for where, name, site in run.sites():
        if site["is_observed"] and name not in run.faulty:
            value, fn = torch.as_tensor(site["value"]), site["fn"]
            came, batch, event = tuple(value.shape), tuple(fn.batch_shape), tuple(fn.event_shape)
            split = len(came) - len(event)
            # plates broadcast an observation that lacks batch dimensions, as Pyro allows
            sizes = {d: batch[d] for d in range(-len(batch), 0)}
            if split < 0 or came[split:] != event or split > len(batch) or not _fits(came[:split], sizes):
                same = value.numel() == math.prod(batch + event)
                target = ", ".join(map(str, batch + event))
                fix = (
                    f"`obs=x.reshape({target})`"
                    if same
                    else "give the observation and the distribution's parameters one shape"
                )
                run.error(
                    "obs_shape",
                    name,
                    f"the {where}'s site {name!r} observes a value of shape {came}, but its {_family(site)} has shape "
                    f"{batch + event} (batch {batch}, event {event}): {fix}, or change `.to_event(k)`",
                )


def _is_mean_field(estimator: pyro.infer.ELBO) -> bool:
    return isinstance(estimator, elbos.MeanField | pyro.infer.TraceMeanField_ELBO)


def _has_kl(q: Any, p: Any) -> bool:
    try:
        td.kl_divergence(q, p)
    except NotImplementedError:
        return False
    return True


def _check_support(run: _Run) -> None:
    """Observed values, and the guide's draws, outside the support of the model's distribution."""
    for where, name, site in run.sites():
        if name in run.faulty or (where == "guide" and not site["is_observed"]):
            continue
        value = torch.as_tensor(site["value"])
        try:
            support = site["fn"].support
            while isinstance(support, constraints.independent):
                support = support.base_constraint
            bad = ~support.check(value)
        except (NotImplementedError, RuntimeError, ValueError, TypeError):  # no support, or one that cannot tell
            continue
        for level in [site["fn"].mask(site["mask"]) if site["mask"] is not None else site["fn"], *_chain(site["fn"])]:
            mask = getattr(level, "_mask", None)
            if isinstance(mask, Tensor):
                bad = bad & mask.reshape(mask.shape + (1,) * (level.event_dim - support.event_dim))
            elif mask is False:
                bad = torch.zeros_like(bad)
        finite = value[value.isfinite()]
        if support.event_dim == 0:
            bad = bad & value.isfinite()  # reported as such
        if not bool(bad.any()):
            continue
        seen = f"{int(bad.sum())} of {bad.numel()}" + (
            f" (range {finite.min():.4g} to {finite.max():.4g})" if len(finite) else ""
        )
        if not site["is_observed"]:
            message = (
                f"the guide's draws of {name!r} lie outside the support of the model's {_family(site)}, {support}: {seen}. "
                f"Use a guide with that support, for example `dist.{_family(site)}(...)`"
            )
        else:
            message = (
                f"{seen} values observed at site {name!r} lie outside the support of its {_family(site)}, {support}: "
            )
            if support is constraints.boolean:
                scale = "divide the data by their maximum, then " if finite.max() > 1 else ""
                message += (
                    f"{scale}binarise the data, `pv.data.load(name, binarize='dynamic')`, or use a likelihood for "
                    "values in [0, 1], `likelihood='continuous_bernoulli'` or `dist.ContinuousBernoulli(logits=...)`"
                )
            else:
                message += "transform the data into it, or use a likelihood over the data's range, `dist.Normal(...)`"
        run.error("support", name, message)


def _check_estimator(run: _Run, estimator: pyro.infer.ELBO) -> None:
    """What the estimator needs of the latents: a reparameterised draw, the same order in model and guide."""
    kind = type(estimator).__name__
    pathwise = isinstance(estimator, elbos.TensorELBO | pyro.infer.TraceMeanField_ELBO) and not isinstance(
        estimator, elbos.Trace
    )
    for name, site in sample_sites(run.guide):
        enumerated = isinstance(estimator, pyro.infer.TraceEnum_ELBO) and site["infer"].get("enumerate")
        if name in run.faulty or enumerated or site["fn"].has_rsample or site["infer"].get("_deterministic"):
            continue
        what = f"the guide draws {name!r} from {_family(site)}, which cannot be reparameterised: "
        if pathwise:
            fix = "and has no pathwise gradient: use `elbo='trace'` (score function) or a relaxed family in model and guide"
            run.error("not_reparameterized", name, f"{what}{kind} needs that{fix}")
        else:
            fix = "use several particles, `num_particles=10`, or a relaxed family in model and guide"
            run.warn("not_reparameterized", name, f"{what}its score-function gradient has a high variance: {fix}")
    if run.raised or not _is_mean_field(estimator):
        return
    drawn, order = list(run.latents()), [name for name, _ in sample_sites(run.guide) if name in run.latents()]
    # a KL can be integrated out only if all that the model draws before the site is drawn before it in the guide too
    late = [name for name in drawn if not set(drawn[: drawn.index(name)]) <= set(order[: order.index(name)])]
    if late:
        what = f"the guide samples in the order {order}, the model in {drawn}"
        fix = f"sample in the guide in the model's order if you can: {' '.join(f'`pyro.sample({n!r}, ...)`' for n in drawn)}"
        if isinstance(estimator, pyro.infer.TraceMeanField_ELBO):
            run.error(
                "site_order",
                late[0],
                f"{what}: {kind} integrates the KL of {late} with the wrong latents held fixed, and is biased unless "
                f"they are independent. Use `elbo='mean_field'` or `elbo='trace'` of this library, or {fix}",
            )
        else:
            run.warn(
                "site_order", late[0], f"{what}: the KL of {late} is sampled, not integrated, with more noise; {fix}"
            )


def _check_finite(run: _Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, list[Tensor]]:
    """NaN and infinities, in the inputs and at the sites; returns the log-densities of the guide and of the model."""
    log_probs: dict[str, list[Tensor]] = {"guide": [], "model": []}
    found: tuple[str, str] | None = None
    for where, name, site in run.sites():
        if name in run.faulty:
            continue
        try:
            density = log_prob(name, site)
        except Exception as error:
            run.raised = run.raised or (f"the log-density of the {where}'s site {name!r}", error)
            continue
        log_probs[where].append(density)
        parts = [*_nonfinite_parts(site), *_counted("log-probability", density)]
        if found is None and _counted("", density) + _counted("", site["value"]):
            sizes = [f"{key} {float(v.detach().abs().max()):.3g}" for key, v in _parameters(site["fn"]) if v.numel()]
            found = (
                name,
                f"the {where}'s site {name!r}: {', '.join(parts)} (largest sizes: {', '.join(sizes) or 'none'})",
            )
    inputs = {f"argument {i}": a for i, a in enumerate(args)} | {f"argument {k!r}": a for k, a in kwargs.items()}
    bad = [p for key, a in inputs.items() if isinstance(a, Tensor) for p in _counted(f"{key}, shape {_shape(a)},", a)]
    if bad:
        # a pair may well replace or mask missing values; then only a warning is due
        level: Literal["error", "warning"] = "error" if found or run.raised else "warning"
        fix = "clean it, `x = x.nan_to_num(0.0)`, or leave those values out with `poutine.mask(mask=x.isfinite())`"
        run.problems.insert(0, Problem(level, "nan_input", None, f"{' and '.join(bad)}: {fix}"))
    elif found:
        fix = "bound what the network gives, `scale = log_scale.clamp(-10, 10).exp()`, or rescale the data"
        run.error("nonfinite", found[0], f"not finite at the start, first at {found[1]}: {fix}")
    return log_probs


def _check_networks(
    run: _Run, log_probs: dict[str, list[Tensor]], nets: dict[int, tuple[str, str]], inputs: list[Any]
) -> None:
    """Weights that the pair uses but SVI does not train, and registered ones that get no gradient."""
    for where, name, site in run.sites():
        if name in run.faulty:  # its density cannot be told, but what it depends on can
            log_probs[where] += [value for _, value in _parameters(site["fn"])]
    by_guide = _leaves(log_probs["guide"])
    used = by_guide | _leaves(log_probs["model"])
    trained = {id(p): name for name, p in run.params.trained.items()}
    refused: dict[str, dict[int, str]] = defaultdict(dict)
    for name, tensor in run.params.offered:
        if id(tensor) in used and id(tensor) not in trained:
            prefix = name.partition("$$$")[0] if "$$$" in name else name.rpartition(".")[0] or name
            refused[prefix][id(tensor)] = name
    for prefix, names in refused.items():
        _report_refused(run, prefix, names, used, nets)
    known = trained.keys() | {id(a) for a in inputs} | {key for names in refused.values() for key in names}
    unregistered: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
    for key in used.keys() - known:
        unregistered[nets.get(key, ("", ""))[0], "guide" if key in by_guide else "model"].append(used[key])
    for (net, where), leaves in sorted(unregistered.items(), key=lambda item: item[0]):
        names = _some(sorted(nets[id(p)][1] if id(p) in nets else f"of shape {_shape(p)}" for p in leaves))
        fix = "add `pyro.module(name, network)`, or `pyro.param(name, tensor)` for a single tensor,"
        if net:
            fix = f"freeze it with `{net}.requires_grad_(False)`, or add `pyro.module({_last(net)!r}, {net})`"
        run.error(
            "unregistered",
            None,
            f"the {where} uses {len(leaves)} parameter(s) of {net or 'a network'} ({names}) that are not registered with "
            f"Pyro, so training never changes them: {fix} to the {where}",
        )
    if run.raised or run.faulty:
        return  # what the missing densities depend on cannot be told
    taken = {name for names in refused.values() for name in names.values()}
    idle = [n for n, p in run.params.trained.items() if p.requires_grad and id(p) not in used and n not in taken]
    if not used.keys() & trained.keys() and not refused and not unregistered:
        run.error(
            "no_gradient",
            None,
            f"the loss depends on no parameter (registered: {_some(idle) or 'none'}): register the networks with "
            "`pyro.module(name, network)`, and look for `.detach()`, `torch.no_grad()` or frozen weights in the pair",
        )
    elif idle:
        run.warn(
            "no_gradient",
            None,
            f"{len(idle)} registered parameter(s) get no gradient, the loss does not depend on them: "
            f"{_some(idle)}. Use them, look for a `.detach()` on their way, or freeze them: `p.requires_grad_(False)`",
        )


def _report_refused(
    run: _Run, prefix: str, names: dict[int, str], used: dict[int, Tensor], nets: dict[int, tuple[str, str]]
) -> None:
    kept = {key: run.params.trained[name] for key, name in names.items()}
    offered = {id(tensor) for _, tensor in run.params.offered}
    mine = next((nets[key][0] for key in names if key in nets), "a network")
    other = next((nets[id(t)][0] for t in kept.values() if id(t) in nets), "another")
    if any(id(tensor) in offered for tensor in kept.values()):
        code = "shared_name"
        what = f"two networks are registered under the name {prefix!r}, {other} and {mine}: Pyro keeps the first"
        fix = f"give each its own name, `pyro.module('{prefix}_2', {mine})`"
    elif any(not used[key].is_contiguous() for key in names):
        code = "unregistered"
        what = f"Pyro keeps copies of the parameters of {mine} that are not contiguous in memory"
        fix = f"`{mine}.to(memory_format=torch.contiguous_format)` before the first run"
    else:
        code = "shared_name"
        what = f"Pyro's parameter store holds an earlier network under the name {prefix!r}, not {mine}"
        fix = "call `pyro.clear_param_store()` before building the pair, or use a new name in `pyro.module`"
    run.error(code, None, f"{what}, so training never changes {_some(sorted(names.values()))}: {fix}")


def _leaves(tensors: list[Tensor]) -> dict[int, Tensor]:
    """The leaves of the autograd graph of some tensors, by id."""
    leaves = {id(t): t for t in tensors if t.is_leaf and t.requires_grad}
    todo: list[Any] = [t.grad_fn for t in tensors if t.grad_fn is not None]
    seen = set(todo)
    while todo:
        node = todo.pop()
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            leaves[id(variable)] = variable
        new = {n for n, _ in node.next_functions if n is not None} - seen
        seen |= new
        todo += new
    return leaves


def _parameter_names(*programs: Program) -> dict[int, tuple[str, str]]:
    """Each parameter of the pair's networks, by id: (the network as the code may call it, the parameter's name)."""
    selves = [getattr(unwrap(p), "__self__", p) for p in programs]
    names = {}
    for key, net in modules_of(*programs).items():
        own = any(net is s for s in selves)
        for name, parameter in net.named_parameters():
            network = f"self.{name.partition('.')[0]}" if own else key
            names[id(parameter)] = network, name if own else f"{key}.{name}"
    return names


def _last(expression: str) -> str:
    return expression.rpartition(".")[2]


def _check_vectorized(run: _Run, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    few = tuple(a[:4] if hasattr(a, "__getitem__") and hasattr(a, "__len__") and len(a) == run.n else a for a in args)
    try:
        agree = particles_agree(model, guide, few, **kwargs)
    except Exception:  # a pair that only takes batches of one size
        agree = particles_agree(model, guide, args, **kwargs)
    if not agree:
        run.warn(
            "not_vectorized",
            None,
            "the pair does not give the same densities with a leading particle dimension, so particles run one at a "
            "time, which is slower: let networks map (*, in) to (*, out), for a convolutional one "
            "`net(x.flatten(0, -4)).unflatten(0, x.shape[:-3])`",
        )
