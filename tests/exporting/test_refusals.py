"""What cannot be exported is refused with the site and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import pyro_vae as pv

Program = Callable[..., Any]

ENCODER, DECODER = nn.Linear(3, 2), nn.Linear(2, 3)
BATCH_STATISTICS = nn.BatchNorm1d(3, track_running_stats=False)
LOCS = torch.randn(20, 2)


def guide_from(loc: Callable[[Tensor], Tensor]) -> Program:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc(x), 1.0).to_event(1))

    return guide


def model_from(likelihood: Callable[[Tensor, Tensor], Any]) -> Program:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", likelihood(z, x), obs=x)

    return model


def normal(z: Tensor, x: Tensor) -> Any:
    return dist.Normal(DECODER(z), 1.0).to_event(1)


def shifted(z: Tensor, x: Tensor) -> Any:
    before = torch.cat([x.new_zeros(len(x), 1), x[:, :-1]], -1)
    return dist.Normal(DECODER(z) + before, 1.0).to_event(1)


def branches(x: Tensor) -> Tensor:
    h: Tensor = ENCODER(x)
    return h + 1 if h.square().sum() > 0 else h


def sequential(x: Tensor) -> None:
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"z_{i}", dist.Normal(ENCODER(x[int(i)]), 1.0).to_event(1))


def nothing(x: Tensor) -> None:
    pass


GUIDE, MODEL = guide_from(ENCODER), model_from(normal)
REFUSED: dict[str, tuple[Program, Program, str]] = {
    "control flow": (
        MODEL,
        guide_from(branches),
        r"control flow depends on the values.*`return h \+ 1 if h.square",
    ),
    "batch statistics": (
        MODEL,
        guide_from(lambda x: ENCODER(BATCH_STATISTICS(x))),
        "the mean of the site 'z' of the guide depends on the other data of a batch, .*: batch normalization in",
    ),
    "noise": (
        MODEL,
        guide_from(lambda x: ENCODER(x + torch.randn(3))),
        "the mean of the site 'z' of the guide is another one in each run",
    ),
    "rows": (
        MODEL,
        guide_from(lambda x: pyro.param("locs", LOCS)),
        r"the guide has no form for any number of data.*parameter 'locs' of shape \(20, 2\)",
    ),
    "number of data": (
        MODEL,
        guide_from(lambda x: ENCODER(x) + torch.tensor([[float(i > 50)] for i in range(len(x))])),
        r"the guide cannot be exported for any number of data.*\(at site 'z' or before\)",
    ),
    "loop": (MODEL, sequential, "the guide has the site 'z_2' for some numbers of data and not for others"),
    "constant": (MODEL, guide_from(lambda x: x.new_zeros(len(x), 2)), r"none of its latents \(z\) from the data"),
    "no latents": (MODEL, nothing, "the guide samples no latent site"),
    "autoregressive": (model_from(shifted), GUIDE, "the mean of the observed site 'x' is computed from 'x'"),
    "no mean": (
        model_from(lambda z, x: dist.Cauchy(DECODER(z), 1.0).to_event(1)),
        GUIDE,
        "the mean of the site 'x' of the model is not a number",
    ),
    "no formula": (
        model_from(lambda z, x: dist.VonMises3D(torch.cat([z, z[:, :1]], -1))),
        GUIDE,
        "the observed site 'x' has a distribution without a formula of its mean, VonMises3D: only='encoder'",
    ),
    "no decoder": (
        model_from(lambda z, x: dist.Normal(0.0, z.exp().sum(-1, keepdim=True)).expand(x.shape).to_event(1)),
        GUIDE,
        r"no mean of an observed site \(x\) depends on a latent",
    ),
    "nothing observed": (guide_from(lambda x: x.new_zeros(2)), GUIDE, "the model observes no site"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    model, guide, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        pv.export((model, guide), tmp_path / "new", torch.randn(20, 3), onnx=False)
    assert not (tmp_path / "new").exists()


def test_the_other_half_is_written(tmp_path: Path) -> None:
    data = torch.randn(20, 3)
    pv.export((model_from(shifted), GUIDE), tmp_path, data, only="encoder", onnx=False)
    model, guide, _ = REFUSED["rows"]
    found = pv.export((model, guide), tmp_path, data, only="decoder", onnx=False)
    assert [str(port) for port in found.inputs["decoder"]] == ["z (N, 2) float32"]


def test_arguments_that_are_no_tensors_or_no_pair(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"a PackedSequence came: write the pair with padded data and a tensor of len"):
        pv.export((MODEL, GUIDE), tmp_path, pack_sequence([torch.randn(2, 3)]))
    with pytest.raises(TypeError, match=r"export needs example data.*export\(pair, path, x\)"):
        pv.export((MODEL, GUIDE), tmp_path)
    with pytest.raises(TypeError, match="pair must be an object with the methods model and guide"):
        pv.export(MODEL, tmp_path, torch.randn(20, 3))  # type: ignore[arg-type]
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is a file: export writes several files, name a folder"):
        pv.export((MODEL, GUIDE), tmp_path / "file", torch.randn(20, 3))
