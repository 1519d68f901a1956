"""The conditional likelihood log p(a|b): the difference of two marginal likelihoods of one pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import Group
from rich.text import Text
from torch import Tensor

from pyro_vae.evaluate.marginal.likelihood import log_marginal
from pyro_vae.evaluate.marginal.methods import Method
from pyro_vae.evaluate.marginal.result import LogMarginal
from pyro_vae.pair.arguments import check_keywords
from pyro_vae.pair.protocol import Program
from pyro_vae.support.arguments import checked
from pyro_vae.support.pictures import histogram
from pyro_vae.support.random import seeded
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
    """

    title: ClassVar[str] = "log p(all | given)"
    _rows_name: ClassVar[str] = "data"
    _columns: ClassVar[tuple[str, ...]] = ("index", "log_prob", "std_error", "joint", "given")

    joint: LogMarginal
    given: LogMarginal

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
    def caveats(self) -> list[str]:
        """What to know of the two estimates beside their errors."""
        parts = {"all": self.joint, "given": self.given}
        return [f"{name}: {caveat}" for name, found in parts.items() for caveat in found.caveats]

    def __len__(self) -> int:
        return len(self.joint)

    def _values(self) -> dict[str, Any]:
        return {
            "log_prob": self.mean,
            "log_prob_error": self.mean_error,
            "log_prob_sampling_error": self.sampling_error,
            "joint": self.joint.mean,
            "given": self.given.mean,
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

    Two calls of `log_marginal`, with all data and with those that are given.

    Args:
        model, guide: The pair.
        *args, **kwargs: All data, `x_1` and `x_2`, as the pair takes them.
        given: The pair's arguments with `x_1` alone, for the same N data: `vae.arguments(x_1, None)` of a
            `MultimodalVAE`, or `(x, mask)` of a pair by `pv.elbo.with_missing`.
        method, num_samples, memory, progress: As in `log_marginal`.
        seed: A number makes the call reproducible and leaves torch's generators as they were. None continues their
            stream.

    Raises:
        ValueError: If nothing is given or the data differ in number, and as in `log_marginal`.
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
    return LogConditional(joint, marginal)
