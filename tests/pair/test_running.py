"""Whatever runs a pair's programs: distributions are exact, and frozen parameters stay frozen."""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import elbo as elbos

pytestmark = pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")

LOGIT = -100.0
# the others need a latent or arguments of their own
OTHERS = ("vq", "semi_supervised", "subsampled_modalities")
NAMES = [n for n in elbos.names() if elbos.bound_of(n) != "none" and n not in OTHERS]
EXACT = [n for n in NAMES if n not in ("free_bits", "beta_tc", "info_vae", "wae")]  # with terms of their own
PYRO = {
    "Trace_ELBO": pyro.infer.Trace_ELBO,
    "TraceMeanField_ELBO": pyro.infer.TraceMeanField_ELBO,
    "TraceGraph_ELBO": pyro.infer.TraceGraph_ELBO,
    "TraceEnum_ELBO": pyro.infer.TraceEnum_ELBO,
    "RenyiELBO": pyro.infer.RenyiELBO,
}


class Pixels(nn.Module):
    """Gray values under Pyro's continuous Bernoulli at one extreme logit; the latent is not read, and q is its prior.

    Every bound is log p(x) then: `log(l / (e^l - 1)) + l x` for each pixel.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def model(self, x: Tensor) -> None:
        pyro.module("pixels", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.ContinuousBernoulli(logits=x.new_full((3,), LOGIT) + self.shift).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))

    def log_prob(self, x: Tensor) -> float:
        return float((math.log(LOGIT / math.expm1(LOGIT)) + LOGIT * x).sum())


GRAY = torch.linspace(0.01, 0.3, 12, dtype=torch.float64).reshape(4, 3)


@pytest.mark.parametrize("name", [*EXACT, *PYRO])
def test_a_continuous_bernoulli_is_exact_under_every_estimator(name: str) -> None:
    pair = Pixels().double()
    objective: Any = PYRO[name]() if name in PYRO else elbos.make(name, num_particles=elbos.min_particles(name))
    found = [pv.SVI(pair.model, pair.guide, loss=objective).evaluate_loss(GRAY)]
    if name not in PYRO:
        found.append(objective.loss(pair.model, pair.guide, GRAY))
    for loss in found:
        assert float(loss) == pytest.approx(-pair.log_prob(GRAY))


@pytest.mark.parametrize("name", ["trace", "iwae", "TraceGraph_ELBO"])
@pytest.mark.parametrize("compile", [False, True])
def test_a_continuous_bernoulli_is_exact_in_a_step(name: str, compile: bool) -> None:
    pair = Pixels().double()
    objective: Any = PYRO[name]() if name in PYRO else elbos.make(name)
    svi = pv.SVI(pair.model, pair.guide, lambda params: torch.optim.SGD(params, lr=0.0), objective)
    svi.compile = compile and name not in PYRO
    for _ in range(3):
        assert float(svi.step(GRAY)) == pytest.approx(-pair.log_prob(GRAY))


def test_a_comparison_has_exact_distributions_under_estimators_of_pyro() -> None:
    pair = Pixels().double()
    estimators = {name: make() for name, make in PYRO.items() if name != "RenyiELBO"}
    result = pv.compare_elbos(pair.model, pair.guide, GRAY, estimators=estimators, num_samples=5, repeats=2)
    for row in result.rows:
        assert row.value == pytest.approx(pair.log_prob(GRAY) / 4)


class HalfFrozen(PyroModule):
    """A model with a frozen offset and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        linear: Any = PyroModule[nn.Linear]
        self.body, self.head = linear(2, 4), linear(4, 3)
        self.body.requires_grad_(False)
        self.offset = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.head(self.body(z).tanh()) + self.offset, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("name", [*NAMES, *PYRO])
def test_frozen_parameters_stay_frozen_under_every_estimator(name: str) -> None:
    model, x = HalfFrozen(), torch.randn(6, 3)
    scale = nn.Parameter(torch.ones(2), requires_grad=False)

    def guide(x: Tensor) -> None:
        loc, given = pyro.param("loc", torch.zeros(2)), pyro.param("scale", scale)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc.expand(len(x), 2), given).to_event(1))

    held = {name: p for name, p in model.named_parameters() if not p.requires_grad} | {"scale": scale}
    assert set(held) == {"body.weight", "body.bias", "offset", "scale"}
    before, trained = {name: p.clone() for name, p in held.items()}, model.head.bias.detach().clone()
    k = 2 if name == "RenyiELBO" else 1 if name in PYRO else elbos.min_particles(name)
    objective: Any = PYRO[name](num_particles=k) if name in PYRO else elbos.make(name, num_particles=k)
    svi = pv.SVI(model, guide, lambda params: torch.optim.SGD(params, lr=0.01), objective)
    for _ in range(2):
        svi.step(x)
    assert not any(p.requires_grad for p in held.values())
    assert all(torch.equal(p, before[name]) for name, p in held.items())
    assert not torch.equal(model.head.bias, trained)
    assert pyro.param("loc").abs().min() > 0


def test_parameters_of_a_question_about_the_model_alone_stay_frozen() -> None:
    model = HalfFrozen()
    pv.log_marginal(model, None, torch.randn(4, 3), method="prior", num_samples=5)
    assert not model.offset.requires_grad


def test_nothing_else_is_left_in_the_store() -> None:
    """Of the guards: Pyro's own SVI works on the same pair afterwards, and so does an interrupted run."""
    model = HalfFrozen()
    guide, x = AutoNormal(model), torch.randn(4, 3)

    def broken(x: Tensor) -> None:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        pv.SVI(broken, guide).step(x)
    assert "setdefault" not in vars(pyro.get_param_store())
    pv.SVI(model, guide, loss=elbos.Trace()).step(x)
    assert "setdefault" not in vars(pyro.get_param_store())


def test_programs_are_run_in_one_place() -> None:
    """All others call `traced`, so that whatever holds for a run holds for each."""
    package = Path(pv.__file__).parent
    found = [
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "get_trace"
    ]
    assert found == ["pair/running.py"]
