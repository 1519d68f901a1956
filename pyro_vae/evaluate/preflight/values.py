"""The checks of preflight on values: parameters of distributions, supports, and data on an unusual scale."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints

from pyro_vae.evaluate.preflight.probe import Run, Site, base_distribution, family, wrapped_distributions
from pyro_vae.pair.bijections import base_constraint
from pyro_vae.pair.tracing import sample_sites

__all__ = [
    "PYROS",
    "check_distributions",
    "check_parameters",
    "check_scales",
    "check_support",
    "describe_violation",
    "looks_like_bytes",
    "no_distribution",
    "violations",
]

PYROS = "{0} is a distribution of torch.distributions: take Pyro's, `pyro.distributions.{0}(...)`"
MANY = 50  # values that say something about where values come from
FINE = 3.0  # a scale from which on whole numbers are as good as continuous ones
RESHAPING = ("View", "Reshape", "Expand", "Unsqueeze", "Squeeze", "Slice", "Split", "Select", "Transpose", "Permute")
AFFINE = (*RESHAPING, "Add", "Sub", "Mul", "Div", "Rsub", "Clone", "ToCopy", "Alias", "TBackward", "UnsafeView")
BOUNDING = ("Sigmoid", "Tanh", "Clamp", "Hardtanh", "Hardsigmoid", "ClampMin", "ClampMax")

# what to do where values are outside a support, by the distribution
ADVICE = {
    "Multinomial": "each row must hold counts that add up to total_count: give `total_count=int(x.sum(-1)[0])` if all "
    "rows have one total, else `total_count=int(x.sum(-1).max()), validate_args=False`",
    "Binomial": "they must be whole numbers from 0 to total_count: raise `total_count`, or give that of each datum",
    "Categorical": "they must be indices from 0 to K - 1 of the K classes: renumber them, or give more classes",
    "OneHotCategorical": "write `torch.nn.functional.one_hot(y, K).float()`",
    "Dirichlet": "each row must be positive and add up to 1: `x / x.sum(-1, keepdim=True)`",
    "Poisson": "they must be whole numbers from 0: `x.round()`, or use a continuous likelihood, for example "
    "`dist.Gamma(...)` or `dist.Normal(...)`",
}
COUNTS = (
    "NegativeBinomial",
    "MeanNegativeBinomial",
    "GammaPoisson",
    "Geometric",
    "ZeroInflatedPoisson",
    "ZeroInflated",
)
ADVICE |= dict.fromkeys((*COUNTS, "AnyTotalMultinomial"), ADVICE["Poisson"])


def check_distributions(run: Run) -> None:
    """Check for sites without a distribution of Pyro, which draws nothing where a site is observed."""
    for where, trace in (("guide", run.guide), ("model", run.model)):
        for name, site in sample_sites(trace):
            if text := no_distribution(site["fn"]):
                run.error("no_distribution", name, f"the {where}'s site {name!r}: {text}")


def no_distribution(fn: Any) -> str:
    """What is wrong with the second argument of `pyro.sample`; empty if it is a distribution of Pyro."""
    if isinstance(fn, type):
        return f"`pyro.sample` got the class {fn.__name__}: give it an object, `dist.{fn.__name__}(...)`"
    if isinstance(fn, td.Distribution):
        return "" if isinstance(fn, TorchDistributionMixin) else PYROS.format(type(fn).__name__)
    if hasattr(fn, "log_prob"):
        return ""
    return f"`pyro.sample` got a {type(fn).__name__}: give it a distribution, for example `dist.Normal(loc, scale)`"


def check_parameters(run: Run) -> None:
    """Check for parameters of a distribution that it does not allow, whether or not it validates its arguments."""
    for where, name, site in run.sites():
        if name in run.faulty:
            continue
        for fn, key, value, constraint in constrained_parameters(site["fn"]):
            bad = violations(constraint, value)
            # infinite values are told with the densities
            if bad is None or not bool(bad.any()) or bool(value.isinf().any()) or is_masked(site, fn):
                continue
            text = f"the {where}'s site {name!r}: {describe_violation(type(fn).__name__, key, value, bad, constraint)}"
            run.error("invalid_parameter", name, text)
            break


def constrained_parameters(fn: Any) -> Iterator[tuple[Any, str, Tensor, Any]]:
    """The tensors that parameterize a distribution, and those inside it, with their constraints."""
    for key, value in vars(fn).items():
        if isinstance(value, td.Distribution):
            yield from constrained_parameters(value)
        elif isinstance(value, Tensor) and value.numel() and key in fn.arg_constraints:
            constraint = fn.arg_constraints[key]
            if not constraints.is_dependent(constraint):
                yield fn, key, value, constraint


def violations(constraint: Any, value: Tensor) -> Tensor | None:
    """Which values, or events of them, a constraint does not allow; NaN is another fault."""
    try:
        bad = ~constraint.check(value.detach())
    except (NotImplementedError, RuntimeError, ValueError, TypeError):
        return None
    if value.is_floating_point():
        nan = value.isnan()
        bad &= ~(nan.flatten(-constraint.event_dim).any(-1) if constraint.event_dim else nan)
    return bad


def is_masked(site: Site, fn: Any) -> bool:
    """Whether a part of a site is masked whose distribution is told not to validate: what is masked may be anything."""
    masked = site["mask"] is not None or any(hasattr(level, "_mask") for level in wrapped_distributions(site["fn"]))
    return masked and vars(fn).get("_validate_args") is False


def describe_violation(kind: str, key: str, value: Tensor, bad: Tensor, constraint: Any) -> str:
    """What is wrong with a parameter, in how many values, and the code that mends it."""
    count, span = f"{int(bad.sum())} of {bad.numel()}", f"from {value.min():.3g} to {value.max():.3g}"
    base = base_constraint(constraint)
    low = getattr(base, "lower_bound", None)
    if base is constraints.unit_interval or base is constraints.simplex or key == "probs":
        what = "lie outside [0, 1]" if base is constraints.unit_interval else "are no probabilities"
        return (
            f"the {key} of its {kind} {what} in {count} ({span}): if they are outputs of a network, they are logits, "
            f"`dist.{kind}(logits=...)`; else map them with `torch.sigmoid` or `torch.softmax`"
        )
    if isinstance(low, int | float) and low == 0 and not hasattr(base, "upper_bound"):
        if bool((value[bad] == 0).all()):
            fix = f"bound it from below, `{key}=log_{key}.clamp(min=-10).exp()`"
            return f"the {key} of its {kind} is exactly 0 in {count} ({span}), and must be above 0: {fix}"
        what = "negative" if bool((value[bad] < 0).all()) else "not above 0"
        return (
            f"the {key} of its {kind} is {what} in {count} ({span}): make the output of a network positive, "
            f"`{key}=log_{key}.exp()` or `{key}=torch.nn.functional.softplus(h)`, and a parameter with "
            "`pyro.param(name, value, constraint=dist.constraints.positive)`"
        )
    if "cholesky" in type(base).__name__.lower() or "definite" in type(base).__name__.lower():
        fix = "`scale_tril=` with a positive diagonal, from `torch.distributions.transform_to(constraints."
        return f"the {key} of its {kind} is not {base} in {count}: give {fix}lower_cholesky)(h)`"
    return (
        f"the {key} of its {kind} is not in {base} in {count} ({span}): map it there, "
        f"`torch.distributions.transform_to(dist.{kind}.arg_constraints[{key!r}])(h)`"
    )


def check_support(run: Run) -> None:
    """Check for observed values and draws of the guide outside the support of the model's distribution."""
    for where, name, site in run.sites():
        if name in run.faulty or (where == "guide" and not site["is_observed"]):
            continue
        value = torch.as_tensor(site["value"])
        try:
            support, bad = outside_support(site, value)
        except (NotImplementedError, RuntimeError, ValueError, TypeError):  # the support is not implemented
            continue
        finite = value[value.isfinite()]
        if not bool(bad.any()) or not len(finite):
            continue
        count = f"{int(bad.sum())} of {bad.numel()} values (all from {finite.min():.4g} to {finite.max():.4g})"
        which = "observed at site" if site["is_observed"] else "that the guide draws for site"
        text = f"{count} {which} {name!r} lie outside the support of the model's {family(site)}, {support}: "
        if not site["is_observed"]:
            text += f"use a guide with that support, for example `dist.{family(site)}(...)`"
        elif support is constraints.boolean:
            text += "divide them by their maximum, then " if finite.max() > 1 else ""
            text += "binarize them, `pv.data.load(name, binarize='dynamic')`, or use a likelihood for values in "
            text += "[0, 1], `likelihood='continuous_bernoulli'` or `pv.conditionals.ContinuousBernoulli(D)(logits)`"
        elif support is constraints.positive and finite.min() == 0:
            text += "it leaves out 0: shift or drop the zeros, or use a likelihood that has them, for example "
            text += "`dist.ZeroInflatedDistribution`, or `dist.Poisson(...)` for counts"
        else:
            general = "map the data into it, or use a likelihood for their range, for example `dist.Normal(...)`"
            text += ADVICE.get(family(site), general)
        run.error("support", name, text)


def outside_support(site: Site, value: Tensor) -> tuple[Any, Tensor]:
    """The support of a site, and a mask of the values outside it.

    The support is that of single elements where the elements are independent. NaN and masked values count as inside.
    """
    fn = site["fn"] if site["mask"] is None else site["fn"].mask(site["mask"])
    support = base_constraint(fn.support)
    bad = ~support.check(value)
    for level in wrapped_distributions(fn):
        mask = getattr(level, "_mask", None)
        if isinstance(mask, Tensor):
            bad = bad & mask.reshape(mask.shape + (1,) * (level.event_dim - support.event_dim))
        elif mask is False:
            bad = torch.zeros_like(bad)
    nan = value.isnan()
    return support, bad & ~(nan.flatten(-support.event_dim).any(-1) if support.event_dim else nan)


def check_scales(run: Run) -> None:
    """Warn of observations that look like bytes or counts under a density, and of probabilities given as logits."""
    for where, name, site in run.sites():
        if name in run.faulty:
            continue
        if family(site) == "Unit":
            check_factor(run, where, name, site)
        elif site["is_observed"] and is_real(site):
            check_observed_numbers(run, where, name, site)
        logits = given_logits(site)
        if logits is not None and looks_like_probabilities(logits):
            text = f"the {where}'s site {name!r}: all logits of its {family(site)} lie in [0, 1] or are the output of "
            text += f"a sigmoid or softmax: if they are probabilities, write `dist.{family(site)}(probs=...)`, or take "
            run.warn("probs_as_logits", name, f"{text}the sigmoid or softmax off")


def check_factor(run: Run, where: str, name: str, site: Site) -> None:
    """Warn of one number that a plate counts many times."""
    factor = base_distribution(site).log_factor
    if factor.numel() > 1 and not any(factor.stride()):
        plates = " and ".join(repr(frame.name) for frame in site["cond_indep_stack"])
        text = (
            f"`pyro.factor({name!r}, ...)` in the {where} adds one number, which the plates around it, {plates}, count "
        )
        run.warn(
            "repeated_factor", name, f"{text}{factor.numel()} times: put it outside of them, or add one for each datum"
        )


def is_real(site: Site) -> bool:
    """Whether a site has a density on all real numbers."""
    try:
        support = base_distribution(site).support
    except (NotImplementedError, AttributeError):
        return False
    return base_constraint(support) is constraints.real


def check_observed_numbers(run: Run, where: str, name: str, site: Site) -> None:
    """Warn of observations at a site with a density that look like bytes or counts."""
    value = torch.as_tensor(site["value"]).detach()
    value = value[value.isfinite()]
    if value.numel() < MANY:
        return
    observed, low, high = f"observed at the {where}'s site {name!r}", float(value.min()), float(value.max())
    whole = bool((value == value.round()).all())
    scale = smallest_scale(site)
    if looks_like_bytes(value) and scale < 10:
        text = f"the {value.numel()} values {observed} go from {low:.4g} to {high:.4g}, as the bytes of images do, and "
        text += f"the scale of its {family(site)} is {scale:.3g} at the start: divide them, `x / 255`"
        run.warn("bytes_as_real", name, text)
    elif whole and low >= 0 and high > 1 and scale < FINE:
        text = f"all {value.numel()} values {observed} are whole numbers from {low:.4g} to {high:.4g}, under the "
        text += f"density of a {family(site)}, which has no bound there: if they are counts, use `dist.Poisson(...)` "
        text += "or `dist.NegativeBinomial(...)`; if they are levels, scale them, and add uniform noise"
        run.warn("whole_numbers", name, text)


def looks_like_bytes(value: Tensor) -> bool:
    """Whether values have the range of bytes, and are too many to have it by chance."""
    return value.numel() >= MANY and 0 <= float(value.min()) <= 16 and 128 < float(value.max()) <= 255


def smallest_scale(site: Site) -> float:
    """The smallest scale of a site's distribution, 1 if it has none of that name."""
    scale = getattr(base_distribution(site), "scale", None)
    return float(scale.detach().min()) if isinstance(scale, Tensor) and scale.numel() else 1.0


def given_logits(site: Site) -> Tensor | None:
    """The logits that a discrete distribution was made from, None if it was made from probabilities."""
    fn = vars(base_distribution(site))
    inner = vars(fn["_categorical"]) if "_categorical" in fn else fn
    logits = inner.get("logits")
    # Categorical computes logits from probabilities when it is asked for them
    return logits if isinstance(logits, Tensor) and "probs" not in inner else None


def looks_like_probabilities(logits: Tensor) -> bool:
    """Whether logits come out of a sigmoid or the like, or are many, computed, and fill [0, 1]."""
    if logits.grad_fn is None:
        return False
    values = logits.detach()
    low, high = float(values.min()), float(values.max())
    operation = last_operation(logits.grad_fn)
    if operation == "Softmax":  # shifted where classes are normalized
        return high - low <= 1
    if low < 0 or high > 1:
        return False
    fills = low < 0.1 and high > 0.9 and values.unique().numel() >= MANY and not is_reshaped_leaf(logits.grad_fn)
    return operation in BOUNDING or fills


def last_operation(node: Any) -> str:
    """The last operation in an autograd graph that is more than reshaping, shifting and scaling."""
    while node is not None:
        kind = node.name().partition("Backward")[0]
        if not kind.startswith(AFFINE) or not node.next_functions:
            return kind
        node = next((following for following, _ in node.next_functions if following is not None), None)
    return ""


def is_reshaped_leaf(node: Any) -> bool:
    """Whether a tensor is a parameter, expanded or indexed."""
    while node is not None and node.next_functions:
        if not node.name().startswith((*RESHAPING, "Index", "Clone")):
            return False
        node = node.next_functions[0][0]
    return True
