"""The marginal likelihood log p(x) of any pair, per datum."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, overload

import torch

from pyro_vae.distributed.ranks import Ranks
from pyro_vae.evaluate.deprecated import accepts_earlier_form
from pyro_vae.evaluate.guide_density import density_guide
from pyro_vae.evaluate.marginal.annealing import annealed
from pyro_vae.evaluate.marginal.brackets import BidirectionalBounds, bidirectional
from pyro_vae.evaluate.marginal.filtering import sequential
from pyro_vae.evaluate.marginal.importance_sampling import importance
from pyro_vae.evaluate.marginal.methods import BDMC, SMC, Importance, Method, option_hints, resolve_method
from pyro_vae.evaluate.marginal.result import LogMarginal, concatenate
from pyro_vae.pair.arguments import check_data, check_keywords, take
from pyro_vae.pair.networks import eval_mode, to_networks_device
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.together import asked_pair
from pyro_vae.support.arguments import checked
from pyro_vae.support.random import seeded

__all__ = ["LogMarginal", "log_marginal"]

NUM_SAMPLES = 5000


@overload
def log_marginal(
    model: Program, guide: Program | None, *args: Any, method: Literal["bdmc"] | BDMC, **options: Any
) -> BidirectionalBounds: ...


@overload
def log_marginal(
    model: Program, guide: Program | None, *args: Any, method: str | Method = ..., **options: Any
) -> LogMarginal: ...


@accepts_earlier_form
@checked
def log_marginal(
    model: Program,
    guide: Program | None,
    *args: Any,
    method: str | Method = "importance",
    num_samples: int | None = None,
    memory: int | None = None,
    seed: int | None = None,
    progress: bool | None = False,
    ranks: Ranks | None = None,
    **kwargs: Any,
) -> LogMarginal:
    r"""Estimate log p(x) of every datum.

    .. math:: \log \hat p(x) = \log \frac1K \sum_{k=1}^K w_k, \quad E[w_k] = p(x)

    Works for any pair. One with a site outside the plate over the data, such as a latent that all data share, has one
    number, log p(D) of all data together, in nats (`is_joint`); so has a guide that draws the latents of all data as
    one vector. A pair that takes its data in another form than rows of a first tensor (in a closure, along another
    axis, in a dictionary) has a number for each element of the plate that holds all of its sites. Discrete latents that
    the model enumerates in parallel, and the guide does not draw, are summed out exactly. Scales (a KL weight in the
    objective, subsampling) never enter, and neither does what the guide observes or adds by `pyro.factor`, which is no
    part of q(z|x). Networks are put in evaluation mode for the call. The methods differ in the weights; an object has
    options, a name stands for
    it with its defaults:

    - "importance", `pv.Importance(...)`: the guide as proposal, `w = p(x, z) / q(z|x)`; optionally mixed with samples
      from the prior, and with more samples until a target error is reached.
    - "prior", `pv.Importance(proposal="prior")`: the prior as proposal, `w = p(x|z)`.
    - "ais", `pv.AIS(...)`: annealed importance sampling, which does not need the guide; continuous latents only.
    - "bdmc", `pv.BDMC(...)`: bidirectional Monte Carlo, bounds from both sides, on data simulated from the model.
    - "smc", `pv.SMC(...)`: a particle filter, for time series with a latent for each time.

    Args:
        model, guide: The pair. The guide may be None where it is not used: "prior", and "ais" and "bdmc" from the
            prior.
        *args: The data `x` of shape `(N, ...)`, then whatever else the pair takes, also by keyword; tensors with N rows
            are per-datum.
        method: A name, or an object with the method's options.
        num_samples: Importance samples per datum, K, by default 5000. The annealed methods have `num_chains` instead,
            "smc" has `num_particles` and `num_runs`.
        memory: Approximate bytes for intermediate tensors. It sets how many data and samples run at once, which changes
            the order of the random draws but not the estimator.
        seed: A number makes the call reproducible and leaves torch's generators as they were. None continues their
            stream.
        progress: Show a bar: True, False, or None (in a terminal or a notebook).
        ranks: The processes that split the data, from `pv.launch`. Each makes this call with the same arguments,
            estimates a part of the data with different noise, and gets the whole result.

    Returns:
        A `LogMarginal`; for "bdmc" `BidirectionalBounds`, with an upper bound and the simulated data. After Ctrl-C the
        result holds the finished data, with a warning.

    Raises:
        ValueError: If the guide draws noise that nothing in the model balances, if latent sites differ between model
            and guide, if a weight is NaN or infinite, for discrete latents where Hamiltonian moves need continuous
            ones, or if an option is out of its range. There is no "harmonic" method.
        TypeError: For `num_samples` with an annealed method, or a keyword that neither this call nor the pair knows.

    Reference: see `pv.Importance`, `pv.AIS`, `pv.BDMC` and `pv.SMC`.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> from pyro_vae import AIS
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
        >>> result = log_marginal(model, None, x, method=AIS(num_temperatures=20), seed=0)
        >>> bool(((result.log_prob - exact).abs() < 4 * result.std_error).all())
        True
    """
    chosen = resolve_method(method)
    check_keywords(log_marginal, kwargs, model, guide, hints=option_hints(chosen))
    count = _check_options(chosen, guide, num_samples, memory)
    if ranks is not None and ranks.size > 1:
        if (n := check_data(args)) < ranks.size:
            raise ValueError(f"{n} data cannot be split among {ranks.size} processes: give more data, or no ranks")
        first, last, _ = ranks.rows(n)
        args, kwargs = take(args, kwargs, first, last)
        seed = ranks.broadcast(int(torch.randint(2**62, ())) if seed is None else seed) + ranks.rank
        progress = progress if ranks.is_main else False
    programs = [model] if guide is None else [model, guide]
    given = to_networks_device(args, *programs), kwargs
    options: dict[str, Any] = {"memory": memory, "progress": progress}
    result: LogMarginal
    with torch.no_grad(), eval_mode(*programs), seeded(seed):
        asked = asked_pair(model, guide, given)
        proposal = None if guide is None else density_guide(asked.model, asked.guide, asked.data)
        pair = asked.model, proposal, asked.data
        if isinstance(chosen, Importance):
            result = importance(*pair, chosen, num_samples=count, **options)
        elif isinstance(chosen, BDMC):
            if not asked.is_given:
                raise ValueError(
                    "bdmc simulates the data, which must be arguments with one row per datum: "
                    + (asked.joint or "these are of another form")
                )
            result = bidirectional(*pair, chosen, **options)
        elif isinstance(chosen, SMC):
            if proposal is None or not asked.is_given:
                reason = asked.joint or "these are of another form"
                raise ValueError(f"smc needs series as arguments, with one row per datum: {reason}")
            result = sequential(asked.model, proposal, asked.data, chosen, signature=model, **options)
        else:
            result = annealed(*pair, chosen, **options)
    result = dataclasses.replace(result, is_joint=bool(asked.joint))
    return result if ranks is None or ranks.size == 1 else _gather(result, ranks)


def _check_options(method: Method, guide: Program | None, num_samples: int | None, memory: int | None) -> int:
    """Check that the options suit the method; returns the number of importance samples."""
    if guide is None and method.needs_guide:
        raise ValueError(f"{method!r} needs a guide, got None: give one, or use method='prior' or 'ais'")
    if num_samples is not None and not isinstance(method, Importance):
        name = type(method).__name__
        what, option = ("particles", "num_particles") if isinstance(method, SMC) else ("chains", "num_chains")
        raise TypeError(
            f"num_samples={num_samples} is for importance sampling, and {name} has {what}: use "
            f"method=pv.{name}({option}=...)"
        )
    count = NUM_SAMPLES if num_samples is None else num_samples
    if count < 1:
        raise ValueError(f"num_samples must be at least 1, got {count}")
    if memory is not None and memory < 1:
        raise ValueError(f"memory must be a positive number of bytes, got {memory}")
    if isinstance(method, Importance) and method.target_error is not None and method.max_samples < count:
        raise ValueError(f"max_samples must be at least num_samples, {count}, got {method.max_samples}")
    return count


def _gather(result: LogMarginal, ranks: Ranks) -> LogMarginal:
    """The joined results of all ranks in the order of the data, up to the first that was interrupted."""
    device = result.log_prob.device
    parts = [part.to(device) for part in ranks.gather(result.to("cpu"))]
    stopped = next((i for i, part in enumerate(parts) if part.interrupted), len(parts) - 1)
    return dataclasses.replace(concatenate(parts[: stopped + 1]), interrupted=parts[stopped].interrupted)
