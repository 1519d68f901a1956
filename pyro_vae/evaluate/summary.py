"""The main metrics of a trained pair on one data set, in one small table."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from rich.markup import escape
from rich.table import Table

from pyro_vae.distributed.ranks import Ranks
from pyro_vae.evaluate.bounds import bound
from pyro_vae.evaluate.deprecated import accepts_earlier_form
from pyro_vae.evaluate.guide_density import density_guide
from pyro_vae.evaluate.marginal.likelihood import log_marginal
from pyro_vae.evaluate.marginal.result import caveats
from pyro_vae.pair.arguments import check_data, check_keywords, slices, take
from pyro_vae.pair.forms import in_rows
from pyro_vae.pair.masks import kept_elements
from pyro_vae.pair.networks import eval_mode, to_networks_device
from pyro_vae.pair.planning import data_that_fit, run_on_examples
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.tracing import PairTrace, has_mask, trace_pair
from pyro_vae.support.arguments import checked_from
from pyro_vae.support.pictures import drawable
from pyro_vae.support.random import fork_rng
from pyro_vae.support.results import PanelResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Summary", "summarize"]


@dataclass(frozen=True, repr=False)
class Summary(PanelResult):
    """ELBO, its terms and log p(x) of a data set.

    Means over the data in nats per datum. `log_prob_error` is the Monte Carlo error of `log_prob` on these data,
    `log_prob_sampling_error` its error as an estimate for the population. `num_dims` is the number of observed elements
    of a datum, in the mean where a mask leaves some of them out; where `density` is set they are continuous, so
    `log_prob` is a log-density and can have any sign. `num_unreliable` is the number of data whose estimate of log p(x)
    the Pareto k-hat calls unreliable: their errors are then unreliable, too.
    """

    title: ClassVar[str] = "ELBO and log p(x)"

    elbo: float
    log_likelihood: float
    kl: float
    log_prob: float
    log_prob_error: float
    log_prob_sampling_error: float
    num_dims: float
    density: bool
    ess_median: float
    num_samples: int
    num_data: int
    data: str = ""
    binarize: str = ""
    num_unreliable: int = 0

    @property
    def bits_per_dim(self) -> float:
        """`-log_prob / (D log 2)` over the D observed elements of a datum."""
        return self._bits(self.log_prob)

    def _bits(self, nats: float) -> float:
        return -nats / (self.num_dims * math.log(2)) if self.num_dims else math.nan

    def _values(self) -> dict[str, Any]:
        return {**asdict(self), "bits_per_dim": self.bits_per_dim}

    def table(self) -> Table:
        """The values as a rich table."""
        source = f" of {self.data}" if self.data else ""
        binary = f", binarize={self.binarize}" if self.binarize else ""
        notes = [f"effective sample size: median {self.ess_median:.1f} of {self.num_samples}"]
        notes += caveats(self.num_unreliable, self.num_data, self.ess_median, self.num_samples)
        if self.density:
            notes.append("continuous observations: log p is a log-density")
        table = Table(
            title=escape(f"{self.num_data} data{source}{binary}"),
            title_justify="left",
            caption="\n".join(notes),
            caption_justify="left",
        )
        table.add_column("")
        table.add_column("nats per datum", justify="right")
        table.add_column("bits/dim", justify="right")
        error = f"{self.log_prob:.3f} ± {self.log_prob_error:.3f}"
        table.add_row("ELBO", f"{self.elbo:.3f}", f"{self._bits(self.elbo):.4f}")
        table.add_row(escape("  reconstruction E[log p(x|z)]"), f"{self.log_likelihood:.3f}")
        table.add_row("  KL(q(z|x) || p(z))", f"{self.kl:.3f}")
        table.add_row(f"log p(x), {self.num_samples} importance samples", error, f"{self.bits_per_dim:.4f}")
        return table

    def _size(self) -> tuple[float, float]:
        return 7, 2.8

    def _panel(self, ax: Axes) -> None:
        """The terms of the ELBO, the ELBO, and log p(x) with its Monte Carlo error."""
        bars = {
            "reconstruction E[log p(x|z)]": (self.log_likelihood, "C7"),
            "-KL(q(z|x) || p(z))": (-self.kl, "C7"),
            "ELBO, their sum": (self.elbo, "C0"),
            "log p(x)": (self.log_prob, "C1"),
        }
        for i, (value, color) in enumerate(bars.values()):
            ax.barh(
                i,
                drawable([value], math.nan),
                color=color,
                xerr=drawable([self.log_prob_error]) if i == 3 else None,
                capsize=3,
            )
            if math.isfinite(value):
                beside, align = (6, "left") if value < 0 else (-6, "right")
                ax.annotate(f"{value:.2f}", (0, i), (beside, 0), textcoords="offset points", ha=align, va="center")
        ax.set_yticks(range(len(bars)), list(bars))
        ax.axvline(0, color="black", lw=0.8)
        ax.use_sticky_edges = False  # so that there is room for the numbers
        ax.margins(x=0.18)
        ax.set_ylim(len(bars) - 0.5, -0.5)
        ax.set(xlabel="nats per datum")


@accepts_earlier_form
@checked_from(num_elbo_samples=1)
def summarize(
    model: Program,
    guide: Program,
    *args: Any,
    num_samples: int = 1000,
    num_elbo_samples: int = 1,
    memory: int | None = None,
    seed: int | None = None,
    progress: bool | None = False,
    data: str = "",
    binarize: str = "",
    ranks: Ranks | None = None,
    **kwargs: Any,
) -> Summary:
    """ELBO, reconstruction, KL and importance-sampled log p(x) of `args[0]`, for any pair.

    Args:
        model, guide: The pair.
        *args, **kwargs: The data `x` of shape `(N, ...)`, then whatever else the pair takes.
        num_samples: Importance samples per datum for log p(x).
        num_elbo_samples: Draws per datum for the ELBO.
        memory: Approximate bytes for intermediate tensors.
        seed: A number makes the call reproducible and leaves torch's generators as they were. None continues their
            stream.
        progress: Show a bar.
        data, binarize: Names to record with the values.
        ranks: The processes that split the work of log p(x), see `log_marginal`.

    Raises:
        ValueError: If the pair has no log-probability per datum (see `log_marginal`), or observes nothing.
        TypeError: For a keyword that neither this call nor the pair knows.
    """
    check_keywords(summarize, kwargs, model, guide)
    args = to_networks_device(args, model, guide)
    with torch.no_grad(), eval_mode(model, guide), fork_rng():
        model, guide, (args, kwargs), _ = in_rows(model, guide, (args, kwargs))
        check_data(args)
        guide = density_guide(model, guide, (args, kwargs))
        traces, few, _ = run_on_examples(lambda some: trace_pair(model, guide, *some), (args, kwargs))
    observed = _observed(traces)
    if not traces.observed:
        raise ValueError("the model observes no site: it says nothing about data; observe one with obs=")
    options: dict[str, Any] = {"memory": memory, "seed": seed, **kwargs}
    marginal = log_marginal(model, guide, *args, num_samples=num_samples, progress=progress, ranks=ranks, **options)
    terms = bound(model, guide, *args, num_samples=num_elbo_samples, **options).to_dict()
    return Summary(
        elbo=terms["elbo"],
        log_likelihood=terms["log_likelihood"],
        kl=terms["kl"],
        log_prob=marginal.mean,
        log_prob_error=marginal.mean_error,
        log_prob_sampling_error=marginal.sampling_error,
        num_dims=_num_dims(traces, len(few[0][0]), model, guide, (args, kwargs)),
        density=any(not site["fn"].support.is_discrete for site in observed),
        ess_median=float(marginal.ess.median()),
        num_samples=num_samples,
        num_data=len(marginal),
        data=data,
        binarize=binarize,
        num_unreliable=len(marginal.unreliable),
    )


def _observed(traces: PairTrace) -> list[dict[str, Any]]:
    """The model's observed sites, without factors, whose values have no elements."""
    sites = [traces.model.nodes[name] for name in traces.observed]
    return [site for site in sites if site["value"].numel()]


def _num_dims(traces: PairTrace, n: int, model: Program, guide: Program, data: Data) -> float:
    """Observed elements of a datum: as in the traces of n data if nothing is masked, else the mean over all data."""
    observed = _observed(traces)
    if not any(has_mask(site) for site in observed):
        return sum(site["value"].numel() for site in observed) // n

    def count(some: Data) -> int:
        return sum(int(kept_elements(site).sum()) for site in _observed(trace_pair(model, guide, *some)))

    with torch.no_grad(), eval_mode(model, guide), fork_rng():
        total = len(data[0][0])
        return sum(count(take(*data, *piece)) for piece in slices(total, data_that_fit(count, data, None))) / total
