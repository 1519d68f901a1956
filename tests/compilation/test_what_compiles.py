"""Distributions that validate or hold expanded tensors are compiled; what cannot be runs eagerly and says why."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.compilation import gradients as compiled
from pyro_vae.support.random import fork_rng

pytestmark = pytest.mark.usefixtures("recorded")


def regression(scale: Any) -> tuple[Any, Any, Tensor]:
    """A pair of six data with a prior that is made once, outside the model."""
    prior = dist.Normal(torch.zeros(3), scale).to_event(1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x * 0.5 + pyro.param("loc", torch.zeros(3)), 1.0).to_event(1))

    return model, guide, torch.randn(6, 3)


def losses_of(model: Any, guide: Any, x: Tensor, *, compiles: bool) -> tuple[list[float], pv.SVI]:
    pyro.clear_param_store()
    svi = pv.SVI(model, guide, lambda p: torch.optim.SGD(p, lr=0.01), pv.elbo.make("trace"), compile=compiles)
    with fork_rng(0):
        return [float(svi.step(x)) for _ in range(4)], svi


@pytest.mark.parametrize("scale", [2.0, torch.tensor(2.0).expand(3)])
def test_a_prior_that_holds_expanded_tensors(scale: Any, really: None) -> None:
    model, guide, x = regression(scale)
    expected, _ = losses_of(model, guide, x, compiles=False)
    found, svi = losses_of(model, guide, x, compiles=True)
    assert svi.compilation.graphs == 1
    assert found == pytest.approx(expected, rel=1e-5)


def test_distributions_that_validate_are_recorded() -> None:
    prior = dist.Normal(0.0, 2.0, validate_args=True).expand([3]).to_event(1)
    mixture = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.Normal(torch.tensor([-1.0, 1.0]), 1.0), validate_args=True
    )

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, 1.0, validate_args=True).to_event(1), obs=x)
            pyro.sample("y", mixture.expand([3]).to_event(1), obs=x)

    _, guide, x = regression(1.0)
    expected, _ = losses_of(model, guide, x, compiles=False)
    found, svi = losses_of(model, guide, x, compiles=True)
    assert svi.compilation.graphs == 1
    assert found == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="support"):  # they go on validating
        mixture.log_prob(torch.tensor(math.nan))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_encoders(kind: Any, really: None) -> None:
    torch.manual_seed(0)
    reader, head = kind(1, 4, batch_first=True), nn.Linear(4, 3)
    model, _, x = regression(1.0)

    def guide(x: Tensor) -> None:
        pyro.module("reader", reader)
        with pyro.plate("data", len(x)):
            states, _ = reader(x.unsqueeze(-1))
            pyro.sample("z", dist.Normal(head(states[:, -1]), 1.0).to_event(1))

    start = {name: value.clone() for name, value in reader.state_dict().items()}
    expected, _ = losses_of(model, guide, x, compiles=False)
    reader.load_state_dict(start)
    found, svi = losses_of(model, guide, x, compiles=True)
    assert svi.compilation.graphs == 1
    assert found == pytest.approx(expected, rel=1e-5)
    assert torch.backends.mkldnn.enabled


def test_a_graph_that_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any) -> Any:
        raise TypeError("expected Tensor()")

    monkeypatch.setattr(compiled, "compile_graph", lambda module, inputs: fails)
    model, guide, x = regression(1.0)
    expected, _ = losses_of(model, guide, x, compiles=False)
    with pytest.warns(UserWarning, match=r"run eagerly, not compiled: TypeError: expected Tensor\(\)"):
        found, _ = losses_of(model, guide, x, compiles=True)
    assert found == expected


def test_tensors_in_lists_and_dictionaries_are_read_at_each_step() -> None:
    """Two batches that print alike have other losses; a change of what is no tensor needs another graph."""

    def model(batch: dict[str, Any]) -> None:
        x, (scale, power) = batch["x"], batch["more"]
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(40), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z * scale**power, 1.0).to_event(1), obs=x)

    def guide(batch: dict[str, Any]) -> None:
        loc = pyro.param("loc", torch.zeros(40))
        with pyro.plate("data", len(batch["x"])):
            pyro.sample("z", dist.Normal(batch["x"] * 0.5 + loc, 1.0).to_event(1))

    def batch(i: int) -> dict[str, Any]:
        x = torch.zeros(40, 40)
        x[20, 20] = float(i)  # in the middle, which is not printed
        return {"x": x, "more": [torch.tensor(1.0 + i), 2]}

    assert repr(batch(1)["x"]) == repr(batch(3)["x"])
    losses = []
    for compiles in (True, False):
        pyro.clear_param_store()
        svi = pv.SVI(model, guide, lambda p: torch.optim.SGD(p, lr=0.01), pv.elbo.make("trace"), compile=compiles)
        with fork_rng(0):
            losses.append([float(svi.step(batch(i))) for i in range(4)])
        assert svi.compilation.graphs == int(compiles)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_second_kind_of_arguments_that_fails_leaves_the_first_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "PATIENCE", 1)
    model, guide, x = regression(1.0)

    def looks(x: Tensor, looking: bool = False) -> None:
        assert not looking or float(x.sum()) < 1e6
        model(x)

    svi = pv.SVI(looks, lambda x, looking=False: guide(x), loss=pv.elbo.make("trace"), compile=True)
    svi.step(x, False)
    svi.step(x, False)
    with pytest.warns(
        UserWarning, match="steps with one kind of arguments run eagerly, not compiled: the pair's control"
    ):
        svi.step(x, True)
    for looking in (True, False, True):
        svi.step(x, looking)
    assert svi.compilation.graphs == 1


def test_a_batch_that_trains_nothing() -> None:
    """As in the second loss of Pyro's semi-supervised example, where no class is given."""
    net = nn.Linear(3, 2)

    def model(x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            if y is not None:
                pyro.sample("y", dist.Categorical(logits=net(x)), obs=y)

    def run(compiles: bool) -> list[float]:
        pyro.clear_param_store()
        torch.manual_seed(0)
        net.reset_parameters()
        optim = pyro.optim.ClippedAdam({"lr": 0.1})
        svi = pv.SVI(model, lambda x, y=None: None, optim, loss=pyro.infer.Trace_ELBO(), compile=compiles)
        x, y = torch.randn(6, 3), torch.tensor([0, 1, 0, 1, 1, 0])
        losses = [float(svi.step(x, *((y,) if i % 3 == 0 else ()))) for i in range(9)]
        assert svi.compilation.graphs == 2 * compiles
        return losses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "PATIENCE", 1)
        assert run(True) == pytest.approx(run(False), rel=1e-5)


def test_what_is_to_blame_is_named() -> None:
    _, guide, x = regression(1.0)

    class Checked(dist.Normal):
        def log_prob(self, value: Tensor) -> Tensor:
            return super().log_prob(value if value.mean() < 1e6 else value.detach())

    def checked(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", Checked(z, 1.0).to_event(1), obs=x)

    def unrolled(x: Tensor) -> None:
        rows: Any = pyro.plate("rows", len(x), subsample_size=2)  # a loop over rows drawn at random
        for i in rows:
            z = pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))
            pyro.sample(f"x{i}", dist.Normal(z, 1.0), obs=x[i, 0])

    def unrolled_guide(x: Tensor) -> None:
        for i in pyro.plate("rows", len(x), subsample_size=2):
            pyro.sample(f"z{i}", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))

    pyro.clear_param_store()
    svi = pv.SVI(checked, guide, loss=pv.elbo.make("trace"), compile=True)
    svi.step(x)
    with pytest.warns(UserWarning, match=r"values of tensors .* of test_what_compiles.py: `return super\(\).log_prob"):
        svi.step(x)
    pyro.clear_param_store()
    svi = pv.SVI(unrolled, unrolled_guide, loss=pyro.infer.Trace_ELBO(), compile=True)
    svi.step(x)
    with pytest.warns(UserWarning, match=r"Pyro's __iter__ \(pyro/poutine/indep_messenger.py\)"):
        svi.step(x)
