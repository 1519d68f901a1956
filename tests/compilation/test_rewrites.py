"""Rewritten graphs compute what the recorded ones did."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vae.compilation.rewrites import rewrite

aten = torch.ops.aten


def before_and_after(f: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, Tensor, list[object]]:
    """The values of a function in float64 and of its rewritten float32 graph, and what that calls."""
    module = make_fx(f)(*inputs)
    rewrite(module)
    exact = f(*(t.double() for t in inputs))
    return exact, module(*inputs).double(), [node.target for node in module.graph.nodes]


@pytest.mark.parametrize("pixels", [784, 16, 32])
@pytest.mark.parametrize("scale", [0.1, 10.0, 1e4])
def test_bernoulli_sums_take_fewer_logarithms(pixels: int, scale: float) -> None:
    torch.manual_seed(0)
    logits, x = scale * torch.randn(7, 1, pixels), torch.bernoulli(torch.full((3, pixels), 0.3))

    def log_density(logits: Tensor, x: Tensor) -> Tensor:
        return dist.Bernoulli(logits=logits, validate_args=False).expand([7, 3, pixels]).to_event(1).log_prob(x)

    exact, found, calls = before_and_after(log_density, logits, x)
    torch.testing.assert_close(found, exact, rtol=2e-6, atol=2e-6 * pixels)
    assert aten.binary_cross_entropy_with_logits.default not in calls
    assert aten.prod.dim_int in calls


def test_images_are_summed_over_all_their_dimensions() -> None:
    torch.manual_seed(0)
    logits, x = torch.randn(5, 1, 8, 8), torch.bernoulli(torch.full((5, 1, 8, 8), 0.3))
    exact, found, calls = before_and_after(
        lambda logits, x: dist.Bernoulli(logits=logits, validate_args=False).to_event(3).log_prob(x), logits, x
    )
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-4)
    assert aten.prod.dim_int in calls


@pytest.mark.parametrize(
    "f",
    [
        lambda logits, x: -F.binary_cross_entropy_with_logits(logits, x, reduction="none"),
        lambda logits, x: -F.binary_cross_entropy_with_logits(logits, x, reduction="none").view(3, -1).sum(0),
        lambda logits, x: F.binary_cross_entropy_with_logits(logits, x),
        lambda logits, x: dist.Bernoulli(logits=logits[:, :15], validate_args=False).to_event(1).log_prob(x[:, :15]),
        lambda logits, x: (
            -F.binary_cross_entropy_with_logits(logits, x, pos_weight=x[0] + 2, reduction="none").view(3, -1).sum([-1])
        ),
    ],
    ids=["pixels", "over data", "mean", "15 pixels", "weighted"],
)
def test_other_uses_of_the_cross_entropy_stay(f: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    exact, found, calls = before_and_after(f, torch.randn(3, 16), torch.bernoulli(torch.full((3, 16), 0.3)))
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)
    assert aten.prod.dim_int not in calls


def test_linear_layers_and_elu() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(6, 5), torch.randn(4, 5), torch.randn(4)
    exact, found, calls = before_and_after(lambda x, w, b: F.elu(F.linear(x, w, b)), x, weight, bias)
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-6)
    assert aten.elu.default not in calls
    assert aten.addmm.default not in calls


def test_an_elu_of_another_slope_stays() -> None:
    exact, found, calls = before_and_after(lambda x: F.elu(x, 0.5), torch.linspace(-3, 3, 20))
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-6)
    assert aten.elu.default in calls
