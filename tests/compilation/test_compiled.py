"""The recorded and compiled gradient is the eager one, and what cannot be compiled says why and runs."""

from __future__ import annotations

import copy
import itertools
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.compilation import gradients as compiled
from pyro_vae.compilation.recordable import Recordable
from pyro_vae.oracles import BitsAndClasses, Discrete, LinearGaussian, TopDownChain
from pyro_vae.support.random import fork_rng

REAL = compiled.compile_graph

pytestmark = pytest.mark.usefixtures("recorded")


def grads_of(svi: pv.SVI) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in svi.params.items() if p.grad is not None}


def assert_same_gradients(model: Any, guide: Any, make: Callable[[], Any], *args: Any, steps: int = 2) -> None:
    """Compiled and eager gradients agree on the same noise, at the same weights, step after step."""
    objectives = make(), make()
    first = pv.SVI(model, guide, lambda p: torch.optim.SGD(p, lr=0.0), objectives[0])
    second = pv.SVI(model, guide, lambda p: torch.optim.SGD(p, lr=0.0), objectives[1], compile=True)
    for step in range(steps + 1):
        found = []
        for svi in (first, second):
            # Bernoulli draws are made in another way in a graph
            with fork_rng(step), pyro.validation_enabled(False), Recordable():
                loss = svi.gradients(args, scale=0.25)
            found.append((loss, grads_of(svi)))
            svi.zero_grad()
        (loss, grads), (our_loss, ours) = found
        torch.testing.assert_close(our_loss, loss.to(our_loss), rtol=1e-5, atol=1e-5)
        assert set(ours) == set(grads)
        for name in grads:
            scale = float(grads[name].abs().max())
            torch.testing.assert_close(ours[name], grads[name], rtol=1e-4, atol=1e-5 * scale + 1e-9)
    assert second.compilation.graphs
    assert not second.compilation.reason


PATHWISE = ["mean_field", "trace", "stl", "iwae", "dreg", "miwae", "piwae", "ciwae", "renyi", "rws", "tail_adaptive"]


@pytest.mark.parametrize("name", [*PATHWISE, "free_bits", "capacity", "reinforce", "vimco"])
@pytest.mark.parametrize("particles", [1, 4])
def test_estimators(name: str, particles: int) -> None:
    if particles < pv.elbo.min_particles(name):
        pytest.skip("needs more particles")
    pair = LinearGaussian()
    x = pair.simulate(5)
    assert_same_gradients(pair.model, pair.guide, lambda: pv.elbo.make(name, num_particles=particles), x)


@pytest.mark.parametrize("options", [{}, {"straight_through": True}, {"prior": "relaxed"}])
def test_relaxations(options: Any) -> None:
    pair = BitsAndClasses()
    x = (torch.rand(5, 3, dtype=torch.float64) < 0.5).double()
    cooling = pv.elbo.Cooling(rate=0.5)
    assert_same_gradients(
        pair.model, pair.guide, lambda: pv.elbo.make("gumbel", temperature=cooling, num_particles=2, **options), x
    )


@pytest.mark.parametrize("name", ["vimco", "double_cv", "rebar", "disarm", "reinforce"])
def test_discrete_latents(name: str) -> None:
    pair: Any = BitsAndClasses(classes=0) if name in ("disarm", "rebar", "double_cv") else Discrete()
    x = (torch.rand(5, 3, dtype=torch.float64) < 0.5).double()
    options = {"learn": False} if name == "double_cv" else {}  # the two objectives have parameters of their own
    assert_same_gradients(pair.model, pair.guide, lambda: pv.elbo.make(name, num_particles=2, **options), x)


@pytest.mark.parametrize("baseline", ["running", "leave_one_out"])
def test_baselines_carry_on(baseline: str) -> None:
    pair = Discrete()
    x = (torch.rand(5, 3, dtype=torch.float64) < 0.5).double()
    assert_same_gradients(
        pair.model, pair.guide, lambda: pv.elbo.make("reinforce", num_particles=2, baseline=baseline), x, steps=4
    )


CONTINUOUS = [*PATHWISE, "reinforce", "vimco"]
PIXELS = ("bernoulli", "continuous_bernoulli", "normal", "laplace", "categorical", "discretized_logistic", "poisson")
FAMILIES = list(itertools.product(PIXELS, pv.conditionals.POSTERIORS))
OTHERS = [name for name in pv.conditionals.LIKELIHOODS if name not in PIXELS]


# all of them take a quarter of an hour: otherwise each likelihood, posterior and estimator with several of the others
EVERY = [(name, *family) for name in CONTINUOUS for family in FAMILIES]
IN_TURN = [(CONTINUOUS[i % len(CONTINUOUS)], *family) for i, family in enumerate(FAMILIES)][::3]
COMBINATIONS = EVERY if os.environ.get("PYRO_VAE_TEST_EVERYTHING") else IN_TURN


def test_each_part_is_in_some_combination() -> None:
    parts = [set(column) for column in zip(*COMBINATIONS, strict=True)]
    assert parts == [set(CONTINUOUS), set(PIXELS), set(pv.conditionals.POSTERIORS)]


@pytest.mark.parametrize(("name", "likelihood", "posterior"), COMBINATIONS)
def test_estimators_with_likelihoods_and_posteriors(name: str, likelihood: str, posterior: str) -> None:
    torch.manual_seed(0)
    vae = pv.VAE(4, latent_dim=3, hidden=(8,), likelihood=likelihood, posterior=posterior).double()
    x = torch.rand(4, 4, dtype=torch.float64)
    if likelihood in ("bernoulli", "poisson", "categorical"):
        x = x.round()
    elif likelihood == "discretized_logistic":
        x = (x * 255).round() / 255
    assert_same_gradients(vae.model, vae.guide, partial(pv.elbo.make, name, num_particles=2), x, steps=1)


@pytest.mark.parametrize("likelihood", OTHERS)
def test_the_other_likelihoods(likelihood: str) -> None:
    torch.manual_seed(0)
    vae = pv.VAE(4, latent_dim=3, hidden=(8,), likelihood=likelihood).double()
    x = torch.rand(4, 4, dtype=torch.float64)
    x = x if likelihood in ("student_t", "log_normal", "beta", "von_mises") else torch.poisson(3 * x)
    assert_same_gradients(vae.model, vae.guide, partial(pv.elbo.make, "trace", num_particles=2), x, steps=1)


def test_a_pair_of_plain_functions_with_arguments() -> None:
    rate = nn.Linear(2, 3)

    def model(counts: Tensor, exposure: Tensor, *, power: float = 1.0) -> None:
        pyro.module("rate", rate)
        scale = pyro.param("scale", torch.tensor(0.7), constraint=dist.constraints.positive)
        with pyro.plate("data", len(counts)):
            u = pyro.sample("u", dist.Normal(torch.zeros(2), scale).to_event(1))
            v = pyro.sample("v", dist.Gamma(2.0, 2.0))
            pyro.sample(
                "n", dist.Poisson(exposure.unsqueeze(-1) * v.unsqueeze(-1) * rate(u).exp()).to_event(1), obs=counts
            )

    def guide(counts: Tensor, exposure: Tensor, *, power: float = 1.0) -> None:
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", len(counts)):
            pyro.sample("v", dist.LogNormal(loc[0], 0.5))
            pyro.sample("u", dist.Normal(loc * counts[:, :2], 0.3).to_event(1))

    counts, exposure = torch.poisson(torch.ones(5, 3)), torch.rand(5) + 0.5
    for name in ("trace", "iwae"):
        assert_same_gradients(model, guide, partial(pv.elbo.make, name, num_particles=3), counts, exposure)


def test_hierarchy_in_another_order() -> None:
    pair = TopDownChain()
    for name in ("mean_field", "stl"):
        assert_same_gradients(pair.model, pair.guide, partial(pv.elbo.make, name), torch.randn(4))


def run(compile: bool, steps: int, **options: Any) -> list[float]:
    pyro.clear_param_store()
    torch.manual_seed(0)
    vae = pv.VAE(12, latent_dim=2, hidden=(8,))
    x = (torch.rand(6, 12) < 0.4).float()
    svi = pv.SVI(vae.model, vae.guide, compile=compile, **options)
    with fork_rng(1):
        return [float(svi.step(x)) for _ in range(steps)]


@pytest.mark.parametrize("name", ["mean_field", "dreg"])
def test_really_compiled_runs_are_the_eager_ones(name: str, really: None) -> None:
    ours, eager = (run(flag, 30, loss=pv.elbo.make(name, num_particles=3)) for flag in (True, False))
    assert ours == pytest.approx(eager, rel=1e-4)


def test_really_compiled_discrete_run(really: None) -> None:
    pair = BitsAndClasses()
    x = (torch.rand(5, 3, dtype=torch.float64) < 0.5).double()
    assert_same_gradients(pair.model, pair.guide, lambda: pv.elbo.make("vimco", num_particles=3), x)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["mean_field", "iwae", "dreg"])
def test_really_compiled_on_a_gpu(name: str, really: None, gpu: torch.device) -> None:
    torch.manual_seed(0)
    vae = pv.VAE(12, 3, hidden=(8,)).to(gpu)
    x = torch.rand(10, 12).round().to(gpu)
    make = partial(pv.elbo.make, name, **({} if name == "mean_field" else {"num_particles": 4}))
    assert_same_gradients(vae.model, vae.guide, make, x)


def test_other_shapes_run_eagerly_until_they_are_frequent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "PATIENCE", 3)
    pair = LinearGaussian()
    svi = pv.SVI(pair.model, pair.guide, compile=True)
    graphs = []
    for n in (5, 5, 2, 5, 2, 5, 2, 5, 2):
        svi.step(pair.simulate(n))
        graphs.append(svi.compilation.graphs)
    assert graphs == [0, 1, 1, 1, 1, 1, 2, 2, 2]


def test_strides_and_dtypes_have_graphs_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "PATIENCE", 1)
    pair = LinearGaussian()
    svi = pv.SVI(pair.model, pair.guide, compile=True)
    x = pair.simulate(4)
    for value in (x, x, x.T.contiguous().T):
        svi.step(value)
    assert svi.compilation.graphs == 2


def batch_norm_pair(*layers: nn.Module) -> tuple[nn.Module, Any, Any]:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), *layers, nn.Linear(4, 2))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True).expand(-1, 3), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x), 0.5).to_event(1))

    return net, model, guide


def test_modes_and_running_averages() -> None:
    torch.manual_seed(0)
    net, model, guide = batch_norm_pair()
    start = copy.deepcopy(net.state_dict())
    x = torch.randn(6, 3)
    states, losses = [], []
    for flag in (True, False):
        pyro.clear_param_store()
        net.load_state_dict(start)
        svi = pv.SVI(model, guide, lambda p: torch.optim.SGD(p, lr=0.01), pv.elbo.make("trace"), compile=flag)
        with fork_rng(0):
            losses.append([float(svi.step(x)) for _ in range(4)])
            net.eval()
            losses[-1] += [float(svi.step(x)) for _ in range(3)]
            net.train()
        states.append({name: value.clone() for name, value in net.state_dict().items()})
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, value in states[1].items():
        torch.testing.assert_close(states[0][name], value, rtol=1e-4, atol=1e-6)


def test_dropout_is_drawn_anew_and_ends_in_eval_mode() -> None:
    net, model, guide = batch_norm_pair(nn.Dropout(0.5))
    x = torch.randn(6, 3)
    svi = pv.SVI(model, guide, lambda p: torch.optim.SGD(p, lr=0.0), pv.elbo.make("mean_field"), compile=True)
    for training in (True, False):
        net.train(training)
        svi.step(x)
        losses = torch.stack([svi.step(x) for _ in range(20)])
        assert not svi.compilation.reason
        assert losses.unique().numel() == 20
    assert svi.compilation.graphs == 1  # the other mode did not come often enough


def test_weights_are_read_at_each_step() -> None:
    pair = LinearGaussian()
    x = pair.simulate(5)
    weighted = pv.elbo.WeightedKL(pv.elbo.make("mean_field"), 1.0)
    svi = pv.SVI(pair.model, pair.guide, lambda p: torch.optim.SGD(p, lr=0.0), weighted, compile=True)
    losses = []
    for weight in (1.0, 1.0, 3.0):
        weighted.weight = weight
        with fork_rng(0):
            losses.append(float(svi.step(x)))
    assert svi.compilation.graphs == 1
    assert losses[2] - losses[1] == pytest.approx(2 * float(pair.kl(x).detach().sum()), rel=1e-6)


def test_control_flow_on_values_runs_eagerly_with_the_reason() -> None:
    pair = LinearGaussian()

    def model(x: Tensor) -> None:
        if float(pair.bias.detach().sum()) > 1e6:
            raise AssertionError
        pair.model(x)

    svi = pv.SVI(model, pair.guide, compile=True)
    x = pair.simulate(5)
    svi.step(x)
    with pytest.warns(UserWarning, match="control flow depends on the values"):
        svi.step(x)
    before = float(svi.evaluate_loss(x))
    for _ in range(50):
        svi.step(x)
    assert float(svi.evaluate_loss(x)) < before


def test_a_python_number_that_changes_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "CHECK_EVERY", 5)
    pair = LinearGaussian()
    scale = itertools.count(1)

    def model(x: Tensor) -> None:
        with pyro.poutine.scale(scale=float(next(scale))):
            pair.model(x)

    svi = pv.SVI(model, pair.guide, lambda p: torch.optim.SGD(p, lr=0.0), compile=True)
    x = pair.simulate(5)
    svi.step(x)
    with pytest.warns(UserWarning, match="changes from step to step and is not a tensor"):
        svi.step(x)
    assert not svi.compilation
    assert "changes from step to step" in svi.compilation.reason


def test_a_late_change_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "CHECK_EVERY", 5)
    pair = LinearGaussian()
    scale = [1.0]

    def model(x: Tensor) -> None:
        with pyro.poutine.scale(scale=scale[0]):
            pair.model(x)

    svi = pv.SVI(model, pair.guide, lambda p: torch.optim.SGD(p, lr=0.0), compile=True)
    x = pair.simulate(5)
    for _ in range(5):  # one eager step, four of the graph
        svi.step(x)
    scale[0] = 2.0
    with pytest.warns(UserWarning, match="changes from step to step and is not a tensor"):
        svi.step(x)


def test_objectives_of_ones_own_that_make_their_gradients() -> None:
    """Numbers read with `item()` and calls of `backward()` stay in the graph; a `backward` with arguments does not."""

    class Own(pyro.infer.ELBO):
        options: Any = {}  # noqa: RUF012

        def _get_trace(self, *args: Any) -> Any:
            raise AssertionError

        def loss(self, model: Any, guide: Any, *args: Any) -> float:
            return float(pyro.infer.Trace_ELBO().loss(model, guide, *args))

        def loss_and_grads(self, model: Any, guide: Any, *args: Any) -> float:
            total = 0.0
            for weight in (0.25, 0.75):
                part = weight * pyro.infer.Trace_ELBO().differentiable_loss(model, guide, *args)
                part.backward(**self.options)
                total += part.item()
            return total

    class Kept(Own):
        options: Any = {"create_graph": True}  # noqa: RUF012

    pair = LinearGaussian()
    assert_same_gradients(pair.model, pair.guide, Own, pair.simulate(5))
    svi = pv.SVI(pair.model, pair.guide, loss=Kept(), compile=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using backward")
        svi.step(pair.simulate(5))
        with pytest.warns(UserWarning, match=r"calls backward\(\), with more arguments"):
            svi.step(pair.simulate(5))


def test_what_is_said_of_compilation() -> None:
    pair, x = LinearGaussian(), LinearGaussian().simulate(5)
    assert repr(pv.SVI(pair.model, pair.guide, compile=False).compilation) == "not compiled: compile=False"
    svi = pv.SVI(pair.model, pair.guide, compile=True)
    for expected in (
        "not compiled: no step was made yet",
        "not compiled: nothing was recorded yet",
    ):
        assert repr(svi.compilation).startswith(expected)
        svi.step(x)
    assert repr(svi.compilation) == "compiled, 1 graph"
    assert svi.compilation


def test_unasked_after_a_thousand_steps_and_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "UNASKED", 4)
    pair, x = LinearGaussian(), LinearGaussian().simulate(5)
    svi = pv.SVI(pair.model, pair.guide)
    graphs = []
    for _ in range(7):
        svi.step(x)
        graphs.append(svi.compilation.graphs)
    assert graphs == [0, 0, 0, 0, 1, 1, 1]  # the first step makes the recorder

    def looks(model: Any, guide: Any, x: Tensor) -> Tensor:
        assert float(x.sum()) < 1e6
        loss: Tensor = pyro.infer.Trace_ELBO().differentiable_loss(model, guide, x)
        return loss

    svi = pv.SVI(pair.model, pair.guide, loss=looks)
    for _ in range(7):
        svi.step(x)
    assert "looks at the values" in svi.compilation.reason or "depends on the values" in svi.compilation.reason


def test_what_takes_minutes_is_compiled_only_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "UNASKED", 2)
    monkeypatch.setattr(compiled, "MAX_UNASKED", 10)
    pair, x = LinearGaussian(), LinearGaussian().simulate(5)
    for asked in ("auto", True):
        svi = pv.SVI(pair.model, pair.guide, compile=asked)
        for _ in range(4):
            svi.step(x)
        assert svi.compilation.graphs == (asked is True)
        assert ("minutes to compile" in svi.compilation.reason) == (asked == "auto")


def test_the_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pair = LinearGaussian()
    svi = pv.SVI(pair.model, pair.guide, compile=True)
    assert repr(svi.compiled_report()) == "no step was recorded yet"
    for n in (5, 5, 2):
        svi.step(pair.simulate(n))
    report = svi.compiled_report()
    size = pair.simulate(1).shape[1]
    assert [(kind.arguments, kind.is_compiled) for kind in report.kinds] == [
        (f"float64 (5, {size})", True),
        (f"float64 (2, {size})", False),
    ]
    first, second = report.kinds
    assert first.operations > 10
    assert first.seconds_recording > 0
    assert second.reason == "seen 1 times, compiled after 50"
    assert report.to_dict() == {"graphs": 1, "reasons": {}}
    assert "compiled after 50" in report.save(tmp_path / "report.csv").read_text()
    report.save(tmp_path / "report.png")
    monkeypatch.setattr(compiled, "compile_graph", lambda module, inputs: 1 / 0)
    svi = pv.SVI(pair.model, pair.guide, compile=True)
    svi.step(pair.simulate(5))
    with pytest.warns(UserWarning, match="division by zero"):
        svi.step(pair.simulate(5))
    assert "steps run eagerly: ZeroDivisionError" in repr(svi.compiled_report())


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    class InvalidCxxCompiler(RuntimeError):
        pass

    def fails(module: Any, inputs: Any) -> Any:
        raise InvalidCxxCompiler("No working C++ compiler found")

    monkeypatch.setattr(compiled, "compile_graph", fails)
    pair = LinearGaussian()
    svi = pv.SVI(pair.model, pair.guide, compile=True)
    with pytest.warns(UserWarning, match=r"no working C\+\+ compiler"):
        losses = [float(svi.step(pair.simulate(5))) for _ in range(3)]
    assert all(map(torch.isfinite, map(torch.tensor, losses)))


def test_errors_of_the_first_step_are_the_eager_ones() -> None:
    vae = pv.VAE(12, latent_dim=2, hidden=(8,))
    svi = pv.SVI(vae.model, vae.guide, compile=True)
    with pytest.raises(ValueError, match="expected data of shape"):
        svi.step(torch.zeros(3, 11))
