"""What `latent_report` found: figures by latent dimension, a verdict, a table, a picture."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from torch import Tensor

from pyro_vae.support.tables import as_text, save_result

__all__ = ["LatentDimension", "LatentReport", "LatentSite"]

ACTIVE = 0.01  # Burda et al. 2016, section 5.2
NEGLIGIBLE = 0.01  # nats
SHOWN = 20  # dimensions in the printed table
STATUSES = ("active", "collapsed", "idle", "unknown", "auxiliary")


@dataclass(frozen=True)
class LatentDimension:
    """One element of a latent site; NaN where a figure does not exist.

    Attributes:
        name: The site's name and the element's index, `z[3]`.
        site: The site's name.
        kl: Mean KL(q(z_j|x) || p(z_j)) over the data, nats per datum: NaN if the site's dimensions are not independent.
        kl_error: Its standard error as an estimate for the population of data.
        activity: Var_x E_q[z_j|x]: NaN if the family has no mean (a categorical).
        mean: Mean of the aggregate posterior q(z_j).
        scale: Its standard deviation.
        prior_kl: KL(N(mean, scale^2) || p(z_j)) if the prior is one normal for all data, else NaN.
        status: "active" if `activity` is above 0.01. If not: "collapsed" if the KL is below 0.01 nats, too (that of the
            site, where the dimension has none), and "idle" if the KL is paid for without saying anything about x.
            "unknown" without an activity, unless the KL is negligible; "auxiliary" in a site of the guide alone.
    """

    name: str
    site: str
    kl: float
    kl_error: float
    activity: float
    mean: float
    scale: float
    prior_kl: float
    status: str


@dataclass(frozen=True)
class LatentSite:
    """One latent site: its KL in nats per datum, the standard error of that over the data, and what to know of it."""

    name: str
    num_dims: int
    kl: float
    kl_error: float
    note: str = ""


@dataclass(frozen=True, repr=False)
class LatentReport:
    """The state of a latent space: where information about x is held, and where not.

    Attributes:
        dimensions: One entry for each element of each site.
        sites: One entry for each site of the guide.
        kl, kl_error: Mean of KL(q(z|x) || p(z)) over the data, and its standard error for the population.
        mutual_information, mutual_information_error: I(n; z) between a datum's index and its latents, nats, at most
            log N; and its Monte Carlo standard error for the given data.
        marginal_kl, marginal_kl_error: KL(q(z) || p(z)) of the aggregate posterior, `kl - mutual_information`.
        num_data, num_samples: N, and the draws per datum.
        notes: What to keep in mind when reading the figures.
        draws, prior_draws: For each site, one draw per datum from q(z|x) and from p(z), `(N, num_dims)`.
    """

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
        """What is wrong and what helps; "" if there is a KL, and more than a tenth of the dimensions are in use."""
        dims = len(self.dimensions) - self.count("auxiliary")
        unused = self.count("collapsed") + self.count("idle")
        if self.kl < NEGLIGIBLE * dims:
            what = (
                f"posterior collapse: with a KL of {self.kl:.3f} nats in all, q(z|x) is the prior for every datum, or "
                "next to it, and z says nothing about x"
            )
        elif unused <= 0.9 * dims:
            return ""
        elif unused < dims:
            return (
                f"over-pruning: {dims - unused} of {_dims(dims)} in use. The others may be superfluous, which costs "
                f"nothing, or have been switched off too early: compare the ELBO after training otherwise, {_REMEDIES}"
            )
        else:
            what = f"the KL of {self.kl:.3f} nats buys nothing: the mean of q(z|x) is the same for every datum"
        return f"{what}. Train otherwise, {_REMEDIES}; or weaken a decoder that can do without z"

    def to_dicts(self) -> list[dict[str, Any]]:
        """One dictionary a dimension, None where a figure does not exist."""
        return [_plain(asdict(d)) for d in self.dimensions]

    def to_dict(self) -> dict[str, Any]:
        """All figures, without the draws, as JSON can hold them."""
        own = [f"{name}{e}" for name in ("kl", "mutual_information", "marginal_kl") for e in ("", "_error")]
        own += ["num_data", "num_samples"]
        counts = {status: self.count(status) for status in STATUSES}
        return {
            **_plain({name: getattr(self, name) for name in own}),
            **counts,
            "warning": self.warning,
            "notes": self.notes,
            "sites": [_plain(asdict(site)) for site in self.sites],
            "dimensions": self.to_dicts(),
        }

    def save(self, path: str | Path) -> Path:
        """Write the dimensions as CSV, or everything but the draws as JSON, by the ending of the path."""
        columns = list(LatentDimension.__dataclass_fields__)
        return save_result(path, "a latent report is", self.to_dicts(), self.to_dict(), columns)

    def table(self) -> Group:
        """Rich tables: the KL taken apart, the dimensions by falling KL, and what to know about them."""
        title = f"latent space of {self.num_data} data, {self.num_samples} draws each"
        whole = _table(title, "", "nats per datum")
        whole.add_row("KL(q(z|x) || p(z))", _figure(self.kl, self.kl_error))
        if len(self.sites) > 1:
            for site in self.sites:
                whole.add_row(escape(f"  of site {site.name}"), _figure(site.kl, site.kl_error))
        cap = f"at most log N = {math.log(self.num_data):.2f}"
        whole.add_row(f"= I(n; z), {cap}", _figure(self.mutual_information, self.mutual_information_error))
        whole.add_row("+ KL(q(z) || p(z))", _figure(self.marginal_kl, self.marginal_kl_error))

        found = (
            f"{self.count(s)} {s}" for s in ("active", "collapsed", "idle", "unknown", "auxiliary") if self.count(s)
        )
        dims = _table(f"{_dims(len(self.dimensions))}: " + ", ".join(found), "", "KL", "activity", "q(z) mean", "sd")
        dims.add_column("KL to p(z)", justify="right")
        dims.add_column("")
        ordered = self.ordered
        for d in ordered[:SHOWN]:
            figures = (_figure(d.kl, d.kl_error), *map(_figure, (d.activity, d.mean, d.scale, d.prior_kl)))
            dims.add_row(escape(d.name), *figures, d.status)
        parts: list[Any] = [whole, dims]
        if rest := ordered[SHOWN:]:
            kl = sum(d.kl for d in rest if not math.isnan(d.kl))
            parts.append(Text(f"... and {len(rest)} more with a KL of {kl:.3f} in all"))
        notes = [f"{site.name}: {site.note}" for site in self.sites if site.note] + self.notes
        parts += [Text(f"note: {note}") for note in notes]
        if self.warning:
            parts.append(Text(f"WARNING: {self.warning}"))
        return Group(*parts)

    def __repr__(self) -> str:
        return as_text(self.table())

    @property
    def ordered(self) -> list[LatentDimension]:
        def key(d: LatentDimension) -> tuple[float, float]:
            return tuple(math.inf if math.isnan(v) else -v for v in (d.kl, d.activity))  # type: ignore[return-value]

        return sorted(self.dimensions, key=key)

    def plot(self) -> Any:
        """A figure: KL and activity of the dimensions, and q(z) against p(z) in the (up to) four most active ones."""
        from pyro_vae.evaluate.latent.plot import draw

        return draw(self)


_REMEDIES = (
    "with a warm-up (kl_weight=pv.elbo.Warmup(epochs)), with free bits (elbo=pv.elbo.FreeBits(bits=...)) or with a "
    "bound of several samples (elbo='iwae', num_particles=...)"
)


def _dims(n: int) -> str:
    return f"{n} latent dimension{'s' * (n != 1)}"


def _plain(figures: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in figures.items()}


def _figure(value: float, error: float | None = None) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.3f}" + (f" ± {error:.3f}" if error is not None else "")


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column(first, no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table
