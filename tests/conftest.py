"""Every test starts from the same state, and leaves the process as it found it."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Iterator

import pyro
import pyro.distributions
import pytest
import torch

from pyro_vae.compilation import gradients as compiled

torch.set_num_threads(1)  # the tensors here are too small for two


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Give the networks and tensors of a module the same values in every run, alone or among others."""
    if isinstance(collector, pytest.Module):
        torch.manual_seed(0)


def pytest_collection_finish() -> None:
    """Let collections of garbage pass over all that is imported by now, which stays to the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _same_state() -> Iterator[None]:
    pyro.clear_param_store()
    torch.manual_seed(0)
    before = _global_state()
    yield
    assert _global_state() == before, "the test changed a global setting"


def _global_state() -> tuple[object, ...]:
    return (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.distributions.Distribution._validate_args,
        pyro.distributions.is_validation_enabled(),
        pyro.infer.util.is_validation_enabled(),
        pyro.poutine.util.is_validation_enabled(),
        len(pyro.poutine.runtime._PYRO_STACK),
    )


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    """Graphs run as recorded, without the compiler's seconds, unless a test is marked `really`."""
    if "really" not in request.fixturenames:
        monkeypatch.setattr(compiled, "compile_graph", lambda module, inputs: module)
    with warnings.catch_warnings():
        # PyTorch's own, from inside the compiler
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        yield


@pytest.fixture
def gpu() -> torch.device:
    """The GPU of a test that is marked `gpu`, or what stands in for it."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if os.environ.get("PYRO_VAE_STAND_IN") != "cpu":
        pytest.skip("needs a GPU; with PYRO_VAE_STAND_IN=cpu the CPU stands in for it")
    return torch.device("cpu")


@pytest.fixture
def really() -> None:
    """Ask for the compiler itself."""
