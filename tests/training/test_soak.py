"""A process that trains again and again stays as it was: what it holds, its global state, and where it is called.

At full length: examples/benchmarks/soak.py.
"""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.poutine.runtime
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from tests.helpers.paths import ROOT

X = (torch.rand(60, 8, generator=torch.Generator().manual_seed(0)) < 0.5).float()


def fit(data: Any = X, **options: Any) -> list[Tensor]:
    """The weights of a small pair after training."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    pair = pv.VAE(8, 2, hidden=(4,))
    settings = {"epochs": 2, "seed": 0, "progress": False, "compile": False, **options}
    settings |= {"batch_size": 20} if isinstance(data, Tensor) else {}
    pv.fit(pair.model, pair.guide, data, **settings)
    return [value.clone() for value in pair.state_dict().values()]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def alive() -> int:
    """The number of tensors in this process."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecated attributes that are looked at
        return sum(isinstance(o, Tensor) for o in gc.get_objects())


def files() -> int:
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


def test_many_fits_leave_nothing_behind(tmp_path: Path) -> None:
    def once(i: int) -> None:
        fit(valid=X[:20], checkpoints=tmp_path / str(i % 2), rollbacks=1)

    for i in range(3):
        once(i)
    before = alive(), threading.active_count(), files()
    for i in range(12):
        once(i)
    assert (alive(), threading.active_count(), files()) == before


def test_an_endless_loader_takes_constant_memory() -> None:
    counts = []

    class Endless:
        def __iter__(self) -> Iterator[Tensor]:
            step = 0
            while True:
                for batch in X.split(20):
                    step += 1
                    if step in (700, 1400, 2100):
                        counts.append(alive())
                    yield batch

    fit(Endless(), epochs=None, steps=2110, preflight=False)
    assert len(counts) == 3
    assert max(counts) - min(counts) < 300  # and not 700 more each time


def test_a_fit_outside_the_main_thread_is_the_same(tmp_path: Path) -> None:
    found: list[list[Tensor]] = []
    thread = threading.Thread(target=lambda: found.append(fit(checkpoints=tmp_path)))
    thread.start()
    thread.join()
    assert equal(found[0], fit())


def global_state() -> dict[str, Any]:
    """What torch, Pyro and Python have for the whole process, and training may change."""
    module: Any = nn.modules.module
    hooks = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")
    return {
        "generators": [torch.get_rng_state().tolist()],
        "gradients": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "anomaly": torch.is_anomaly_enabled(),
        "distributions": torch.distributions.Distribution._validate_args,
        "handlers": list(pyro.poutine.runtime._PYRO_STACK),
        "validation": pyro.infer.util.is_validation_enabled(),
        "pyro_distributions": pyro.distributions.is_validation_enabled(),
        "poutine": pyro.poutine.util.is_validation_enabled(),
        "hooks": [len(getattr(module, name)) for name in hooks],
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "warnings": list(warnings.filters),
    }


class Broken(Exception):
    """An error of a callback, a loader or a model."""


def fail(*_: Any) -> None:
    raise Broken


@pytest.mark.parametrize("where", ["callback", "second callback", "loader", "schedule", "weight", "optimizer"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_error_leaves_the_global_state_as_it_was(where: str, precision: Any, tmp_path: Path) -> None:
    class Loader:
        def __iter__(self) -> Iterator[Tensor]:
            yield from X.split(20)
            raise Broken

    def late(state: pv.State) -> None:
        if len(state.history) == 2:
            raise Broken

    breaks: dict[str, dict[str, Any]] = {
        "callback": {"callbacks": [fail]},
        "second callback": {"callbacks": [late], "epochs": 3},
        "loader": {"data": Loader()},
        "schedule": {"lr_schedule": fail},
        "weight": {"kl_weight": fail},
        "optimizer": {"optim": fail},
    }
    options = breaks[where]
    before = global_state()
    pyro.clear_param_store()
    pair = pv.VAE(8, 2, hidden=(4,))
    before["generators"] = [torch.get_rng_state().tolist()]
    settings: dict[str, Any] = {
        "data": X,
        "epochs": 2,
        "seed": 0,
        "progress": False,
        "checkpoints": tmp_path,
        **options,
    }
    settings |= {} if where == "loader" else {"batch_size": 20}
    with pytest.raises(Broken):
        pv.fit(pair.model, pair.guide, precision=precision, **settings)
    assert global_state() == before
    fit()  # and it can be called again


SCRIPT = """
import sys, threading, torch, pyro_vae as pv
if "double" in sys.argv:
    torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
data = pv.data.load("digits", binarize="dynamic", flatten=True, valid=100)
torch.manual_seed(0)
pair = pv.VAE(64, 2, hidden=(4,))
history = pv.fit(pair.model, pair.guide, data, epochs=2, batch_size=400, seed=0, progress=False, compile=False)
pv.log_marginal(pair.model, pair.guide, data.test.head(5), num_samples=5, seed=0)
print(history[-1].valid_elbo, next(pair.parameters()).dtype, pv.data.load("digits", flatten=True).train.x.dtype)
"""


@pytest.mark.slow
def test_other_modes_of_the_interpreter_and_of_torch() -> None:
    said = {}
    for name, options, words in (
        ("plain", [], []),
        ("optimized", ["-O"], []),
        ("strict", ["-W", "error"], []),
        ("double", [], ["double"]),
    ):
        command = [sys.executable, *options, "-c", SCRIPT, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, (name, done.stderr)
        said[name] = done.stdout.split()
    assert said["plain"] == said["optimized"] == said["strict"]
    assert said["double"][1:] == ["torch.float64", "torch.float64"]
    assert -64 < float(said["double"][0]) < 0
