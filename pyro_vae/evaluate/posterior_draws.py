"""Draws from a guide and their importance weights as ArviZ has them."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pyro_vae.evaluate.calibration.units import Units, sites_outside
from pyro_vae.evaluate.guide_density import density_guide
from pyro_vae.pair.arguments import check_data, check_keywords, slices, take
from pyro_vae.pair.networks import eval_mode, to_networks_device
from pyro_vae.pair.particles import particles_of
from pyro_vae.pair.planning import CPU_ROWS, plan_for, rows_that_fit
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.tracing import PARTICLE_PLATE, PairTrace, log_prob, sample_sites, trace_pair
from pyro_vae.support.arguments import checked_from
from pyro_vae.support.random import seeded

if TYPE_CHECKING:
    from xarray import Dataset

__all__ = ["to_xarray"]

Variable = tuple[list[str], Tensor]


@checked_from(num_samples=1, memory=1)
def to_xarray(
    model: Program,
    guide: Program,
    x: Tensor,
    *args: Any,
    num_samples: int = 1000,
    memory: int | None = None,
    seed: int | None = None,
    **kwargs: Any,
) -> Any:
    """Draws from the guide for each datum with their log-weights, as ArviZ's `InferenceData`.

    The draws are those of the guide, in one chain, and are not weighted: what ArviZ computes from the group `posterior`
    is of the guide. With `log_weight` come averages over p(z|x), and ArviZ's `psislw` of these gives the same k-hat as
    `pv.log_marginal`.

    Args:
        model, guide: The pair.
        x: The data, `(N, ...)`.
        *args: Whatever else the pair takes, also by keyword; tensors with N rows are per-datum.
        num_samples: Draws K.
        memory: Approximate bytes for intermediate tensors.
        seed: A number makes the call reproducible and leaves torch's generators as they were. None continues their
            stream.

    Returns:
        An `InferenceData`, from ArviZ 1.0 on an `xarray.DataTree`, with the groups `posterior`: the latents,
        `(1, K, N, ...)`, whose dimensions have the names of the plates; `sample_stats`: `log_weight`, log p(x, z) -
        log q(z|x), `(1, K, N)`, nats; `log_likelihood`: log p(x|z) by observed site, `(1, K, N)`, nats; and
        `observed_data`. For a pair with latents outside the plate over the data both densities are of the whole data
        set, `(1, K)`.

    Raises:
        ImportError: If ArviZ is not installed.
        ValueError: If latent sites differ between model and guide, or for fewer than one draw.
        TypeError: For a keyword that neither this call nor the pair knows.

    Reference: Kumar, Carroll, Hartikainen and Martin 2019, Journal of Open Source Software 4(33), 1143.
    """
    n = check_data((x,))
    check_keywords(to_xarray, kwargs, model, guide)
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    arviz = _arviz()
    data = to_networks_device((x, *args), model, guide), kwargs
    with torch.no_grad(), eval_mode(model, guide), seeded(seed):
        guide = density_guide(model, guide, data)
        units, vectorize, whole, example = _layout(model, guide, data)
        probe = 2 if vectorize else None
        rows = rows_that_fit(
            lambda: trace_pair(model, guide, *example, num_particles=probe, nesting=units.nesting),
            (probe or 1) * len(example[0][0]),
            x.device,
            memory,
            cpu_rows=CPU_ROWS,
        )
        size = n if whole else max(1, rows // num_samples)
        parts = []
        for start, stop in slices(n, size):
            some = take(*data, start, stop)
            together = max(1, rows // (stop - start)) if vectorize else 1
            runs = [
                _read(
                    trace_pair(
                        model,
                        guide,
                        *some,
                        num_particles=last - first if vectorize else None,
                        nesting=units.nesting,
                    ),
                    units.of_size(stop - start),
                )
                for first, last in slices(num_samples, together)
            ]
            parts.append(_joined(runs, 0))
    return _inference_data(arviz, _joined(parts, 1))


def _arviz() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of ArviZ, that it will be refactored
            import arviz
    except ImportError as error:
        raise ImportError("to_xarray needs ArviZ, which is not installed: pip install 'pyro-vae[arviz]'") from error
    return arviz


def _layout(model: Program, guide: Program, data: Data) -> tuple[Units, bool, bool, Data]:
    """The plate over the data, if there is one; whether draws run together; whether all data do; example data."""
    outside = sites_outside(model, guide, data)
    if outside.latents or outside.observed:
        particles = particles_of(model, guide, data)
        return Units(None, particles.nesting), particles.vectorize, True, data
    plan = plan_for(model, guide, data)
    return Units(plan.plate, plan.particles.nesting), plan.particles.vectorize, plan.whole, plan.example_data


def _read(traces: PairTrace, units: Units) -> dict[tuple[str, str], Variable]:
    """What goes into each group, by group and name: `(K, ...)`, but the observed data `(1, ...)`."""
    plate = [] if units.plate is None else [units.plate.name]
    found: dict[tuple[str, str], Variable] = {}

    def of_unit(value: Tensor) -> Variable:
        return plate, value if plate else value[:, 0]

    for name, site in sample_sites(traces.model):
        frames = [f for f in site["cond_indep_stack"] if f.vectorized and f.name not in (PARTICLE_PLATE, *plate)]
        inner = [f.name for f in sorted(frames, key=lambda f: f.dim)]
        dims = [*plate, *inner, *(f"{name}_dim_{i}" for i in range(site["fn"].event_dim))]
        value = units.values(site["value"], site)
        value = value if plate else value[:, 0]
        if not site["is_observed"]:
            found["posterior", name] = dims, value
        elif site["value"].numel():
            found["observed_data", name] = dims, value[:1]
            found["log_likelihood", name] = of_unit(units.sum(log_prob(name, site), traces.particle_dim))
    found["sample_stats", "log_weight"] = of_unit(units.log_weights(traces))
    return found


def _joined(parts: list[dict[tuple[str, str], Variable]], axis: int) -> dict[tuple[str, str], Variable]:
    """Runs side by side: along draws (0) or data (1)."""
    joined = {}
    for key, (dims, value) in parts[0].items():
        same = axis == 0 and key[0] == "observed_data"
        joined[key] = dims, value if same or len(parts) == 1 else torch.cat([part[key][1] for part in parts], axis)
    return joined


def _inference_data(arviz: Any, found: dict[tuple[str, str], Variable]) -> Any:
    from xarray import DataTree

    groups: dict[str, Dataset] = {}
    for group in ("posterior", "sample_stats", "log_likelihood", "observed_data"):
        variables = {
            name: (dims, value[0]) if group == "observed_data" else (["chain", "draw", *dims], value.unsqueeze(0))
            for (where, name), (dims, value) in found.items()
            if where == group
        }
        groups[group] = _dataset(variables)
    if int(arviz.__version__.split(".")[0]) < 1:
        return arviz.InferenceData(**groups)
    return DataTree.from_dict(groups)


def _dataset(variables: dict[str, Variable]) -> Dataset:
    from xarray import Dataset

    arrays = {name: (dims, value.cpu().numpy()) for name, (dims, value) in variables.items()}
    sizes = {dim: size for dims, value in arrays.values() for dim, size in zip(dims, value.shape, strict=True)}
    coordinates = {dim: range(size) for dim, size in sizes.items()}
    return Dataset(arrays, coords=coordinates, attrs={"inference_library": "pyro_vae"})
