"""A pair of plain functions, saved and loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import pyro_vae as pv
from tests.helpers.counts_pair import counts_guide, counts_model

Pair = tuple[Callable[..., Any], Callable[..., Any]]

SCRIPT = """
import sys
import pyro, pyro.distributions as dist, torch
import pyro_vae as pv
from torch import nn

encoder, decoder = nn.Linear(6, 4), nn.Linear(2, 6)

def model(x):
    pyro.module("decoder", decoder)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

def guide(x):
    pyro.module("encoder", encoder)
    with pyro.plate("data", len(x)):
        loc, log_scale = encoder(x).chunk(2, -1)
        pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

x = torch.ones(3, 6)
if sys.argv[1] == "save":
    pv.save_pair(sys.argv[2], model, guide)
else:
    pv.load_pair(sys.argv[2], model, guide)
print(pv.bound(model, guide, x, seed=0).elbo.tolist())
"""


def make(width: int = 6, size: int = 2, name: str = "decoder") -> Pair:
    """A pair with two networks, one with a buffer, and a parameter of its own."""
    encoder = nn.Sequential(nn.Linear(width, 2 * size), nn.BatchNorm1d(2 * size))
    net = nn.Linear(size, width)
    scope: dict[str, Any] = {"pyro": pyro, "dist": dist, "torch": torch, name: net, "size": size}
    exec(  # the function's own name for its network is what counts
        f"def model(x):\n"
        f"    pyro.module('decoder', {name})\n"
        f"    with pyro.plate('data', len(x)):\n"
        f"        z = pyro.sample('z', dist.Normal(x.new_zeros(size), 1.0).to_event(1))\n"
        f"        pyro.sample('x', dist.Bernoulli(logits={name}(z)).to_event(1), obs=x)\n",
        scope,
    )

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        scale = pyro.param("scale", lambda: torch.ones(size), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            loc = encoder(x).chunk(2, -1)[0]
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return scope["model"], guide


@pytest.fixture
def x() -> Tensor:
    return torch.rand(5, 6).round()


@pytest.fixture
def saved(tmp_path: Path, x: Tensor) -> Path:
    model, guide = make()
    pv.fit(model, guide, x, epochs=2, batch_size=5, seed=0)
    return pv.save_pair(tmp_path / "mine", model, guide, x)


def test_a_pair_comes_back(tmp_path: Path, x: Tensor) -> None:
    model, guide = make()
    pv.fit(model, guide, x, epochs=3, batch_size=5, seed=0)
    expected = pv.bound(model, guide, x, seed=0).elbo
    state = torch.get_rng_state()
    file = pv.save_pair(tmp_path / "mine", model, guide, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(pv.bound(model, guide, x, seed=0).elbo, expected)  # to save it has not moved its averages
    assert sorted(load_file(file)) == [
        "network/decoder/bias",
        "network/decoder/weight",
        *(f"network/encoder/0.{name}" for name in ("bias", "weight")),
        *(f"network/encoder/1.{n}" for n in ("bias", "num_batches_tracked", "running_mean", "running_var", "weight")),
        "param/scale",
    ]
    pyro.clear_param_store()
    model, guide = make()
    assert not torch.equal(pv.bound(model, guide, x, seed=0).elbo, expected)
    pv.load_pair(file, model, guide, x)  # the parameter is in the store already, from the line before
    assert torch.equal(pv.bound(model, guide, x, seed=0).elbo, expected)


@pytest.mark.slow
def test_in_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["script.py", "save", str(tmp_path / "mine")])
    exec(SCRIPT, {})
    here = capsys.readouterr().out
    words = [sys.executable, "-c", SCRIPT, "load", str(tmp_path / "mine")]
    there = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert here == there
    assert len(json.loads(here)) == 3


def test_methods_of_a_system(tmp_path: Path) -> None:
    vae, other = (pv.VAE(6, latent_dim=2, hidden=(3,)) for _ in range(2))
    pv.load_pair(pv.save_pair(tmp_path / "vae.safetensors", vae.model, vae.guide), other.model, other.guide)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in vae.state_dict().items())


def test_parameters_of_others_stay_out(tmp_path: Path, x: Tensor) -> None:
    model, guide = make()
    pyro.param("foreign", torch.zeros(2))
    with pytest.raises(ValueError, match=r"holds foreign, .*pass a few data, save_pair\(path, model, guide, x\)"):
        pv.save_pair(tmp_path / "mine", model, guide)
    assert "param/foreign" not in load_file(pv.save_pair(tmp_path / "mine", model, guide, x))


def test_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nothing to save"):
        pv.save_pair(tmp_path / "mine", counts_model, counts_guide)


def test_a_pair_of_parameters_alone_and_of_more_arguments(tmp_path: Path) -> None:
    def model(x: Tensor, exposure: Tensor) -> None:
        rate = pyro.param("rate", lambda: torch.ones(()), constraint=constraints.positive)
        with pyro.plate("people", len(x)):
            z = pyro.sample("mood", dist.Normal(torch.zeros_like(exposure), 1.0))
            pyro.sample("calls", dist.Poisson(rate * z.exp() * exposure), obs=x)

    def guide(x: Tensor, exposure: Tensor) -> None:
        with pyro.plate("people", len(x)):
            pyro.sample("mood", dist.Normal(torch.zeros_like(exposure), 1.0))

    args = (torch.ones(4), torch.ones(4))
    model(*args)
    with torch.no_grad():
        pyro.get_param_store().get_state()["params"]["rate"].fill_(0.7)
    file = pv.save_pair(tmp_path / "mine", model, guide, *args)
    assert sorted(load_file(file)) == ["param/rate"]
    pyro.clear_param_store()
    with pytest.raises(ValueError, match=r"holds the parameters rate, .*load_pair\(path, model, guide, x\)"):
        pv.load_pair(file, model, guide)
    pv.load_pair(file, model, guide, *args)
    assert float(dict(pyro.get_param_store().named_parameters())["rate"].detach()) == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"width": 7}, r"'network/decoder/weight' has shape \(6, 2\) .*, the model's has \(7, 2\)"),
        ({"size": 3}, r"'network/decoder/weight' has shape \(6, 2\) .*, the model's has \(6, 3\)"),
        ({"name": "network"}, r"it has a tensor 'network/decoder/.*the pair's networks are network/"),
    ],
)
def test_another_pair(saved: Path, x: Tensor, other: dict[str, Any], message: str) -> None:
    pyro.clear_param_store()
    model, guide = make(**other)
    width = other.get("width", 6)
    before = pv.bound(model, guide, x.new_ones(3, width), seed=0).elbo
    with pytest.raises(ValueError, match=rf"mine\.safetensors does not fit the pair: .*{message}"):
        pv.load_pair(saved, model, guide, x.new_ones(3, width))
    assert torch.equal(pv.bound(model, guide, x.new_ones(3, width), seed=0).elbo, before)


def test_a_failed_parameter_leaves_the_networks_alone(saved: Path, x: Tensor) -> None:
    model, guide = make()
    pyro.clear_param_store()
    pyro.param("scale", torch.ones(9))
    before = [p.clone() for p in (*_params(model, guide),)]
    with pytest.raises(ValueError, match=r"a parameter 'scale' of shape \(2,\)"):
        pv.load_pair(saved, model, guide, x)
    assert all(torch.equal(a, b) for a, b in zip(before, _params(model, guide), strict=True))


def _params(*programs: Callable[..., Any]) -> list[Tensor]:
    from pyro_vae.pair.networks import modules_of

    return [v for net in modules_of(*programs).values() for v in net.state_dict().values()]


def test_damaged_files(saved: Path, x: Tensor, tmp_path: Path) -> None:
    model, guide = make()
    content = saved.read_bytes()
    with pytest.raises(FileNotFoundError, match=r"no file at .*nowhere\.safetensors"):
        pv.load_pair(tmp_path / "nowhere", model, guide, x)
    for damaged in (b"", content[:100], content[:-3], b"x" * 200):
        saved.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"mine\.safetensors is damaged"):
            pv.load_pair(saved, model, guide, x)
    flipped = bytearray(content)
    flipped[-1] ^= 1
    saved.write_bytes(flipped)
    with pytest.raises(ValueError, match=r"mine\.safetensors is damaged: its checksum does not fit"):
        pv.load_pair(saved, model, guide, x)
    save_file(load_file_of(content, tmp_path), saved)
    with pytest.raises(ValueError, match="it has no header of pyro_vae: this library did not write it"):
        pv.load_pair(saved, model, guide, x)


def load_file_of(content: bytes, folder: Path) -> dict[str, Tensor]:
    (folder / "copy.safetensors").write_bytes(content)
    return load_file(folder / "copy.safetensors")
