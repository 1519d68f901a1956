"""The result of `fit_local`: a guide with a separate distribution for each datum."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import pyro
import torch
from rich.table import Table
from torch import Tensor
from torch.func import functional_call

from pyro_vae.evaluate.local.descent import CHECK_EVERY
from pyro_vae.evaluate.local.posterior import LocalPosterior
from pyro_vae.pair.forms import Form
from pyro_vae.pair.names import unique_name
from pyro_vae.support.results import PanelResult
from pyro_vae.support.tables import indexed_rows, new_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LocalGuide"]


@dataclass(frozen=True, repr=False)
class LocalGuide(PanelResult):
    """A separate variational distribution for each of N data: a guide for these data only.

    Attributes:
        posterior: The module with the parameters of all data.
        rows: The data it was fitted to: the per-datum tensors among the arguments, `(N, ...)` each.
        form: Where these stand in the arguments.
        elbo: ELBO of each datum, `(N,)`, in nats, estimated after the fit with new noise.
        elbo_error: Monte Carlo standard error of `elbo`, `(N,)`.
        steps: Gradient steps that each datum took, `(N,)`.
        converged: Whether each datum finished before `max_steps`, `(N,)`.
        elbo_history: Mean ELBO over every 100 steps, `(C, N)`, in nats; NaN for finished data.
        interrupted: Whether Ctrl-C stopped the fit.
    """

    title: ClassVar[str] = "local posteriors"
    _rows_name: ClassVar[str] = "data"

    posterior: LocalPosterior
    rows: tuple[Tensor, ...]
    form: Form
    elbo: Tensor
    elbo_error: Tensor
    steps: Tensor
    converged: Tensor
    elbo_history: Tensor
    interrupted: bool = False

    @property
    def x(self) -> Tensor:
        """The first of the tensors that it was fitted to, `(N, ...)`."""
        return self.rows[0]

    def guide(self, *args: Any, **kwargs: Any) -> None:
        """The guide, a Pyro program of the model's arguments; calling the object does the same.

        The arguments may hold any of the fitted data in any order, and the first of them may come alone: its rows are
        looked up.

        Raises:
            ValueError: For other data.
        """
        pyro.module(unique_name(self.posterior), self.posterior)
        params: dict[str, Tensor] = dict(self.posterior.named_parameters())
        came = self._rows_of(args, kwargs)
        if not all(map(_equal, came, self.rows)):
            index = self._index if len(came) == len(self.rows) else self._index_of_first
            found = [index.get(key) for key in self.form.keys(came)]
            if None in found:
                raise ValueError(
                    f"{found.count(None)} of the {len(found)} data that came, first datum {found.index(None)}, are not "
                    f"among the {len(self)} that the local posteriors were fitted to: fit them to these data"
                )
            rows = torch.tensor(found, device=self.x.device)
            params = {name: p.index_select(self.posterior.axes[name], rows) for name, p in params.items()}
        functional_call(self.posterior, params, (came[0],))

    __call__ = guide

    def _rows_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
        with suppress(ValueError):
            return self.form.rows(args, kwargs)
        return args[:1]

    @cached_property
    def _index(self) -> dict[bytes, int]:
        return {key: i for i, key in enumerate(self.form.keys(self.rows))}

    @cached_property
    def _index_of_first(self) -> dict[bytes, int]:
        return {key: i for i, key in enumerate(self.form.keys(self.rows[:1]))}

    @property
    def mean(self) -> float:
        """Mean of `elbo` over the data, nats per datum."""
        return float(self.elbo.double().mean())

    @property
    def mean_error(self) -> float:
        """Monte Carlo standard error of `mean`."""
        return float(self.elbo_error.double().square().sum().sqrt() / len(self))

    def __len__(self) -> int:
        return len(self.elbo)

    def _values(self) -> dict[str, Any]:
        return {
            "elbo": self.mean,
            "elbo_error": self.mean_error,
            "steps_mean": float(self.steps.double().mean()),
            "steps_max": int(self.steps.max()),
            "num_converged": int(self.converged.sum()),
            "num_data": len(self),
        }

    def _rows(self) -> list[dict[str, Any]]:
        return indexed_rows({name: getattr(self, name) for name in ("elbo", "elbo_error", "steps", "converged")})

    def table(self) -> Table:
        """The mean ELBO, and the numbers of steps."""
        families = ", ".join(f"{site.name}: {type(site.family).__name__}" for site in self.posterior)
        columns = ("ELBO (nats per datum)", "steps, mean", "steps, most", "converged")
        table = new_table(f"local posteriors, {families}", "data", *columns)
        steps = (f"{float(self.steps.double().mean()):.0f}", str(int(self.steps.max())))
        bound = f"{self.mean:.3f} ± {self.mean_error:.3f}"
        table.add_row(str(len(self)), bound, *steps, str(int(self.converged.sum())))
        return table

    def _panel(self, ax: Axes) -> None:
        """The distance of each datum's ELBO from its final value, against the steps."""
        steps = [CHECK_EVERY * (i + 1) for i in range(len(self.elbo_history))]
        gap = (self.elbo - self.elbo_history).cpu()
        ax.plot(steps, gap, color="C0", lw=0.5, alpha=0.3)
        # a finished datum stays at its final value
        ax.plot(steps, gap.nan_to_num(0.0).mean(1), color="black", label="mean")
        ax.axhline(0.0, color="gray", lw=0.8, ls=":")
        ax.set(xlabel="gradient steps", ylabel="below the final ELBO (nats)", yscale="symlog")
        ax.legend()


def _equal(came: Tensor, known: Tensor) -> bool:
    return came is known or (came.shape == known.shape and torch.equal(came, known.to(came.device)))
