"""The marginal likelihood log p(x) of any pair, per datum."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal, overload

import torch

from pyro_vae.distributed.ranks import Ranks
from pyro_vae.evaluate.marginal.annealing import Plan, annealed
from pyro_vae.evaluate.marginal.brackets import BidirectionalBounds, bidirectional
from pyro_vae.evaluate.marginal.importance_sampling import importance
from pyro_vae.evaluate.marginal.result import LogMarginal, join
from pyro_vae.pair.arguments import check_data, take
from pyro_vae.pair.networks import beside_networks, eval_mode
from pyro_vae.support.random import fork_rng

__all__ = ["METHODS", "LogMarginal", "log_marginal"]

METHODS = ("importance", "prior", "ais", "bdmc")


@overload
def log_marginal(
    model: Callable[..., Any], guide: Callable[..., Any] | None, *args: Any, method: Literal["bdmc"], **options: Any
) -> BidirectionalBounds: ...


@overload
def log_marginal(
    model: Callable[..., Any], guide: Callable[..., Any] | None, *args: Any, method: str = ..., **options: Any
) -> LogMarginal: ...


def log_marginal(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    *args: Any,
    method: str = "importance",
    num_samples: int = 5000,
    target_error: float | None = None,
    max_samples: int = 1_000_000,
    defensive: float = 0.0,
    num_chains: int = 16,
    num_temperatures: int = 500,
    leapfrog_steps: int = 10,
    start: str = "prior",
    schedule: str = "sigmoid",
    memory: int | None = None,
    seed: int | None = None,
    progress: bool | None = False,
    ranks: Ranks | None = None,
    **kwargs: Any,
) -> LogMarginal:
    r"""Estimate log p(x) of every datum.

    .. math:: \log \hat p(x) = \log \frac1K \sum_{k=1}^K w_k, \quad E[w_k] = p(x)

    Works for any pair whose sites stand in a plate over the data. Scales (a KL weight in the objective, subsampling)
    never enter. Networks are put in evaluation mode for the call. The methods differ in the weights:

    - "importance": the guide as proposal, `w = p(x, z) / q(z|x)`.
    - "prior": the prior as proposal, `w = p(x|z)`. Right in expectation; of use in one or two dimensions.
    - "ais": annealed importance sampling, chains of Hamiltonian moves from the prior (or the guide) to the posterior.
      Owes nothing to the guide, unless it starts there; continuous latents only; costs `num_chains * num_temperatures *
      leapfrog_steps` gradients per datum. Step sizes are found in a pilot run first, per datum and temperature, for an
      acceptance of 0.65.
    - "bdmc": bidirectional Monte Carlo. Data are simulated from the model in place of those given, so that one exact
      draw from each posterior is known; chains from the prior bound log p(x) from below, chains back from the posterior
      draw from above. The gap says how exact "ais" with the same options is for data like the model's own.

    Args:
        model, guide: The pair. The guide may be None where it is not used: "prior", and "ais" and "bdmc" from the
            prior.
        *args: The data `x` of shape `(N, ...)`, then whatever else the pair takes, also by keyword; tensors with N rows
            are per-datum.
        method: "importance", "prior", "ais" or "bdmc".
        num_samples: Importance samples per datum, K ("importance" and "prior").
        target_error: Per-datum standard error in nats: the samples of those data that have not reached it are doubled
            until they have, or have `max_samples`. Begin with a few hundred samples at least: an error told from few
            weights may look small by chance, and the data that stop at it are too low on average.
        max_samples: The most samples per datum with `target_error`.
        defensive: Share a in [0, 1) of the samples that are drawn from the prior, all being weighted with the density
            of the mixture `(1 - a) q(z|x) + a p(z)`. Then no weight exceeds `p(x|z) / a`, even where the guide is too
            narrow ("importance").
        num_chains, num_temperatures, leapfrog_steps: Independent chains per datum, steps of the inverse temperature
            from 0 to 1, and leapfrog steps in each move ("ais" and "bdmc").
        start: Where chains begin, "prior" or "guide".
        schedule: Of the inverse temperatures, "sigmoid" (finer at both ends) or "linear".
        memory: Bytes that intermediate tensors may take, about. It sets how data and samples are chunked, and so which
            noise is drawn, never the estimate beyond that noise.
        seed: Draw the noise from this seed and leave torch's generators as they were. None continues their stream.
        progress: Show a bar: True, False, or None (only in a terminal).
        ranks: The processes to share the data with, from `pv.launch`: each of them makes this call with the same
            arguments, estimates a part of the data with noise of its own, and gets the whole result.

    Returns:
        A `LogMarginal`; for "bdmc" `BidirectionalBounds`, which has an upper bound and the simulated data, too. After
        Ctrl-C the data that were finished, with a warning.

    Raises:
        ValueError: If a site stands outside the plate over the data, if latent sites differ between model and guide, if
            a weight is NaN or infinite, for discrete latents where Hamiltonian moves need continuous ones, or if an
            option is out of its range. There is no "harmonic" method.

    Reference: Rezende et al. 2014, arXiv 1401.4082, appendix E; Burda et al. 2016, arXiv 1509.00519 (importance). Neal
    2001, arXiv physics/9803008; Wu et al. 2017, arXiv 1611.04273 (annealed). Grosse, Ghahramani and Adams 2015, arXiv
    1511.02543 (bidirectional).

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))  # the exact posterior: every weight is p(x)
        >>> x = torch.tensor([0.0, 1.0])
        >>> exact = dist.Normal(0.0, 2**0.5).log_prob(x)
        >>> result = log_marginal(model, guide, x, num_samples=10)
        >>> torch.allclose(result.log_prob, exact)
        True
        >>> result = log_marginal(model, None, x, method="ais", num_temperatures=20, seed=0)
        >>> bool(((result.log_prob - exact).abs() < 4 * result.std_error).all())
        True
    """
    n = check_data(args)
    _check_options(method, num_samples, target_error, max_samples, defensive, start, memory)
    if guide is None and (method == "importance" or start == "guide"):
        raise ValueError(f"method={method!r} with start={start!r} needs a guide, got None")
    if ranks is not None and ranks.size > 1:
        if n < ranks.size:
            raise ValueError(f"{n} data cannot be shared by {ranks.size} processes: give more data, or no ranks")
        first, last, _ = ranks.rows(n)
        args, kwargs = take(args, kwargs, first, last)
        seed = ranks.from_leader(int(torch.randint(2**62, ())) if seed is None else seed) + ranks.rank
        progress = progress if ranks.leads else False
    programs = [model] if guide is None else [model, guide]
    data = beside_networks(args, *programs), kwargs
    with torch.no_grad(), eval_mode(*programs), fork_rng(seed) if seed is not None else nullcontext():
        if method in ("importance", "prior"):
            result = importance(
                model,
                guide if method == "importance" else None,
                data,
                num_samples=num_samples,
                prior_share=defensive if method == "importance" else 1.0,
                target_error=target_error,
                max_samples=max_samples,
                memory=memory,
                progress=progress,
            )
        else:
            plan = Plan(num_chains, num_temperatures, leapfrog_steps, schedule, memory, progress)
            run = annealed if method == "ais" else bidirectional
            result = run(model, guide if start == "guide" else None, data, plan)
    return result if ranks is None or ranks.size == 1 else _gathered(result, ranks)


def _gathered(result: LogMarginal, ranks: Ranks) -> LogMarginal:
    """The results of all ranks as one, in the order of the data, up to the first that was interrupted."""
    device = result.log_prob.device
    parts = [part.to(device) for part in ranks.gather(result.to("cpu"))]
    stopped = next((i for i, part in enumerate(parts) if part.interrupted), len(parts) - 1)
    return dataclasses.replace(join(parts[: stopped + 1]), interrupted=parts[stopped].interrupted)


def _check_options(
    method: str,
    num_samples: int,
    target_error: float | None,
    max_samples: int,
    defensive: float,
    start: str,
    memory: int | None,
) -> None:
    """Refuse options out of their range, and those that the method would not look at."""
    if "harmonic" in method.lower():
        raise ValueError(
            f"method={method!r}: the harmonic mean of likelihoods under the posterior has infinite variance for almost "
            "every model (Neal's comment on Newton and Raftery 1994), so that its estimates are far too high however "
            "many samples there are: use 'ais', or 'bdmc' for a bound from above"
        )
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    if memory is not None and memory < 1:
        raise ValueError(f"memory must be a positive number of bytes, got {memory}")
    if target_error is not None:
        if not target_error > 0:
            raise ValueError(f"target_error must be a positive number of nats, got {target_error}")
        if method not in ("importance", "prior"):
            raise ValueError(f"target_error is for 'importance' and 'prior', not for {method!r}: use more chains there")
        if max_samples < num_samples:
            raise ValueError(f"max_samples must be at least num_samples, {num_samples}, got {max_samples}")
    if not 0 <= defensive < 1:
        raise ValueError(f"defensive must be in [0, 1), got {defensive}: for the prior alone use method='prior'")
    if defensive and method != "importance":
        raise ValueError(f"defensive is for 'importance', not for {method!r}")
    if start not in ("prior", "guide"):
        raise ValueError(f"start must be 'prior' or 'guide', got {start!r}")
    if start == "guide" and method not in ("ais", "bdmc"):
        raise ValueError(f"start='guide' is for 'ais' and 'bdmc', not for {method!r}")
