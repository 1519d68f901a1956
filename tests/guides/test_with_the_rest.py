"""Amortized guides in everything else: estimators, compiled steps, checkpoints, copies, questions."""

import copy
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI as PyroSVI
from pyro.infer import Trace_ELBO
from pyro.optim import Adam  # type: ignore[attr-defined]
from torch import Tensor

import pyro_vae as pv
from pyro_vae.compilation.recordable import Recordable
from pyro_vae.support.random import fork_rng
from tests.helpers.resuming import assert_resumes_exactly


def chain(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(10.0, 3.0))
        b = pyro.sample("b", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Normal(torch.stack([a, a - b], -1), 1.0).to_event(1), obs=x)


def with_class(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        z = pyro.sample("z", dist.Normal(y.to(x.dtype), 1.0))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand([*z.shape, 2]).to_event(1), obs=x)


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(40, 2)


def draws(guide: Any, x: Tensor) -> dict[str, Tensor]:
    with torch.no_grad(), fork_rng(0):
        return dict(guide(x))


def test_it_copies_and_pickles(x: Tensor) -> None:
    guide = pv.AmortizedGuide(chain, x, seed=0)
    for other in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        assert torch.equal(draws(other, x)["a"], draws(guide, x)["a"])


def test_it_saves_and_loads(tmp_path: Path, x: Tensor) -> None:
    guide, fresh = (pv.AmortizedGuide(chain, x, seed=seed) for seed in (0, 1))
    assert not torch.equal(draws(fresh, x)["a"], draws(guide, x)["a"])
    fresh.load_state_dict(guide.state_dict())
    assert torch.equal(draws(fresh, x)["a"], draws(guide, x)["a"])
    file = pv.save_pair(tmp_path / "pair", chain, guide, x[:4])
    with torch.no_grad():
        for p in guide.parameters():
            p.zero_()
    pv.load_pair(file, chain, guide, x[:4])
    assert torch.equal(draws(fresh, x)["a"], draws(guide, x)["a"])


def test_the_same_steps_as_pyros_svi(x: Tensor) -> None:
    def losses(make: Any) -> list[float]:
        pyro.clear_param_store()
        svi = make(pv.AmortizedGuide(chain, x, seed=0))
        with fork_rng(0):
            return [float(svi.step(x)) for _ in range(5)]

    theirs = losses(lambda guide: PyroSVI(chain, guide, Adam({"lr": 0.01}), loss=Trace_ELBO()))
    ours = losses(lambda guide: pv.SVI(chain, guide, lambda params: torch.optim.Adam(params, lr=0.01), Trace_ELBO()))
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("family", ["diagonal_normal", "spline"])
def test_compiled_steps_are_eager_steps(x: Tensor, family: str) -> None:
    guide = pv.AmortizedGuide(chain, x, family=family, seed=0)
    steppers = [
        pv.SVI(chain, guide, lambda p: torch.optim.SGD(p, lr=0.0), pv.elbo.make("trace", num_particles=3), compile=each)
        for each in (False, True)
    ]
    for step in range(3):
        found = []
        for svi in steppers:
            with fork_rng(step), pyro.validation_enabled(False), Recordable():
                loss = svi.gradients((x,), scale=1.0)
            found.append((loss, {name: p.grad.clone() for name, p in svi.params.items() if p.grad is not None}))
            svi.zero_grad()
        (loss, grads), (other_loss, other_grads) = found
        torch.testing.assert_close(other_loss, loss, rtol=1e-5, atol=1e-5)
        assert grads.keys() == other_grads.keys()
        for name, grad in grads.items():
            torch.testing.assert_close(other_grads[name], grad, rtol=1e-3, atol=1e-4)
    assert steppers[1].compilation.graphs, steppers[1].compilation.reason


def test_a_run_is_resumed_to_the_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = torch.randn(90, 2)

    def make() -> Any:
        return SimpleNamespace(model=chain, guide=pv.AmortizedGuide(chain, data, seed=0))

    assert_resumes_exactly(tmp_path, make, data, (4, 4), elbo="trace", compile=False)


class Decoder(torch.nn.Module):
    """A small VAE without its guide."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(2, 2)

    def forward(self, x: Tensor) -> None:
        pyro.module("decoder", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("elbo", pv.elbo.names())
def test_every_estimator(elbo: str, x: Tensor) -> None:
    if elbo in ("vq", "semi_supervised", "subsampled_modalities", "categorical_aae", "enum"):
        pytest.skip("needs a codebook, labels, modalities or a discrete latent")
    pyro.clear_param_store()
    model = Decoder()
    guide = pv.AmortizedGuide(model, x, seed=0)
    before = copy.deepcopy(guide.state_dict())
    particles = max(1, pv.elbo.min_particles(elbo))
    history = pv.fit(
        model,
        guide,
        x,
        elbo=elbo,
        num_particles=particles,
        epochs=1,
        batch_size=20,
        seed=0,
        compile=False,
        preflight=False,
    )
    assert len(history) == 1
    assert any(not torch.equal(value, before[name]) for name, value in guide.state_dict().items()) or elbo == "gan"


@pytest.mark.parametrize("elbo", ["enum", "reinforce", "vimco", "iwae", "rws"])
def test_estimators_for_a_discrete_latent(elbo: str, x: Tensor) -> None:
    guide = pv.AmortizedGuide(with_class, x, structure="forward", seed=0)
    particles = max(2 if elbo != "enum" else 1, pv.elbo.min_particles(elbo))
    history = pv.fit(
        with_class, guide, x, elbo=elbo, num_particles=particles, epochs=1, seed=0, compile=False, preflight=False
    )
    assert len(history) == 1


def test_questions(x: Tensor) -> None:
    guide = pv.AmortizedGuide(chain, x, seed=0)
    assert pv.preflight(chain, guide, x[:8]).issues == []
    bound = pv.bound(chain, guide, x, num_samples=200, seed=0)
    found = pv.log_marginal(chain, guide, x, num_samples=1000, seed=0)
    assert bound.mean < found.mean
    refined = pv.fit_local(chain, guide, x, max_steps=100, seed=0)
    assert bound.mean < refined.mean < found.mean + 4 * found.mean_error + 0.05
    assert pv.posterior_samples(guide, x, num_samples=3)["a"].shape == (3, 40)
    assert len(pv.latent_report(chain, guide, x, seed=0).to_dicts()) == 2


def test_fit_makes_a_guide_and_says_so(x: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    history = pv.fit(chain, None, x, elbo="trace", epochs=1, seed=0, progress=True)
    assert isinstance(history.guide, pv.AmortizedGuide)
    assert "b  given a, x  DiagonalNormal(1)  positive  amortized, made for the model" in capsys.readouterr().err
    assert pv.bound(chain, history.guide, x, seed=0).mean < 0
    again = pv.fit(chain, None, x, elbo="trace", epochs=1, seed=0)
    for name, value in history.guide.state_dict().items():
        assert torch.equal(value, again.guide.state_dict()[name])
    assert "guide" not in history.to_dict()
    assert pv.fit(chain, again.guide, x, elbo="trace", epochs=1).guide is None
