"""Several particles of a pair at once: whether the pair vectorizes, and the log-weights of the particles."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.pair.masks import under_model_masks
from pyro_vae.pair.plates import DataPlate, data_plate, sum_to_data
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.subsampling import SameIndices
from pyro_vae.pair.tracing import PairTrace, log_prob, plate_nesting, sample_sites, trace_pair
from pyro_vae.pair.untouched import kept_buffers
from pyro_vae.support.random import fork_rng

__all__ = [
    "Particles",
    "joint_log_weight",
    "log_weights",
    "particles_agree",
    "particles_of",
    "warn_not_vectorized",
]


@dataclass(frozen=True)
class Particles:
    """How a pair runs with several particles.

    Attributes:
        vectorize: Whether particles run together, in a plate to the left of the pair's own plates, or one at a time.
        nesting: The number of batch dimensions of the pair.
    """

    vectorize: bool
    nesting: int


def particles_of(model: Program, guide: Program, data: Data, vectorize: bool | None = None) -> Particles:
    """Decide how the particles of a pair run; the random generators are restored.

    Args:
        model, guide: The pair.
        data: The pair's arguments.
        vectorize: True or False sets it. None tests whether the densities agree, and warns if they do not.
    """
    args, kwargs = data
    if vectorize is None:
        vectorize = particles_agree(model, guide, args, **kwargs)
        if not vectorize:
            warn_not_vectorized()
    with torch.no_grad(), fork_rng(), kept_buffers(model, guide):
        plain = trace_pair(model, guide, args, kwargs)
    return Particles(vectorize, plate_nesting(plain.model, plain.guide))


def warn_not_vectorized() -> None:
    """Warn that particles run one at a time."""
    warnings.warn(
        "the pair does not give the same densities with a leading particle dimension, so particles run one at a time, "
        "which is slower: let networks map (*, in) to (*, out)",
        stacklevel=4,
    )


def joint_log_weight(traces: PairTrace, plate: DataPlate) -> Tensor:
    """`log p(x, z) - log q(z | x)` per datum: `(K, N)` for vectorized particles, else `(N,)`."""
    traces = under_model_masks(traces)
    terms = (
        sign * sum_to_data(log_prob(name, site), plate, traces.particle_dim) for name, site, sign in traces.sites()
    )
    return sum(terms, start=torch.zeros(()))


def particles_agree(model: Program, guide: Program, args: tuple[Any, ...], **kwargs: Any) -> bool:
    """Whether the pair computes the same densities with a leading particle dimension as without.

    Two particles are drawn together, then each is replayed alone. Networks that reject a leading dimension raise
    here; networks that mix it with the data (a `reshape`, batch normalization) give other densities, and so do networks
    with random layers (dropout).
    """
    with torch.no_grad(), fork_rng(), kept_buffers(model, guide), SameIndices():
        plain = trace_pair(model, guide, args, kwargs)
        nesting = plate_nesting(plain.model, plain.guide)
        try:
            joint = trace_pair(model, guide, args, kwargs, num_particles=2, nesting=nesting)
            for k in range(2):
                replayed = plain.guide.copy()
                for name, site in sample_sites(replayed):
                    if site["is_observed"]:
                        continue
                    particle = joint.guide.nodes[name]["value"][k]
                    replayed.nodes[name] = {**site, "value": particle.reshape(site["value"].shape)}
                guide_k = traced(guide, args, kwargs, on=replayed)
                model_k = traced(model, args, kwargs, on=replayed)
                alone = PairTrace(prune_subsample_sites(model_k), prune_subsample_sites(guide_k))
                for (name, site, _), (_, site_k, _) in zip(joint.sites(), alone.sites(), strict=True):
                    together, by_itself = log_prob(name, site)[k], log_prob(name, site_k)
                    # tolerances for a GPU's reduced precision, which is relative to the summands
                    if not torch.allclose(
                        together, by_itself.expand(together.shape), rtol=2e-4, atol=2e-2, equal_nan=True
                    ):
                        return False
        except Exception:  # networks may raise anything when they get a leading dimension
            return False
    return True


def log_weights(
    model: Program,
    guide: Program,
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
