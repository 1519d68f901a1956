"""A training run stopped, resumed and compared with one that was not."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn

import pyro_vae as pv


def digits(**options: Any) -> pv.data.Data:
    data = pv.data.load("digits", flatten=True, **{"binarize": "dynamic", "valid": 0.1, **options})
    small = {
        name: pv.data.Split(getattr(data, name).intensity[:n], dynamic=name == "train" and data.train.dynamic)
        for name, n in (("train", 130), ("valid", 40))
    }
    small["valid"].intensity = (small["valid"].intensity > 0.5).float()
    return pv.data.Data("digits", small["train"], small["valid"], None, (64,), data.binarize, data.seed)


def vae(**options: Any) -> pv.VAE:
    torch.manual_seed(0)
    return pv.VAE(64, 3, hidden=(8,), **options)


def stop_at(step: int) -> Any:
    """An optimizer factory, whose optimizer asks its process to stop in its `step`-th step."""

    def make(params: list[Tensor]) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(params, lr=1e-2)
        count = 0

        def count_steps(*_: Any) -> None:
            nonlocal count
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGINT)

        optimizer.register_step_post_hook(count_steps)
        return optimizer

    make.__qualname__ = make.__module__ = "adam"
    return make


def metrics(history: pv.History) -> list[dict[str, Any]]:
    return [{k: v for k, v in asdict(epoch).items() if k != "seconds"} for epoch in history]


def same_bits(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(v, theirs[k]) for k, v in ours.items())


def assert_resumes_exactly(
    tmp_path: Path, make: Callable[[], Any], data: Any, stops: tuple[int, ...] = (5, 6, 3), **settings: Any
) -> pv.History:
    """Train once in one go, once with interrupts after so many more steps each; compare everything but the time."""
    settings = {"seed": 3, "batch_size": 30, "epochs": 4, "preflight": False, **settings}
    pyro.clear_param_store()
    whole = make()
    expected = pv.fit(whole.model, whole.guide, data, optim=stop_at(0), **settings)
    params = {name: p.detach().clone() for name, p in pyro.get_param_store().named_parameters() if "$$$" not in name}
    for stop in (*stops, 0):
        pyro.clear_param_store()  # as in a new process
        random.seed(stop)
        np.random.seed(stop)  # noqa: NPY002
        pair = make()
        history = pv.fit(
            pair.model, pair.guide, data, optim=stop_at(stop), checkpoints=tmp_path, resume=True, **settings
        )
        assert history.stopped == ("interrupted" if stop else expected.stopped)
    assert metrics(history) == metrics(expected)
    assert history.best == expected.best
    if isinstance(whole, nn.Module):
        assert same_bits(whole, pair)
    found = {name: p for name, p in pyro.get_param_store().named_parameters() if "$$$" not in name}
    assert params.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in params.items())
    return history
