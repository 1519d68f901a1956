"""The inference gaps: what the family of the posterior costs, and what amortisation does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from pyro_vae.evaluate.local.fitting import fit_local
from pyro_vae.evaluate.local.posterior import Family
from pyro_vae.evaluate.local.result import InferenceGaps
from pyro_vae.evaluate.marginal.likelihood import log_marginal

__all__ = ["inference_gaps"]

Program = Callable[..., Any]


def inference_gaps(
    model: Program,
    guide: Program,
    x: Tensor,
    *args: Any,
    families: Sequence[str] | Mapping[str, Family] = ("diagonal_normal",),
    num_samples: int = 5000,
    ais: bool = False,
    start: Literal["prior"] | Program | None = None,
    seed: int | None = None,
    progress: bool | None = False,
    **kwargs: Any,
) -> InferenceGaps:
    r"""Measure what the guide loses against log p(x), and whether its family or its amortisation is to blame.

    .. math:: \log p(x) - L[q] = \underbrace{\log p(x) - L[q^*]}_\text{approximation} +
        \underbrace{L[q^*] - L[q]}_\text{amortisation}

    q* is the best distribution of the family for each datum, from `fit_local`. To split the guide's own gap, the first
    family must be the guide's. log p(x) is the best of several estimates: importance sampling with the guide or with
    local posteriors as proposals, and annealed importance sampling. Each is below log p(x) in expectation, so the
    best is the one with the greatest mean (less two Monte Carlo standard errors), and the approximation gap is rather
    too small than too large. Every figure is for the same data: binarise them once, before.

    Args:
        model, guide: The pair.
        x, *args: The data, `(N, ...)`, then whatever else the pair takes, also by keyword.
        families: Local families: names in `pv.conditionals.POSTERIORS`, or a dictionary from names of your own to what
            `fit_local` takes.
        num_samples: Draws per datum, for the ELBOs and for log p(x).
        ais: Try annealed importance sampling from the prior for log p(x), too (see `log_marginal`).
        start: Where local fits start: "prior" or a guide. Default: the guide of the pair.
        seed: Draw all noise from this seed and leave torch's generators as they were. None continues their stream.
        progress: Show bars: True, False, or None (only in a terminal).

    Raises:
        ValueError: Where `fit_local` or `log_marginal` do, or without a family.
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
        raise ValueError("no local family came: give families, ('diagonal_normal',) say")
    options: dict[str, Any] = {"seed": seed, "progress": progress, **kwargs}
    estimates = {"guide": log_marginal(model, guide, x, *args, num_samples=num_samples, **options)}
    fits = {}
    for name, family in chosen.items():
        fits[name] = fit_local(model, family, x, *args, start=guide if start is None else start, **options)
        if fits[name].interrupted:
            raise KeyboardInterrupt
        estimates[name] = log_marginal(model, fits[name].guide, x, *args, num_samples=num_samples, **options)
    if ais:
        estimates["ais"] = log_marginal(model, guide, x, *args, method="ais", **options)
    if any(estimate.interrupted for estimate in estimates.values()):
        raise KeyboardInterrupt
    # L_1 of the same draws is the ELBO
    elbos = {name: e.bounds[0].double() for name, e in estimates.items() if name != "ais" and e.bounds is not None}
    # of a poor proposal the mean may by chance be the greatest, so noise counts against it
    best = max(estimates, key=lambda name: estimates[name].mean - 2 * estimates[name].mean_error)
    return InferenceGaps(elbos.pop("guide"), elbos, estimates, best, fits)
