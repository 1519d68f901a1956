"""SVI on many programs: frozen and stale parameters, batches without a site, the attributes of Pyro's SVI."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn
from torch.distributions import constraints

import pyro_vae as pv
from pyro_vae.elbo import MeanField, Trace
from pyro_vae.training.svi import SVI

LINEAR: Any = PyroModule[nn.Linear]
PYRO_OPTIM: Any = pyro.optim


class Decoder(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = LINEAR(2, 3)
        self.offset = nn.Parameter(torch.zeros(3), requires_grad=False)
        self.noise: Any = PyroParam(torch.ones(3), constraint=constraints.positive)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.net(z) + self.offset, self.noise).to_event(1), obs=x)


class Encoder(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = LINEAR(3, 4), LINEAR(4, 4)
        self.body.requires_grad_(False)
        self.shift = nn.Parameter(torch.zeros(2), requires_grad=False)

    def forward(self, x: Tensor) -> None:
        shift = pyro.param("shift", self.shift)
        with pyro.plate("data", len(x)):
            loc, scale = self.head(self.body(x).tanh()).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc + shift, scale.exp()).to_event(1))


def frozen_of(*nets: nn.Module) -> dict[str, Tensor]:
    return {name: p for net in nets for name, p in net.named_parameters() if not p.requires_grad}


RUNS: dict[str, Callable[[Any, Any, Tensor], Any]] = {
    "steps": lambda model, guide, x: [svi.step(x) for svi in [SVI(model, guide)] for _ in range(3)],
    "fit": lambda model, guide, x: pv.fit(model, guide, x, epochs=2, progress=False),
    "bound": pv.bound,
    "preflight": pv.preflight,
    "log_marginal": lambda model, guide, x: pv.log_marginal(model, guide, x, num_samples=5),
    "compare": lambda model, guide, x: pv.compare_elbos(model, guide, x, estimators=["trace"], repeats=2),
}


@pytest.mark.parametrize("run", RUNS)
def test_frozen_parameters_stay_as_they_are(run: str) -> None:
    model, guide, x = Decoder(), Encoder(), torch.randn(20, 3)
    held = frozen_of(model, guide)
    assert set(held) == {"offset", "body.weight", "body.bias", "shift"}
    before = {name: p.clone() for name, p in held.items()}
    trained = guide.head.weight.detach().clone()
    RUNS[run](model, guide, x)
    assert set(frozen_of(model, guide)) == set(held)
    assert all(torch.equal(p, before[name]) for name, p in held.items())
    assert torch.equal(trained, guide.head.weight) == (run not in ("steps", "fit"))


def test_a_frozen_model_under_an_autoguide_and_thawed_later() -> None:
    model, x = Decoder(), torch.randn(20, 3)
    model.net.requires_grad_(False)
    before = copy.deepcopy(model.net.state_dict())
    svi = SVI(model, AutoNormal(model), loss=Trace())
    svi.step(x)
    svi.step(x)
    assert not any(p.requires_grad for p in model.net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.net.state_dict().items())
    model.net.requires_grad_(True)
    svi.step(x)
    assert not torch.equal(model.net.weight, before["weight"])


def scaled(shape: tuple[int, ...]) -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        scale = pyro.param("scale", torch.ones(shape), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1) + x.new_zeros(3), scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))

    return model, guide


def test_a_parameter_of_another_shape_in_the_store_is_refused() -> None:
    x, said = torch.randn(10, 3), r"'scale'.* shape \(3,\), but .* shape \(\) under that name.*clear_param_store"
    SVI(*scaled(())).step(x)
    with pytest.raises(ValueError, match=said):
        SVI(*scaled((3,))).step(x)
    with pytest.raises(ValueError, match=said):
        pv.fit(*scaled((3,)), x, epochs=1, progress=False)
    assert "stale_parameter" in [issue.code for issue in pv.preflight(*scaled((3,)), x, strict=False).issues]
    pyro.clear_param_store()
    SVI(*scaled((3,))).step(x)
    assert pyro.param("scale").shape == (3,)


def test_a_constraint_that_changes_the_shape_is_not_stale() -> None:
    def model(x: Tensor) -> None:
        p = pyro.param("p", torch.tensor([0.2, 0.3, 0.5]), constraint=constraints.simplex)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Categorical(p), obs=x)

    x = torch.tensor([0, 1, 2, 2])
    for _ in range(2):  # the second finds the first one's parameter
        loss = SVI(model, lambda x: None, loss=Trace()).step(x)
        assert bool(loss.isfinite())
    assert pv.preflight(model, lambda x: None, x, elbo="trace", strict=False).ok


@pytest.mark.filterwarnings("ignore:.*site_order")
@pytest.mark.parametrize("save", [pickle.dumps, lambda value: torch.save(value, io.BytesIO()), copy.deepcopy])
@pytest.mark.parametrize("runs", [["steps"], ["fit"], ["bound"], ["preflight"], ["steps", "compare"]])
def test_a_pair_can_be_pickled_afterwards(save: Callable[[Any], Any], runs: list[str]) -> None:
    vae, x = pv.models.HierarchicalVAE(6), torch.rand(20, 6).round()
    for run in runs:
        RUNS[run](vae.model, vae.guide, x)
    save(vae)
    pv.bound(vae.model, vae.guide, x)


@pytest.mark.filterwarnings("ignore:.*site_order")
def test_a_pickled_pair_is_the_same_pair() -> None:
    vae, x = pv.models.HierarchicalVAE(6), torch.rand(20, 6).round()
    pv.fit(vae.model, vae.guide, x, epochs=1, progress=False)
    other = pickle.loads(pickle.dumps(vae))
    expected = pv.bound(vae.model, vae.guide, x, seed=0).mean
    pyro.clear_param_store()
    assert pv.bound(other.model, other.guide, x, seed=0).mean == pytest.approx(expected)


def classifier() -> tuple[Any, Any, Tensor, Tensor]:
    net = nn.Linear(4, 3)

    def model(x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            if y is not None:
                pyro.sample("y", dist.Categorical(logits=net(x)), obs=y)

    return model, lambda x, y=None: None, torch.randn(8, 4), torch.randint(0, 3, (8,))


@pytest.mark.parametrize("loss", [pyro.infer.Trace_ELBO(), Trace(), MeanField(), pyro.infer.TraceGraph_ELBO()])
def test_batches_without_a_site_train_nothing(loss: Any) -> None:
    losses = []
    for kind, optim in ((pyro.infer.SVI, PYRO_OPTIM.SGD({"lr": 0.1})), (SVI, lambda p: torch.optim.SGD(p, lr=0.1))):
        pyro.clear_param_store()
        torch.manual_seed(0)
        model, guide, x, y = classifier()
        svi = kind(model, guide, optim, loss=loss)
        losses.append([float(svi.step(*args)) for args in ((x,), (x, y), (x,), (x, y))])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[1][0] == losses[1][2] == 0.0
    assert losses[1][3] < losses[1][1]


def test_the_attributes_of_pyros_svi() -> None:
    model, guide = scaled(())
    x, optim = torch.randn(6, 3), PYRO_OPTIM.Adam({"lr": 0.1})
    theirs, ours = (kind(model, guide, optim, loss=pyro.infer.Trace_ELBO()) for kind in (pyro.infer.SVI, SVI))
    losses, grads = [], []
    for svi in (theirs, ours):
        torch.manual_seed(0)
        losses.append([float(svi.loss(model, guide, x)), float(svi.loss_and_grads(model, guide, x))])
        scale = pyro.get_param_store()._params["scale"]
        grads.append(scale.grad.clone())
        scale.grad = None
    assert losses[0] == losses[1]
    torch.testing.assert_close(grads[0], grads[1])
    assert ours.optim is theirs.optim
    assert isinstance(ours.objective, pyro.infer.Trace_ELBO)


def test_the_loss_of_a_function() -> None:
    model, guide = scaled(())
    x = torch.randn(6, 3)

    def function(*args: Any) -> Any:
        return MeanField().differentiable_loss(*args)

    svi = SVI(model, guide, loss=function)
    svi.step(x)
    torch.manual_seed(0)
    expected = float(function(model, guide, x).detach())
    torch.manual_seed(0)
    assert float(svi.loss_and_grads(model, guide, x).detach()) == pytest.approx(expected)
    assert all(p.grad is not None for p in svi.params.values())


def test_the_energy_distance_is_evaluated_as_in_pyro() -> None:
    def model(x: Tensor | None = None) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", 20):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    x, losses = torch.randn(20), []
    for svi in (
        pyro.infer.SVI(model, lambda x=None: None, PYRO_OPTIM.Adam({}), pyro.infer.EnergyDistance()),
        SVI(model, lambda x=None: None, None, pyro.infer.EnergyDistance()),
    ):
        torch.manual_seed(0)
        losses.append(float(svi.evaluate_loss(x)))
    assert losses[0] == losses[1]


@pytest.fixture
def module_local_params() -> Iterator[None]:
    with pyro.settings.context(module_local_params=True):
        yield


class Slope(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.noise: Any = PyroParam(torch.tensor(1.0), constraint=constraints.positive)
        self.offset = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor, y: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(slope * x + self.offset, self.noise), obs=y)


@pytest.mark.usefixtures("recorded")
def test_modules_with_parameters_of_their_own(module_local_params: None) -> None:
    x = torch.randn(20)
    y, results = x * 0.5 + 0.3, []
    for compiles in (False, True):
        pyro.set_rng_seed(0)
        model = Slope()
        guide = AutoNormal(model)
        svi = SVI(model, guide, lambda p: torch.optim.SGD(p, lr=0.01), MeanField(), compile=compiles)
        results.append([float(svi.step(x, y)) for _ in range(5)])
        assert float(model.offset.detach()) != 0.0
        assert float(model.noise.detach()) != 1.0
    assert set(svi.params) == {"offset", "noise", "AutoNormal.locs.slope", "AutoNormal.scales.slope"}
    assert results[0] == pytest.approx(results[1], rel=1e-5)
    assert len(pyro.get_param_store()) == 0
