"""Half precision stays inside the networks."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.compilation.precision import Precision, networks_in
from pyro_vae.support.random import fork_rng


def test_inside_and_outside() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    seen = []
    net[1].register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    x = torch.randn(5, 3)
    with networks_in(torch.bfloat16):
        out = net(x)
        outside = x @ torch.randn(3, 3)
    assert seen == [torch.bfloat16]
    assert out.dtype == outside.dtype == torch.float32
    assert net(x).dtype == torch.float32
    assert seen[-1] == torch.float32
    torch.testing.assert_close(out, net(x), rtol=0.05, atol=0.05)


def test_an_error_in_a_network_leaves_nothing_open() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(3, 4))
    with pytest.raises(RuntimeError), networks_in(torch.bfloat16):
        net(torch.randn(5, 3))
    assert not torch.is_autocast_enabled("cpu")
    assert nn.Linear(3, 4)(torch.randn(2, 3)).dtype == torch.float32


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_the_loss_is_close_and_the_densities_are_in_float32(precision: Precision) -> None:
    torch.manual_seed(0)
    vae = pv.VAE(12, latent_dim=2, hidden=(16,))
    x = (torch.rand(64, 12) < 0.4).float()
    dtypes: list[torch.dtype] = []

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", vae.prior())
            p = vae.decode(z)
            dtypes.append(p.base_dist.logits.dtype)
            pyro.sample("x", p, obs=x)

    losses = []
    names: tuple[Precision, ...] = ("float32", precision)
    for name in names:
        with fork_rng(0):
            losses.append(float(pv.SVI(model, vae.guide, precision=name).step(x)))
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert losses[1] != losses[0]
    assert set(dtypes) == {torch.float32}


def test_a_guide_that_is_a_module_is_no_network() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    guide = AutoNormal(model)
    x = torch.randn(8, 3)
    guide(x)  # makes its parameters
    losses = []
    names: tuple[Precision, ...] = ("float32", "bfloat16")
    for name in names:
        with fork_rng(0):
            losses.append(float(pv.SVI(model, guide, precision=name).evaluate_loss(x)))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_training_gets_there(precision: Precision) -> None:
    elbos = []
    data = pv.data.load("digits", binarize="dynamic", flatten=True)
    names: tuple[Precision, ...] = ("float32", precision)
    for name in names:
        torch.manual_seed(0)
        vae = pv.VAE(data.shape, latent_dim=5, hidden=(32,))
        history = pv.fit(vae.model, vae.guide, data, epochs=8, lr=5e-3, seed=0, precision=name, progress=False)
        elbos.append(history[-1].monitored)
    assert elbos[0] > -28
    assert elbos[1] == pytest.approx(elbos[0], abs=0.3)


def test_refusals() -> None:
    vae = pv.VAE(12, latent_dim=2, hidden=(8,))
    unknown: Any = "half"
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16, float16"):
        pv.SVI(vae.model, vae.guide, precision=unknown)
    with pytest.raises(ValueError, match="use a torch optimizer"):
        pv.SVI(vae.model, vae.guide, pyro.optim.ClippedAdam({"lr": 1e-3}), precision="float16")
    renyi = pyro.infer.RenyiELBO(alpha=0.5, num_particles=2)
    with pytest.raises(ValueError, match="no differentiable_loss: use precision='float32'"):
        pv.SVI(vae.model, vae.guide, loss=renyi, precision="bfloat16").step(torch.zeros(3, 12))
