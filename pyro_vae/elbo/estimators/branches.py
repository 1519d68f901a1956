"""A guide that runs on several branches at once: every state of a site, or antithetic draws of it."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.elbo.estimators.site_plan import SitePlan, element_shape
from pyro_vae.pair.exact import exact_distribution
from pyro_vae.pair.site_masks import base_distribution

__all__ = ["DIRECTION", "Branches", "signs"]

DIRECTION = "_pyro_vae_direction"  # key of what an antithetic draw makes of its logits, in the trace


class Branches(Messenger):
    """Gives the sites of a guide their values on each branch of a `SitePlan`.

    A site that is summed over has one of its states on each branch of its own axis; an antithetic one has either draw.
    The draw of any site is the same on all branches of the axes that come later, and another on those before. So each
    branch is a draw from the guide given the states of the axes.

    Args:
        plan: The plan.
        rows: All particles with all branches.
        dim: The batch dimension of the rows; None where they run one by one, `row` being the present one.
    """

    def __init__(self, plan: SitePlan, rows: int, dim: int | None) -> None:
        super().__init__()
        self.plan, self.rows, self.dim, self.row = plan, rows, dim, 0
        self._shared: dict[tuple[str, int], Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if msg["is_observed"] or msg["done"] or msg["value"] is not None or name not in self.plan.treatments:
            return
        fn = msg["fn"] = exact_distribution(msg["fn"])
        match self.plan.treatments[name].name:
            case "enum":
                msg["value"] = self._state(name, fn)
            case "disarm":
                msg["value"], msg[DIRECTION] = self._antithetic(name, fn)
            case _:
                # what reads the draw of a site that does not move must not be moved by it
                with nullcontext() if self.plan.treatments[name].moves else torch.no_grad():
                    msg["value"] = self._share(name, fn.event_dim, lambda: fn(*msg["args"], **msg["kwargs"]))
        msg["done"] = True

    def _share(self, name: str, event_dim: int, draw: Any) -> Tensor:
        """A draw, the same on all branches from the site's own axis on."""
        after = self.plan.after(self.plan.before[name])
        if self.dim is None:
            key = name, self.row // after
            if key not in self._shared:
                self._shared[key] = draw()
            return self._shared[key]
        value: Tensor = draw()
        if after == 1:
            return value
        at = value.dim() - event_dim + self.dim
        split = value.unflatten(at, (-1, after))
        return split.narrow(at + 1, 0, 1).expand(split.shape).flatten(at, at + 1)

    def _index(self, name: str) -> Tensor:
        """The branch of the site's own axis, of every row or of the present one: `(rows,)` or `(1,)`."""
        first = self.plan.before[name]
        rows = torch.arange(self.rows) if self.dim is not None else torch.tensor([self.row])
        return rows // self.plan.after(first + 1) % self.plan.axes[first].size

    def _rows_of(self, values: Tensor, event_dim: int) -> Tensor:
        """Values of the rows, `(rows, ...)`, in the layout of a site with so many event dimensions."""
        if self.dim is None:
            return values.squeeze(0)
        return values.reshape(len(values), *[1] * (event_dim - self.dim - values.dim()), *values.shape[1:])

    def _state(self, name: str, fn: Any) -> Tensor:
        """On each branch, one of all states of a datum's elements."""
        base = base_distribution(fn)
        support = base.enumerate_support(expand=False)
        support = support.reshape(len(support), *base.event_shape)
        shape = element_shape(fn, self.plan.data_dim, self.dim)
        shape = shape[1:] if self.dim is not None else shape
        index = self._index(name).to(support.device)
        digits = len(support) ** torch.arange(math.prod(shape) - 1, -1, -1, device=support.device)
        values = support[index.unsqueeze(-1) // digits % len(support)]  # (rows, elements, ...)
        values = values.reshape(len(index), *shape, *base.event_shape)
        return self._rows_of(values, fn.event_dim).expand(fn.shape()).contiguous()

    def _antithetic(self, name: str, fn: Any) -> tuple[Tensor, Tensor]:
        """Either of two antithetic draws, and `(-1)^b~ 1[b != b~]` of the two."""
        with torch.no_grad():
            probs = base_distribution(fn).probs
            u = self._share(name, fn.event_dim, lambda: torch.rand_like(probs))
            b, other = (1 - u < probs).to(probs.dtype), (u < probs).to(probs.dtype)
            second = self._rows_of(self._index(name).to(u.device), 0)
            second = second.reshape(second.shape + (1,) * fn.event_dim).bool()
            return torch.where(second, other, b), (1 - 2 * other) * (b != other)


def signs(plan: SitePlan, name: str, rows: int) -> Tensor:
    """+1 on the first of two antithetic branches and -1 on the second, `(rows, 1)`."""
    branch = torch.arange(rows) // plan.after(plan.before[name] + 1) % 2
    return (1 - 2 * branch).unsqueeze(-1)
