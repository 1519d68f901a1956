"""What stands where a mask leaves an observation out counts for nothing: not in the loss, and not in its gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import elbo as elbos

NAMES = ["mean_field", "trace", "stl", "iwae", "dreg", "rws", "reinforce", "vimco", "gumbel", "disarm", "rebar"]
PYRO_LIKE = ["trace_graph", "enum"]
NAN = math.nan

# the likelihood of three elements given a decoder's output, an observation inside the support, and fillers
FAMILIES: dict[str, tuple[Callable[[Tensor], Any], list[float], list[float]]] = {
    "Normal": (lambda h: dist.Normal(h, h.exp()), [0.3, -0.2, 1.0], [NAN, math.inf]),
    "LogNormal": (lambda h: dist.LogNormal(h, 1.0), [0.3, 0.2, 1.0], [0.0, -1.0, NAN]),
    "Gamma": (lambda h: dist.Gamma(h.exp(), 1.0), [0.3, 0.2, 1.0], [0.0, -1.0, NAN]),
    "Beta": (lambda h: dist.Beta(h.exp(), 1.0), [0.3, 0.2, 0.9], [0.0, 255.0, NAN]),
    "Bernoulli": (lambda h: dist.Bernoulli(logits=h), [0.0, 1.0, 1.0], [-1.0, NAN]),
    "ContinuousBernoulli": (lambda h: dist.ContinuousBernoulli(logits=h), [0.3, 0.2, 0.9], [-1.0, NAN]),
    "Poisson": (lambda h: dist.Poisson(h.exp()), [2.0, 0.0, 1.0], [-1.0, NAN]),
    "Categorical": (lambda h: dist.Categorical(logits=torch.stack([h, -h, h**2], -1)), [2, 0, 1], [-1, 255]),
    "mixture": (
        lambda h: dist.MixtureSameFamily(
            dist.Categorical(logits=torch.stack([h, -h], -1)), dist.Normal(torch.stack([h, 2 * h], -1), 1.0)
        ),
        [0.3, 0.2, 0.9],
        [NAN],
    ),
}
MASKS = ["poutine.mask", ".mask", ".mask of elements"]


class Masked(nn.Module):
    """z ~ N(0, 1), three elements of x given z, of which a mask leaves some out; q(z) = N(m, e^s)."""

    def __init__(self, family: str, mask: str) -> None:
        super().__init__()
        self.likelihood, self.mask = FAMILIES[family][0], mask
        self.w, self.m, self.s = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (0.4, 0.1, -0.3))

    def model(self, x: Tensor, seen: Tensor) -> None:
        pyro.module("masked", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), dtype=torch.float64), 1.0))
            fn = self.likelihood(self.w * z.unsqueeze(-1) + torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))
            rows: Any = seen.all(-1)
            if self.mask == ".mask of elements":
                pyro.sample("x", fn.mask(seen).to_event(1), obs=x)
            elif self.mask == ".mask":
                pyro.sample("x", fn.to_event(1).mask(rows), obs=x)
            else:
                with poutine.mask(mask=rows):
                    pyro.sample("x", fn.to_event(1), obs=x)

    def guide(self, x: Tensor, seen: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.m.expand(len(x)), self.s.exp()))


@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(
    ("family", "name"), [(f, "mean_field") for f in FAMILIES] + [("Gamma", n) for n in (*NAMES[1:], *PYRO_LIKE)]
)
def test_fillers_count_for_nothing(family: str, name: str, mask: str, validate: bool) -> None:
    _, inside, fillers = FAMILIES[family]
    pair, seen = Masked(family, mask), torch.tensor([[True] * 3, [False, True, False], [True] * 3])
    if mask != ".mask of elements":
        seen = seen.all(-1, keepdim=True).expand(3, 3)
    x = torch.tensor([inside] * 3, dtype=torch.int64 if family == "Categorical" else torch.float64)
    found = []
    with pyro.validation_enabled(validate):
        for filler in (None, *fillers):
            pyro.clear_param_store()
            given = x if filler is None else torch.where(seen, x, filler)
            pair.zero_grad()
            torch.manual_seed(0)
            svi = pv.SVI(pair.model, pair.guide, loss=elbos.make(name, num_particles=elbos.min_particles(name)))
            loss = svi.gradients((given, seen))
            grads = [p.grad for p in pair.parameters() if p.grad is not None]
            found.append(torch.stack([loss.detach(), *grads]))
    assert len(found[0]) > 1
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_the_program_sees_what_it_gave() -> None:
    """A site without a cost, by `mask(False)`, from which the rest of the model reads a condition."""

    def model(x: Tensor, label: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=False):
                read = pyro.sample("label", dist.Categorical(torch.ones(3)), obs=label)
            pyro.sample("x", dist.Normal(read.to(x), 1.0), obs=x)

    x, label = torch.tensor([0.5, -1.0]), torch.tensor([2, 1])
    exact = dist.Normal(label.float(), 1.0).log_prob(x).sum()
    for name in ("trace", "trace_graph"):
        loss = pv.SVI(model, lambda x, label: None, loss=elbos.make(name)).evaluate_loss(x, label)
        torch.testing.assert_close(loss, -exact)


# Flows whose density is known at their own latest draw


class WithFlow(nn.Module):
    def __init__(self, flow: nn.Module) -> None:
        super().__init__()
        self.flow, self.shift = flow, nn.Parameter(torch.zeros(2))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + self.shift, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("pair", self)
        with pyro.plate("data", len(x)):
            base = dist.Normal(x / 2, 0.7).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [self.flow]))

    def log_prob(self, x: Tensor) -> Tensor:
        return dist.Normal(self.shift, 2**0.5).to_event(1).log_prob(x).sum()


FLOWS: dict[str, Callable[[], nn.Module]] = {
    "planar": lambda: dist.transforms.Planar(2),
    "radial": lambda: dist.transforms.Radial(2),
    "neural": lambda: dist.transforms.neural_autoregressive(2, hidden_dims=[8]),
}


@pytest.mark.filterwarnings("ignore:the pair does not give the same densities")
@pytest.mark.parametrize("flow", FLOWS)
def test_flows_that_know_their_latest_draw_alone(flow: str) -> None:
    torch.manual_seed(0)
    pair, x = WithFlow(FLOWS[flow]()), torch.randn(3, 2).repeat(100, 1)
    exact = pair.log_prob(x).item() / 300
    bounds = {
        n: -float(elbos.make(n, num_particles=8).loss(pair.model, pair.guide, x)) / 300 for n in ("trace", "iwae")
    }
    assert bounds["trace"] < bounds["iwae"] < exact + 0.1
    assert bounds["iwae"] > exact - 0.5
    for name in ("stl", "dreg", "rws"):
        with pytest.raises(ValueError, match=r"site 'z': the density under .* latest draw"):
            elbos.make(name, num_particles=4).loss(pair.model, pair.guide, x)
