"""SVI: Pyro's interface and trajectories, with one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.elbo import MeanField, Trace
from pyro_vae.oracles import Discrete, LinearGaussian
from pyro_vae.training.svi import SVI

LR = 0.01
PYRO_OPTIM: Any = pyro.optim


def ours(pair: Any, optim: Any, loss: Any, steps: int = 5, **options: Any) -> tuple[list[float], list[Tensor]]:
    svi = SVI(pair.model, pair.guide, optim, loss, **options)
    torch.manual_seed(1)
    losses = [float(svi.step(DATA)) for _ in range(steps)]
    return losses, [p.detach().clone() for p in pair.parameters()]


DATA = LinearGaussian().simulate(6)

OPTIMIZERS: dict[str, Callable[[LinearGaussian], Any]] = {
    "factory": lambda pair: lambda params: torch.optim.SGD(params, lr=LR),
    "torch optimizer": lambda pair: torch.optim.SGD(pair.parameters(), lr=LR),
    "pyro optimizer": lambda pair: PYRO_OPTIM.SGD({"lr": LR}),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (Trace, pyro.infer.Trace_ELBO),
        (MeanField, pyro.infer.TraceMeanField_ELBO),
        (pyro.infer.Trace_ELBO, pyro.infer.Trace_ELBO),
        (pyro.infer.TraceGraph_ELBO, pyro.infer.TraceGraph_ELBO),
        (partial(pyro.infer.RenyiELBO, alpha=0, num_particles=3),) * 2,
    ],
)
def test_the_trajectory_is_pyros(mine: Callable[[], Any], theirs: Callable[[], Any], kind: str) -> None:
    pair = LinearGaussian()
    losses, weights = ours(pair, OPTIMIZERS[kind](pair), mine())
    pyro.clear_param_store()
    other = LinearGaussian()
    svi = pyro.infer.SVI(other.model, other.guide, PYRO_OPTIM.SGD({"lr": LR}), theirs())
    torch.manual_seed(1)
    expected = [svi.step(DATA) for _ in range(5)]
    assert losses == pytest.approx(expected)
    torch.testing.assert_close(weights, [p.detach() for p in other.parameters()])


def test_our_estimators_run_under_pyros_svi() -> None:
    pair = LinearGaussian()
    svi = pyro.infer.SVI(pair.model, pair.guide, PYRO_OPTIM.SGD({"lr": LR}), MeanField())
    torch.manual_seed(1)
    expected = [svi.step(DATA) for _ in range(5)]
    pyro.clear_param_store()
    assert ours(LinearGaussian(), OPTIMIZERS["factory"](pair), MeanField())[0] == pytest.approx(expected)


def test_a_function_can_be_the_loss() -> None:
    pair = LinearGaussian()
    function = ours(pair, OPTIMIZERS["factory"](pair), lambda m, g, x: MeanField().differentiable_loss(m, g, x))
    pyro.clear_param_store()
    assert function[0] == ours(LinearGaussian(), OPTIMIZERS["factory"](pair), MeanField())[0]


def test_fused_adam_is_the_default() -> None:
    pair = LinearGaussian()
    svi = SVI(pair.model, pair.guide)
    svi.step(DATA)
    assert isinstance(svi.optimizer, torch.optim.Adam)
    assert svi.optimizer.param_groups[0]["fused"]


def test_step_returns_the_loss_before_it_as_a_tensor() -> None:
    pair = LinearGaussian()
    svi = SVI(pair.model, pair.guide)
    torch.manual_seed(1)
    expected = svi.evaluate_loss(DATA)
    torch.manual_seed(1)
    loss = svi.step(DATA)
    assert loss.dim() == 0
    assert not loss.requires_grad
    assert loss == expected


@pytest.mark.parametrize("loss", [pyro.infer.RenyiELBO(alpha=0, num_particles=2), pyro.infer.TraceGraph_ELBO()])
def test_losses_are_tensors_for_estimators_that_give_floats(loss: Any) -> None:
    pair = LinearGaussian()
    assert isinstance(SVI(pair.model, pair.guide, loss=loss).step(DATA), Tensor)


def test_both_losses_of_wake_sleep_are_returned() -> None:
    pair = Discrete()
    loss = pyro.infer.ReweightedWakeSleep(num_particles=2, max_plate_nesting=1)
    losses = SVI(pair.model, pair.guide, loss=loss).step(torch.ones(2, 3, dtype=torch.float64))
    assert [part.dim() for part in losses] == [0, 0]


@pytest.mark.parametrize("loss", [MeanField(), pyro.infer.TraceGraph_ELBO()])
def test_the_gradient_is_scaled(loss: Any) -> None:
    grads = []
    for scale in (1.0, 0.25):
        pyro.clear_param_store()
        pair = LinearGaussian()
        svi = SVI(pair.model, pair.guide, loss=loss)
        torch.manual_seed(1)
        svi.gradients((DATA,), scale=scale)
        grads.append([p.grad for p in pair.parameters()])
    torch.testing.assert_close([g * 0.25 for g in grads[0] if g is not None], grads[1])


def test_arguments_by_keyword_reach_the_pair() -> None:
    pair, seen = LinearGaussian(), []

    def model(x: Tensor, scale: float) -> None:
        seen.append(scale)
        pair.model(x)

    SVI(model, lambda x, scale: pair.guide(x)).step(DATA, scale=3.0)
    assert seen == [3.0]


def test_gradients_are_gone_after_a_step() -> None:
    pair = LinearGaussian()
    SVI(pair.model, pair.guide).step(DATA)
    assert all(p.grad is None for p in pair.parameters())


def test_a_parameter_that_appears_later_is_trained() -> None:
    late = torch.zeros((), dtype=torch.float64)

    def model(x: Tensor, second: bool) -> None:
        shift = pyro.param("shift", late) if second else late
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x)

    def guide(x: Tensor, second: bool) -> None:
        loc = pyro.param("loc", late)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc.expand(len(x)), 1.0))

    svi = SVI(model, guide, lambda p: torch.optim.SGD(p, lr=0.1))
    x = torch.full((3,), 5.0, dtype=torch.float64)
    svi.step(x, False)
    assert list(svi.params) == ["loc"]
    svi.step(x, True)
    assert float(pyro.param("shift").detach()) != 0.0


def test_parameters_of_a_datum_in_a_subsampled_plate() -> None:
    def local(x: Tensor, index: Tensor, observe: bool) -> None:
        with pyro.plate("data", 10, subsample=index):
            if observe:
                z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            else:
                loc = pyro.param("loc", torch.zeros(10, dtype=x.dtype), event_dim=0)
                pyro.sample("z", dist.Normal(loc, 0.5))

    svi = SVI(lambda x, i: local(x, i, True), lambda x, i: local(x, i, False), lambda p: torch.optim.SGD(p, lr=0.1))
    svi.step(torch.ones(3, dtype=torch.float64), torch.tensor([1, 4, 9]))
    assert pyro.param("loc").nonzero().flatten().tolist() == [1, 4, 9]


def test_clip_norm_limits_the_step() -> None:
    pair = LinearGaussian()
    before = torch.cat([p.detach().flatten() for p in pair.parameters()])
    SVI(pair.model, pair.guide, lambda p: torch.optim.SGD(p, lr=1.0), clip_norm=0.01).step(DATA)
    after = torch.cat([p.detach().flatten() for p in pair.parameters()])
    assert float((after - before).norm()) == pytest.approx(0.01, rel=1e-3)


def test_a_small_gradient_is_not_clipped() -> None:
    pair = LinearGaussian()
    clipped = ours(pair, OPTIMIZERS["factory"](pair), MeanField(), clip_norm=1e9)
    pyro.clear_param_store()
    assert clipped[0] == ours(LinearGaussian(), OPTIMIZERS["factory"](pair), MeanField())[0]


def test_a_ready_optimizer_of_weights_never_registered_does_not_pile_up_gradients() -> None:
    net = torch.nn.Linear(4, 2, dtype=torch.float64)
    pair = LinearGaussian()

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x), 1.0).to_event(1))

    SVI(pair.model, guide, torch.optim.SGD(net.parameters(), lr=0.0)).step(DATA)
    assert net.weight.grad is None


# What is refused


def fixed(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))


def fixed_model(x: Tensor) -> None:
    fixed(x)
    with pyro.plate("data again", len(x)):
        pyro.sample("x", dist.Normal(torch.zeros(4, dtype=x.dtype), 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("loss", [MeanField(), pyro.infer.TraceGraph_ELBO()])
def test_a_pair_without_parameters(loss: Any) -> None:
    with pytest.raises(ValueError, match=r"depends on no parameter.*register networks with pyro.module"):
        SVI(fixed_model, fixed, loss=loss).step(DATA)


@pytest.mark.parametrize("optim", [None, PYRO_OPTIM.SGD({"lr": LR})])
def test_networks_never_registered(optim: Any) -> None:
    net = torch.nn.Linear(4, 2, dtype=torch.float64)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"depends on no parameter.*register networks with pyro.module"):
        SVI(fixed_model, guide, optim).step(DATA)


class Named(torch.nn.Module):
    """A pair whose networks are registered under fixed names."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder, self.encoder = torch.nn.Linear(2, 4).double(), torch.nn.Linear(4, 2).double()

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


@pytest.mark.parametrize("shared", [("encoder", "decoder"), ("decoder",)])
def test_a_second_network_of_the_same_name(shared: tuple[str, ...]) -> None:
    first, second = Named(), Named()
    for name in shared:
        pyro.module(name, getattr(first, name))
    svi = SVI(second.model, second.guide)
    with pytest.raises(ValueError, match=r"names .*decoder\$\$\$.*pyro.clear_param_store\(\) before"):
        svi.step(DATA)
    assert all(p.grad is None for p in second.decoder.parameters())
    pyro.clear_param_store()
    before = [p.clone() for p in second.parameters()]
    SVI(second.model, second.guide).step(DATA)
    assert not any(torch.equal(p, b) for p, b in zip(second.parameters(), before, strict=True))


def test_a_second_network_of_the_same_name_under_an_objective_made_of_phases() -> None:
    first, second = Named(), Named()
    pyro.module("decoder", first.decoder)
    svi = SVI(second.model, second.guide, loss=pv.elbo.make("factor_vae"))
    with pytest.raises(ValueError, match=r"names .*decoder\$\$\$.*pyro.clear_param_store\(\) before"):
        svi.step(DATA.float().double())


def test_networks_that_are_not_registered_get_no_gradient() -> None:
    shift = torch.nn.Linear(4, 2, dtype=torch.float64)
    pair = LinearGaussian()

    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", torch.ones(2, dtype=torch.float64), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(shift(x), scale).to_event(1))

    svi = SVI(pair.model, guide)
    svi.gradients((DATA,))
    assert shift.weight.grad is None
    assert svi.params["scale"].grad is not None


def test_the_same_name_where_the_network_is_trained_all_the_same() -> None:
    first, second = Named(), Named()
    SVI(first.model, first.guide).step(DATA)

    def model(x: Tensor) -> None:
        pyro.module("again", second.decoder)  # by another name
        second.model(x)

    # by an optimizer of its own
    SVI(model, second.guide, torch.optim.SGD(second.parameters(), lr=LR)).step(DATA)

    third = Named()
    pyro.module("decoder", third.decoder, update_module_params=True)
    pyro.module("encoder", third.encoder, update_module_params=True)
    before = third.decoder.weight.clone()
    SVI(third.model, third.guide).step(DATA)
    assert not torch.equal(third.decoder.weight, before)


def test_an_optimizer_of_other_weights() -> None:
    pair, other = LinearGaussian(), LinearGaussian()
    with pytest.raises(ValueError, match="no parameter that the optimizer holds"):
        SVI(pair.model, pair.guide, torch.optim.SGD(other.parameters(), lr=LR)).step(DATA)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"optim": 0.1}, TypeError, "optim must be a torch.optim.Optimizer, a function"),
        ({"loss": "trace"}, TypeError, "loss must be a pyro.infer.ELBO or a function, got 'trace'"),
        ({"clip_norm": 0.0}, ValueError, "clip_norm must be a number above 0, got 0.0"),
        ({"clip_norm": float("nan")}, ValueError, "clip_norm must be a number above 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        SVI(fixed_model, fixed, **arguments)
