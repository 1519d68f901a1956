"""The inference gaps: what the family of the posterior costs, and what amortisation does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.table import Table
from rich.text import Text
from torch import Tensor

from pyro_vae.evaluate.local.fitting import fit_local
from pyro_vae.evaluate.local.guide import LocalGuide
from pyro_vae.evaluate.local.posterior import Family
from pyro_vae.evaluate.marginal.likelihood import LogMarginal, log_marginal
from pyro_vae.evaluate.marginal.methods import AIS, BDMC, Importance, Method, method_of, option_hints
from pyro_vae.pair.arguments import check_keywords
from pyro_vae.pair.protocol import Program
from pyro_vae.support.tables import as_text, save_result

__all__ = ["InferenceGaps", "inference_gaps"]


@dataclass(frozen=True, repr=False)
class InferenceGaps:
    """ELBOs of a guide and of local posteriors against log p(x), all for the same N data, in nats.

    `inference = approximation + amortization`, each with its standard error over the data beside it
    (`inference_error`, ...), taken from differences by datum. The first local family is the one that splits them.

    Attributes:
        elbo: L[q] of the guide, `(N,)`.
        local: L[q*] of each local family, `(N,)`, by name.
        estimates: Estimates of log p(x), by the proposal they come from: "guide", a local family, or a
            further method.
        best: The proposal with the greatest mean less two Monte Carlo standard errors.
        fits: The local posteriors themselves, by name.
    """

    elbo: Tensor
    local: dict[str, Tensor]
    estimates: dict[str, LogMarginal]
    best: str
    fits: dict[str, LocalGuide]

    @property
    def log_prob(self) -> Tensor:
        """The best estimate of log p(x), `(N,)`: a bound from below, in expectation."""
        return self.estimates[self.best].log_prob.double()

    @property
    def family(self) -> str:
        """The family that splits the gap."""
        return next(iter(self.local))

    @property
    def approximation(self) -> float:
        """Mean of log p(x) - L[q*]: what the family of distributions costs, each datum having the best of them."""
        return float((self.log_prob - self.local[self.family]).mean())

    @property
    def approximation_error(self) -> float:
        """Standard error of `approximation` over the data."""
        return _error(self.log_prob - self.local[self.family])

    @property
    def amortization(self) -> float:
        """Mean of L[q*] - L[q]: what it costs that an encoder gives all data their posteriors."""
        return float((self.local[self.family] - self.elbo).mean())

    @property
    def amortization_error(self) -> float:
        """Standard error of `amortization` over the data."""
        return _error(self.local[self.family] - self.elbo)

    @property
    def inference(self) -> float:
        """Mean of log p(x) - L[q], the mean KL(q(z|x) || p(z|x))."""
        return float((self.log_prob - self.elbo).mean())

    @property
    def inference_error(self) -> float:
        """Standard error of `inference` over the data."""
        return _error(self.log_prob - self.elbo)

    def __len__(self) -> int:
        return len(self.elbo)

    def columns(self) -> dict[str, Tensor]:
        """All figures by datum, `(N,)` each."""
        local = {f"elbo_{name}": value for name, value in self.local.items()}
        return {"log_prob": self.log_prob, **local, "elbo": self.elbo}

    def to_dict(self) -> dict[str, Any]:
        """The means over the data with their standard errors, for a table or JSON."""
        figures: dict[str, Any] = {"num_data": len(self), "family": self.family, "log_prob_from": self.best}
        for name, value in self.columns().items():
            figures |= {name: float(value.mean()), f"{name}_error": _error(value)}
        for name in ("approximation", "amortization", "inference"):
            figures |= {name: getattr(self, name), f"{name}_error": getattr(self, f"{name}_error")}
        return figures

    def to_dicts(self) -> list[dict[str, Any]]:
        """One dictionary a datum."""
        columns = {name: value.tolist() for name, value in self.columns().items()}
        return [{"index": i, **{name: column[i] for name, column in columns.items()}} for i in range(len(self))]

    def table(self) -> Table:
        """A rich table in the order of Cremer et al.'s: log p(x), the bounds below it, and the gaps between them."""
        title = f"inference gaps of {len(self)} data, nats per datum"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("", no_wrap=True)
        for column in ("mean", "±"):
            table.add_column(column, justify="right", no_wrap=True)
        unsettled = [name for name, fit in self.fits.items() if not fit.converged.all()]
        names = {"log_prob": f"log p(x), from {self.best}", "elbo": "L[q], the guide"}
        names |= {f"elbo_{n}": f"L[q*], {n}{' (not converged)' * (n in unsettled)}" for n in self.local}
        for name, value in self.columns().items():  # as `Text`, or else [q] would be taken for markup
            table.add_row(Text(names[name]), f"{float(value.mean()):.3f}", f"{_error(value):.3f}")
        table.add_section()
        for name, text in (
            ("approximation", f"approximation gap, log p(x) - L[q*], {self.family}"),
            ("amortization", f"amortisation gap, L[q*] - L[q], {self.family}"),
            ("inference", "inference gap, their sum"),
        ):
            table.add_row(Text(text), f"{getattr(self, name):.3f}", f"{getattr(self, f'{name}_error'):.3f}")
        return table

    def __repr__(self) -> str:
        return as_text(self.table())

    def plot(self) -> Any:
        """A figure: for each local family, the gap from L[q] to log p(x) in its two parts."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(2.5 + 1.6 * len(self.local), 4), layout="constrained")
        ax = figure.subplots()
        for i, (name, local) in enumerate(self.local.items()):
            parts = {"log p(x) - L[q*]": self.log_prob - local, "L[q*] - L[q]": local - self.elbo}
            below = 0.0
            for j, (part, value) in enumerate(parts.items()):
                height, error = float(value.mean()), _error(value)
                label = part if i == 0 else None
                ax.bar(name, height, 0.6, bottom=below, color=f"C{j}", label=label, yerr=error, capsize=3)
                # beside the error bar
                ax.text(i + 0.08, below + height / 2, f"{height:.2f}", va="center", color="white")
                below += height
        ax.set(ylabel="gap (nats per datum)", xlabel="local family")
        ax.margins(y=0.15)
        ax.legend(loc="upper right", ncols=2, fontsize=8)
        return figure

    def save(self, path: str | Path) -> Path:
        """Write one row a datum as CSV, or these and the means as JSON, by the ending of the path."""
        rows = self.to_dicts()
        return save_result(path, "inference gaps are", rows, {**self.to_dict(), "data": rows})


def inference_gaps(
    model: Program,
    guide: Program,
    x: Tensor,
    *args: Any,
    families: Sequence[str] | Mapping[str, Family] = ("diagonal_normal",),
    num_samples: int = 5000,
    method: str | Method | None = None,
    start: Literal["guide", "prior"] | Program = "guide",
    memory: int | None = None,
    seed: int | None = None,
    progress: bool | None = False,
    **kwargs: Any,
) -> InferenceGaps:
    r"""Measure what the guide loses against log p(x), and whether its family or its amortisation is to blame.

    .. math:: \log p(x) - L[q] = \underbrace{\log p(x) - L[q^*]}_\text{approximation} +
        \underbrace{L[q^*] - L[q]}_\text{amortisation}

    q* is the best distribution of the family for each datum, from `fit_local`. To split the guide's own gap, the first
    family must be the guide's. log p(x) is the best of several estimates: importance sampling with the guide or with
    local posteriors as proposals, and annealed importance sampling. Each is below log p(x) in expectation, so the
    best is the one with the greatest mean (less two Monte Carlo standard errors), and the approximation gap is rather
    too small than too large. Every figure is for the same data: binarise them once, before.

    Args:
        model, guide: The pair.
        x, *args: The data, `(N, ...)`, then whatever else the pair takes, also by keyword.
        families: Local families: names in `pv.conditionals.POSTERIORS`, or a dictionary from names of your own to what
            `fit_local` takes.
        num_samples: Draws per datum, for the ELBOs and for log p(x).
        method: One more estimate of log p(x) to choose from, "ais" or `pv.AIS(num_chains=32)` for instance: a method
            of `log_marginal` for the data given, so not "bdmc". None does without.
        start: Where local fits start: at the pair's "guide", at the "prior", or at another guide.
        memory: Bytes that intermediate tensors may take, about.
        seed: A number makes the call reproducible and leaves torch's generators as they were. None continues their
            stream.
        progress: Show bars: True, False, or None (only in a terminal).

    Raises:
        ValueError: Where `fit_local` or `log_marginal` do, without a family, or for "bdmc".
        TypeError: For a keyword that neither this call nor the pair knows.
        KeyboardInterrupt: After Ctrl-C: the gaps need all their parts.

    Reference: Cremer, Li and Duvenaud 2018, arXiv 1801.03558, table 1.

    Example:
        >>> from pyro_vae.oracles import LinearGaussian
        >>> pair = LinearGaussian()
        >>> x = pair.simulate(4)
        >>> gaps = inference_gaps(pair.model, pair.guide, x, num_samples=100, seed=0)
        >>> gaps.approximation < gaps.inference
        True
    """
    chosen: dict[str, Family] = dict(families) if isinstance(families, Mapping) else {name: name for name in families}
    if not chosen:
        raise ValueError("no local family came: give families, ('diagonal_normal',) say")
    if not callable(start) and start not in ("guide", "prior"):
        raise ValueError(f"start must be 'guide', 'prior' or a guide, got {start!r}")
    further = None if method is None else method_of(method)
    if isinstance(further, BDMC):
        raise ValueError("bidirectional Monte Carlo is for data that it simulates: use method='ais' for those given")
    check_keywords(inference_gaps, kwargs, model, guide, hints=option_hints(further or AIS()))
    origin = {"guide": guide, "prior": None}[start] if isinstance(start, str) else start
    options: dict[str, Any] = {"memory": memory, "seed": seed, "progress": progress, **kwargs}
    estimates = {"guide": log_marginal(model, guide, x, *args, num_samples=num_samples, **options)}
    fits = {}
    for name, family in chosen.items():
        fits[name] = fit_local(model, origin, x, *args, family=family, **options)
        if fits[name].interrupted:
            raise KeyboardInterrupt
        estimates[name] = log_marginal(model, fits[name].guide, x, *args, num_samples=num_samples, **options)
    if further is not None:
        count = {"num_samples": num_samples} if isinstance(further, Importance) else {}
        estimates[further.name] = log_marginal(model, guide, x, *args, method=further, **count, **options)
    if any(estimate.interrupted for estimate in estimates.values()):
        raise KeyboardInterrupt
    # L_1 of the same draws is the ELBO
    elbos = {name: b[0].double() for name in ("guide", *chosen) if (b := estimates[name].bounds) is not None}
    # of a poor proposal the mean may by chance be the greatest, so noise counts against it
    best = max(estimates, key=lambda name: estimates[name].mean - 2 * estimates[name].mean_error)
    return InferenceGaps(elbos.pop("guide"), elbos, estimates, best, fits)


def _error(value: Tensor) -> float:
    return float(value.std() / math.sqrt(len(value))) if len(value) > 1 else math.inf
