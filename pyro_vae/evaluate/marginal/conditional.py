"""The conditional likelihood log p(a|b): the difference of two marginal likelihoods of one pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from rich.console import Group
from rich.text import Text
from torch import Tensor

from pyro_vae.evaluate.marginal.likelihood import log_marginal
from pyro_vae.evaluate.marginal.methods import BDMC, Method
from pyro_vae.evaluate.marginal.result import LogMarginal
from pyro_vae.pair.arguments import check_keywords
from pyro_vae.pair.masks import kept_elements
from pyro_vae.pair.networks import eval_mode, to_networks_device
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.tracing import Site, sample_sites
from pyro_vae.support.arguments import checked
from pyro_vae.support.pictures import histogram
from pyro_vae.support.random import fork_rng, seeded
from pyro_vae.support.results import PanelResult
from pyro_vae.support.statistics import standard_error
from pyro_vae.support.tables import indexed_rows, new_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LogConditional", "log_conditional"]


@dataclass(frozen=True, repr=False)
class LogConditional(PanelResult):
    """Per-datum estimates of log p(all|given) in nats.

    Attributes:
        joint: The estimates of log p of all that the data have.
        given: The estimates of log p of what is given.
        is_discrete: Whether all that is not given is discrete. Then each is the logarithm of a probability, at most 0.
    """

    title: ClassVar[str] = "log p(all | given)"
    _rows_name: ClassVar[str] = "data"
    _columns: ClassVar[tuple[str, ...]] = ("index", "log_prob", "std_error", "joint", "given")

    joint: LogMarginal
    given: LogMarginal
    is_discrete: bool = False

    @property
    def log_prob(self) -> Tensor:
        """The difference of the two, `(N,)`. Each is too low on average, so the error has no known sign."""
        return self.joint.log_prob - self.given.log_prob

    @property
    def std_error(self) -> Tensor:
        """Monte Carlo standard error of `log_prob`, `(N,)`, from two independent estimates."""
        return (self.joint.std_error.square() + self.given.std_error.square()).sqrt()

    @property
    def mean(self) -> float:
        """Mean of `log_prob` over the data, nats per datum."""
        return float(self.log_prob.double().mean())

    @property
    def mean_error(self) -> float:
        """Monte Carlo standard error of `mean` for these data, which more samples reduce."""
        return float(self.std_error.double().square().sum().sqrt() / len(self))

    @property
    def sampling_error(self) -> float:
        """Standard error of `mean` as an estimate for the population, which more data reduce."""
        return standard_error(self.log_prob)

    @property
    def impossible(self) -> Tensor:
        """Indices of the data whose `log_prob` is above 0 by more than its error, where what is not given is discrete.

        No log-probability is above 0, so log p(given) is estimated too low there, by more than its error says.
        """
        rounding = torch.finfo(self.log_prob.dtype).eps ** 0.5
        return (self.is_discrete & (self.log_prob > self.std_error + rounding)).nonzero().squeeze(-1)

    @property
    def caveats(self) -> list[str]:
        """What to know of `mean` beside its error: first what is impossible, then of the two estimates."""
        parts = {"all": self.joint, "given": self.given}
        notes = [f"{name}: {caveat}" for name, found in parts.items() for caveat in found.caveats]
        if not len(self.impossible):
            return notes
        wrong = (
            f"{len(self.impossible)} of {len(self)} estimates are above 0 by more than their error, which no "
            "log-probability can be: log p(given) is too low there, by more than its error says, and "
            f"{'the mean is above 0 itself' if self.mean > 0 else 'the mean is too high'}; take more samples, another "
            "method, or a guide that is trained on what is given alone"
        )
        return [wrong, *notes]

    def __len__(self) -> int:
        return len(self.joint)

    def _values(self) -> dict[str, Any]:
        return {
            "log_prob": self.mean,
            "log_prob_error": self.mean_error,
            "log_prob_sampling_error": self.sampling_error,
            "joint": self.joint.mean,
            "given": self.given.mean,
            "num_impossible": len(self.impossible),
            "num_data": len(self),
        }

    def _rows(self) -> list[dict[str, Any]]:
        columns = {"log_prob": self.log_prob, "std_error": self.std_error}
        return indexed_rows({**columns, "joint": self.joint.log_prob, "given": self.given.log_prob})

    def table(self) -> Group:
        """The three means, in nats per datum, with their Monte Carlo errors."""
        table = new_table(f"nats per datum, {len(self)} data", "", "")
        table.add_row("log p(all | given)", f"{self.mean:.3f} ± {self.mean_error:.3f}")
        table.add_row("log p(all)", f"{self.joint.mean:.3f} ± {self.joint.mean_error:.3f}")
        table.add_row("log p(given)", f"{self.given.mean:.3f} ± {self.given.mean_error:.3f}")
        return Group(table, *map(Text, self.caveats))

    def _size(self) -> tuple[float, float]:
        return 5, 3.6

    def _panel(self, ax: Axes) -> None:
        histogram(ax, self.log_prob, "log p(all | given) (nats)")


@checked
def log_conditional(
    model: Program,
    guide: Program,
    *args: Any,
    given: Sequence[Any] | None = None,
    method: str | Method = "importance",
    num_samples: int | None = None,
    memory: int | None = None,
    seed: int | None = None,
    progress: bool | None = False,
    **kwargs: Any,
) -> LogConditional:
    r"""Estimate log p(x_2|x_1) of every datum, for a pair that can be asked for log p(x_1) as well.

    .. math:: \log p(x_2 \mid x_1) = \log p(x_1, x_2) - \log p(x_1)

    Two calls of `log_marginal`, with all data and with those that are given. Each is too low on average, the more so
    the worse the guide is, so the difference may be too high. Where x_2 is discrete, a result above 0 by more than its
    error is impossible: those data are `impossible` of the result, and printed it says so.

    Args:
        model, guide: The pair.
        *args, **kwargs: All data, `x_1` and `x_2`, as the pair takes them.
        given: The pair's arguments with `x_1` alone, for the same N data: `vae.arguments(x_1, None)` of a
            `MultimodalVAE`, or `(x, mask)` of a pair by `pv.elbo.with_missing`.
        method, num_samples, memory, progress: As in `log_marginal`, without "bdmc", which simulates other data.
        seed: A number makes the call reproducible and leaves torch's generators as they were. None continues their
            stream.

    Raises:
        ValueError: If nothing is given, for "bdmc", if the data differ in number, if a given value is none of the data,
            and as in `log_marginal`.
        TypeError: For a keyword that neither this call nor the pair knows.

    Example:
        >>> import pyro_vae as pv, torch
        >>> vae = pv.models.MultimodalVAE(4, others=[3], latent_dim=2, hidden=(8,))
        >>> x, y = torch.ones(5, 4), torch.tensor([0, 1, 2, 0, 1])
        >>> found = log_conditional(vae.model, vae.guide, x, y, given=vae.arguments(x, None), num_samples=50)
        >>> len(found)
        5
    """
    check_keywords(log_conditional, kwargs, model, guide)
    if isinstance(method, BDMC) or method == "bdmc":
        raise ValueError("bdmc simulates data of its own, so it says nothing of these: use another method")
    if isinstance(given, Tensor):
        raise TypeError("given is a tensor: give the pair's arguments, a tuple, for example (x_1,)")
    if not given:
        raise ValueError(
            "given is empty: give the pair's arguments with x_1 alone, for example vae.arguments(x_1, None)"
        )
    options: dict[str, Any] = {"method": method, "num_samples": num_samples, "memory": memory, "progress": progress}
    with seeded(seed):
        joint = log_marginal(model, guide, *args, **options, **kwargs)
        marginal = log_marginal(model, guide, *given, **options, **kwargs)
    if len(joint) != len(marginal):
        raise ValueError(f"given has {len(marginal)} data, but there are {len(joint)}: give the same data in both")
    with torch.no_grad(), eval_mode(model, guide):
        sites = [_observed(model, guide, (to_networks_device(tuple(a), model, guide), kwargs)) for a in (args, given)]
    return LogConditional(joint, marginal, _is_rest_discrete(*sites))


def _observed(model: Program, guide: Program, data: Data) -> dict[str, Site]:
    """What the model observes in some data, with noise that is the same in each call."""
    with fork_rng(0):
        trace = traced(model, *data, on=traced(guide, *data))
    return {name: site for name, site in sample_sites(trace) if site["is_observed"]}


def _is_rest_discrete(everything: dict[str, Site], given: dict[str, Site]) -> bool:
    """Whether all elements that are observed and not given are discrete.

    Raises:
        ValueError: If an element is given that is not observed, or with another value.
    """
    is_discrete = True
    for name in {**everything, **given}:
        site, part = everything.get(name), given.get(name)
        keep, known = (torch.zeros(()).bool() if each is None else kept_elements(each) for each in (site, part))
        if site is not None and part is not None and keep.shape != known.shape:  # the beginning of a series
            known = torch.zeros_like(keep)
        differs = known & ~keep
        if site is not None and part is not None and part["value"].shape == site["value"].shape:
            differs = differs | (known & ~torch.isclose(part["value"], site["value"], equal_nan=True))
        if bool(differs.any()):
            raise ValueError(
                f"given has other values at the observed site {name!r} than the data, or values that the data lack, so "
                "the difference is no log p(x_2|x_1): give a part of the same data"
            )
        if site is not None and bool((keep & ~known).any()):
            is_discrete &= bool(getattr(site["fn"].support, "is_discrete", False))
    return is_discrete
