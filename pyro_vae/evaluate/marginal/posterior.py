"""Samples from the true posterior of single data, by Markov chain Monte Carlo."""

from __future__ import annotations

from typing import Any

import torch
from pyro.infer import HMC, MCMC, NUTS
from torch import Tensor

from pyro_vae.evaluate.marginal.latent_space import LatentSpace
from pyro_vae.evaluate.marginal.proposals import prior_traces
from pyro_vae.pair.arguments import check_data, check_keywords, take
from pyro_vae.pair.elimination import without_enumerated
from pyro_vae.pair.forms import in_rows
from pyro_vae.pair.masks import check_no_mask
from pyro_vae.pair.networks import eval_mode, to_networks_device
from pyro_vae.pair.plates import data_plate
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.running import Running
from pyro_vae.pair.scale import Unscaled
from pyro_vae.pair.subsampling import on_all_data
from pyro_vae.pair.tracing import sample_sites
from pyro_vae.support.arguments import checked_from
from pyro_vae.support.progress import progress_bar
from pyro_vae.support.random import fork_rng, seeded

__all__ = ["posterior_samples"]


@checked_from(warmup_steps=0)
def posterior_samples(
    model: Program,
    *args: Any,
    num_samples: int = 1000,
    warmup_steps: int | None = None,
    kernel: str = "nuts",
    seed: int | None = None,
    progress: bool | None = False,
    **kwargs: Any,
) -> dict[str, Tensor]:
    """Samples from p(z|x) of each datum, for a few data: ground truth for guides and estimators.

    Runs one chain of Pyro's MCMC per datum, one after another, which takes seconds to minutes each. Networks are put in
    evaluation mode, and scales are ignored.

    Args:
        model: The model.
        *args: The data `x` of shape `(N, ...)`, then whatever else the model takes, also by keyword; tensors with N
            rows are per-datum. Data along another axis, in containers or in packed sequences are found by the plates of
            the model.
        num_samples: Samples per datum, S. They are correlated: see `pyro.ops.stats.effective_sample_size`.
        warmup_steps: Moves that adapt the step size and the mass matrix; by default `num_samples`.
        kernel: "nuts", or "hmc" with trajectories of length 1.
        seed: A number makes the call reproducible and leaves torch's generators as they were. None continues their
            stream.
        progress: Show a bar.

    Returns:
        The samples by latent site: S, then the shape of the site in the model, so `(S, N, ...)` for a single plate over
        the data.

    Raises:
        ValueError: For a discrete latent site, one that is masked for some data, an unknown kernel, or fewer than one
            sample.

    Reference: Hoffman and Gelman 2014, arXiv 1111.4246.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> posterior_samples(model, torch.tensor([0.0, 1.0]), num_samples=20, seed=0)["z"].shape
        torch.Size([20, 2])
    """
    check_keywords(posterior_samples, kwargs, model)
    if kernel not in ("nuts", "hmc"):
        raise ValueError(f"kernel must be 'nuts' or 'hmc', got {kernel!r}")
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    args = to_networks_device(args, model)
    found: dict[str, list[Tensor]] = {}
    axes: dict[str, int] = {}
    with eval_mode(model), seeded(seed):
        with torch.no_grad(), fork_rng():
            model, _, (args, kwargs), _ = in_rows(model, None, (args, kwargs))
            n = check_data(args)
            whole = on_all_data(model, weighed=False)
            first = take(args, kwargs, 0, 1)
            try:
                model = without_enumerated(whole, None, first)
                LatentSpace(model, None, first, 1)  # refuses what has no continuous posterior per datum
            except (IndexError, RuntimeError) as error:
                raise ValueError(
                    f"the model cannot be run on one datum alone, as a chain for each of them does ({error}): write "
                    "its plate over the data that come, `with pyro.plate('data', len(x)):`"
                ) from error
            for name, site in sample_sites(prior_traces(model, (args, kwargs), None, 0).guide):
                check_no_mask(name, site)
            traces = prior_traces(model, first, None, 0)
            plate = data_plate(traces, 1)
            for name, site in sample_sites(traces.guide):
                axes[name] = plate.dim - site["fn"].event_dim
        density = Running()(Unscaled()(model))
        with progress_bar("posterior", n, progress) as advance:
            for i in range(n):
                rows, named = take(args, kwargs, i, i + 1)
                scheme = NUTS(density) if kernel == "nuts" else HMC(density, trajectory_length=1.0)
                chain = MCMC(scheme, num_samples=num_samples, warmup_steps=warmup_steps, disable_progbar=True)
                chain.run(*rows, **named)
                for name, value in chain.get_samples().items():
                    found.setdefault(name, []).append(value)
                advance()
    return {name: torch.cat(values, dim=axes[name]) for name, values in found.items()}
