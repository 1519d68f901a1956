"""The true ELBO of any pair on given data, whatever its training objective."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from pyro_vae.elbo.estimators.terms import ElboTerms, elbo_terms
from pyro_vae.evaluate.deprecated import accepts_earlier_form
from pyro_vae.evaluate.guide_density import density_guide
from pyro_vae.pair.arguments import check_keywords, slices, take
from pyro_vae.pair.networks import eval_mode, to_networks_device
from pyro_vae.pair.planning import data_that_fit
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.together import asked_pair
from pyro_vae.support.arguments import checked
from pyro_vae.support.pictures import drawable, histogram, without_math
from pyro_vae.support.random import seeded
from pyro_vae.support.results import Result
from pyro_vae.support.statistics import standard_error
from pyro_vae.support.tables import indexed_rows, new_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Bound", "bound"]


@dataclass(frozen=True, repr=False)
class Bound(Result):
    """The ELBO and its terms, per datum, tensors of shape `(N,)` in nats: `elbo = log_likelihood - kl`.

    `kl_sites` splits `kl` by latent site. If `is_joint`, there is one number, for all data together: no plate over the
    data holds all sites. `point_masses` are the continuous latents at which the guide is a point, as under maximum a
    posteriori: then `elbo` is log p(x, z) at these points, and bounds nothing.
    """

    title: ClassVar[str] = "ELBO"
    _rows_name: ClassVar[str] = "data"

    elbo: Tensor
    log_likelihood: Tensor
    kl: Tensor
    kl_sites: dict[str, Tensor]
    is_joint: bool = False
    point_masses: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        """Mean ELBO over the data, nats per datum."""
        return float(self.elbo.double().mean())

    def __len__(self) -> int:
        return len(self.elbo)

    def __repr__(self) -> str:
        value = f"{self.mean:.3f} nats " + (
            "for all data together" if self.is_joint else f"per datum ({len(self)} data)"
        )
        if self.point_masses:
            return f"log p(x, z) {value}; no bound on log p(x): point masses at {', '.join(self.point_masses)}"
        return f"ELBO {value}"

    def _values(self) -> dict[str, Any]:
        means = {name: float(getattr(self, name).double().mean()) for name in ("elbo", "log_likelihood", "kl")}
        return {**means, "elbo_sampling_error": standard_error(self.elbo), "num_data": len(self)}

    def _rows(self) -> list[dict[str, Any]]:
        columns = {"elbo": self.elbo, "log_likelihood": self.log_likelihood, "kl": self.kl}
        columns |= {f"kl_{name}": value for name, value in self.kl_sites.items()}
        return indexed_rows(columns)

    def table(self) -> Table:
        """Means over the data, with their standard errors as estimates for the population."""
        table = new_table(f"ELBO of {len(self)} data", "", "nats per datum", "±")
        terms = {"ELBO": self.elbo, "  reconstruction E[log p(x|z)]": self.log_likelihood}
        terms["  KL(q(z|x) || p(z))"] = self.kl
        if len(self.kl_sites) > 1:
            terms |= {f"    of site {name}": value for name, value in self.kl_sites.items()}
        for name, value in terms.items():
            table.add_row(Text(name), f"{float(value.double().mean()):.3f}", f"{standard_error(value):.3f}")
        return table

    def _draw(self) -> Figure:
        """The ELBO of the data, and the mean KL of each site with its standard error."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.6), layout="constrained")
        data, sites = figure.subplots(1, 2)
        histogram(data, self.elbo, "ELBO (nats)")
        data.axvline(self.mean, color="black", lw=0.8, ls=":", label=f"mean {self.mean:.2f}")
        data.legend(fontsize=8)
        parts = {"all": self.kl} if len(self.kl_sites) != 1 else {}
        for i, value in enumerate([*parts.values(), *self.kl_sites.values()]):
            error = drawable([standard_error(value)])
            sites.barh(i, drawable([float(value.double().mean())], math.nan), 0.5, xerr=error, color="C0", capsize=3)
        sites.set_yticks(range(len(parts) + len(self.kl_sites)), [*parts, *map(without_math, self.kl_sites)])
        sites.set(xlabel="mean KL (nats per datum)", ylabel="latent site")
        sites.invert_yaxis()
        return figure


@accepts_earlier_form
@checked
def bound(
    model: Program,
    guide: Program,
    *args: Any,
    num_samples: int = 1,
    memory: int | None = None,
    seed: int | None = None,
    **kwargs: Any,
) -> Bound:
    """The true ELBO of each datum: no KL weight, no free bits, no scale, and a closed-form KL where that is exact.

    A pair with a site outside the plate over the data, such as a latent that all data share, has one ELBO, of all data
    together, in nats. A pair that takes its data in another form than rows of a first tensor (in a closure, along
    another axis, in a dictionary) has a number for each element of the plate that holds all of its sites.

    What the guide observes or adds by `pyro.factor` is no part of q(z|x), and is left out, with a warning; a factor in
    the model counts as a likelihood. Where one of the two masks a latent, the model's mask holds for both.

    Args:
        model, guide: The pair.
        *args: The data `x` of shape `(N, ...)`, then whatever else the pair takes, also by keyword; tensors with N rows
            are per-datum.
        num_samples: Draws from the guide to average over, one run of the pair each.
        memory: Approximate bytes for the intermediate tensors of a run, which sets how many data run at once. Default:
            1000 data. A pair with parameters for each datum runs on all data at once.
        seed: A number makes the call reproducible and leaves torch's generators as they were, so that two calls share
            their noise. None continues their stream.

    Raises:
        ValueError: If the guide draws noise that nothing in the model balances, or latents differ between model and
            guide.
        TypeError: For a keyword that neither this call nor the pair knows.
    """
    check_keywords(bound, kwargs, model, guide)
    args = to_networks_device(args, model, guide)
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    if memory is not None and memory < 1:
        raise ValueError(f"memory must be a positive number of bytes, got {memory}")

    likelihoods: list[Tensor] = []
    kls: dict[str, list[Tensor]] = {}
    with torch.no_grad(), eval_mode(model, guide), seeded(seed):
        asked = asked_pair(model, guide, (args, kwargs))
        data = asked.data
        guide = density_guide(asked.model, asked.guide, data)

        def run(part: Data) -> ElboTerms:
            return elbo_terms(asked.model, guide, *part[0], **part[1])

        for start, stop in slices(asked.num_data, data_that_fit(run, data, memory)):
            runs = [run(take(*data, start, stop)) for _ in range(num_samples)]
            likelihoods.append(torch.stack([r.log_likelihood for r in runs]).mean(0))
            for name in runs[0].kl:
                kls.setdefault(name, []).append(torch.stack([r.kl[name] for r in runs]).mean(0))
    log_likelihood = torch.cat(likelihoods)
    sites = {name: torch.cat(parts) for name, parts in kls.items()}
    kl = sum(sites.values(), start=torch.zeros_like(log_likelihood))
    return Bound(log_likelihood - kl, log_likelihood, kl, sites, bool(asked.joint), runs[0].point_masses)
