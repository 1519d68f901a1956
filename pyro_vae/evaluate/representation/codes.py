"""From data to codes and back, for any pair: posterior means, and the model at given latents."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.evaluate.generate import choose_observed, site_mean
from pyro_vae.evaluate.latent.sites import as_rows
from pyro_vae.pair.arguments import check_data, check_keywords, slices, take
from pyro_vae.pair.forms import in_rows
from pyro_vae.pair.networks import eval_mode, to_networks_device
from pyro_vae.pair.planning import data_that_fit
from pyro_vae.pair.plates import DataPlate, data_plate
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.tracing import PairTrace, Site, sample_sites
from pyro_vae.support.arguments import checked
from pyro_vae.support.random import seeded

__all__ = ["decode", "encode"]


@checked
def encode(
    guide: Program,
    *args: Any,
    latents: str | Sequence[str] | None = None,
    mean: bool = True,
    memory: int | None = None,
    seed: int | None = None,
    **kwargs: Any,
) -> Tensor:
    """The latents of each datum as one row, `(N, E)`: the means of the guide's distributions, or draws.

    Args:
        guide: The guide.
        *args, **kwargs: The data `x` of shape `(N, ...)`, then whatever else the pair takes; tensors with N rows are
            per-datum.
        latents: The sites, in this order. Default: all, in the guide's order.
        mean: True gives the mean of each site given the draws of earlier sites, False a draw. A site without a mean (a
            categorical one) always gives a draw.
        memory: Approximate bytes for the intermediate tensors of a run, which sets how many data run at once. Default:
            1000 data.
        seed: A number makes the call reproducible and leaves torch's generators as they were. None continues their
            stream.

    Raises:
        ValueError: If there is no such site, or a site is outside the plate over the data.
        TypeError: For a keyword that neither this call nor the guide knows.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.VAE(64, latent_dim=3)
        >>> encode(vae.guide, torch.zeros(5, 64)).shape
        torch.Size([5, 3])
    """
    check_keywords(encode, kwargs, guide)
    with torch.no_grad(), eval_mode(guide):
        guide, _, data, _ = in_rows(guide, None, (to_networks_device(args, guide), kwargs))
    n = check_data(data[0])

    def run(part: Data) -> tuple[Any, DataPlate]:
        trace = prune_subsample_sites(traced(guide, *part))
        return trace, data_plate(PairTrace(Trace(), trace), len(part[0][0]))

    parts: list[Tensor] = []
    with torch.no_grad(), eval_mode(guide), seeded(seed):
        for start, stop in slices(n, data_that_fit(run, data, memory)):
            trace, plate = run(take(*data, start, stop))
            chosen = _latents(trace, latents)
            values = [as_rows(_value(site, mean), site, plate) for site in chosen.values()]
            parts.append(torch.cat([value.to(torch.get_default_dtype()) for value in values], 1))
    return torch.cat(parts)


@checked
def decode(
    model: Program,
    codes: Tensor,
    *args: Any,
    latents: str | Sequence[str] | None = None,
    site: str | None = None,
    mean: bool = True,
    seed: int | None = None,
    **kwargs: Any,
) -> Tensor:
    """The observed site of a model at given latents: its mean, or a draw.

    Args:
        model: The model.
        codes: `(M, E)`, as from `encode`.
        *args, **kwargs: The arguments that the model takes. The first row of each per-datum tensor is repeated
            M times, unless it has M rows already. Only the shape of the data matters, unless the model conditions on
            them.
        latents: The sites that the codes hold, as in `encode`; other latents are drawn from the model.
        site: Which observed site. Default: the first of the shape of x, else the first.
        mean: True gives the mean of the observed site, False a draw.
        seed: A number makes the call reproducible and leaves torch's generators as they were. None continues their
            stream.

    Raises:
        ValueError: If there is no such site, if the codes do not have the size of the sites, or if the observed site
            has no mean.
        TypeError: For a keyword that neither this call nor the model knows.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.VAE(64, latent_dim=3)
        >>> decode(vae.model, torch.zeros(7, 3), torch.zeros(1, 64)).shape
        torch.Size([7, 64])
    """
    n, total = check_data(args), len(codes)
    check_keywords(decode, kwargs, model)
    if codes.dim() != 2 or not total:
        raise ValueError(f"codes must be (M, E), M at least 1, got {tuple(codes.shape)}")

    def repeated(a: Any) -> Any:
        per_datum = isinstance(a, Tensor) and a.dim() > 0 and len(a) == n
        return a[:1].expand(total, *a.shape[1:]) if per_datum and n != total else a

    args = to_networks_device(tuple(map(repeated, args)), model)
    kwargs = {name: repeated(a) for name, a in kwargs.items()}
    with torch.no_grad(), eval_mode(model), seeded(seed):
        trace = prune_subsample_sites(traced(model, args, kwargs))
        plate = data_plate(PairTrace(trace, Trace()), total)
        chosen = _latents(trace, latents)
        replayed: Any = trace.copy()
        column = 0
        for name, latent in chosen.items():
            size = latent["value"].numel() // total
            replayed.nodes[name] = {**latent, "value": _as_value(codes[:, column : column + size], latent, plate)}
            column += size
        if column != codes.shape[1]:
            raise ValueError(
                f"codes have {codes.shape[1]} columns, but the latents {list(chosen)} have {column} elements"
            )
        for name, other in sample_sites(trace):
            if not other["is_observed"] and name not in chosen:
                replayed.remove_node(name)
        run = prune_subsample_sites(traced(model, args, kwargs, on=replayed))
        observed = {name: s for name, s in sample_sites(run) if s["is_observed"]}
        name, found = choose_observed(observed, site, args[0])
        return site_mean(name, found) if mean else found["fn"].sample()


def _latents(trace: Any, names: str | Sequence[str] | None) -> dict[str, Site]:
    found = {name: site for name, site in sample_sites(trace) if not site["is_observed"]}
    if names is not None:
        wanted = [names] if isinstance(names, str) else list(names)
        if missing := [name for name in wanted if name not in found]:
            raise ValueError(
                f"there is no latent site {missing[0]!r}; the latent sites are {', '.join(found) or 'none'}"
            )
        found = {name: found[name] for name in wanted}
    if not found:
        raise ValueError("there is no latent site, so nothing can be encoded or decoded")
    return found


def _value(site: Site, mean: bool) -> Tensor:
    if mean:
        try:
            value = torch.as_tensor(site["fn"].mean)
        except (NotImplementedError, AttributeError):
            return site["value"]
        if not bool(value.isnan().any()):  # the mean of a categorical distribution in torch
            return value
    return site["value"]


def _as_value(rows: Tensor, site: Site, plate: DataPlate) -> Tensor:
    """Rows `(M, size)` in the layout of the site's value: the inverse of `as_rows`."""
    shape = list(site["value"].shape)
    axis = plate.dim - site["fn"].event_dim + len(shape)
    rest = list(itertools.chain(shape[:axis], shape[axis + 1 :]))
    return rows.to(site["value"]).reshape(len(rows), *rest).movedim(0, axis)
