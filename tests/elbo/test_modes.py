"""Modes of mixtures: how they are counted, and what lets VEEGAN find them."""

from __future__ import annotations

import importlib.util
import math
from argparse import Namespace
from types import ModuleType
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.compilation.mode import recording
from tests.helpers.paths import EXAMPLES


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))  # as `python examples/name.py` does
        spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gaussians() -> ModuleType:
    return example("veegan_modes")


@pytest.fixture(scope="module")
def stacked() -> ModuleType:
    return example("stacked_mnist")


class Looking(nn.Module):
    """A critic that keeps what it is shown."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))
        self.seen: list[Tensor] = []

    def forward(self, rows: Tensor) -> Tensor:
        self.seen.append(rows.detach())
        return rows @ self.weight


@pytest.mark.parametrize("name", ["ali", "veegan"])
def test_the_critic_sees_latents_through_noise(name: str) -> None:
    """The same noise on both sides, none on the data; without noise, the latents themselves."""
    torch.manual_seed(0)
    vae = pv.VAE(3, 2, (8,), likelihood="normal", posterior=pv.conditionals.Point(2))
    x = torch.randn(20_000, 3)
    with torch.no_grad():
        z = vae.encode(x).mean
    for noise in (0.0, 0.5):
        objective: Any = pv.elbo.make(name, critic=Looking, noise=noise)
        with recording():
            objective.phases[0].loss(vae.model, vae.guide, x)
        real, fake = objective.critics["xz"].seen
        torch.testing.assert_close(real[:, :3], x)
        added = real[:, 3:] - z
        if noise:
            torch.testing.assert_close(added.std(0), torch.full((2,), noise), rtol=0.03, atol=0.0)
            assert abs(float(added.T.corrcoef()[0, 1])) < 0.03
        else:
            torch.testing.assert_close(added, torch.zeros_like(added))
        # of the prior
        torch.testing.assert_close(fake[:, 3:].var(0), torch.full((2,), 1 + noise**2), rtol=0.05, atol=0.0)


def test_noise_is_a_standard_deviation() -> None:
    for noise in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="noise must be"):
            pv.elbo.make("veegan", noise=noise)


@pytest.mark.parametrize(("name", "modes", "near"), [("ring", 8, 3), ("grid", 25, 3), ("high", 10, 40)])
def test_how_modes_are_counted(gaussians: ModuleType, name: str, modes: int, near: int) -> None:
    mixture = gaussians.Mixture(name)
    data = mixture.draw(1000, 2, torch.Generator().manual_seed(0))
    assert data.shape == (1000, 2, mixture.dim)
    assert len(mixture.modes) == modes
    assert mixture.near == near
    found, good = mixture.score(data[:, 0])
    assert found == modes
    if name == "high":  # a Gaussian in 700 dimensions lies at a distance of 26 standard deviations
        radius = torch.cdist(data[:, 0], mixture.modes).amin(1)
        assert float(radius.mean()) == pytest.approx(math.sqrt(700) * mixture.scale, rel=0.02)
        assert good == 1.0
    else:  # within three standard deviations in the plane: 1 - exp(-9 / 2)
        assert good == pytest.approx(1 - math.exp(-4.5), abs=0.01)
    half = data[: len(data) // 2, 0].clone()
    half += 20 * mixture.near * mixture.scale
    assert mixture.score(half)[1] <= 0.1


def test_runs_share_nothing(gaussians: ModuleType) -> None:
    """Other data in the second run leave the first one's weights alone."""
    mixture, found = gaussians.Mixture("ring"), []
    data = mixture.draw(16, 2, torch.Generator().manual_seed(0))
    for second in (0.0, 1.0):
        pyro.clear_param_store()  # another pair with networks of the same names
        torch.manual_seed(0)
        pair = gaussians.Runs(2, mixture, 2, 8, 0.1)
        objective = pv.elbo.make("veegan", critic=lambda shape: gaussians.Judges(2, 2, 8, shape), noise=1.0)
        svi = pv.SVI(pair.model, pair.guide, lambda p: torch.optim.SGD(p, lr=1e-3), objective)
        data[:, 1] += second
        for step in range(3):
            torch.manual_seed(step)
            svi.step(data)
        found.append([p.detach().clone() for p in [*svi.params.values()]])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-4, atol=1e-7)
    assert any(not torch.equal(ours[1], theirs[1]) for ours, theirs in zip(*found, strict=True))


@pytest.mark.slow
def test_veegan_finds_the_ring_with_noise_and_not_without(gaussians: ModuleType) -> None:
    options = {"runs": 1, "latent_dim": 2, "hidden": 64, "guide_scale": 0.1, "weight": 1.0, "lr": 1e-3, "seed": 0}
    found = {}
    for noise in (0.0, 1.0):
        settings = Namespace(**options, noise=noise, r1=0.0, steps=1500, batch_size=128)
        mixture = gaussians.Mixture("ring")
        found[noise] = mixture.score(gaussians.train(mixture, "veegan", settings)[:, 0])[0]
    assert found[1.0] == 8
    assert found[0.0] < 8


def test_modes_of_stacked_digits(stacked: ModuleType) -> None:
    counts = torch.zeros(1000)
    counts[7] = 50
    assert stacked.score(counts) == (1, pytest.approx(math.log(1000)))
    assert stacked.score(torch.ones(1000)) == (1000, pytest.approx(0.0, abs=1e-6))
    counts[:500] = 2
    counts[500:] = 0
    assert stacked.score(counts) == (500, pytest.approx(math.log(2)))


def test_a_mode_is_three_digits(stacked: ModuleType) -> None:
    class Brightness(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return -(10 * x.mean((1, 2, 3)).unsqueeze(1) - torch.arange(10.0)).square()

    images = torch.tensor([[0.1, 0.5, 0.9], [0.0, 0.0, 0.3], [0.1, 0.5, 0.9]])[:, :, None, None].expand(3, 3, 4, 4)
    counts = stacked.modes(Brightness(), images)
    assert counts.shape == (1000,)
    assert counts.nonzero().flatten().tolist() == [3, 159]
    assert counts[159] == 2
    # 1 / (1 + 2 / e + ...) = 0.56 for a digit between others
    assert torch.equal(stacked.modes(Brightness(), images, sure=0.5), counts)
    assert stacked.modes(Brightness(), images, sure=0.6).sum() == 0
