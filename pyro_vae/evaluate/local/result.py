"""The result of `inference_gaps`: the cost of the posterior family, and the cost of amortization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from rich.table import Table
from rich.text import Text
from torch import Tensor

from pyro_vae.evaluate.local.guide import LocalGuide
from pyro_vae.evaluate.marginal.result import LogMarginal
from pyro_vae.support.pictures import drawable
from pyro_vae.support.results import PanelResult
from pyro_vae.support.statistics import standard_error
from pyro_vae.support.tables import indexed_rows, new_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["InferenceGaps"]


@dataclass(frozen=True, repr=False)
class InferenceGaps(PanelResult):
    """ELBOs of a guide and of local posteriors against log p(x), all for the same N data, in nats.

    `inference = approximation + amortization`, each with its standard error over the data beside it
    (`inference_error`, ...), from the differences by datum. The first local family splits the inference gap.

    Attributes:
        elbo: L[q] of the guide, `(N,)`.
        local: L[q*] of each local family, `(N,)`, by name.
        estimates: Estimates of log p(x) by proposal: "guide", a local family, or "ais".
        best: The proposal with the greatest mean less two Monte Carlo standard errors.
        fits: The local posteriors by name.
    """

    title: ClassVar[str] = "inference gaps"
    _rows_name: ClassVar[str] = "data"

    elbo: Tensor
    local: dict[str, Tensor]
    estimates: dict[str, LogMarginal]
    best: str
    fits: dict[str, LocalGuide]

    @property
    def log_prob(self) -> Tensor:
        """The best estimate of log p(x), `(N,)`: a lower bound in expectation."""
        return self.estimates[self.best].log_prob.double()

    @property
    def family(self) -> str:
        """The family that splits the inference gap."""
        return next(iter(self.local))

    @property
    def approximation(self) -> float:
        """Mean of log p(x) - L[q*]: the cost of the family, with the best distribution for each datum."""
        return float((self.log_prob - self.local[self.family]).mean())

    @property
    def approximation_error(self) -> float:
        """Standard error of `approximation` over the data."""
        return standard_error(self.log_prob - self.local[self.family])

    @property
    def amortization(self) -> float:
        """Mean of L[q*] - L[q]: the cost of one encoder for all data."""
        return float((self.local[self.family] - self.elbo).mean())

    @property
    def amortization_error(self) -> float:
        """Standard error of `amortization` over the data."""
        return standard_error(self.local[self.family] - self.elbo)

    @property
    def inference(self) -> float:
        """Mean of log p(x) - L[q], the mean KL(q(z|x) || p(z|x))."""
        return float((self.log_prob - self.elbo).mean())

    @property
    def inference_error(self) -> float:
        """Standard error of `inference` over the data."""
        return standard_error(self.log_prob - self.elbo)

    def __len__(self) -> int:
        return len(self.elbo)

    def columns(self) -> dict[str, Tensor]:
        """All values by datum, `(N,)` each, in nats."""
        local = {f"elbo_{name}": value for name, value in self.local.items()}
        return {"log_prob": self.log_prob, **local, "elbo": self.elbo}

    def _values(self) -> dict[str, Any]:
        values: dict[str, Any] = {"num_data": len(self), "family": self.family, "log_prob_from": self.best}
        for name, value in self.columns().items():
            values |= {name: float(value.mean()), f"{name}_error": standard_error(value)}
        for name in ("approximation", "amortization", "inference"):
            values |= {name: getattr(self, name), f"{name}_error": getattr(self, f"{name}_error")}
        return values

    def _rows(self) -> list[dict[str, Any]]:
        return indexed_rows(self.columns())

    def table(self) -> Table:
        """A rich table in the order of Cremer et al.'s: log p(x), the bounds below it, and the gaps between them."""
        title = f"inference gaps of {len(self)} data, nats per datum"
        table = new_table(title, "", "mean", "±")
        unsettled = [name for name, fit in self.fits.items() if not fit.converged.all()]
        names = {"log_prob": f"log p(x), from {self.best}", "elbo": "L[q], the guide"}
        names |= {f"elbo_{n}": f"L[q*], {n}{' (not converged)' * (n in unsettled)}" for n in self.local}
        for name, value in self.columns().items():  # a Text: rich would read [q] as markup
            table.add_row(Text(names[name]), f"{float(value.mean()):.3f}", f"{standard_error(value):.3f}")
        table.add_section()
        for name, text in (
            ("approximation", f"approximation gap, log p(x) - L[q*], {self.family}"),
            ("amortization", f"amortization gap, L[q*] - L[q], {self.family}"),
            ("inference", "inference gap, their sum"),
        ):
            table.add_row(Text(text), f"{getattr(self, name):.3f}", f"{getattr(self, f'{name}_error'):.3f}")
        table.caption = "\n".join(self.estimates[self.best].caveats) or None
        return table

    def _size(self) -> tuple[float, float]:
        return 2.5 + 1.6 * len(self.local), 4

    def _panel(self, ax: Axes) -> None:
        """For each local family, the gap from L[q] to log p(x) in its two parts."""
        for i, (name, local) in enumerate(self.local.items()):
            parts = {"log p(x) - L[q*]": self.log_prob - local, "L[q*] - L[q]": local - self.elbo}
            below = 0.0
            for j, (part, value) in enumerate(parts.items()):
                [height], error = drawable([float(value.mean())]), drawable([standard_error(value)])
                label = part if i == 0 else None
                ax.bar(name, height, 0.6, bottom=below, color=f"C{j}", label=label, yerr=error, capsize=3)
                # beside the error bar
                ax.text(i + 0.08, below + height / 2, f"{height:.2f}", va="center", color="white")
                below += height
        ax.set(ylabel="gap (nats per datum)", xlabel="local family")
        ax.margins(y=0.15)
        ax.legend(loc="upper right", ncols=2, fontsize=8)
