"""The plate over the data, and sums over all other dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_vae.pair.tracing import PARTICLE_PLATE, PairTrace, sample_sites

__all__ = ["DataPlate", "NoDataPlate", "common_plates", "data_plate", "independent_plates", "sum_to_data"]


@dataclass(frozen=True)
class DataPlate:
    """The plate over the data: its name, its (negative) batch dimension, its size, and its size before subsampling."""

    name: str
    dim: int
    size: int
    full_size: int

    @property
    def subsampling(self) -> float:
        """The factor by which a minibatch is scaled up: `full_size / size`."""
        return self.full_size / self.size


class NoDataPlate(ValueError):
    """A pair has no plate over its data that holds all of its sites."""


def common_plates(traces: PairTrace) -> dict[str, Any]:
    """The vectorized plates that hold every site of the pair, by name, without that of the particles."""
    common: dict[str, Any] | None = None
    for _, site, _ in traces.sites():
        # the particle plate is identified by name, because its size may be that of the data
        frames = {f.name: f for f in site["cond_indep_stack"] if f.vectorized and f.name != PARTICLE_PLATE}
        common = frames if common is None else {name: f for name, f in common.items() if name in frames}
    if common is None:
        raise ValueError("the pair has no sample site: write the model and the guide with pyro.sample")
    return common


def data_plate(traces: PairTrace, n: int) -> DataPlate:
    """Find the plate of size `n` that contains every site of the pair.

    Raises:
        NoDataPlate: If a site is outside such a plate, so that log p(x) does not split into one number per datum.
        ValueError: If several plates qualify and none is named "data".
    """
    common = {name: f for name, f in common_plates(traces).items() if f.size == n}
    if not common:
        raise NoDataPlate(_outside(traces, n))
    if len(common) > 1 and "data" not in common:
        raise ValueError(
            f"the plates {' and '.join(map(repr, common))} have the size of the data, {n}, so it is ambiguous "
            "which of them is over the data: name that one 'data'"
        )
    frame = common.get("data") or next(iter(common.values()))
    return DataPlate(frame.name, frame.dim, frame.size, frame.full_size or frame.size)


def _outside(traces: PairTrace, n: int) -> str:
    """What to say of the first site that shares no plate of size n with the sites before it."""
    sites = list(traces.sites())
    common: set[str] | None = None
    for _, site, _ in sites:
        frames = {f.name for f in site["cond_indep_stack"] if f.vectorized and f.size == n} - {PARTICLE_PLATE}
        common = frames if common is None else common & frames
        if not common:
            break
    name, sign = next((other, sign) for other, s, sign in sites if s is site)
    where = "model" if sign > 0 else "guide"
    have = [(f.name, f.size) for f in site["cond_indep_stack"] if f.name != PARTICLE_PLATE]
    return (
        f"site {name!r} of the {where} is not inside a plate over the {n} data (its plates: {have or 'none'}), so "
        "there is no number per datum: wrap the local sites in `with pyro.plate('data', len(x)):`, in the model and in "
        "the guide alike. Latents that all data share, or that a guide draws as one vector, have numbers for all data "
        "together: bound, log_marginal and compare_elbos give these"
    )


def independent_plates(guide: Any) -> dict[str, tuple[Any, ...]]:
    """The plates of each latent whose elements stay apart: an element's draw moves nothing in those beside it.

    A later site of the guide outside of a plate may read all elements, and be read by all, in the model, too. Such a
    plate is left out.
    """
    result: dict[str, tuple[Any, ...]] = {}
    later: set[Any] | None = None
    for name, site in reversed(list(sample_sites(guide))):
        frames = site["cond_indep_stack"]
        result[name] = frames if later is None else tuple(frame for frame in frames if frame in later)
        later = set(frames) if later is None else later & set(frames)
    return result


def sum_to_data(value: Tensor, plate: DataPlate, particle_dim: int | None) -> Tensor:
    """Sum a batch-shaped tensor over all dimensions except particles and data: `(K, N)`, or `(N,)`.

    Raises:
        ValueError: If its size along the data is not that of the plate.
    """
    keep = {plate.dim} | ({particle_dim} if particle_dim is not None else set())
    value = value.reshape((1,) * (max(-d for d in keep) - value.dim()) + value.shape)
    if value.shape[plate.dim] != plate.size:
        raise ValueError(
            f"a log-density has {value.shape[plate.dim]} values along the plate {plate.name!r} over {plate.size} data: "
            "something that the pair uses, such as a mask, was made for other data; pass it to the pair as an argument"
        )
    rest = [d for d in range(-value.dim(), 0) if d not in keep]
    return value.sum(rest) if rest else value
