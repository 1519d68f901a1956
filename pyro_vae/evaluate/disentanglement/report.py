"""All disentanglement scores of given codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from pyro_vae.evaluate.disentanglement import scores
from pyro_vae.support.arguments import checked
from pyro_vae.support.pictures import without_math
from pyro_vae.support.random import seed_or_draw
from pyro_vae.support.results import Result
from pyro_vae.support.tables import new_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Disentanglement", "disentanglement"]

SCORES = {
    "beta_vae": "beta-VAE score",
    "factor_vae": "FactorVAE score",
    "mig": "mutual information gap (MIG)",
    "sap": "SAP",
    "dci_disentanglement": "DCI disentanglement",
    "dci_completeness": "DCI completeness",
    "dci_informativeness": "DCI informativeness",
}


@dataclass(frozen=True, repr=False)
class Disentanglement(Result):
    """Scores of a representation against known factors: 1 is best; a useless code does not always score 0.

    Attributes:
        beta_vae, factor_vae: Accuracies; chance is one over the number of factors.
        mig, sap: Margins of the best dimension over the second best.
        dci_disentanglement, dci_completeness, dci_informativeness: See `pv.disentanglement`.
        information: I(z_j; v_k) / H(v_k), `(D, F)`.
        importance: Importance of each dimension for each factor in DCI's forests, `(D, F)`.
        names: Names of the factors.
        num_data: N.
    """

    title: ClassVar[str] = "disentanglement"

    beta_vae: float
    factor_vae: float
    mig: float
    sap: float
    dci_disentanglement: float
    dci_completeness: float
    dci_informativeness: float
    names: tuple[str, ...]
    num_data: int
    information: Tensor = field(compare=False)
    importance: Tensor = field(compare=False)

    def _values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in SCORES} | {"num_data": self.num_data}

    def table(self) -> Table:
        """The scores, and the most informative dimension of each factor."""
        title = f"disentanglement, {self.num_data} data, {len(self.information)} dimensions"
        table = new_table(title, "", "score")
        for name, label in SCORES.items():
            table.add_row(label, f"{getattr(self, name):.3f}")
        best = self.information.max(0)
        for k, name in enumerate(self.names):
            where = f"dimension {int(best.indices[k])}"
            table.add_row(Text(f"I / H of {name}: {where}"), f"{float(best.values[k]):.3f}")
        return table

    def _draw(self) -> Figure:
        """The mutual information relative to each factor's entropy, and DCI's importances."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(2.4 + 0.9 * len(self.names), 1.2 + 0.3 * len(self.information)), layout="constrained")
        tables = {"I(z; v) / H(v)": self.information, "importance (DCI)": self.importance}
        for ax, (title, values) in zip(figure.subplots(1, 2, sharey=True), tables.items(), strict=True):
            image = ax.imshow(values.cpu().numpy(), vmin=0, vmax=1, cmap="Blues", aspect="auto")
            ax.set_title(title, fontsize=9)
            ax.set_xticks(range(len(self.names)), map(without_math, self.names), rotation=45, ha="right", fontsize=8)
            ax.set_yticks(range(len(values)), map(str, range(len(values))), fontsize=7)
        figure.axes[0].set_ylabel("code dimension")
        figure.colorbar(image, ax=figure.axes, shrink=0.8)
        return figure


@checked
def disentanglement(
    codes: Tensor, factors: Tensor, *, names: Sequence[str] | None = None, seed: int | None = None
) -> Disentanglement:
    """Measure how well single dimensions of a code represent single generating factors of the data.

    The codes of a pair are `pv.encode(guide, x)`; any other codes work as well. The scores define "disentangled"
    differently: the beta-VAE and FactorVAE scores test whether a fixed factor is visible in the codes, MIG and SAP
    whether only one dimension predicts a factor, DCI whether a dimension predicts one factor (D), a factor needs one
    dimension (C), and the factors can be predicted (I). None of them measures the quality of the model. Pairs of data
    that share a factor are drawn from the given data, so no simulator is needed; a few thousand data are enough.

    Args:
        codes: `(N, D)`.
        factors: `(N, F)` integers, the index of each factor's value; `data.train.y` of `pv.data.load("sprites")`.
        names: Names of the factors.
        seed: Seed of the pairs, batches and forests. None draws one from torch's generator.

    Raises:
        ValueError: For shapes that do not match, codes that are not finite or all constant, a factor with a single
            value, or fewer than 10 data.

    Reference: see the scores: Higgins et al. 2017 (beta-VAE); Kim and Mnih 2018, arXiv 1802.05983; Chen et al. 2018,
    arXiv 1802.04942 (MIG); Kumar et al. 2018, arXiv 1711.00848 (SAP); Eastwood and Williams 2018 (DCI). Locatello et
    al. 2019, arXiv 1811.12359, on how little the scores agree and how much they vary: compare several seeds.

    Example:
        >>> factors = torch.cartesian_prod(torch.arange(5), torch.arange(5)).repeat(20, 1)
        >>> round(disentanglement(factors.float(), factors).mig, 3)
        1.0
    """
    if codes.dim() != 2 or factors.dim() != 2 or len(codes) != len(factors) or not codes.shape[1]:
        raise ValueError(
            f"codes (N, D) and factors (N, F) expected, got {tuple(codes.shape)} and {tuple(factors.shape)}"
        )
    if factors.is_floating_point() or factors.is_complex():
        raise ValueError(f"factors must be integers, the index of each factor's value, got {factors.dtype}")
    if len(codes) < 10:
        raise ValueError(f"at least 10 data are needed, and a few thousand for reliable scores, got {len(codes)}")
    titles = tuple(names) if names is not None else tuple(f"factor {k}" for k in range(factors.shape[1]))
    if len(titles) != factors.shape[1]:
        raise ValueError(f"{len(titles)} names for {factors.shape[1]} factors: {', '.join(titles)}")
    constant = [name for name, column in zip(titles, factors.T, strict=True) if len(column.unique()) < 2]
    if constant:
        raise ValueError(f"{constant[0]!r} has the same value in all data, so it has no score: leave it out")
    if not bool(codes.isfinite().all()):
        raise ValueError(f"{int((~codes.isfinite().all(1)).sum())} of {len(codes)} codes are not finite")
    codes, factors = codes.detach().cpu().double(), factors.cpu().long()
    if not bool(codes.var(0).max() > 0):
        raise ValueError("all codes are equal: a constant representation has no scores")
    base_seed = seed_or_draw(seed)
    generator = torch.Generator().manual_seed(base_seed)
    shuffled = torch.randperm(len(codes), generator=generator)  # the halves must not follow an order of the data
    codes, factors = codes[shuffled], factors[shuffled]
    information, entropies = scores.mutual_information(codes, factors)
    found = scores.dci(codes, factors, base_seed)
    return Disentanglement(
        beta_vae=scores.beta_vae_score(codes, factors, generator),
        factor_vae=scores.factor_vae_score(codes, factors, generator),
        mig=scores.mutual_information_gap(information, entropies),
        sap=scores.sap(codes, factors),
        dci_disentanglement=found.disentanglement,
        dci_completeness=found.completeness,
        dci_informativeness=found.informativeness,
        names=titles,
        num_data=len(codes),
        information=information / entropies,
        importance=found.importance,
    )
