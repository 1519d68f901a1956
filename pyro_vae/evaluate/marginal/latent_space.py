"""The densities of a pair as functions of its latents, in unconstrained coordinates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import biject_to
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.pair.arguments import map_rows
from pyro_vae.pair.bijections import bijection_of
from pyro_vae.pair.plates import data_plate, sum_to_data
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.together import prior_of
from pyro_vae.pair.tracing import log_prob, sample_sites, trace_pair

__all__ = ["LatentSpace", "Point"]


@dataclass(frozen=True)
class Point:
    """Latents of R rows, with their densities and gradients.

    Attributes:
        u: The latents in unconstrained coordinates, `(R, D)`.
        base, tilt: Log-density of the base, and log p(x, z) minus it, `(R,)`. The Jacobian is part of the base.
        base_grad, tilt_grad: Their gradients in `u`, `(R, D)`.
    """

    u: Tensor
    base: Tensor
    tilt: Tensor
    base_grad: Tensor
    tilt_grad: Tensor

    def log_density(self, beta: float) -> Tensor:
        """Log of base^(1 - beta) p(x, z)^beta, `(R,)`."""
        return self.base + beta * self.tilt

    def grad(self, beta: float) -> Tensor:
        """Gradient of `log_density`, `(R, D)`."""
        return torch.add(self.base_grad, self.tilt_grad, alpha=beta)

    def where(self, keep: Tensor, other: Point) -> Point:
        """This point in the rows where `keep`, `(R,)`, is True, the other one elsewhere."""
        wide = keep.unsqueeze(-1)
        return Point(
            torch.where(wide, self.u, other.u),
            torch.where(keep, self.base, other.base),
            torch.where(keep, self.tilt, other.tilt),
            torch.where(wide, self.base_grad, other.base_grad),
            torch.where(wide, self.tilt_grad, other.tilt_grad),
        )


@dataclass(frozen=True)
class _Layout:
    """The layout of a site's unconstrained value.

    Attributes:
        shape: Its shape with the data first.
        axis: The axis of the data.
        added: How many leading dimensions the site lacks, where one row stands for all data together.
    """

    shape: torch.Size
    axis: int
    added: int

    def row(self, value: Tensor) -> Tensor:
        value = value.reshape((1,) * self.added + value.shape)
        return value.movedim(self.axis, 0).flatten(1) if value.dim() > 1 else value.unsqueeze(-1)

    def site(self, row: Tensor) -> Tensor:
        value = row.reshape(len(row), *self.shape[1:]).movedim(0, self.axis)
        return value.reshape(value.shape[self.added :])


class _FromUnconstrained(Messenger):
    """Sets every latent site to the image of an unconstrained value, and records the Jacobian."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.values, self.log_det = values, {}  # type: tuple[dict[str, Tensor], dict[str, Tensor]]

    def _pyro_sample(self, msg: Any) -> None:
        u = self.values.get(msg["name"])
        if u is None or msg["is_observed"]:
            return
        transform = biject_to(msg["fn"].support)
        msg["value"] = transform(u)
        msg["done"] = True
        log_det = transform.log_abs_det_jacobian(u, msg["value"])
        rest = msg["fn"].event_dim - transform.codomain.event_dim
        self.log_det[msg["name"]] = log_det.sum(tuple(range(-rest, 0))) if rest else log_det


def _gradient(value: Tensor, u: Tensor) -> Tensor:
    """Gradient of the sum of `value`; zero if it does not depend on `u`."""
    grad = None
    if value.requires_grad:
        (grad,) = torch.autograd.grad(value.sum(), u, retain_graph=True, allow_unused=True)
    return torch.zeros_like(u) if grad is None else grad


class LatentSpace:
    """Densities and gradients of a pair at any latents, one row per datum and copy.

    Chains run as copies of the data, so networks see ordinary rows. A pair with parameters for each datum cannot run on
    copied data; its chains run one after another.

    Args:
        model: The model.
        guide: The guide, whose density is the base, or None for the prior.
        data: The arguments of the pair, with N rows.
        copies: C; there are R = C N rows, those of the first copy first.

    Raises:
        ValueError: For a discrete latent site, a model without latent sites, or an auxiliary site of the guide.
    """

    def __init__(self, model: Program, guide: Program | None, data: Data, copies: int) -> None:
        self.model, self.guide, self.copies = model, guide, copies
        self.start = prior_of(model) if guide is None else guide
        self.n = len(data[0][0])
        self.data, self.runs = data, copies
        self._evaluate: Callable[[Tensor], tuple[Tensor, ...]] = self._eager
        self.layouts: dict[str, _Layout] = {}
        first = self._draw(data)  # raises if the pair is unsuitable
        self.dims = first.shape[1]
        if copies > 1:
            many = map_rows(lambda a: a.repeat(copies, *(1,) * (a.dim() - 1)), *data)
            try:
                self._draw(many)
            except (RuntimeError, ValueError):
                return
            self.data, self.runs = many, 1

    def draw(self) -> Tensor:
        """Latents from the base, `(R, D)`."""
        return torch.cat([self._draw(self.data) for _ in range(self.runs)])

    def point(self, u: Tensor) -> Point:
        """The densities and their gradients at `u`, `(R, D)`."""
        return Point(u, *self._evaluate(u))

    def record(self) -> None:
        """Trace the tensor operations of `point`, so that later calls run without Pyro.

        Nothing changes if tracing fails, or if the graph gives other values at other latents because the pair has
        control flow on values or draws noise.
        """
        draws = [self.draw() for _ in range(3)]
        try:
            with pyro.validation_enabled(False):
                graph = make_fx(lambda u: self._eager(u))(draws[0])  # make_fx would trace the `self` of a method
            graph.graph.eliminate_dead_code()
            graph.recompile()
            pairs = [pair for u in draws for pair in zip(graph(u), self._evaluate(u), strict=True)]
            agrees = all(torch.allclose(a, b, rtol=1e-4, atol=1e-4, equal_nan=True) for a, b in pairs)
        except Exception:  # any error of tracing: Pyro runs each time then
            return
        if agrees:
            self._evaluate = graph

    def _eager(self, u: Tensor) -> tuple[Tensor, ...]:
        u = u.detach().requires_grad_()
        with torch.enable_grad():
            pairs = [self._densities(rows) for rows in (u.chunk(self.runs) if self.runs > 1 else [u])]
            base, tilt = (torch.cat(parts) if self.runs > 1 else parts[0] for parts in zip(*pairs, strict=True))
            grads = [_gradient(value, u) for value in (base, tilt)]
        return base.detach(), tilt.detach(), *grads

    def row_of(self, trace: Any) -> Tensor:
        """Unconstrained coordinates of the latents in a trace of the model, `(N, D)`."""
        rows = []
        plate = self._plate
        for name, site in sample_sites(trace):
            if site["is_observed"]:
                continue
            if site["fn"].support.is_discrete:
                raise ValueError(
                    f"site {name!r} is drawn from {type(site['fn']).__name__}, a discrete distribution, and "
                    "Hamiltonian moves need continuous latents: use method='importance'"
                )
            transform = bijection_of(name, site["fn"].support)
            value = transform.inv(site["value"])
            event_dim = site["fn"].event_dim - transform.codomain.event_dim + transform.domain.event_dim
            axis = value.dim() - event_dim + plate.dim
            added = max(0, -axis)
            shape = torch.Size((1,) * added) + value.shape
            self.layouts[name] = _Layout(
                torch.Size([shape[axis + added], *shape[: axis + added], *shape[axis + added + 1 :]]),
                axis + added,
                added,
            )
            rows.append(self.layouts[name].row(value))
        if not rows:
            raise ValueError(
                "the model samples no latent site, so log p(x) is simply the log-density of its observations"
            )
        return torch.cat(rows, dim=-1)

    def _draw(self, data: Data) -> Tensor:
        args, kwargs = data
        with torch.no_grad():
            traces = trace_pair(self.model, self.start, args, kwargs)
        auxiliary = [name for name in traces.latents if name not in traces.model.nodes]
        if auxiliary:
            raise ValueError(
                f"the guide's auxiliary site {auxiliary[0]!r} is not in the model, so the density of its other "
                "sites is unknown: use start='prior'"
            )
        self._plate = data_plate(traces, len(args[0]))
        return self.row_of(traces.model)

    def _densities(self, u: Tensor) -> tuple[Tensor, Tensor]:
        args, kwargs = self.data
        sizes = [layout.shape[1:].numel() for layout in self.layouts.values()]
        values = {
            name: layout.site(part)
            for (name, layout), part in zip(self.layouts.items(), u.split(sizes, dim=-1), strict=True)
        }
        bijection = _FromUnconstrained(values)
        with bijection:
            model = prune_subsample_sites(traced(self.model, args, kwargs))
        zero = u.new_zeros(())
        prior, likelihood, base = zero, zero, zero
        for name, site in sample_sites(model):
            value = self._sum(log_prob(name, site))
            if site["is_observed"]:
                likelihood = likelihood + value
            else:
                prior = prior + value + self._sum(bijection.log_det[name])
        if self.guide is None:
            return prior, likelihood + u.new_zeros(len(u))
        guide = traced(self.guide, args, kwargs, on=model)
        for name, site in sample_sites(prune_subsample_sites(guide)):
            base = base + self._sum(log_prob(name, site)) + self._sum(bijection.log_det[name])
        return base, prior + likelihood - base

    def _sum(self, value: Tensor) -> Tensor:
        return sum_to_data(value, self._plate, None)
