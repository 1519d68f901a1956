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
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

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
    pv.fit(
        on(rows, model),
        on(rows, guide),
        data,
        valid=data,
        batch_size=5,
        epochs=2,
        lr=0.05,
        seed=0,
        preflight=False,
        progress=False,
    )
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
    with pytest.raises(TypeError, match=r"make it with pv\.AmortizedGuide"):
        pv.fit(lambda batch: model(batch["x"]), None, {"x": X})
    with pytest.raises(ValueError, match="on the device 'meta'"):
        pv.fit(model, guide, X.to("meta"))
    with pytest.raises(ValueError, match="another form"):
        pv.fit(model, guide, {"x": X}, valid={"y": X})
    with pytest.raises(ValueError, match="one row per datum, got shapes"):
        pv.fit(lambda batch: model(batch["x"]), lambda batch: guide(batch["x"]), {"x": X, "y": Y[:-1]})


def test_data_along_the_second_axis_train_as_their_rows_do() -> None:
    plain = trained(X, lambda x: x)
    both = torch.stack([X, 2 * X])  # (2, N)
    assert trained(both, lambda x: x[0]) == plain
    assert trained((both, Y), lambda x, y: x[1] / 2 + 0 * y) == plain
    assert trained({"x": both, "y": Y}, lambda batch: batch["x"][0] + 0 * batch["y"]) == plain


def test_packed_sequences_train_as_their_rows_do() -> None:
    rows = [X[i, None].expand(1 + i % 3) for i in range(len(X))]
    packed = pack_sequence(rows, enforce_sorted=False)

    def firsts(batch: Any) -> Tensor:
        sequences, lengths = pad_packed_sequence(batch, batch_first=True)
        assert sequences.shape[1] == int(lengths.max())
        return sequences[:, 0]

    assert trained((packed,), firsts) == trained(packed, firsts) == trained(X, lambda x: x)


def test_an_autoguide_on_a_dictionary() -> None:
    def on_batch(batch: dict[str, Tensor]) -> None:
        model(batch["x"])

    def trained_on(program: Any, data: Any, size: int) -> Tensor:
        pyro.clear_param_store()
        pv.fit(program, AutoNormal(program), data, epochs=30, lr=0.1, seed=0, batch_size=size, progress=False)
        return pyro.param("AutoNormal.locs.z").detach().clone()

    assert torch.equal(trained_on(on_batch, {"x": X}, 12), trained_on(model, X, 12))
    with pytest.raises(ValueError, match="the autoguide AutoNormal has parameters for each datum"):
        trained_on(on_batch, {"x": X}, 6)
