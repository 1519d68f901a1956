"""Two trained pairs on the same data: paired differences of log p(x) and of the ELBO."""

from __future__ import annotations

from typing import Any

import torch

from pyro_vae.evaluate.bounds import bound
from pyro_vae.evaluate.estimators.models_result import ModelComparison
from pyro_vae.evaluate.marginal.likelihood import log_marginal
from pyro_vae.evaluate.marginal.methods import Method
from pyro_vae.pair.networks import eval_mode, to_networks_device
from pyro_vae.pair.planning import run_on_examples
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.together import asked_pair
from pyro_vae.pair.tracing import sample_sites, trace_pair
from pyro_vae.support.arguments import checked
from pyro_vae.support.random import fork_rng, seed_or_draw

__all__ = ["compare_models"]

BOUND_SAMPLES = 100  # draws from the guide for the ELBO


@checked
def compare_models(
    first: Any,
    second: Any,
    *args: Any,
    names: tuple[str, str] = ("first", "second"),
    method: str | Method = "importance",
    num_samples: int | None = None,
    memory: int | None = None,
    seed: int | None = None,
    progress: bool | None = False,
    **kwargs: Any,
) -> ModelComparison:
    r"""Compare two pairs by log p(x) and by the ELBO, paired by datum.

    .. math:: d_n = \log \hat p_2(x_n) - \log \hat p_1(x_n)

    The data differ from each other by far more than two models do on one of them, so the mean of the differences has a
    smaller error than the difference of the means says. Each datum's difference has a Monte Carlo error of its own,
    `sqrt(e_1^2 + e_2^2)`, from independent noise. Both estimates are below log p(x) on average; the difference is
    biased by how much more one of them is. So read the caveats that are printed, and take more samples where there are
    some.

    Args:
        first, second: Each a pair `(model, guide)`, or an object with methods `model` and `guide`. The guide may be
            None for the methods of `log_marginal` that need none; then there is no ELBO.
        *args, **kwargs: The data, `(N, ...)`, the same for both, then whatever else both pairs take.
        names: What to call the two.
        method, num_samples, memory, progress: As for `pv.log_marginal`; a method that gives one estimate per datum.
        seed: A number makes the call reproducible, None continues torch's stream. The two have different noise.

    Raises:
        TypeError: For a pair in another form, or a keyword that a pair does not know.
        ValueError: If one of them observes discrete values and the other continuous ones, whose log-densities cannot be
            compared; if one has a number per datum and the other one of all data together; for "bdmc", which draws data
            of its own; and whatever `log_marginal` refuses.

    Example:
        >>> from pyro_vae.oracles import LinearGaussian
        >>> a, b = LinearGaussian(seed=3), LinearGaussian(seed=4)
        >>> x = a.simulate(50)
        >>> compare_models(a, b, x, num_samples=500, seed=0).mean < 0
        True
    """
    pairs = [_pair(pair, which) for pair, which in ((first, "first"), (second, "second"))]
    if len(names) != 2 or not all(isinstance(name, str) for name in names):
        raise TypeError(f"names must be two texts, got {names!r}")
    generator = torch.Generator().manual_seed(seed_or_draw(seed))
    seeds = torch.randint(2**31, (2, 2), generator=generator).tolist()
    kinds = [_is_discrete(model, guide, (args, kwargs)) for model, guide in pairs]
    if kinds[0] != kinds[1]:
        words = ["discrete" if kind else "continuous" for kind in kinds]
        raise ValueError(
            f"the first pair observes {words[0]} values and the second {words[1]} ones: probabilities and densities "
            "cannot be compared. Use likelihoods of one kind for both"
        )
    options: dict[str, Any] = {"method": method, "num_samples": num_samples, "memory": memory, "progress": progress}
    marginals, elbos = [], []
    for (model, guide), (of_marginal, of_bound) in zip(pairs, seeds, strict=True):
        found = log_marginal(model, guide, *args, **options, seed=of_marginal, **kwargs)
        if hasattr(found, "upper"):
            raise ValueError("'bdmc' draws data from each model, so that the two have none in common: use 'ais'")
        marginals.append(found)
        of_guide: dict[str, Any] = {"num_samples": BOUND_SAMPLES, "memory": memory, "seed": of_bound, **kwargs}
        elbos.append(None if guide is None else bound(model, guide, *args, **of_guide))
    if marginals[0].is_joint != marginals[1].is_joint or len(marginals[0]) != len(marginals[1]):
        raise ValueError(
            "one of the pairs has a number for each datum and the other one of all data together, or of other plates: "
            "see log_marginal of each"
        )
    return ModelComparison(tuple(names), (marginals[0], marginals[1]), (elbos[0], elbos[1]))


def _pair(pair: Any, which: str) -> tuple[Program, Program | None]:
    if (
        isinstance(pair, tuple | list)
        and len(pair) == 2
        and callable(pair[0])
        and (pair[1] is None or callable(pair[1]))
    ):
        return pair[0], pair[1]
    if callable(getattr(pair, "model", None)) and callable(getattr(pair, "guide", None)):
        return pair.model, pair.guide
    raise TypeError(
        f"the {which} pair must be (model, guide), two functions, or an object with methods model and guide, got "
        f"{type(pair).__name__}"
    )


def _is_discrete(model: Program, guide: Program | None, data: Data) -> bool:
    """Whether all that the pair observes is discrete."""
    args = to_networks_device(data[0], model)
    with eval_mode(model, *([guide] if guide is not None else [])), torch.no_grad(), fork_rng():
        asked = asked_pair(model, guide, (args, data[1]))
        traces, _, _ = run_on_examples(lambda some: trace_pair(asked.model, asked.guide, *some), asked.data)
    observed = [site["fn"] for _, site in sample_sites(traces.model) if site["is_observed"]]
    return all(bool(getattr(fn.support, "is_discrete", False)) for fn in observed)
