"""Finding the networks behind callables."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import nn

from pyro_vae.pair.networks import modules_of, to_networks_device

NET = nn.Linear(1, 1)
SPACE = types.SimpleNamespace(net=nn.Linear(1, 1))


def plain(x: Any) -> Any:
    return NET(x)


def nested(x: Any) -> Any:
    def inner() -> Any:
        return NET(x)

    return [(lambda i: NET(i))(inner()) for _ in range(1)]


def through_a_namespace(x: Any) -> Any:
    return SPACE.net(x)


def with_default(x: Any, *, net: nn.Module = NET) -> Any:
    return net(x)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(1, 1)
        self.held = [nn.Linear(1, 1)]

    def model(self, x: Any) -> Any:
        return self.encoder(NET(x))


class Plain:
    def __init__(self) -> None:
        self.net = nn.Linear(1, 1)

    def __call__(self, x: Any) -> Any:
        return self.net(x)

    def method(self, x: Any) -> Any:
        return self.net(NET(x))


@pytest.mark.parametrize(
    ("program", "names"),
    [
        (plain, ["NET"]),
        (nested, ["NET"]),
        (through_a_namespace, ["SPACE.net"]),
        (with_default, ["net"]),
        (poutine.scale(plain, scale=0.5), ["NET"]),
        (poutine.trace(plain), ["NET"]),
        (torch.no_grad()(plain), ["NET"]),
        (functools.partial(lambda net, x: net(x), NET), ["args[0]"]),
        (Model().model, ["Model", "Model.held[0]", "NET"]),
        (Plain(), ["self.net"]),
        (Plain().method, ["self.net", "NET"]),
        (AutoNormal(plain), ["AutoNormal", "NET"]),
    ],
)
def test_networks_are_found_under_their_names(program: Callable[..., Any], names: list[str]) -> None:
    assert list(modules_of(program)) == names


def test_methods_share_their_module() -> None:
    net = Model()
    assert modules_of(net.model, pyro.plate("data", 3)(net.model))["Model"] is net
    assert "encoder" not in modules_of(net.model, net.encoder)


def test_a_cell_not_filled_yet() -> None:
    def program(x: Any) -> Any:
        return later(x)

    assert modules_of(program) == {}
    later = nn.Linear(1, 1)
    assert modules_of(program) == {"later": later}


def test_data_go_where_the_networks_are() -> None:
    net = nn.Linear(2, 2, device="meta")

    def program(x: torch.Tensor) -> torch.Tensor:
        return net(x)

    x, other = to_networks_device((torch.zeros(3, 2), "label"), program)
    assert x.device.type == "meta"
    assert other == "label"
    assert to_networks_device((torch.zeros(3),), len)[0].device.type == "cpu"
