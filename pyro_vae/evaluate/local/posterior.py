"""A guide with separate parameters for each datum."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn
from torch.distributions.transforms import ReshapeTransform

from pyro_vae import conditionals
from pyro_vae.conditionals import Conditional
from pyro_vae.evaluate.local.rows import per_datum
from pyro_vae.pair.bijections import bijection_of, is_real
from pyro_vae.pair.masks import check_no_mask
from pyro_vae.pair.plates import DataPlate, data_plate
from pyro_vae.pair.subsampling import give_sizes, plate_of_rows
from pyro_vae.pair.tracing import PairTrace, sample_sites

__all__ = ["Family", "LocalPosterior", "SitePosterior"]

Family = str | Conditional | Callable[[int], Conditional]


class SitePosterior(nn.Module):
    """q(z) of one latent site: a family of distributions over the site's flattened, unconstrained values.

    Args:
        name: Name of the site.
        site: The site in a trace of the model.
        plate: The plate over the data.
        family: Name of a posterior family, a `Conditional`, or a function from the size of the latent to one.
    """

    def __init__(self, name: str, site: dict[str, Any], plate: DataPlate, family: Family) -> None:
        super().__init__()
        fn = site["fn"]
        if fn.support.is_discrete:
            raise ValueError(
                f"the latent site {name!r} is discrete ({type(fn).__name__}): a local posterior is fitted by "
                "gradients through its draws. Sum the site out, or relax it in model and guide"
            )
        check_no_mask(name, site)
        self.name = name
        self.frames = [f for f in site["cond_indep_stack"] if f.vectorized]
        self.axis = len(fn.batch_shape) + plate.dim
        self.transform = bijection_of(name, fn.support)
        self.shape = self.transform.inverse_shape(fn.event_shape)
        self.real = is_real(fn.support)
        size = self.shape.numel()
        if isinstance(family, str):
            family = conditionals.posterior(family, size)
        elif not isinstance(family, Conditional):
            family = family(size)
        if not isinstance(family, Conditional) or family.event_shape != (size,):
            came = tuple(family.event_shape) if isinstance(family, Conditional) else type(family).__name__
            raise ValueError(
                f"the family of the site {name!r} must give a Conditional over events of shape ({size},), got {came}"
            )
        self.family = per_datum(family, fn.batch_shape).to(site["value"])
        self.features = nn.Parameter(site["value"].new_zeros(*fn.batch_shape, *family.param_shape))

    def forward(self) -> Any:
        q = self.family(self.features)
        if self.real and len(self.shape) == 1:
            return q
        reshape = ReshapeTransform(self.family.event_shape, self.shape)
        return dist.TransformedDistribution(q, [reshape] if self.real else [reshape, self.transform])

    def rates(self) -> dict[str, Tensor]:
        """The relative learning rate of each parameter's elements.

        Locations and log-scales have rate 1. A step in all weights of a layer, or in all other features, moves the
        draws in proportion to their number, so the rate of these is divided by their number.
        """
        size = 2 * self.shape.numel()
        found = {}
        for name, p in self.named_parameters():
            rate = p.new_ones(())
            if name == "features":
                rate = p.new_ones(self.family.param_shape.numel())
                rate[size:] = min(1.0, size / max(1, len(rate) - size))
                rate = rate.view(self.family.param_shape)
            elif name.endswith("weight"):
                rate = rate / p.shape[-1]
            found[name] = rate
        return found

    @torch.no_grad()
    def start_at(self, loc: Tensor, scale: Tensor) -> None:
        """Set the features to a mean and a scale of the unconstrained values, `(*batch, *shape)` each.

        A family's features begin with the locations and the log-scales; the others become zero.
        """
        lead, size = self.features.shape[: -len(self.family.param_shape)], self.shape.numel()
        log_scale = scale.log().clamp(-6.0, 6.0)
        # the inverse of `soft_bound`
        rest = (log_scale.abs() - 3).clamp(min=0)
        log_scale = log_scale.clamp(-3, 3) + log_scale.sign() * rest / (1 - rest / 4)
        known = torch.cat([value.expand(*lead, *self.shape).reshape(*lead, size) for value in (loc, log_scale)], -1)
        flat = self.features.zero_().view(*lead, -1)
        flat[..., : 2 * size] = known[..., : flat.shape[-1]]


class LocalPosterior(nn.Module):
    """Independent `SitePosterior`s of all latent sites of a model: a guide for the data that the trace was made for.

    Args:
        trace: A trace of the model on the data.
        n: Number of data.
        family: For all sites, or by site.

    Raises:
        ValueError: For a model without latent sites, a discrete or masked latent, or a family of another size.
    """

    def __init__(self, trace: Trace, n: int, family: Family | Mapping[str, Family]) -> None:
        super().__init__()
        trace = prune_subsample_sites(trace)
        give_sizes(trace)
        latents = {name: site for name, site in sample_sites(trace) if not site["is_observed"]}
        if not latents:
            raise ValueError("the model has no latent site, so there is no posterior to fit")
        if isinstance(family, Mapping):
            if set(family) != set(latents):
                raise ValueError(f"got families for the sites {list(family)}; the model's latents are {list(latents)}")
            families = dict(family)
        else:
            families = dict.fromkeys(latents, family)
        self.plate = data_plate(PairTrace(trace, Trace()), n)
        self.sites = nn.ModuleList(
            SitePosterior(name, site, self.plate, families[name]) for name, site in latents.items()
        )
        # the dimension of every parameter that runs over the data
        self.axes = {f"sites.{i}.{name}": s.axis for i, s in enumerate(self) for name, _ in s.named_parameters()}

    def __iter__(self) -> Iterator[SitePosterior]:
        return iter(self.sites)  # type: ignore[arg-type]

    def rates(self) -> dict[str, Tensor]:
        """`SitePosterior.rates` of all sites."""
        return {f"sites.{i}.{name}": rate for i, s in enumerate(self) for name, rate in s.rates().items()}

    def forward(self, x: Tensor) -> None:
        """The guide, for the data of the parameters."""
        frames = {f.name: f for site in self for f in site.frames}
        plates = {}
        for name, f in frames.items():
            size = len(x) if name == self.plate.name else f.size
            whole = f.full_size if f.full_size not in (None, f.size) else size
            plates[name] = plate_of_rows(name, size, whole, f.dim, x.device)
        for site in self:
            with ExitStack() as inside:
                for f in site.frames:
                    inside.enter_context(plates[f.name])
                pyro.sample(site.name, site())
