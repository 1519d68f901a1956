"""Where a pair runs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pyro_vae.pair.device import choose_device


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, 2)

    def model(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "nonsense:3", ""])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(ValueError, match=rf"device '{name}' cannot be used here: use one of 'auto', 'cpu'"):
        choose_device(name, Pair().model)


def test_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="device 'cuda' cannot be used here"):
        choose_device("cuda", Pair().model)


def test_cpu_and_auto() -> None:
    pair = Pair()
    assert choose_device("cpu", pair.model) == torch.device("cpu")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert choose_device("auto", pair.model).type == expected
    assert pair.net.weight.device.type == expected


def test_without_networks_auto_is_the_cpu() -> None:
    assert choose_device("auto", lambda x: x) == torch.device("cpu")


@pytest.mark.gpu
def test_networks_move(gpu: torch.device) -> None:
    outside = nn.Linear(2, 2)
    pair = Pair()
    name = "cuda:0" if gpu.type == "cuda" else "cpu"
    assert choose_device(name, pair.model, lambda x: outside(x)) == torch.device(name)
    assert pair.net.weight.device.type == outside.weight.device.type == gpu.type
