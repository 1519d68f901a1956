"""The result of `latent_report`: metrics by latent dimension, and a warning."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from rich.console import Group
from rich.markup import escape
from rich.text import Text
from torch import Tensor

from pyro_vae.evaluate.latent.dimensions import NEGLIGIBLE, STATUSES, LatentDimension, LatentSite, sort_by_kl
from pyro_vae.evaluate.latent.plot import draw
from pyro_vae.support.results import Result
from pyro_vae.support.serialization import finite
from pyro_vae.support.tables import new_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LatentReport"]

SHOWN = 20  # dimensions in the printed table


@dataclass(frozen=True, repr=False)
class LatentReport(Result):
    """Which dimensions of a latent space hold information about x.

    Attributes:
        dimensions: One entry for each element of each site.
        sites: One entry for each site of the guide.
        kl, kl_error: Mean of KL(q(z|x) || p(z)) over the data, and its standard error for the population.
        mutual_information, mutual_information_error: I(n; z) between a datum's index and its latents, in nats, at most
            log N; and its Monte Carlo standard error for the given data.
        marginal_kl, marginal_kl_error: KL(q(z) || p(z)) of the aggregate posterior, `kl - mutual_information`.
        num_data, num_samples: N, and the draws per datum.
        notes: Remarks on the values.
        draws, prior_draws: For each site, one draw per datum from q(z|x) and from p(z), `(N, num_dims)`.
    """

    title: ClassVar[str] = "latent report"
    _columns: ClassVar[list[str]] = list(LatentDimension.__dataclass_fields__)

    dimensions: list[LatentDimension]
    sites: list[LatentSite]
    kl: float
    kl_error: float
    mutual_information: float
    mutual_information_error: float
    marginal_kl: float
    marginal_kl_error: float
    num_data: int
    num_samples: int
    notes: list[str]
    draws: dict[str, Tensor] = field(compare=False)
    prior_draws: dict[str, Tensor] = field(compare=False)

    def count(self, status: str) -> int:
        """How many dimensions are "active", "collapsed", "idle", "unknown" or "auxiliary"."""
        return sum(d.status == status for d in self.dimensions)

    @property
    def warning(self) -> str:
        """The problem and its remedies; "" if there is a KL and more than a tenth of the dimensions are in use."""
        dims = len(self.dimensions) - self.count("auxiliary")
        unused = self.count("collapsed") + self.count("idle")
        if self.kl < NEGLIGIBLE * dims:
            what = (
                f"posterior collapse: with a total KL of {self.kl:.3f} nats, q(z|x) is close to the prior for every "
                "datum, and z holds no information about x"
            )
        elif unused <= 0.9 * dims:
            return ""
        elif unused < dims:
            return (
                f"over-pruning: {dims - unused} of {_dims(dims)} in use. The others may be superfluous, which costs "
                f"nothing, or were pruned too early: compare the ELBO after training {_REMEDIES}"
            )
        else:
            what = f"the KL of {self.kl:.3f} nats is wasted: the mean of q(z|x) is the same for every datum"
        return f"{what}. Train {_REMEDIES}; or weaken a decoder that ignores z"

    def _rows(self) -> list[dict[str, Any]]:
        return [finite(asdict(d)) for d in self.dimensions]

    def _values(self) -> dict[str, Any]:
        own = [f"{name}{e}" for name in ("kl", "mutual_information", "marginal_kl") for e in ("", "_error")]
        values = {name: getattr(self, name) for name in (*own, "num_data", "num_samples")}
        return {
            **finite(values),
            **{status: self.count(status) for status in STATUSES},
            "warning": self.warning,
            "notes": self.notes,
            "sites": [finite(asdict(site)) for site in self.sites],
            "dimensions": self._rows(),
        }

    def table(self) -> Group:
        """Rich tables: the parts of the KL, the dimensions by falling KL, and notes."""
        title = f"latent space of {self.num_data} data, {self.num_samples} draws each"
        whole = new_table(title, "", "nats per datum")
        whole.add_row("KL(q(z|x) || p(z))", _cell(self.kl, self.kl_error))
        if len(self.sites) > 1:
            for site in self.sites:
                whole.add_row(escape(f"  of site {site.name}"), _cell(site.kl, site.kl_error))
        cap = f"at most log N = {math.log(self.num_data):.2f}"
        whole.add_row(f"= I(n; z), {cap}", _cell(self.mutual_information, self.mutual_information_error))
        whole.add_row("+ KL(q(z) || p(z))", _cell(self.marginal_kl, self.marginal_kl_error))

        found = (
            f"{self.count(s)} {s}" for s in ("active", "collapsed", "idle", "unknown", "auxiliary") if self.count(s)
        )
        columns = ("KL", "activity", "q(z) mean", "sd", "KL to p(z)")
        dims = new_table(f"{_dims(len(self.dimensions))}: " + ", ".join(found), "", *columns)
        dims.add_column("")
        ordered = self.ordered
        for d in ordered[:SHOWN]:
            cells = (_cell(d.kl, d.kl_error), *map(_cell, (d.activity, d.mean, d.scale, d.prior_kl)))
            dims.add_row(escape(d.name), *cells, d.status)
        parts: list[Any] = [whole, dims]
        if rest := ordered[SHOWN:]:
            kl = sum(d.kl for d in rest if not math.isnan(d.kl))
            parts.append(Text(f"... and {len(rest)} more with a KL of {kl:.3f} in all"))
        notes = [f"{site.name}: {site.note}" for site in self.sites if site.note] + self.notes
        parts += [Text(f"note: {note}") for note in notes]
        if self.warning:
            parts.append(Text(f"WARNING: {self.warning}"))
        return Group(*parts)

    @property
    def ordered(self) -> list[LatentDimension]:
        """The dimensions by falling KL, those of the same KL by falling activity."""
        return sort_by_kl(self.dimensions)

    def _draw(self) -> Figure:
        """KL and activity of the dimensions, and q(z) against p(z) in the (up to) four most active ones."""
        title = f"KL {self.kl:.2f} = I(n; z) {self.mutual_information:.2f} + KL(q(z) || p(z)) {self.marginal_kl:.2f}"
        return draw(self.dimensions, self.draws, self.prior_draws, title)


_REMEDIES = (
    "with a warm-up (kl_weight=pv.elbo.Warmup(epochs)), with free bits (elbo=pv.elbo.FreeBits(bits=...)) or with a "
    "bound of several samples (elbo='iwae', num_particles=...)"
)


def _dims(n: int) -> str:
    return f"{n} latent dimension{'s' * (n != 1)}"


def _cell(value: float, error: float | None = None) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" + (f" ± {error:.3f}" if error is not None else "")
