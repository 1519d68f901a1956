"""Imputation of missing values given the observed ones, by importance sampling under any pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pyro.distributions import MaskedDistribution
from rich.table import Table
from torch import Tensor
from torch.distributions import Independent as TorchIndependent
from torch.distributions import VonMises

from pyro_vae.elbo.objectives.missing import INCOMPLETE, with_missing
from pyro_vae.evaluate.deprecated import accepts_earlier_form
from pyro_vae.evaluate.generate import site_mean
from pyro_vae.evaluate.guide_density import density_guide
from pyro_vae.pair.arguments import check_data, check_keywords, take, takes_mask, unwrapped
from pyro_vae.pair.networks import eval_mode, to_networks_device
from pyro_vae.pair.particles import Particles, joint_log_weight
from pyro_vae.pair.planning import plan_for, rows_that_fit
from pyro_vae.pair.plates import data_plate
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.tracing import PairTrace, sample_sites, trace_pair
from pyro_vae.support.arguments import checked_from
from pyro_vae.support.columns import Column
from pyro_vae.support.pictures import displayable, histogram, styled
from pyro_vae.support.progress import progress_bar
from pyro_vae.support.random import seeded
from pyro_vae.support.results import Result
from pyro_vae.support.tables import new_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Imputation", "impute"]


@dataclass(frozen=True, repr=False)
class Imputation(Result):
    """Data with their missing values filled in; observed values are unchanged.

    Attributes:
        mean: `(N, ...)`, the posterior mean E[x_m|x_o] where a value is missing, of a column with levels the most
            probable one, of angles (von Mises) the circular mean; None with `mean=False`.
        scale: `(N, ...)`, the standard deviation of x_m given x_o, of a column with levels the probability of all but
            the most probable one, of angles the circular one, `sqrt(-2 log |E exp(i x)|)`; 0 where a value is observed;
            None with `mean=False`.
        draws: `(M, N, ...)`, M draws from p(x_m|x_o).
        mask: `(N, ...)`, True where a value is observed.
        ess: Effective number of importance samples per datum, `(N,)`. Where it is small, use more samples or a wider
            guide.
        num_samples: Importance samples per datum, K.
    """

    title: ClassVar[str] = "imputation"

    mean: Tensor | None
    scale: Tensor | None
    draws: Tensor
    mask: Tensor
    ess: Tensor
    num_samples: int

    def _values(self) -> dict[str, Any]:
        return {
            "num_data": len(self.ess),
            "num_samples": self.num_samples,
            "num_draws": len(self.draws),
            "missing": float((~self.mask).double().mean()),
            "ess": float(self.ess.mean()),
            "least_ess": float(self.ess.min()),
        }

    def table(self) -> Table:
        """The fraction of missing values, and the effective sample sizes."""
        values = self.to_dict()
        table = new_table("imputation", "", "")
        table.add_row("data", str(len(self.ess)))
        table.add_row("missing values", f"{100 * values['missing']:.1f} %")
        table.add_row("draws for each datum", str(len(self.draws)))
        table.add_row(f"effective samples of {self.num_samples}", f"{values['ess']:.1f} in the mean")
        table.add_row("", f"{values['least_ess']:.1f} at least")
        return table

    def plot(self, *, columns: int = 10, ax: Any = None) -> Figure:
        """Images of the first data: observed values (gray where missing), the mean, and up to three draws.

        For data that are not images, or without a mean and draws: a histogram of the effective sample sizes. Drawn into
        the axes `ax`, if given.
        """
        if ax is not None:
            return self._draw(columns, ax)
        with styled():
            return displayable(self._draw(columns))

    def _draw(self, columns: int = 10, ax: Any = None) -> Figure:
        from matplotlib.figure import Figure

        from pyro_vae import plots

        n = min(columns, len(self.mask))
        filled = {} if self.mean is None else {"mean": self.mean[:n]}
        filled |= {f"draw {i + 1}": x[:n] for i, x in enumerate(self.draws[:3])}
        try:
            known = torch.where(self.mask[:n], next(iter(filled.values())), 0.5)
            return plots.image_rows({"known": known, **filled}, ax=ax)
        except (StopIteration, ValueError):
            ax = ax or Figure(figsize=(5, 3.6), layout="constrained").subplots()
            histogram(ax, self.ess, f"effective sample size of {self.num_samples}")
            return ax.figure


@accepts_earlier_form
@checked_from(memory=1)
def impute(
    model: Program,
    guide: Program,
    x: Tensor,
    *args: Any,
    mask: Tensor | None = None,
    num_samples: int = 1000,
    num_imputations: int = 0,
    mean: bool = True,
    site: str | None = None,
    columns: Sequence[Column] | None = None,
    memory: int | None = None,
    seed: int | None = None,
    progress: bool | None = False,
    **kwargs: Any,
) -> Imputation:
    r"""Fill in the missing values of incomplete data: their posterior mean, and draws (multiple imputation).

    .. math:: E[x_m \mid x_o] \approx \sum_k \tilde w_k \, E[x_m \mid z_k], \qquad
        \tilde w_k \propto \frac{p(x_o, z_k)}{q(z_k \mid x_o)}

    The mean is by self-normalized importance sampling of the latents from the guide, which sees zeros where values are
    missing. The draws are by sampling importance resampling: a latent with probability w, then x_m from p(x|z). Both
    become exact as K grows, for any guide with full support. The pair may have been trained on complete or on
    incomplete data (see `pv.elbo.with_missing`).

    Args:
        model, guide: The pair for complete data, `model(x, *args)`; or one that leaves out missing values itself, whose
            second argument is called `mask`, as that of `pv.TabularVAE` or of the result of `with_missing`.
        x: Data `(N, ...)`; NaN marks missing values if no mask is given.
        *args, **kwargs: Whatever else the pair takes; tensors with N rows are per-datum.
        mask: `(N, ...)` of booleans, True where a value is observed.
        num_samples: Importance samples per datum, K.
        num_imputations: Completed copies of the data to draw, M (multiple imputation). They are resampled from the K
            samples, so K should be much larger.
        mean: False omits the mean, for a distribution without one (a categorical one).
        site: Which observed site x is. Default: the first of the shape of x.
        columns: The columns of a table, of which some have levels. Default: those of the pair, `TabularVAE.columns`.
        memory: Approximate bytes for intermediate tensors.
        seed: A number makes the call reproducible and leaves torch's generators as they were. None continues their
            stream.
        progress: Show a bar: True, False, or None (in a terminal or a notebook).

    Raises:
        ValueError: If nothing is missing, if the elements of the site are not independent, if a site is outside the
            plate over the data, or if a weight is NaN.
        TypeError: For a keyword that neither this call nor the pair knows.

    Reference: Mattei and Frellsen 2019, arXiv 1812.02633, section 4.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.VAE(4, latent_dim=2, likelihood="normal")
        >>> x = torch.tensor([[0.1, float("nan"), 0.3, 0.4]])
        >>> pv.impute(vae.model, vae.guide, x, num_samples=10, num_imputations=3).draws.shape
        torch.Size([3, 1, 4])
    """
    n = check_data((x,))
    check_keywords(impute, kwargs, model, guide)
    own_mask = takes_mask(model) and takes_mask(guide)
    if own_mask and mask is None and args:
        mask, *args = args  # type: ignore[assignment]
    mask = ~x.isnan() if mask is None else mask
    if num_samples < 1 or num_imputations < 0:
        raise ValueError(
            f"num_samples must be at least 1 and num_imputations at least 0, got {num_samples}, {num_imputations}"
        )
    if mask.dtype != torch.bool or mask.shape != x.shape:
        raise ValueError(
            f"expected a mask of booleans of the shape of x, {tuple(x.shape)}, True where an element is known, got a "
            f"mask of shape {tuple(mask.shape)} and type {mask.dtype}: pass mask = ~x.isnan()"
        )
    if bool(mask.all()):
        raise ValueError("no value of x is missing: mark them with NaN, or give mask= with False where one is missing")
    incomplete = (model, guide) if own_mask else with_missing(model, guide, site=site)
    columns = getattr(getattr(unwrapped(model), "__self__", None), "columns", None) if columns is None else columns
    levels = torch.tensor([column.num_levels for column in columns]) if columns is not None else None
    data = to_networks_device((x.masked_fill(~mask, 0), mask, *args), model, guide), kwargs
    means, scales, draws, sizes = [], [], [], []
    with torch.no_grad(), eval_mode(model, guide), seeded(seed):
        incomplete = incomplete[0], density_guide(*incomplete, data)
        plan = plan_for(*incomplete, data)
        probe = 2 if plan.particles.vectorize else None
        rows = rows_that_fit(
            lambda: trace_pair(*incomplete, *plan.example_data, num_particles=probe, nesting=plan.particles.nesting),
            (probe or 1) * len(plan.example_data[0][0]),
            data[0][0].device,
            memory,
        )
        with progress_bar("imputation", n, progress) as advance:
            for start, stop in plan.pieces(rows, num_samples):
                found = _draw(incomplete, take(*data, start, stop), num_samples, plan.particles, start, site)
                sizes.append(found.ess)
                if mean:
                    one, spread = found.moments(levels)
                    means.append(one)
                    scales.append(spread)
                draws.append(found.resample(num_imputations))
                advance(stop - start)
    device = x.device  # results are on the device of x, whatever the networks' device
    return Imputation(
        mean=torch.cat(means).to(device) if mean else None,
        scale=torch.cat(scales).to(device) if mean else None,
        draws=torch.cat(draws, 1).to(device),
        mask=mask,
        ess=torch.cat(sizes).to(device),
        num_samples=num_samples,
    )


def _draw(
    pair: tuple[Program, Program], data: Data, num_samples: int, particles: Particles, start: int, site: str | None
) -> _WeightedSamples:
    """Importance samples for some data, whose first index is `start`."""
    args, kwargs = data
    count, runs = (num_samples, 1) if particles.vectorize else (None, num_samples)
    traces = [trace_pair(*pair, args, kwargs, num_particles=count, nesting=particles.nesting) for _ in range(runs)]
    return _WeightedSamples(traces, args[0], args[1], start, site)


class _WeightedSamples:
    """Importance samples for some data: normalized weights `(K, n)`, and p(x|z) at each sample."""

    def __init__(self, runs: list[PairTrace], x: Tensor, mask: Tensor, start: int, site: str | None) -> None:
        self.x, self.mask = x.masked_fill(~mask, 0), mask
        rows = [joint_log_weight(run, data_plate(run, len(x))) for run in runs]
        log_w = torch.cat([row if row.dim() == 2 else row.unsqueeze(0) for row in rows]).double()
        total = log_w.logsumexp(0)
        if bool((~total.isfinite()).any()):
            raise ValueError(
                f"the importance weights of datum {start + int((~total.isfinite()).nonzero()[0])} have a sum that is "
                "NaN, zero or infinite: the model cannot generate its observed values, or a network gives NaN; see "
                "pv.preflight"
            )
        self.weight = (log_w - total).exp()
        self.ess = 1 / self.weight.square().sum(0)
        self.sites = [_incomplete_site(run, site, x) for run in runs]

    def read_all(self, read: Callable[[str, Any], Tensor]) -> Tensor:
        """A tensor that belongs to the site, from all runs: `(K, n, ...)`."""
        parts = [read(name, site).expand(site["fn"].shape()).reshape(-1, *self.x.shape) for name, site in self.sites]
        return torch.cat(parts).expand(len(self.weight), *self.x.shape)

    def moments(self, levels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation; of elements that have `levels`, the most probable one and its doubt."""
        weight = self.weight.reshape(*self.weight.shape, *[1] * (self.x.dim() - 1))
        means = self.read_all(site_mean).double()
        if all(isinstance(_of_elements(site["fn"]), VonMises) for _, site in self.sites):
            return self._circular_moments(weight, means)
        mean = (weight * means).sum(0)
        variance = self.read_all(lambda name, site: site["fn"].variance).double() + (means - mean).square()
        scale = (weight * variance).sum(0).sqrt()
        if levels is not None and bool(levels.any()):
            likeliest, doubt = self.likeliest(levels.to(self.x.device))
            mean, scale = torch.where(levels > 0, likeliest, mean), torch.where(levels > 0, doubt, scale)
        return torch.where(self.mask, self.x, mean.to(self.x)), torch.where(self.mask, 0, scale.to(self.x))

    def _circular_moments(self, weight: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
        """Those of angles, from E[exp(i x)]: the direction of the mean, and the circular standard deviation."""
        length = 1 - self.read_all(lambda name, site: _of_elements(site["fn"]).variance).double()
        east, north = ((weight * length * part).sum(0) for part in (angles.cos(), angles.sin()))
        mean, scale = torch.atan2(north, east), (-(east.square() + north.square()).log()).clamp_min(0).sqrt()
        return torch.where(self.mask, self.x, mean.to(self.x)), torch.where(self.mask, 0, scale.to(self.x))

    def likeliest(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """The most probable level `(n, C)` of each column that has some, and the probability of the others."""
        best = torch.full(self.x.shape, -1.0, dtype=torch.double, device=self.x.device)
        level = torch.zeros_like(best)
        for number in range(int(levels.max())):

            def mass(name: str, site: Any, number: int = number) -> Tensor:
                fn = _of_elements(site["fn"])
                value = torch.where(levels > 0, torch.full_like(levels, number).clamp_max(levels - 1), fn.sample())
                return fn.log_prob(value.to(self.x))

            probs = (self.weight.unsqueeze(-1) * self.read_all(mass).double().exp()).sum(0)
            better = (probs > best) & (number < levels)
            best, level = torch.where(better, probs, best), torch.where(better, number, level)
        return level, 1 - best

    def resample(self, count: int) -> Tensor:
        drawn = self.x.new_empty((count, *self.x.shape))
        if count:
            rows = torch.arange(len(self.x), device=self.x.device)
            for i, index in enumerate(torch.multinomial(self.weight.T, count, replacement=True).T):
                # a latent that is resampled twice gives two draws
                drawn[i] = self.read_all(lambda name, site: site["fn"].sample())[index, rows].to(self.x)
        return torch.where(self.mask, self.x, drawn)


def _incomplete_site(run: PairTrace, name: str | None, x: Tensor) -> tuple[str, Any]:
    """The observed site with missing elements: the one that was marked, or named, or the first of the shape of x.

    Raises:
        ValueError: If there is none.
    """
    observed = {each: site for each, site in sample_sites(run.model) if site["is_observed"]}
    marked = [each for each, site in observed.items() if site["infer"].get(INCOMPLETE)]
    shaped = [each for each, site in observed.items() if site["value"].shape == x.shape]
    found = marked or [each for each in shaped if name in (None, each)]
    if not found:
        expected = f"called {name!r}" if name else "observed"
        raise ValueError(
            f"the model has no site of the shape of x, {tuple(x.shape)}, that is {expected}; it observes "
            f"{', '.join(observed) or 'none'}"
        )
    return found[0], observed[found[0]]


def _of_elements(fn: Any) -> Any:
    """The distribution of single elements, without masks, that an observed site has."""
    while isinstance(fn, TorchIndependent | MaskedDistribution):
        fn = fn.base_dist
    return fn
