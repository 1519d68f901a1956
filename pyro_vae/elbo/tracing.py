"""One run of a model/guide pair, and the per-datum log-densities read off it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites, site_is_subsample
from torch import Tensor

__all__ = [
    "PARTICLE_PLATE",
    "DataPlate",
    "PairTrace",
    "checked_pair",
    "data_plate",
    "fork_rng",
    "is_recording",
    "joint_log_weight",
    "log_prob",
    "log_weights",
    "particles_agree",
    "plate_nesting",
    "recording",
    "sample_sites",
    "sum_to_data",
    "trace_pair",
    "warn_not_vectorized",
]

Site = dict[str, Any]
PARTICLE_PLATE = "_pyro_vae_particles"


@contextmanager
def fork_rng(seed: int | None = None) -> Iterator[None]:
    """Run with torch's generators restored afterwards, seeded with `seed` inside if it is given."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        if seed is not None:
            torch.manual_seed(seed)
        yield


_recording = False


@contextmanager
def recording() -> Iterator[None]:
    """Within it, objectives compute their loss without moving on in their schedules."""
    global _recording
    before, _recording = _recording, True
    try:
        yield
    finally:
        _recording = before


def is_recording() -> bool:
    """Whether the loss is being recorded, or compared, rather than trained on."""
    return _recording


@dataclass
class PairTrace:
    """The guide's trace and the model's trace replayed against it.

    `particle_dim` is the (negative) batch dimension of the vectorised particles, None for a single particle.
    """

    model: Any  # pyro traces, whose nodes are dictionaries
    guide: Any
    particle_dim: int | None = None

    @property
    def latents(self) -> list[str]:
        """Names of the guide's latent sites, in the guide's order."""
        return [name for name, _ in sample_sites(self.guide)]

    @property
    def observed(self) -> list[str]:
        """Names of the model's observed sites, in the model's order."""
        return [name for name, site in sample_sites(self.model) if site["is_observed"]]

    def sites(self) -> Iterator[tuple[str, Site, float]]:
        """Every stochastic site as (name, site, sign): +1 for the model's sites, -1 for the guide's."""
        for name, site in sample_sites(self.model):
            yield name, site, 1.0
        for name, site in sample_sites(self.guide):
            yield name, site, -1.0


def sample_sites(trace: Any) -> Iterator[tuple[str, Site]]:
    """The stochastic sites of a trace, in order; what `pyro.deterministic` records is none."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site["infer"].get("_deterministic"):
            yield name, site


def log_prob(name: str, site: Site) -> Tensor:
    """Log-density of the value at one site, batch-shaped, masked but never scaled.

    Scales belong to objectives (subsampling, a KL weight); a likelihood estimate must not see them.
    """
    try:
        value = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    except ValueError as error:
        raise ValueError(f"site {name!r}: {error}") from error
    return scale_and_mask(value, 1.0, site["mask"])


def plate_nesting(*traces: Trace) -> int:
    """Number of batch dimensions that the plates of the traces occupy."""
    dims = [
        frame.dim
        for trace in traces
        for _, site in sample_sites(trace)
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    ]
    return -min(dims) if dims else 0


def trace_pair(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    *,
    num_particles: int | None = None,
    nesting: int | None = None,
) -> PairTrace:
    """Run the guide, then the model on the guide's values.

    With `num_particles` both run inside one more plate to the left of the `nesting` batch dimensions of the pair, so
    a site of batch shape `(N,)` becomes `(K, N)` and a network that does not depend on the latents runs once.
    """
    kwargs = kwargs or {}
    dim = None
    if num_particles is not None:
        if nesting is None:
            with torch.no_grad(), fork_rng():
                plain = trace_pair(model, guide, args, kwargs)
            nesting = plate_nesting(plain.model, plain.guide)
        dim = -1 - nesting
        model = pyro.plate(PARTICLE_PLATE, num_particles, dim=dim)(model)
        guide = pyro.plate(PARTICLE_PLATE, num_particles, dim=dim)(guide)
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    for trace in (guide_trace, model_trace):  # nobody else has them: without a copy, which takes time
        for name in [name for name, site in trace.nodes.items() if site_is_subsample(site)]:
            trace.remove_node(name)
    return _checked(PairTrace(model_trace, guide_trace, dim))


def checked_pair(model_trace: Trace, guide_trace: Trace, particle_dim: int | None = None) -> PairTrace:
    """A guide's trace and the model's on its values as one, if their sites and batch shapes fit."""
    return _checked(PairTrace(prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace), particle_dim))


def _checked(result: PairTrace) -> PairTrace:
    _check_sites_match(result)
    for name, site, _ in result.sites():
        _check_batch_shape(name, site)
    return result


def _check_sites_match(traces: PairTrace) -> None:
    in_model = {name: site for name, site in sample_sites(traces.model) if not site["is_observed"]}
    in_guide = dict(sample_sites(traces.guide))
    missing = [name for name in in_model if name not in in_guide]
    if missing:
        raise ValueError(
            f"the model samples the latent site {missing[0]!r}, which the guide never samples (the guide has "
            f"{list(in_guide) or 'no sites'}): add pyro.sample({missing[0]!r}, ...) to the guide, or observe it in "
            "the model with obs=..."
        )
    extra = [name for name, site in in_guide.items() if name not in in_model and not site["infer"].get("is_auxiliary")]
    if extra:
        observed = extra[0] in traces.model.nodes
        raise ValueError(
            f"the guide samples the site {extra[0]!r}, which the model "
            + ("observes: remove it from the guide" if observed else f"never samples (the model has {list(in_model)})")
            + ", or rename it to the latent it stands for, or mark it infer={'is_auxiliary': True}"
        )
    for name, p in in_model.items():
        q = in_guide[name]
        if p["fn"].event_shape != q["fn"].event_shape:
            raise ValueError(
                f"site {name!r} has event shape {tuple(p['fn'].event_shape)} in the model and "
                f"{tuple(q['fn'].event_shape)} in the guide: use the same .to_event(k) and the same sizes in both"
            )


def _check_batch_shape(name: str, site: Site) -> None:
    frames = {f.dim: f for f in site["cond_indep_stack"] if f.vectorized}
    shape = site["fn"].batch_shape
    for dim in range(-len(shape), 0):
        expected = frames[dim].size if dim in frames else 1
        if shape[dim] not in (expected, 1):
            plates = {f.name: f"dim {f.dim}, size {f.size}" for f in frames.values() if f.name != PARTICLE_PLATE}
            raise ValueError(
                f"site {name!r} has batch shape {tuple(shape)}, of which dimension {dim} (size {shape[dim]}) belongs "
                f"to no plate (plates here: {plates or 'none'}): declare event dimensions with .to_event(k), or add a "
                "plate"
            )


@dataclass(frozen=True)
class DataPlate:
    """The plate over the data: its name, its (negative) batch dimension, its size, and its size before subsampling."""

    name: str
    dim: int
    size: int
    full_size: int

    @property
    def subsampling(self) -> float:
        """How many data each one here stands for."""
        return self.full_size / self.size


def data_plate(traces: PairTrace, n: int) -> DataPlate:
    """Find the plate of size `n` that every site of the pair stands in.

    Raises:
        ValueError: If some site stands outside any such plate: then log p(x) does not split into one number per datum.
            If several plates qualify and none is named "data".
    """
    common: dict[str, Any] | None = None
    for name, site, sign in traces.sites():
        frames = {f.name: f for f in site["cond_indep_stack"] if f.vectorized and f.size == n}
        frames.pop(PARTICLE_PLATE, None)
        # n particles and n data may coincide in size, so the particle plate is told apart by its name
        common = frames if common is None else {k: v for k, v in common.items() if k in frames}
        if not common:
            where = "model" if sign > 0 else "guide"
            have = [(f.name, f.size) for f in site["cond_indep_stack"] if f.name != PARTICLE_PLATE]
            raise ValueError(
                f"site {name!r} of the {where} is not inside a plate over the {n} data (it stands in "
                f"{have or 'none'}), so there is no number per datum: wrap the local sites in "
                "`with pyro.plate('data', len(x)):`, in the model and in the guide alike. Latent "
                "variables shared by all data have no per-datum likelihood"
            )
    if common is None:
        raise ValueError("the pair has no sample site at all: write the model and the guide with pyro.sample")
    if len(common) > 1 and "data" not in common:
        raise ValueError(
            f"the plates {' and '.join(map(repr, common))} have the size of the data, {n}, so it cannot be told which "
            "one runs over them: name that one 'data'"
        )
    frame = common.get("data") or next(iter(common.values()))
    return DataPlate(frame.name, frame.dim, frame.size, frame.full_size or frame.size)


def sum_to_data(value: Tensor, plate: DataPlate, particle_dim: int | None) -> Tensor:
    """Sum a batch-shaped tensor over everything but the particles and the data: `(K, N)`, or `(N,)`.

    Raises:
        ValueError: If it has another size along the data.
    """
    keep = {plate.dim} | ({particle_dim} if particle_dim is not None else set())
    value = value.reshape((1,) * (max(-d for d in keep) - value.dim()) + value.shape)
    if value.shape[plate.dim] != plate.size:
        raise ValueError(
            f"a log-density has {value.shape[plate.dim]} values along the plate {plate.name!r} over {plate.size} data: "
            "something the pair uses, a mask say, was made for other data; pass it to the pair as an argument"
        )
    rest = [d for d in range(-value.dim(), 0) if d not in keep]
    return value.sum(rest) if rest else value


def joint_log_weight(traces: PairTrace, plate: DataPlate) -> Tensor:
    """`log p(x, z) - log q(z | x)` per datum: `(K, N)` for vectorised particles, else `(N,)`."""
    terms = (
        sign * sum_to_data(log_prob(name, site), plate, traces.particle_dim) for name, site, sign in traces.sites()
    )
    return sum(terms, start=torch.zeros(()))


def particles_agree(model: Callable[..., Any], guide: Callable[..., Any], args: tuple[Any, ...], **kwargs: Any) -> bool:
    """Whether the pair computes the same densities with a leading particle dimension as without.

    Two particles are drawn together, then each is replayed alone. Networks that reject a leading dimension raise
    here; networks that silently mix it with the data (a `reshape`, batch normalisation) disagree. So do networks that
    draw noise of their own (dropout).
    """
    with torch.no_grad(), fork_rng():
        plain = trace_pair(model, guide, args, kwargs)
        nesting = plate_nesting(plain.model, plain.guide)
        try:
            joint = trace_pair(model, guide, args, kwargs, num_particles=2, nesting=nesting)
            for k in range(2):
                replayed = plain.guide.copy()
                for name, site in sample_sites(replayed):
                    particle = joint.guide.nodes[name]["value"][k]
                    replayed.nodes[name] = {**site, "value": particle.reshape(site["value"].shape)}
                guide_k = poutine.trace(poutine.replay(guide, trace=replayed)).get_trace(*args, **kwargs)
                model_k = poutine.trace(poutine.replay(model, trace=replayed)).get_trace(*args, **kwargs)
                alone = PairTrace(prune_subsample_sites(model_k), prune_subsample_sites(guide_k))
                for (name, site, _), (_, site_k, _) in zip(joint.sites(), alone.sites(), strict=True):
                    together, by_itself = log_prob(name, site)[k], log_prob(name, site_k)
                    # room for a GPU's reduced precision, which is relative to what was summed
                    if not torch.allclose(
                        together, by_itself.expand(together.shape), rtol=2e-4, atol=2e-2, equal_nan=True
                    ):
                        return False
        except Exception:  # whatever the pair's networks raise: without a leading dimension they do not
            return False
    return True


def log_weights(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    *,
    num_particles: int,
    vectorize: bool,
    nesting: int | None = None,
) -> Tensor:
    """`num_particles` draws of log p(x, z) - log q(z | x) for each datum, shape `(K, N)`, differentiable."""
    n = len(args[0])
    if vectorize:
        traces = trace_pair(model, guide, args, kwargs, num_particles=num_particles, nesting=nesting)
        return joint_log_weight(traces, data_plate(traces, n))
    rows = []
    for _ in range(num_particles):
        traces = trace_pair(model, guide, args, kwargs)
        rows.append(joint_log_weight(traces, data_plate(traces, n)))
    return torch.stack(rows)


def warn_not_vectorized(reason: str = "") -> None:
    """Say once that particles run one at a time."""
    warnings.warn(
        "the pair does not give the same densities with a leading particle dimension, so particles run one at a time, "
        "which is slower: let networks map (*, in) to (*, out)" + reason,
        stacklevel=3,
    )
