"""log p(x) of time series by sequential Monte Carlo."""

from __future__ import annotations

from collections.abc import Iterator

from pyro_vae.evaluate.marginal.importance_sampling import check_finite, in_parts
from pyro_vae.evaluate.marginal.methods import SMC
from pyro_vae.evaluate.marginal.particle_filter import Filter, check_series
from pyro_vae.evaluate.marginal.result import LogMarginal, estimate_from_weights
from pyro_vae.evaluate.marginal.weights import Weights
from pyro_vae.pair.arguments import take
from pyro_vae.pair.planning import plan_for, rows_that_fit
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.tracing import trace_pair
from pyro_vae.support.progress import Advance

__all__ = ["sequential"]


def sequential(
    model: Program,
    guide: Program,
    data: Data,
    method: SMC,
    *,
    signature: Program,
    memory: int | None,
    progress: bool | None,
) -> LogMarginal:
    """`log_marginal` by a particle filter; `signature` is the model as the user gave it.

    The caller disables gradients and puts the networks in evaluation mode.
    """
    plan = plan_for(model, guide, data)
    check_series(plan, data)
    rows = rows_that_fit(
        lambda: trace_pair(model, guide, *plan.example_data, num_particles=2, nesting=plan.particles.nesting),
        2 * len(plan.example_data[0][0]),
        data[0][0].device,
        memory,
    )

    def parts(advance: Advance) -> Iterator[LogMarginal]:
        for start, stop in plan.pieces(rows, method.num_particles * method.num_runs):
            part = take(*data, start, stop)
            options = (method.num_particles, method.num_runs, method.every, method.threshold, signature)
            found = Filter(model, guide, part, *options).run().log_evidence
            weights = Weights(stop - start, method.num_runs, found.device)
            weights.add(found)
            check_finite(weights, start)
            yield estimate_from_weights(weights, data[0][0].dtype, method=method.name)
            advance(stop - start)

    return in_parts(parts, plan.num_data, progress)
