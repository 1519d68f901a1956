"""`AmortizedGuide`: the guide of any model, with networks from the data to the posteriors of its latents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.guides.alignment import align, enter_plates
from pyro_vae.guides.description import describe
from pyro_vae.guides.encoders import DataEncoder, Encoded
from pyro_vae.guides.inputs import inputs_of, tensors_at
from pyro_vae.guides.masks import masks_of_run
from pyro_vae.guides.prototype import Prototype, rows_of
from pyro_vae.guides.sites import Family, LatentSite, ShapedSite
from pyro_vae.guides.structure import invert
from pyro_vae.pair.arguments import check_keywords
from pyro_vae.pair.names import Named
from pyro_vae.pair.protocol import Program
from pyro_vae.support.arguments import checked_from
from pyro_vae.support.random import seeded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["AmortizedGuide"]


@checked_from(hidden=1)
class AmortizedGuide(Named, nn.Module):
    r"""A guide made from a model: a network from each datum to the posteriors of its latents.

    .. math:: q(z \mid x) = \prod_i q(z_i \mid x, z_{\mathrm{pa}(i)})

    The model is run a few times on example data. A latent in the plate over the data is *amortized*: its distribution
    is computed from the datum, so that the guide takes minibatches of any size and data that it has never seen. A
    latent outside that plate is *free*: its distribution is a parameter. The latents that a site depends on follow from
    the graph of the model (`structure`). `print(guide)` lists the sites, `guide.plot()` draws both graphs.

    Real, positive, bounded, simplex, ordered and other supports with a bijection from real vectors get `family` on the
    unconstrained values, standardized by draws from the prior. Bernoulli, categorical and one-hot latents get a
    classifier, which any estimator can enumerate, relax or score. A latent that the model enumerates stays the model's.

    Args:
        model: The model, a Pyro program.
        *args, **kwargs: Example data, `(N, ...)`, then whatever else the model takes: a few hundred rows, from which
            the scales of the inputs are taken. Missing values may be NaN, or marked by a boolean tensor of the shape of
            the data.
        family: Of continuous latents: a name in `pv.conditionals.POSTERIORS`, a function from the size of a latent to a
            `Conditional`; or a dictionary from sites to any of these. Sites that are not in the dictionary get
            "diagonal_normal".
        structure: "faithful": claims no independence that the posterior lacks, with the fewest dependencies.
            "forward", "reverse": the same with the latents in the model's order, or against it. "mean_field":
            independent latents.
        encoder: A network from the first data tensor to features, `(N, ...) -> (N, H)`. Default: an MLP; for images a
            convolutional network.
        features: A function of the arguments that returns what enters the encoder, `(N, F)`, instead of all data.
        hidden: Widths of the hidden layers of the encoder; the networks of the sites have the last of these.
        seed: For the draws and the initial weights. None continues torch's stream.

    Raises:
        TypeError: If no argument is a tensor of data.
        ValueError: For a model without latents or observations; for a latent whose support has no bijection or varies;
            for a model whose sites differ from run to run; for a latent whose mask depends on other latents.

    Reference: Webb et al. 2018, arXiv 1712.00287 (faithful inversion); Kingma and Welling 2014, arXiv 1312.6114.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         a = pyro.sample("a", dist.Normal(0.0, 1.0))
        ...         b = pyro.sample("b", dist.Gamma(2.0, 1.0))
        ...         pyro.sample("x", dist.Normal(a, b), obs=x)
        >>> guide = AmortizedGuide(model, torch.randn(100))
        >>> print(guide)
        AmortizedGuide, structure 'faithful', data plate 'data'
          a  given x     DiagonalNormal(1)  real      amortized
          b  given a, x  DiagonalNormal(1)  positive  amortized
    """

    def __init__(
        self,
        model: Program,
        *args: Any,
        family: Family | Mapping[str, Family] = "diagonal_normal",
        structure: str = "faithful",
        encoder: nn.Module | None = None,
        features: Callable[..., Tensor] | None = None,
        hidden: Sequence[int] = (128, 64),
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        check_keywords(AmortizedGuide, kwargs, model)
        with seeded(seed):
            made = Prototype(model, args, kwargs)
            self.structure, self.summed_out, self.graph = structure, made.summed_out, made.graph
            self.plate, self.data_dim = made.plate and made.plate.name, made.data_dim
            self.masks, self.scales, self.factors = made.masks, made.scales, made.factors
            # only for masks that the arguments do not hold; in a tuple, since its networks are not the guide's
            needed = any(mask.place is None for mask in made.masks.values())
            self._model: tuple[Program, ...] = (model,) if needed else ()
            self.full_size, self.subsample = made.full_size, made.subsample
            self.num_data = made.full_size or made.n
            columns = inputs_of(args, kwargs, made.n, made.observed, made.data_dim)
            self.encoder = None
            if made.plate:
                data = tensors_at(args, kwargs)
                self.encoder = DataEncoder(columns, args, kwargs, encoder, features, hidden, data)
            self._add_sites(made, family, hidden)
            dtype = next((c.mean.dtype for c in columns if c.mean.is_floating_point()), torch.get_default_dtype())
            self.to(device=next(iter(tensors_at(args, kwargs).values())).device, dtype=dtype)

    def _add_sites(self, made: Prototype, family: Family | Mapping[str, Family], hidden: Sequence[int]) -> None:
        """Make the guide of each latent, in the order in which they are sampled."""
        latents = made.latents
        families = family if isinstance(family, Mapping) else dict.fromkeys(latents, family)
        if unknown := sorted(set(families) - set(latents)):
            raise ValueError(f"got a family for {unknown}, which the guide does not sample: it samples {list(latents)}")
        hidden_ones = [name for name in self.graph if name in latents or name in self.summed_out]
        inversion = invert(self.graph, hidden_ones, self.structure, made.global_names, made.inner_plates)
        self.given = {name: given for name, given in inversion.given.items() if name in latents}
        self.coupled = inversion.coupled
        self.sites, self.parents = nn.ModuleList(), {}
        built: dict[str, LatentSite] = {}
        for name, given in self.given.items():
            parents = tuple(other for other in given if other in built)
            chosen = families.get(name, "diagonal_normal")
            site = self._site(latents[name], [built[other] for other in parents], chosen, hidden)
            self.parents[name] = parents if site.reads_latents else ()
            built[name] = site
            self.sites.append(site)

    def _site(
        self, shaped: ShapedSite, parents: Sequence[LatentSite], family: Family, hidden: Sequence[int]
    ) -> LatentSite:
        size = sum(parent.num_features * parent.elements_outside(shaped.plates) for parent in parents)
        if shaped.is_local and self.encoder is not None:
            inner = {f.dim: f.size for f in shaped.inner}
            size += self.encoder.sizes_at(set(inner), self.data_dim)
            positions = [inner.get(dim, 1) for dim in range(min(inner), 0)] if inner else []
            return LatentSite(shaped, family, size, hidden[-1:], positions, self.num_data)
        return LatentSite(shaped, family, size, (), (), self.num_data)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The guide, a Pyro program with the model's arguments; returns the value of each latent."""
        pyro.module(self.name, self)
        data = self._tensors(args, kwargs)
        frames = {f.name: f for site in self.sites for f in site.frames}  # type: ignore[union-attr]
        plates, rows = enter_plates(frames.values(), self.plate, rows_of(data, args), self.full_size, self.subsample)
        if rows is not None:
            data = {place: leaf[rows] if place in self._places else leaf for place, leaf in data.items()}
        encoded = self.encoder(data, args, kwargs, self.data_dim) if self.encoder is not None else None
        masks = self._masks(data, args, kwargs)
        values: dict[str, Tensor] = {}
        read: dict[str, Tensor] = {}  # the values as other sites read them
        sites: dict[str, LatentSite] = {}
        for site in self.sites:
            assert isinstance(site, LatentSite)
            name = site.name
            with ExitStack() as inside:
                for frame in site.frames:
                    inside.enter_context(plates[frame.name])
                if name in masks:
                    inside.enter_context(poutine.mask(mask=masks[name]))
                if name in self.scales:
                    inside.enter_context(poutine.scale(scale=self.scales[name]))
                h = site.head(self._inputs(site, [sites[p] for p in self.parents[name]], read, encoded))
                values[name] = pyro.sample(name, site(h), infer=site.infer)
                read[name] = site.features(values[name], h)
            sites[name] = site
        return values

    def _inputs(
        self, site: LatentSite, parents: Sequence[LatentSite], read: Mapping[str, Tensor], encoded: Encoded | None
    ) -> Tensor | None:
        """What the network of a site reads, `(*, F)`: the data, the latents before it, the element of its plates."""
        parts = []
        if site.is_local and encoded is not None:
            inner = {f.dim for f in site.frames if f.name != self.plate}
            assert self.encoder is not None
            parts += self.encoder.at(encoded, inner, self.data_dim, site.nesting)
        for parent in parents:
            extra = parent.plates_outside(site.plates)
            parts.append(align(read[parent.name], site.nesting, extra))
        return site.joined(parts)

    def _masks(self, data: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The masks of the latents: from the arguments, or else from a run of the model."""
        found = {name: mask.read(data) for name, mask in self.masks.items() if mask.place is not None}
        if rest := [name for name in self.masks if name not in found]:
            found |= masks_of_run(self._model[0], args, kwargs, rest)
        return found

    @property
    def _places(self) -> list[str]:
        return self.encoder.places if self.encoder is not None else []

    def _tensors(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        data = tensors_at(args, kwargs)
        if missing := [place for place in self._places if place not in data]:
            raise ValueError(
                f"the guide was made with tensors of data at {self._places} of its arguments, and got none at "
                f"{missing[0]}: call it with the arguments of the example"
            )
        return data

    def __repr__(self) -> str:
        return describe(self)

    def plot(self) -> Figure:
        """Draw the graph of the model and that of the guide, side by side.

        What a latent outside the plate over the data depends on in the guide are other such latents alone: its
        distribution is a parameter, for which the data are not read.
        """
        from pyro_vae.guides.picture import draw_graphs

        local = {site.name for site in self.sites if site.is_local}
        given = {name: above if name in local else self.parents[name] for name, above in self.given.items()}
        return draw_graphs(self.graph, given, self.summed_out)
