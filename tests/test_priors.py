"""Priors: shapes, values, buffers, lookup by name."""

import math

import pyro
import pytest
import torch

from pyro_vae.priors import PRIORS, Prior, StandardNormal, prior


@pytest.mark.parametrize("name", list(PRIORS))
def test_contract(name: str) -> None:
    p = prior(name, 3)
    distribution = p()
    assert p.event_shape == distribution.event_shape == (3,)
    assert distribution.batch_shape == ()
    with pyro.plate("particles", 5, dim=-2), pyro.plate("data", 4, dim=-1):
        z = pyro.sample("z", distribution)
    assert z.shape == (5, 4, 3)
    assert distribution.log_prob(z).shape == (5, 4)
    assert p.double()().sample().dtype == torch.double
    p.load_state_dict(prior(name, 3).state_dict())


def test_standard_normal() -> None:
    p = StandardNormal(2)
    expected = -math.log(2 * math.pi) - (1 + 4) / 2
    assert p().log_prob(torch.tensor([1.0, -2.0])).item() == pytest.approx(expected)
    assert p.state_dict() == {}
    assert {name for name, _ in p.named_buffers()} == {"loc", "scale"}


def test_errors() -> None:
    with pytest.raises(ValueError, match="'standart_normal', did you mean 'standard_normal'"):
        prior("standart_normal", 3)
    with pytest.raises(ValueError, match="positive"):
        StandardNormal(0)
    with pytest.raises(NotImplementedError, match="Prior must define"):
        Prior(3)()
