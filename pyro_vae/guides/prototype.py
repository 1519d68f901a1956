"""What a model is on example data: its latents, its observations, its plates and its graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.distributions import Unit
from pyro.infer.inspect import get_dependencies
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.utils._pytree import tree_map

from pyro_vae.guides.inputs import tensors_at
from pyro_vae.guides.masks import mask_of_latent
from pyro_vae.guides.sites import ShapedSite
from pyro_vae.pair.networks import eval_mode
from pyro_vae.pair.running import traced
from pyro_vae.pair.site_masks import base_distribution
from pyro_vae.pair.tracing import sample_sites
from pyro_vae.pair.untouched import kept_buffers

__all__ = ["Prototype", "rows_of"]

RUNS = 8


class Prototype:
    """A model on example data.

    Args:
        model: The model.
        args, kwargs: What it takes, the data first.

    Attributes:
        n: Number of data.
        latents: The latents that a guide must sample, by name, in the model's order.
        summed_out: The latents that the model enumerates.
        observed: The observed sites, by name.
        plate: The plate over the data, None if no site is in one.
        graph: The parents of each site.
        full_size: The number of all data, if the model knows it whatever it is given.
        subsample: The size of the subsample, if the model takes one of the data that it is given.
        factors: The sites of `pyro.factor`.
        masks: Where the mask of each masked latent is found.
        scales: The scale of each latent that `poutine.scale` scales.
    """

    def __init__(self, model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.arguments = args, kwargs
        data = tensors_at(args, kwargs)
        self.n = rows_of(data, args)
        with torch.no_grad(), eval_mode(model), kept_buffers(model):
            runs = [_run(model, args, kwargs) for _ in range(RUNS)]
        self._check_same(runs)
        self.trace = runs[0]
        sites = dict(sample_sites(self.trace))
        self.observed = {name: site for name, site in sites.items() if site["is_observed"]}
        hidden = {name: site for name, site in sites.items() if not site["is_observed"]}
        self.summed_out = [name for name, site in hidden.items() if site["infer"].get("enumerate")]
        self._check_kinds(hidden)
        self.plate = self._data_plate(sites)
        name = self.plate.name if self.plate else None
        self.latents = {
            latent: ShapedSite(latent, [run.nodes[latent] for run in runs], name)
            for latent in hidden
            if latent not in self.summed_out
        }
        self.graph = _graph(model, args, kwargs, sites)
        takes_part = self.plate is not None and self.plate.size < self.n
        self.subsample = self.plate.size if takes_part else None
        self.full_size = None if takes_part else self._full_size(model)
        self.factors = {name for name, site in self.observed.items() if isinstance(base_distribution(site["fn"]), Unit)}
        self.masks = {
            latent: found
            for latent, site in self.latents.items()
            if (found := mask_of_latent(latent, site.runs, data, self.n)) is not None
        }
        self.scales = {
            latent: scale for latent in self.latents if (scale := self._scale(latent, hidden[latent])) != 1.0
        }

    @property
    def inner_plates(self) -> dict[str, set[str]]:
        """The plates of each site, without that over the data."""
        outer = {self.plate.name} if self.plate else set()
        sites = dict(sample_sites(self.trace))
        return {
            name: {f.name for f in site["cond_indep_stack"] if f.vectorized} - outer for name, site in sites.items()
        }

    @property
    def data_dim(self) -> int:
        """The (negative) dimension of the data plate."""
        return self.plate.dim if self.plate else 0

    @property
    def global_names(self) -> list[str]:
        """The latents outside the data plate."""
        return [name for name, site in self.latents.items() if not site.is_local]

    def _check_same(self, runs: list[Any]) -> None:
        names = [list(dict(sample_sites(run))) for run in runs]
        for other in names[1:]:
            if set(other) != set(names[0]):
                differing = sorted(set(other) ^ set(names[0]))[0]
                raise ValueError(
                    f"the site {differing!r} is in some runs of the model and not in others: a guide can be made for "
                    "models with the same sites in every run; sample it always, and mask it (poutine.mask) where it "
                    "does not count"
                )

    def _check_kinds(self, hidden: dict[str, Any]) -> None:
        if not set(hidden) - set(self.summed_out):
            raise ValueError(
                "the model has no latent site that a guide would sample"
                + (f" ({', '.join(self.summed_out)}: enumerated by the model)" if self.summed_out else "")
                + ": use an empty guide, `def guide(*args): pass`"
            )
        if not self.observed:
            raise ValueError(f"the model observes nothing (latents: {list(hidden)}): give the data to a site, obs=x")
        for name in hidden:
            if name.endswith("_unobserved") and f"{name.removesuffix('_unobserved')}_observed" in self.observed:
                site = name.removesuffix("_unobserved")
                raise ValueError(
                    f"the site {site!r} is observed with obs_mask=, which makes its missing entries the latent "
                    f"{name!r}: write pyro.sample({site!r}, d.mask(mask), obs=x) instead, with any number where x is "
                    "missing; it gives the same likelihood of what is there, and needs no guide"
                )

    def _data_plate(self, sites: dict[str, Any]) -> Any:
        """The plate over the data: of their number, around an observed site."""
        found = {
            f.name: f
            for site in self.observed.values()
            for f in site["cond_indep_stack"]
            if f.vectorized and self.n in (f.size, f.full_size)
        }
        if len(found) > 1 and "data" not in found:
            raise ValueError(
                f"the plates {' and '.join(map(repr, found))} have the size of the data, {self.n}, so it is ambiguous "
                "which of them is over the data: name that one 'data', or give another number of example data"
            )
        if not found:
            self._check_axis(sites)
        return found.get("data") or next(iter(found.values()), None)

    def _check_axis(self, sites: dict[str, Any]) -> None:
        """Refuse data that a plate "data" has along another dimension than the first: latents would be free."""
        frames = {f.name: f for site in sites.values() for f in site["cond_indep_stack"] if f.vectorized}
        for place, leaf in tensors_at(*self.arguments).items():
            if "data" in frames and frames["data"].size in leaf.shape[1:]:
                name = next(name for name, s in sites.items() if frames["data"] in s["cond_indep_stack"])
                raise ValueError(
                    f"the plate 'data' of the site {name!r} has {frames['data'].size} elements, and the argument at "
                    f"{place}, of shape {tuple(leaf.shape)}, has {len(leaf)} rows: a guide made from a model needs "
                    "tensors with a row for each datum. Transpose the data, and transpose them back in the model, or "
                    "give the plate another name if its elements are no data"
                )

    def _full_size(self, model: Callable[..., Any]) -> int | None:
        """The full size of the data plate where it is a constant of the model, seen by running it on fewer data."""
        args, kwargs = self.arguments
        if self.plate is None or self.n < 2:
            return None
        fewer = tree_map(lambda leaf: leaf[: self.n // 2] if self._is_data(leaf) else leaf, (args, kwargs))
        try:
            with torch.no_grad(), eval_mode(model), kept_buffers(model):
                trace = _run(model, *fewer)
        except Exception:
            return None
        frames = {f.name: f for _, site in sample_sites(trace) for f in site["cond_indep_stack"]}
        frame = frames.get(self.plate.name)
        if frame is None or frame.full_size in (None, self.n // 2):
            return None
        return int(frame.full_size)

    def _is_data(self, leaf: Any) -> bool:
        return isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == self.n

    def _scale(self, name: str, site: dict[str, Any]) -> float:
        """The scale of a latent beyond that of subsampled plates."""
        scale = site["scale"]
        if isinstance(scale, Tensor) and scale.numel() > 1:
            raise ValueError(
                f"the latent site {name!r} has a scale of shape {tuple(scale.shape)}, which a guide made from the "
                "model cannot know for other data: write this guide by hand"
            )
        for f in site["cond_indep_stack"]:
            if f.full_size not in (None, f.size):
                scale = scale * f.size / f.full_size
        return round(float(scale), 9)


def rows_of(data: Mapping[str, Tensor], args: tuple[Any, ...]) -> int:
    """The number of data: the rows of the first tensor among the arguments.

    Args:
        data: The tensors among the arguments, in their order.
        args: The arguments, for the error.
    """
    if not data:
        came = type(args[0]).__name__ if args else "nothing"
        raise TypeError(f"a guide is made from a model and example data, a tensor (N, ...); got {came}")
    first = next(iter(data.values()))
    if len(first) == 0:
        raise ValueError(f"the example data must have at least one row, got shape {tuple(first.shape)}")
    return len(first)


def _run(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return prune_subsample_sites(traced(model, args, kwargs))


def _graph(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], sites: dict[str, Any]
) -> dict[str, tuple[str, ...]]:
    """The parents of each site, as Pyro's provenance has them; where it fails, all latents before the site."""
    try:
        with eval_mode(model), kept_buffers(model):
            found: Any = get_dependencies(model, args, kwargs)["prior_dependencies"]
    except Exception:  # a program may do to a tensor what provenance cannot follow
        found = {}
    known = {name: tuple(p for p in above if p != name) for name, above in found.items() if name in sites}
    before = _all_before(sites)
    return {name: known.get(name, before[name]) for name in sites}


def _all_before(sites: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """A graph that claims nothing: each site depends on all latents before it."""
    found: dict[str, tuple[str, ...]] = {}
    latents: list[str] = []
    for name, site in sites.items():
        found[name] = tuple(latents)
        if not site["is_observed"]:
            latents.append(name)
    return found
