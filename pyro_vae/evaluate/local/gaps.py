"""The inference gaps: the cost of the posterior family, and the cost of amortization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from pyro_vae.evaluate.deprecated import accepts_earlier_form
from pyro_vae.evaluate.local.fitting import fit_local
from pyro_vae.evaluate.local.posterior import Family
from pyro_vae.evaluate.local.result import InferenceGaps
from pyro_vae.evaluate.marginal.likelihood import log_marginal
from pyro_vae.evaluate.marginal.methods import AIS, BDMC, Importance, Method, option_hints, resolve_method
from pyro_vae.pair.arguments import check_keywords
from pyro_vae.pair.protocol import Program
from pyro_vae.support.arguments import checked

__all__ = ["inference_gaps"]


@accepts_earlier_form
@checked
def inference_gaps(
    model: Program,
    guide: Program,
    x: Tensor,
    *args: Any,
    families: Sequence[str] | Mapping[str, Family] = ("diagonal_normal",),
    num_samples: int = 5000,
    method: str | Method | None = None,
    start: Literal["guide", "prior"] | Program = "guide",
    memory: int | None = None,
    seed: int | None = None,
    progress: bool | None = False,
    **kwargs: Any,
) -> InferenceGaps:
    r"""Measure the gap between the guide's ELBO and log p(x), split into approximation and amortization.

    .. math:: \log p(x) - L[q] = \underbrace{\log p(x) - L[q^*]}_\text{approximation} +
        \underbrace{L[q^*] - L[q]}_\text{amortization}

    q* is the best distribution of the family for each datum, from `fit_local`. To split the guide's gap, the first
    family must be the guide's. log p(x) is the best of several estimates: importance sampling with the guide or with
    local posteriors as proposals, and optionally annealed importance sampling. Each is below log p(x) in expectation,
    so the best is the one with the greatest mean (less two Monte Carlo standard errors), and the approximation gap is
    more likely too small than too large. All values must be for the same data: binarize them once, beforehand.

    Args:
        model, guide: The pair.
        x, *args: The data, `(N, ...)`, then whatever else the pair takes, also by keyword.
        families: Local families: names in `pv.conditionals.POSTERIORS`, or a dictionary from your own names to families
            as in `fit_local`.
        num_samples: Draws per datum, for the ELBOs and for log p(x).
        method: A further estimate of log p(x), for example "ais" or `pv.AIS(num_chains=32)`: a method of `log_marginal`
            for the given data, so not "bdmc". None adds no estimate.
        start: Start of the local fits: the pair's "guide", the "prior", or another guide.
        memory: Approximate bytes for intermediate tensors.
        seed: A number makes the call reproducible and leaves torch's generators as they were. None continues their
            stream.
        progress: Show bars: True, False, or None (in a terminal or a notebook).

    Raises:
        ValueError: As `fit_local` and `log_marginal`; without a family; or for "bdmc".
        TypeError: For a keyword that neither this call nor the pair knows.
        KeyboardInterrupt: After Ctrl-C: the gaps need all their parts.

    Reference: Cremer, Li and Duvenaud 2018, arXiv 1801.03558, table 1.

    Example:
        >>> from pyro_vae.oracles import LinearGaussian
        >>> pair = LinearGaussian()
        >>> x = pair.simulate(4)
        >>> gaps = inference_gaps(pair.model, pair.guide, x, num_samples=100, seed=0)
        >>> gaps.approximation < gaps.inference
        True
    """
    chosen: dict[str, Family] = dict(families) if isinstance(families, Mapping) else {name: name for name in families}
    if not chosen:
        raise ValueError("no local family given: use families=('diagonal_normal',), for example")
    if not callable(start) and start not in ("guide", "prior"):
        raise ValueError(f"start must be 'guide', 'prior' or a guide, got {start!r}")
    further = None if method is None else resolve_method(method)
    if isinstance(further, BDMC):
        raise ValueError("bidirectional Monte Carlo is for data that it simulates: use method='ais' for given data")
    check_keywords(inference_gaps, kwargs, model, guide, hints=option_hints(further or AIS()))
    origin = {"guide": guide, "prior": None}[start] if isinstance(start, str) else start
    options: dict[str, Any] = {"memory": memory, "seed": seed, "progress": progress, **kwargs}
    estimates = {"guide": log_marginal(model, guide, x, *args, num_samples=num_samples, **options)}
    fits = {}
    for name, family in chosen.items():
        fits[name] = fit_local(model, origin, x, *args, family=family, **options)
        if fits[name].interrupted:
            raise KeyboardInterrupt
        estimates[name] = log_marginal(model, fits[name].guide, x, *args, num_samples=num_samples, **options)
    if further is not None:
        count = {"num_samples": num_samples} if isinstance(further, Importance) else {}
        estimates[further.name] = log_marginal(model, guide, x, *args, method=further, **count, **options)
    if any(estimate.interrupted for estimate in estimates.values()):
        raise KeyboardInterrupt
    # L_1 of the same draws is the ELBO
    elbos = {name: b[0].double() for name in ("guide", *chosen) if (b := estimates[name].bounds) is not None}
    # a poor proposal may have the greatest mean by chance, so noise counts against it
    best = max(estimates, key=lambda name: estimates[name].mean - 2 * estimates[name].mean_error)
    return InferenceGaps(elbos.pop("guide"), elbos, estimates, best, fits)
