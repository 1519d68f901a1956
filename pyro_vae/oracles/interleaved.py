"""A pair of discrete and continuous latents that depend on each other in both directions, with scales and masks."""

from __future__ import annotations

import itertools
import math
from contextlib import nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.oracles.base import Oracle, Side, Weighting, normal_parameters
from pyro_vae.oracles.gaussian import normal_grid
from pyro_vae.pair.names import unique_name
from pyro_vae.support.arguments import checked_from

__all__ = ["Interleaved"]


class Interleaved(Oracle):
    r"""Two discrete and two continuous latents, drawn in turns, in one order by the model and in another by the guide.

    .. math:: b_p \sim \mathrm{Bernoulli}, \; z \sim N(m s_b, 0.9^2), \; c \sim \mathrm{Cat}(d_0 + d_1 z), \;
        y \sim N(e_c + g z, 0.8^2), \; x \sim N(z + y / 2 + w s_b + v_c, 0.7^2)

    with `s_b` the mean of the bits of the parts p, which are a plate inside that over the data, and

    .. math:: q(z|x) = N(k x, 0.9^2), \; q(c|z) = \mathrm{Cat}(h_0 + h_1 z), \;
        q(y|c, z, x) = N(r_c + u z + x/4, 0.8^2), \; q(b_p|y, c, x) \text{ with logits } o y + t_c + p x / 2

    Exact by enumeration of b and c on a fine grid over z and y, with gradients.

    Args:
        weighting: Scales and masks of sites. With any, the objective is what `Weighting` says, and log p(x) bounds
            nothing.
        parts: The number of bits.
        all_parts: Of how many parts these are a subsample, which scales the bits on both sides; None: of no more.
        full_size: Size of the data that `x` is a minibatch of; None takes `x` for all data.
        seed: Of the parameters: random, and q is not the posterior.
    """

    guide_parameters = ("k", "h", "r", "u", "o", "t")

    @checked_from(parts=1, all_parts=1, full_size=1)
    def __init__(
        self,
        weighting: Weighting | None = None,
        parts: int = 1,
        all_parts: int | None = None,
        full_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        normal = normal_parameters(seed, 0.5)
        self.prior, self.m, self.d, self.e, self.g = normal(), normal(), normal(2, 2), normal(2), normal()
        self.w, self.v, self.k, self.h, self.r = normal(), normal(2), normal(), normal(2, 2), normal(2)
        self.u, self.o, self.t = normal(), normal(), normal(2)
        self.weighting, self.parts, self.all_parts, self.full_size = (
            weighting or Weighting(),
            parts,
            all_parts,
            full_size,
        )

    @property
    def is_bound(self) -> bool:
        """Whether nothing is scaled or masked."""
        return not (self.weighting or self.all_parts)

    def num_data(self, x: Tensor) -> int:
        """`full_size`, if given."""
        return self.full_size or len(x)

    def data_plate(self, x: Tensor) -> Any:
        """The plate over the data."""
        if self.full_size is None:
            return pyro.plate("data", len(x), dim=-1)
        return pyro.plate("data", self.full_size, subsample=torch.arange(len(x)), dim=-1)

    def part_plate(self) -> Any:
        """The plate over the parts, inside."""
        return pyro.plate("parts", self.all_parts or self.parts, subsample=torch.arange(self.parts), dim=-2)

    def of_model(self, site: str, at: dict[str, Tensor]) -> Any:
        """p of a site given the values before it; the bits' last dimensions are the parts and the data."""
        match site:
            case "b":
                return dist.Bernoulli(logits=self.prior)
            case "z":
                return dist.Normal(self.m * at["b"].mean(-2, keepdim=True), 0.9)
            case "c":
                return dist.Categorical(logits=self.d[0] + self.d[1] * at["z"].unsqueeze(-1))
            case "y":
                return dist.Normal(self.e[at["c"]] + self.g * at["z"], 0.8)
        shift = self.w * at["b"].mean(-2, keepdim=True) + self.v[at["c"]]
        return dist.Normal(at["z"] + at["y"] / 2 + shift, 0.7)

    def of_guide(self, site: str, at: dict[str, Tensor]) -> Any:
        """q of a site given the data and the values before it."""
        match site:
            case "z":
                return dist.Normal(self.k * at["x"], 0.9)
            case "c":
                return dist.Categorical(logits=self.h[0] + self.h[1] * at["z"].unsqueeze(-1))
            case "y":
                return dist.Normal(self.r[at["c"]] + self.u * at["z"] + at["x"] / 4, 0.8)
        part = torch.arange(self.parts).to(at["x"]).unsqueeze(-1)
        return dist.Bernoulli(logits=self.o * at["y"] + self.t[at["c"]] + part * at["x"] / 2)

    def _program(self, side: Side, sites: str, x: Tensor) -> None:
        pyro.module(unique_name(self), self)
        at = {"x": x}
        with self.data_plate(x):
            for site in sites:
                fn = (self.of_model if side == "model" else self.of_guide)(site, at)
                with self.part_plate() if site == "b" else nullcontext(), self.weighting.context(side, site, x):
                    at[site] = pyro.sample(site, fn, obs=x if site == "x" else None)

    def model(self, x: Tensor) -> None:
        """The generative model of `x`, `(N,)`: b, z, c, y."""
        self._program("model", "bzcyx", x)

    def guide(self, x: Tensor) -> None:
        """The guide: z, c, y, b."""
        self._program("guide", "zcyb", x)

    def states(self) -> tuple[Tensor, Tensor]:
        """Every state of the bits, `(S, P, 1)`, and of the class, `(S, 1, 1)`."""
        every = torch.tensor(list(itertools.product((0, 1), repeat=self.parts + 1)))
        return every[:, 1:].to(self.k).unsqueeze(-1), every[:, :1].unsqueeze(-1)

    def simulate(self, n: int) -> Tensor:
        """`n` data from the model, `(n,)`."""
        with torch.no_grad():
            at = {"b": self.of_model("b", {}).sample((self.parts, n))}
            for site in "zcyx":
                at[site] = self.of_model(site, at).sample()
        return at["x"].squeeze(0)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), `(N,)`: y is integrated out, z summed on a grid under the prior."""
        b, c = self.states()
        noise, log_mass = normal_grid(1, x)
        prior = self.of_model("z", {"b": b})
        z = prior.mean + 0.9 * noise.reshape(-1, 1, 1, 1)  # (M, S, 1, 1)
        mean = z + (self.e[c] + self.g * z) / 2 + self.w * b.mean(-2, keepdim=True) + self.v[c]
        log_p = dist.Normal(mean, math.hypot(0.7, 0.8 / 2)).log_prob(x) + self.of_model("c", {"z": z}).log_prob(c)
        log_p = log_p + self.of_model("b", {}).log_prob(b).sum(-2, keepdim=True) + log_mass.reshape(-1, 1, 1, 1)
        return log_p.logsumexp((0, 1, 2))

    def log_weight_parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The observation's and the latents' part of the log-weight, and log q, of points `(M, S, N)`."""
        noise, log_mass = normal_grid(2, x, points=33)
        noise = noise.reshape(-1, 1, 1, 2)
        b, c = self.states()
        at = {"x": x, "b": b, "c": c}
        at["z"] = self.of_guide("z", at).mean + 0.9 * noise[..., 0:1]
        at["y"] = self.of_guide("y", at).mean + 0.8 * noise[..., 1:2]

        def weighted(side: Side, site: str) -> Tensor:
            value = (self.of_model if side == "model" else self.of_guide)(site, at).log_prob(at[site])
            scale = self.all_parts / self.parts if self.all_parts and site == "b" else 1.0
            return scale * self.weighting.factor(side, site, x) * value.sum(-2)

        latents: Any = sum(weighted("model", site) - weighted("guide", site) for site in "bzcy")
        log_q = sum(self.of_guide(site, at).log_prob(at[site]).sum(-2) for site in "cb") + log_mass.reshape(-1, 1, 1)
        return weighted("model", "x"), latents, log_q

    def elbo(self, x: Tensor, weight: float = 1.0) -> Tensor:
        """The ELBO with its KL times `weight`, `(N,)`."""
        given, latents, log_q = self.log_weight_parts(x)
        return (log_q.exp() * (given + weight * latents)).sum((0, 1))

    def weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of every state, on a grid over z and y."""
        given, latents, log_q = self.log_weight_parts(x)
        return (given + latents).flatten(0, 1), log_q.flatten(0, 1)
