"""Discrete draws in an inner plate whose elements a later site brings together again, by enumeration."""

from __future__ import annotations

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_vae.elbo import make
from pyro_vae.pair.plates import independent_plates
from pyro_vae.pair.tracing import trace_pair
from tests.helpers.estimator_gradients import check, gradients


class Pooled(nn.Module):
    """Two bits, a switch that reads both, and two observations that read the switch, one beside each bit."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.s, self.q, self.t = (
            nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.3, [0.2, -0.9], 0.4, [-0.5, 1.7])
        )

    def switch_first(self, x: Tensor) -> None:
        """A guide of other bits, none of which the switch reads."""
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Bernoulli(logits=self.t[0] + self.t[1] * x))
            with pyro.plate("parts", 2, dim=-2):
                pyro.sample("b", dist.Bernoulli(logits=self.q * c).expand([2, len(x)]))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            parts = pyro.plate("parts", 2, dim=-2)
            with parts:
                b = pyro.sample("b", dist.Bernoulli(logits=self.p.expand(2, len(x))))
            c = pyro.sample("c", dist.Bernoulli(logits=self.s[0] + self.s[1] * b.mean(-2)))
            with parts:
                pyro.sample("x", dist.Normal(2 * c - b, 1.0), obs=x.expand(2, len(x)))

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            with pyro.plate("parts", 2, dim=-2):
                b = pyro.sample("b", dist.Bernoulli(logits=(self.q * x).expand(2, len(x))))
            pyro.sample("c", dist.Bernoulli(logits=self.t[0] + self.t[1] * b.mean(-2)))

    def elbo(self, x: Tensor) -> Tensor:
        """Over all eight states, written out."""
        total = torch.zeros_like(x)
        for bits in itertools.product((0.0, 1.0), repeat=3):
            b, c = torch.tensor(bits[:2], dtype=torch.float64).unsqueeze(-1), torch.tensor(bits[2]).double()
            log_q = dist.Bernoulli(logits=self.q * x).log_prob(b.expand(2, len(x))).sum(0)
            log_q = log_q + dist.Bernoulli(logits=self.t[0] + self.t[1] * b.mean()).log_prob(c)
            log_p = dist.Bernoulli(logits=self.p).log_prob(b).sum() + dist.Normal(2 * c - b, 1.0).log_prob(x).sum(0)
            log_p = log_p + dist.Bernoulli(logits=self.s[0] + self.s[1] * b.mean()).log_prob(c)
            total = total + log_q.exp() * (log_p - log_q)
        return total.sum()


@pytest.mark.parametrize("name", ["trace", "trace_graph", "reinforce"])
def test_what_stands_beside_a_draw_may_depend_on_it(name: str) -> None:
    pair, x = Pooled(), torch.tensor([0.9, -1.4], dtype=torch.float64)
    exact = pair.elbo(x)
    check(make(name), pair, x, exact, gradients(exact, pair))


class Led(nn.Module):
    """A bit that leads two bits in a plate, which a third reads together."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.q = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in ([0.4, -1.1], [-0.6, 1.3, 0.8]))

    def sites(self, w: Tensor, a_logits: Tensor) -> Tensor:
        a = pyro.sample("a", dist.Bernoulli(logits=a_logits))
        with pyro.plate("parts", 2, dim=-2):
            b = pyro.sample("b", dist.Bernoulli(logits=(w[0] + w[1] * a).expand(2, len(a_logits))))
        c = pyro.sample("c", dist.Bernoulli(logits=w[0] - w[1] * b.mean(-2)))
        return 2 * c - b.mean(-2) + 3 * a

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            loc = self.sites(self.p, self.p[0].expand(len(x)))
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            self.sites(self.q, self.q[2] * x)

    def elbo(self, x: Tensor) -> Tensor:
        """Over all sixteen states, written out."""
        total = torch.zeros_like(x)
        for bits in itertools.product((0.0, 1.0), repeat=4):
            a, c, *parts = torch.tensor(bits, dtype=torch.float64).unbind()
            b = torch.stack(parts)

            def log_prob(w: Tensor, a_logits: Tensor, a: Tensor = a, b: Tensor = b, c: Tensor = c) -> Tensor:
                of_b = dist.Bernoulli(logits=w[0] + w[1] * a).log_prob(b).sum()
                of_c = dist.Bernoulli(logits=w[0] - w[1] * b.mean()).log_prob(c)
                return dist.Bernoulli(logits=a_logits).log_prob(a) + of_b + of_c

            log_q = log_prob(self.q, self.q[2] * x)
            log_p = log_prob(self.p, self.p[0]) + dist.Normal(2 * c - b.mean() + 3 * a, 1.0).log_prob(x)
            total = total + log_q.exp() * (log_p - log_q)
        return total.sum()


@pytest.mark.parametrize("name", ["trace", "trace_graph", "reinforce"])
def test_a_draw_before_a_plate_that_is_brought_together(name: str) -> None:
    pair, x = Led(), torch.tensor([0.9, -1.4], dtype=torch.float64)
    exact = pair.elbo(x)
    check(make(name), pair, x, exact, gradients(exact, pair))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of Pyro, which goes on
def test_a_sum_inside_a_plate_is_refused_for_what_stands_outside_of_it() -> None:
    """Also where it reads the enumerated bits through another latent; else the bits would be summed as if equal."""

    def sites(x: Tensor, obs: Tensor | None) -> None:
        with pyro.plate("data", len(x), dim=-1):
            with pyro.plate("parts", 2, dim=-2):
                b = pyro.sample("b", dist.Bernoulli(0.3).expand([2, len(x)]), infer={"enumerate": "parallel"})
                z = pyro.sample("z", dist.Normal(b, 1.0))
            if obs is not None:
                pyro.sample("x", dist.Normal(z.sum(-2, keepdim=True), 1.0), obs=obs)

    with pytest.raises(ValueError, match="'x' stands outside of the plate 'parts' and depends on 'b'"):
        make("enum").loss(lambda x: sites(x, x), lambda x: sites(x, None), torch.zeros(3))


def test_plates_are_kept_where_nothing_brings_their_elements_together() -> None:
    pair, x = Pooled(), torch.tensor([0.9, -1.4], dtype=torch.float64)
    plates = {}
    for guide in (pair.guide, pair.switch_first):
        found = independent_plates(trace_pair(pair.model, guide, (x,)).guide)
        plates[guide.__name__] = {name: {frame.name for frame in frames} for name, frames in found.items()}
    assert plates["guide"] == {"b": {"data"}, "c": {"data"}}
    assert plates["switch_first"] == {"b": {"data", "parts"}, "c": {"data"}}
