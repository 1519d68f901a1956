"""The guide of one latent site: features of the data and of other latents, and a family of distributions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import conditionals
from pyro_vae.conditionals import Conditional, bounded_exp
from pyro_vae.guides.alignment import broadcast_cat
from pyro_vae.guides.supports import UnconstrainedSite, fixed_support
from pyro_vae.nets import MLP
from pyro_vae.pair.site_masks import base_distribution

__all__ = ["Family", "Head", "LatentSite", "ShapedSite"]

Family = str | Conditional | Callable[[int], Conditional]


POSITION = 4  # numbers that tell a network which element of an inner plate it is at
WIDEST, NARROWEST = 0.1, 1e-4  # initial scale of a latent outside the data plate, in units of the prior's
GLOBAL_DRAWS = 32  # of a latent outside the data plate in each run, which has a single value of it
MOST_DRAWN = 100_000  # numbers in these draws; the weights of a network are as many
OWN_WEIGHTS = 100_000  # weights of the elements of a plate beyond which they share them
FREE_WEIGHTS = 100_000  # weights between latents outside the data plate beyond which these are independent


class PlateFrame(NamedTuple):
    """A plate of a site in a trace, without what Pyro's frame holds of the run."""

    name: str
    dim: int
    size: int
    full_size: int | None


class Classifier(nn.Module):
    """`logits (*, C)` -> a discrete distribution of the same kind as the model's."""

    def __init__(self, name: str, fn: Any) -> None:
        super().__init__()
        base = base_distribution(fn)
        self.event_shape = fn.event_shape
        if isinstance(base, dist.Bernoulli):
            self.kind, self.categories = "bernoulli", 1
        elif isinstance(base, dist.OneHotCategorical):
            self.kind, self.categories = "one_hot", base.event_shape[-1]
        elif isinstance(base, dist.Categorical):
            self.kind, self.categories = "categorical", base.support.upper_bound + 1
        else:
            raise ValueError(
                f"the latent site {name!r} is a {type(base).__name__}, a discrete distribution for which there is no "
                "classifier (there is one for Bernoulli, Categorical and OneHotCategorical): write this site's guide "
                "by hand, or make the latent continuous"
            )
        units = self.event_shape[:-1] if self.kind == "one_hot" else self.event_shape
        self.units = torch.Size(units)
        self.size = self.units.numel() * self.categories
        self.label = "boolean" if self.kind == "bernoulli" else f"one of {self.categories}"

    def distribution(self, h: Tensor) -> Any:
        if self.kind == "bernoulli":
            d = dist.Bernoulli(logits=h.reshape(*h.shape[:-1], *self.units))
            return d.to_event(len(self.units)) if len(self.units) else d
        logits = h.reshape(*h.shape[:-1], *self.units, self.categories)
        d = dist.OneHotCategorical(logits=logits) if self.kind == "one_hot" else dist.Categorical(logits=logits)
        return d.to_event(len(self.units)) if len(self.units) else d

    def features(self, value: Tensor) -> Tensor:
        """A value as input of another site's network: `(*, *event_shape)` -> `(*, size)`."""
        lead = value.shape[: value.dim() - len(self.event_shape)]
        if self.kind == "categorical":
            # a comparison, not `one_hot`, whose check of the range waits for the device
            value = value.unsqueeze(-1) == torch.arange(self.categories, device=value.device)
        value = value.to(torch.get_default_dtype()).reshape(*lead, -1)
        return 2 * value - 1 if self.kind == "bernoulli" else value


class Head(nn.Module):
    """A linear map plus an MLP, both near zero at first: `(*, in) -> (*, out)`; without inputs free parameters.

    The linear part makes the posteriors of linear-Gaussian models exact. It has weights of its own for each element of
    `batch_shape`, unless these are many; the MLP is shared.
    """

    def __init__(self, size: int, hidden: Sequence[int], out: Sequence[int], batch_shape: Sequence[int] = ()) -> None:
        super().__init__()
        self.out = torch.Size(out)
        width = self.out.numel()
        self.bias = nn.Parameter(torch.zeros(*batch_shape, width))
        apart = batch_shape if math.prod(batch_shape) * size * width <= OWN_WEIGHTS else ()
        self.linear = nn.Parameter(0.1 * torch.randn(*apart, size, width) / max(1, size) ** 0.5) if size else None
        self.body = MLP(size, hidden, width, "elu") if size and hidden else None
        with torch.no_grad():
            if self.body is not None:
                last = [module for module in self.body.modules() if isinstance(module, nn.Linear)][-1]
                last.weight.mul_(0.1)

    def forward(self, x: Tensor | None) -> Tensor:
        h: Tensor = self.bias
        if x is not None and self.linear is not None:
            h = h + _elementwise_product(x, self.linear)
            if self.body is not None:
                h = h + self.body(x)
        return h.unflatten(-1, self.out)


class ShapedSite:
    """What a latent site is in the model: its plates, its support, the shape of its values.

    Args:
        name: The site.
        runs: The site in several runs of the model.
        data_plate: Name of the plate over the data.
    """

    def __init__(self, name: str, runs: list[Any], data_plate: str | None) -> None:
        site = runs[0]
        self.name, self.runs, self.fn = name, runs, site["fn"]
        self.frames = [f for f in site["cond_indep_stack"] if f.vectorized]
        self.is_local = any(f.name == data_plate for f in self.frames)
        self.inner = [f for f in self.frames if f.name != data_plate]
        self.is_discrete = bool(getattr(self.fn.support, "is_discrete", False))

    @property
    def plates(self) -> dict[str, int]:
        """Dimension of each plate that the site is in."""
        return {f.name: f.dim for f in self.frames}

    def draws(self) -> Tensor:
        """Values of the site, `(S, *event_shape)`: those of the runs; of one outside the data plate, further ones."""
        shape = self.fn.event_shape
        count = max(1, min(GLOBAL_DRAWS, MOST_DRAWN // max(1, self.runs[0]["value"].numel())))
        values = [run["value"] if self.is_local else run["fn"].sample((count,)) for run in self.runs]
        return torch.cat([value.detach().reshape(-1, *shape) for value in values])


class LatentSite(nn.Module):
    """The guide of one latent site.

    Args:
        shaped: What it is in the model.
        family: Of continuous sites: a name in `pv.conditionals.POSTERIORS`, a function from the size of the latent to a
            `Conditional`, or a `Conditional`.
        features: Number of inputs. For a site outside the data plate, whose inputs are other such latents alone, the
            map from them is linear, and left out where it would be large.
        hidden: Widths of the hidden layers.
        positions: Sizes of the dimensions of its plates inside the data plate: the network is told the element.
        num_data: Number of data.
    """

    def __init__(
        self,
        shaped: ShapedSite,
        family: Family,
        features: int,
        hidden: Sequence[int],
        positions: Sequence[int],
        num_data: int,
    ) -> None:
        super().__init__()
        self.name, self.is_local, self.plates = shaped.name, shaped.is_local, shaped.plates
        self.frames = [PlateFrame(f.name, f.dim, f.size, f.full_size) for f in shaped.frames]
        self.values: UnconstrainedSite | Classifier
        self.family: Conditional | None = None
        if shaped.is_discrete:
            self.values = Classifier(shaped.name, shaped.fn)
            out = torch.Size([self.values.size])
        else:
            support = fixed_support(shaped.name, [run["fn"] for run in shaped.runs])
            self.values = UnconstrainedSite(support, shaped.fn.event_shape, shaped.draws())
            self.family = _family(shaped.name, family, self.values.size)
            out = self.family.param_shape
        self.position = nn.Parameter(torch.randn(*positions, POSITION)) if positions else None
        batch = tuple(positions)
        if not self.is_local:
            batch = _padded(shaped)
            features = features if features * out.numel() <= FREE_WEIGHTS else 0
        self.reads_latents = features > 0
        self.head = Head(features + (POSITION if positions else 0), hidden, out, batch)
        if not self.is_local and self.family is not None:
            # All data speak of a latent that they share, so that its posterior is narrower than the prior by some
            # sqrt(N). The start is narrower still: the noise of a gradient is proportional to the scale, so the way up
            # takes hundreds of steps, the way down thousands. A family's features begin with the locations and the
            # log-scales.
            with torch.no_grad():
                start = min(WIDEST, max(NARROWEST, 1 / num_data))
                self.head.bias[..., self.size : 2 * self.size] = math.log(start)

    def plates_outside(self, plates: Mapping[str, int]) -> dict[int, int]:
        """The plates of the site that another site is not in: their sizes by dimension."""
        return {f.dim: f.size for f in self.frames if f.name not in plates}

    def elements_outside(self, plates: Mapping[str, int]) -> int:
        """Number of values of this site for one of another that is in the given plates."""
        return math.prod(self.plates_outside(plates).values())

    def joined(self, parts: list[Tensor]) -> Tensor | None:
        """The inputs of the network side by side, with the element of the inner plates."""
        if self.position is not None:
            parts = [*parts, self.position]
        return broadcast_cat(parts) if self.reads_latents or self.is_local else None

    @property
    def nesting(self) -> int:
        """Number of batch dimensions that the plates take."""
        return max((-frame.dim for frame in self.frames), default=0)

    @property
    def size(self) -> int:
        """Numbers that make up an unconstrained value, or the logits of a discrete one."""
        return self.values.size

    @property
    def infer(self) -> Any:
        """How `TraceEnum_ELBO` treats it: other estimators draw or relax it."""
        single = isinstance(self.values, Classifier) and not self.values.units
        return {"enumerate": "parallel"} if single else None

    @property
    def family_name(self) -> str:
        return "classifier" if self.family is None else f"{type(self.family).__name__}({self.size})"

    @property
    def num_features(self) -> int:
        """Numbers by which a value enters the networks of other sites."""
        return 2 * self.size if self._is_whitened else self.size

    @property
    def _is_whitened(self) -> bool:
        return not self.is_local and self.family is not None and self.head.out.numel() >= 2 * self.size

    def features(self, value: Tensor, parameters: Tensor) -> Tensor:
        """A value as input of another site's network: `(*, *event_shape)` -> `(*, num_features)`.

        A latent outside the data plate enters in units of the prior and in units of its own distribution, too: this may
        be so narrow that in units of the prior what depends on it would hardly be seen.

        Args:
            value: The value.
            parameters: What its distribution was made of.
        """
        if isinstance(self.values, Classifier):
            return self.values.features(value)
        u = self.values.unconstrained(value)
        if not self._is_whitened:
            return u
        loc, log_scale = parameters[..., : self.size], parameters[..., self.size : 2 * self.size]
        return torch.cat([u, (u - loc) / bounded_exp(log_scale)], -1)

    def forward(self, parameters: Tensor) -> Any:
        """The distribution of the site for the output of its `head`."""
        if isinstance(self.values, Classifier):
            return self.values.distribution(parameters)
        assert self.family is not None
        return self.values(self.family(parameters))


def _elementwise_product(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight` with a weight for each element: `(*, *B, in)` and `(*B, in, out)`."""
    batch = weight.shape[:-2]
    if not batch:
        return x @ weight
    if x.shape[-1 - len(batch) : -1] != batch:
        return (x.unsqueeze(-2) @ weight).squeeze(-2)
    rows = x.reshape(-1, batch.numel(), x.shape[-1]).transpose(0, 1)  # one product per element, not per row
    return (rows @ weight.flatten(0, -3)).transpose(0, 1).reshape(*x.shape[:-1], weight.shape[-1])


def _family(name: str, family: Family, size: int) -> Conditional:
    if isinstance(family, str):
        if size == 1 and family in ("full_normal", "low_rank_normal"):
            family = "diagonal_normal"  # the same in one dimension, with a KL in closed form
        return conditionals.posterior(family, size)
    made = family if isinstance(family, Conditional) else family(size)
    if not isinstance(made, Conditional) or made.event_shape != (size,):
        came = tuple(made.event_shape) if isinstance(made, Conditional) else type(made).__name__
        raise ValueError(
            f"the family of the site {name!r} must be a Conditional over events of shape ({size},), got {came}"
        )
    return made


def _padded(shaped: ShapedSite) -> tuple[int, ...]:
    """The batch shape of a site's plates."""
    sizes = {f.dim: f.size for f in shaped.frames}
    return tuple(sizes.get(dim, 1) for dim in range(min(sizes), 0)) if sizes else ()
