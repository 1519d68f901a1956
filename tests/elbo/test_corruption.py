"""The denoising criterion: what the guide sees, that it is a bound, and that training with it removes noise."""

from __future__ import annotations

from typing import Any

import pyro.infer
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.elbo import Denoising, GaussianNoise, MaskingNoise, SaltAndPepper
from pyro_vae.oracles import LinearGaussian, TopDownChain


def test_gaussian_noise() -> None:
    x = torch.linspace(0, 1, 50_000)
    noise = GaussianNoise(0.3)(x) - x
    assert float(noise.std()) == pytest.approx(0.3, rel=0.02)
    assert abs(float(noise.mean())) < 0.01


def test_masking_noise() -> None:
    x = torch.full((50_000,), 0.7)
    y = MaskingNoise(0.3)(x)
    assert set(y.unique().tolist()) == {0.0, x[0].item()}
    assert float((y == 0).float().mean()) == pytest.approx(0.3, abs=0.01)


def test_salt_and_pepper() -> None:
    x = torch.full((50_000,), 0.7)
    y = SaltAndPepper(0.3, low=-1.0)(x)
    shares = [float((y == value).float().mean()) for value in (-1.0, 1.0)]
    assert shares == pytest.approx([0.15, 0.15], abs=0.01)
    assert float((y == x).float().mean()) == pytest.approx(0.7, abs=0.01)


@pytest.mark.parametrize("name", ["mean_field", "iwae", "dreg"])
def test_without_corruption_it_is_the_wrapped_elbo(name: str) -> None:
    pair = LinearGaussian(seed=3)
    x = pair.simulate(5)
    values = []
    for objective in (pv.elbo.make(name, num_particles=3), Denoising(pv.elbo.make(name, num_particles=3), torch.clone)):
        torch.manual_seed(1)
        values.append(float(objective.loss(pair.model, pair.guide, x)))
    assert values[1] == values[0]


def test_only_the_guide_sees_the_corrupted_data() -> None:
    seen: dict[str, Tensor] = {}
    pair = LinearGaussian(seed=3)
    x = pair.simulate(5)

    def model(x: Tensor, factor: float) -> None:
        seen["model"], seen["factor"] = x, torch.tensor(factor)
        pair.model(x)

    def guide(x: Tensor, factor: float) -> None:
        seen["guide"] = x
        pair.guide(x)

    Denoising(pv.elbo.make("trace"), lambda x: 2 * x).loss_and_grads(model, guide, x, 3.0)
    assert seen["model"] is x
    assert torch.equal(seen["guide"], 2 * x)
    assert float(seen["factor"]) == 3.0


def test_it_is_the_elbo_of_the_guide_at_other_data() -> None:
    """With a corruption that is no noise, against the oracle's exact ELBO with its encoder so scaled."""
    pair, other = LinearGaussian(seed=3), LinearGaussian(seed=3)
    x = pair.simulate(4)
    with torch.no_grad():
        other.encoder.mul_(0.5)
    objective = Denoising(pv.elbo.make("trace", num_particles=20_000), lambda x: x / 2)
    exact = other.elbo(x).sum().item()
    assert -float(objective.loss(pair.model, pair.guide, x)) == pytest.approx(exact, rel=0.01)


def test_it_is_a_bound_below_the_elbo() -> None:
    pair = LinearGaussian(seed=3)
    x = pair.simulate(200)
    with torch.no_grad():
        pair.load_state_dict(pair.at_posterior().state_dict())
    losses = [
        -float(Denoising(None, GaussianNoise(s), num_particles=50).loss(pair.model, pair.guide, x)) for s in (0, 0.5, 1)
    ]
    assert losses[0] == pytest.approx(pair.log_prob(x).sum().item(), rel=0.01)
    assert losses[0] > losses[1] > losses[2]


def test_particles_share_the_corrupted_data_and_are_vectorized() -> None:
    calls: list[Tensor] = []

    def corruption(x: Tensor) -> Tensor:
        calls.append(x)
        return x + torch.randn_like(x)

    pair = TopDownChain()
    x = pair.simulate(6)
    objective = Denoising(pv.elbo.make("iwae", num_particles=4), corruption)
    for _ in range(3):
        objective.loss_and_grads(pair.model, pair.guide, x)  # a warning would be an error
    assert len(calls) == 3


@pytest.mark.parametrize("elbo", [pyro.infer.Trace_ELBO(), pyro.infer.TraceMeanField_ELBO(num_particles=2)])
def test_around_pyros_own(elbo: Any) -> None:
    pair = LinearGaussian(seed=3)
    assert pv.SVI(pair.model, pair.guide, loss=Denoising(elbo, GaussianNoise(0.3))).step(pair.simulate(5)).isfinite()


def test_a_loader_of_labels_first_is_refused() -> None:
    pair = LinearGaussian(seed=3)
    with pytest.raises(TypeError, match=r"expected a tensor of floats, got torch\.int64"):
        Denoising().loss(pair.model, pair.guide, torch.zeros(3, 4, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"elbo must be a pyro.infer.ELBO object, got 'trace': use pv.elbo.make"):
        Denoising("trace")  # type: ignore[arg-type]
    for bad in (lambda: MaskingNoise(1.5), lambda: SaltAndPepper(-0.1)):
        with pytest.raises(ValueError, match="rate must be a probability"):
            bad()
    with pytest.raises(ValueError, match="scale must be a number >= 0"):
        GaussianNoise(-1)


@pytest.mark.parametrize("corruption", [GaussianNoise(0.4), MaskingNoise(0.4), SaltAndPepper(0.3)])
def test_training_removes_noise(corruption: Any) -> None:
    """Reconstructions of noisy test digits are nearer to the clean ones than the inputs, and than without it."""
    data = pv.data.load("digits", flatten=True, seed=0)
    x, clean = data.train.x[:1000], data.test.x
    errors = {}
    for name, objective in {"denoising": Denoising(corruption=corruption), "plain": pv.elbo.make("mean_field")}.items():
        torch.manual_seed(0)
        ae = pv.Autoencoder(64, 32, hidden=(64,), likelihood=pv.conditionals.Normal(64, 0.3))
        pv.fit(ae.model, ae.guide, x, elbo=objective, epochs=25, lr=3e-3, seed=0, progress=False, preflight=False)
        torch.manual_seed(1)
        noisy = corruption(clean)
        errors[name] = float((ae.reconstruct(noisy) - clean).square().mean())
    assert errors["denoising"] < 0.6 * float((noisy - clean).square().mean())
    assert errors["denoising"] < 0.8 * errors["plain"]
