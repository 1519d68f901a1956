"""Forms of training data: arrays, dictionaries, nested tuples, numbers beside tensors."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

import pyro_vae as pv
from pyro_vae.training.forms import as_tensors

X, Y = torch.linspace(-1, 1, 12), torch.arange(12.0)


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.2)) * x, 0.7))


def on(rows: Callable[..., Tensor], program: Callable[[Tensor], None]) -> Callable[..., None]:
    return lambda *args, **kwargs: program(rows(*args, **kwargs))


def trained(data: Any, rows: Callable[..., Tensor]) -> float:
    pyro.clear_param_store()
    pair: Any = on(rows, model), on(rows, guide)
    pv.fit(pair[0], pair[1], data, valid=data, batch_size=5, epochs=2, lr=0.05, seed=0, preflight=False, progress=False)
    return float(pyro.param("slope").detach())


def test_every_form_trains_as_its_tensors_do() -> None:
    plain = trained(X, lambda x: x)
    assert trained(X.numpy(), lambda x: x) == plain
    assert trained({"x": X, "y": Y}, lambda batch: batch["x"] + 0 * batch["y"]) == plain
    assert trained(((X, Y),), lambda pair: pair[0] + 0 * pair[1]) == plain
    assert trained((X, 2.0, "name"), lambda x, factor, name: x * factor / len(name) * 2) == plain


def test_a_dictionary_is_passed_by_keyword_to_a_model_that_takes_its_keys() -> None:
    seen: list[int] = []

    def keyworded(x: Tensor, *, y: Tensor) -> None:
        seen.append(len(y))
        model(x)

    def keyworded_guide(x: Tensor, *, y: Tensor) -> None:
        guide(x)

    pv.fit(keyworded, keyworded_guide, {"x": X, "y": Y}, batch_size=6, epochs=1, preflight=False, progress=False)
    assert 6 in seen


def test_frames_and_lists() -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]})
    assert torch.equal(as_tensors(frame), torch.tensor([[1.0, 3.0], [2.0, 4.0]], dtype=torch.float64))
    assert torch.equal(as_tensors((np.ones(2),))[0], torch.ones(2, dtype=torch.float64))
    assert torch.equal(as_tensors([1, 2]), torch.tensor([1, 2]))


def test_refusals() -> None:
    with pytest.raises(TypeError, match=r"trained by pv.SVI\(model, guide\).step\(\)"):
        pv.fit(model, guide, ())
    with pytest.raises(TypeError, match="the data hold none"):
        pv.fit(model, guide, {"a": 1})
    with pytest.raises(TypeError, match="the autoguide AutoNormal needs data"):
        pv.fit(model, AutoNormal(model), {"x": X})
    with pytest.raises(ValueError, match="another form"):
        pv.fit(model, guide, {"x": X}, valid={"y": X})
