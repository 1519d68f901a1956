"""Coherence of what a pair generates: do its observed sites show the same thing?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from rich.table import Table
from torch import Tensor

from pyro_vae.pair.arguments import check_data, check_keywords
from pyro_vae.pair.networks import eval_mode, to_networks_device
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.tracing import trace_pair
from pyro_vae.support.arguments import checked_from
from pyro_vae.support.pictures import without_math
from pyro_vae.support.random import seeded
from pyro_vae.support.results import PanelResult
from pyro_vae.support.statistics import standard_error
from pyro_vae.support.tables import new_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Coherence", "coherence"]

TOGETHER = "all alike"


@dataclass(frozen=True, repr=False)
class Coherence(PanelResult):
    """How often the classes of what was generated agree.

    Attributes:
        agreement: For each site the share of draws of each datum with the datum's label, `(N,)`; and as "all alike" the
            share in which all sites have one class, if there are several. Without labels, the latter alone.
        num_samples: Draws of each datum.
    """

    title: ClassVar[str] = "coherence"
    _rows_name: ClassVar[str] = "sites"
    _columns: ClassVar[tuple[str, ...]] = ("site", "share", "error")

    agreement: dict[str, Tensor]
    num_samples: int

    @property
    def together(self) -> float:
        """The share of draws in which all sites have one class; of a single site, NaN."""
        return float(self.agreement[TOGETHER].mean()) if TOGETHER in self.agreement else math.nan

    def _values(self) -> dict[str, Any]:
        num_data = len(next(iter(self.agreement.values())))
        shares = {name: float(share.mean()) for name, share in self.agreement.items()}
        return {"shares": shares, "num_data": num_data, "num_samples": self.num_samples}

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {"site": name, "share": float(share.mean()), "error": standard_error(share)}
            for name, share in self.agreement.items()
        ]

    def table(self) -> Table:
        """The share of each site, with its standard error over the data."""
        values = self.to_dict()
        title = f"coherence, {values['num_data']} data, {self.num_samples} draws each"
        table = new_table(title, "site", "share", "error")
        for row in self.to_dicts():
            table.add_row(row["site"], f"{row['share']:.1%}", f"{row['error']:.1%}")
        return table

    def _size(self) -> tuple[float, float]:
        return 1.5 + len(self._rows()), 3.2

    def _panel(self, ax: Axes) -> None:
        rows = self.to_dicts()
        names = [without_math(row["site"]) for row in rows]
        ax.bar(names, [row["share"] for row in rows], yerr=[row["error"] for row in rows], width=0.6)
        ax.set(ylabel="share of draws", ylim=(0, 1.02))


@checked_from(num_samples=1)
def coherence(
    model: Program,
    guide: Program,
    *args: Any,
    classify: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    labels: Tensor | None = None,
    num_samples: int = 1,
    mean: bool = False,
    seed: int | None = None,
    **kwargs: Any,
) -> Coherence:
    """Whether what a pair generates given some modalities shows the right class, and all sites the same one.

    Latents are drawn from the guide, which sees what the arguments hold, then every observed site from the model.
    With one modality given, the share of another site with the datum's label is the coherence of cross generation. With
    none, the guide of a `MultimodalVAE` is the prior, and the share of "all alike" is that of joint generation.

    Args:
        model, guide: The pair.
        *args, **kwargs: What is given, as the pair takes it: `vae.arguments(x_1, None)` of a `MultimodalVAE`.
        classify: For each site a function from draws `(N, ...)` to classes `(N,)`: a classifier, or for a label
            itself `lambda y: y`.
        labels: The classes of the data, `(N,)`.
        num_samples: Draws of each datum.
        mean: True classifies the means of the sites in place of draws; a site without a mean is always drawn.
        seed: A number makes the call reproducible and leaves torch's generators as they were. None continues their
            stream.

    Raises:
        ValueError: Without a classifier, for a site that the model does not observe, for classes of another shape
            or that are not whole numbers, and for a single site without labels.
        TypeError: For a keyword that neither this call nor the pair knows.

    Reference: Shi et al. 2019, arXiv 1911.03393, section 4; Sutter et al. 2021, arXiv 2105.02470, section 4.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.models.MultimodalVAE(4, others=[2], latent_dim=2, hidden=(8,))
        >>> classify = {"x1": lambda x: (x.mean(1) > 0.5).long(), "x2": lambda y: y}
        >>> found = coherence(vae.model, vae.guide, *vae.arguments(n=50), classify=classify, seed=0)
        >>> list(found.agreement)
        ['all alike']
    """
    check_keywords(coherence, kwargs, model, guide)
    n = check_data(args)
    if not classify or (len(classify) < 2 and labels is None):
        raise ValueError(
            f"classify has {len(classify or {})} sites: give a classifier for each site, {{'x1': classifier, ...}}, "
            "two sites at least or the labels of the data"
        )
    if labels is not None and labels.shape != (n,):
        raise ValueError(f"labels must be classes of shape ({n},), got {tuple(labels.shape)}")
    if labels is not None:
        _check_whole("labels are", labels)
    found: list[dict[str, Tensor]] = []
    with torch.no_grad(), eval_mode(model, guide), seeded(seed):
        args = to_networks_device(args, model, guide)
        for _ in range(num_samples):
            trace = trace_pair(model, guide, args, kwargs)
            sites = {name: trace.model.nodes[name] for name in trace.observed}
            if unknown := [name for name in classify if name not in sites]:
                raise ValueError(f"classify names {unknown[0]!r}, but the model observes {', '.join(sites)}")
            classes = {name: _classes(name, of, sites[name]["fn"], n, mean) for name, of in classify.items()}
            found.append(_agreement(classes, labels))
    return Coherence({name: torch.stack([each[name] for each in found]).mean(0) for name in found[0]}, num_samples)


def _classes(name: str, classify: Callable[[Tensor], Tensor], fn: Any, n: int, mean: bool) -> Tensor:
    try:
        value = fn.mean if mean else fn.sample()
        value = fn.sample() if bool(value.isnan().all()) else value  # torch's mean of a categorical
    except (NotImplementedError, AttributeError):
        value = fn.sample()
    classes = classify(value.expand(n, *value.shape[1:]))
    if not isinstance(classes, Tensor) or classes.shape != (n,):
        got = tuple(classes.shape) if isinstance(classes, Tensor) else type(classes).__name__
        raise ValueError(f"classify[{name!r}] must return classes of shape ({n},), got {got}")
    _check_whole(f"classify[{name!r}] returned", classes)
    return classes.cpu()


def _check_whole(what: str, classes: Tensor) -> None:
    """Refuse probabilities, which would agree with no class."""
    if classes.is_floating_point() and not bool((classes == classes.round()).all()):
        raise ValueError(f"{what} numbers that are not whole, such as NaN or probabilities: give classes, by argmax")


def _agreement(classes: dict[str, Tensor], labels: Tensor | None) -> dict[str, Tensor]:
    right = {} if labels is None else {name: (each == labels.cpu()).double() for name, each in classes.items()}
    if len(classes) == 1:
        return right
    first = next(iter(classes.values()))
    alike = torch.stack([each == first for each in classes.values()]).all(0)
    return {**right, TOGETHER: alike.double()}
