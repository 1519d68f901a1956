"""What runs on a GPU, beside the tests with this mark that stand with their subjects: `pytest -m gpu`.

With `PYRO_VAE_STAND_IN=cpu` the CPU stands in for the GPU.
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.infer
import pyro.optim
import pytest
import torch

import pyro_vae as pv
from pyro_vae.support.random import fork_rng

pytestmark = pytest.mark.gpu
OPTIM: Any = pyro.optim
OPTIMIZERS = {
    "Adam": lambda: OPTIM.Adam({"lr": 0.01}),
    "ClippedAdam": lambda: OPTIM.ClippedAdam({"lr": 0.01, "lrd": 0.99, "clip_norm": 0.5}),
    "SGD": lambda: OPTIM.SGD({"lr": 0.01, "momentum": 0.9}),
    "RMSprop": lambda: OPTIM.RMSprop({"lr": 0.01}),
}


def pair_on(device: torch.device) -> tuple[pv.VAE, torch.Tensor]:
    pyro.clear_param_store()
    torch.manual_seed(0)
    vae = pv.VAE(12, 3, hidden=(8,))
    x = (torch.rand(10, 12) < 0.4).float()
    return vae.to(device), x.to(device)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_pyros_optimizers_are_fused_there(optimizer: str, gpu: torch.device) -> None:
    losses = []
    kinds: Any = ((pyro.infer.SVI, {}), (pv.SVI, {"compile": False}))
    for svi_class, options in kinds:
        vae, x = pair_on(gpu)
        svi = svi_class(vae.model, vae.guide, OPTIMIZERS[optimizer](), loss=pyro.infer.Trace_ELBO(), **options)
        with fork_rng(1):
            losses.append([float(svi.step(x)) for _ in range(8)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_fit_there(gpu: torch.device) -> None:
    vae, x = pair_on(torch.device("cpu"))
    history = pv.fit(
        vae.model, vae.guide, x, epochs=3, batch_size=5, seed=0, device=gpu.type, compile=False, progress=False
    )
    assert all(p.device.type == gpu.type for p in vae.parameters())
    assert history.epochs[-1].loss < history.epochs[0].loss + 1.0


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_there(precision: Any, gpu: torch.device) -> None:
    vae, x = pair_on(gpu)
    losses = []
    for name in ("float32", precision):
        with fork_rng(0):
            losses.append(float(pv.SVI(vae.model, vae.guide, precision=name, compile=False).step(x)))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_log_marginal_there(gpu: torch.device) -> None:
    """Up to noise what it is on the CPU: the noise of a GPU is other."""
    vae, x = pair_on(gpu)
    there = pv.log_marginal(vae.model, vae.guide, x, num_samples=2000, seed=0)
    here = pv.log_marginal(vae.to("cpu").model, vae.guide, x.cpu(), num_samples=2000, seed=1)
    assert float(there.mean) == pytest.approx(float(here.mean), abs=0.2)
