"""Codebooks: scalar levels as a bijection, residual sums, the rotation's gradient; each inside a VQ-VAE."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.elbo import VQ
from pyro_vae.models import VQVAE
from pyro_vae.models.codebooks import Codebook, ResidualCodebook, ScalarCodebook, rotated
from pyro_vae.pair.particles import particles_agree
from pyro_vae.pair.tracing import trace_pair

IMAGE = (1, 6, 7)
KINDS: dict[str, dict[str, Any]] = {
    "scalar": {"levels": (3, 4)},
    "residual": {"depth": 3, "codes": 4},
    "rotation": {"gradient": "rotation", "codes": 8},
    "residual, rotated, by gradients": {"depth": 2, "codes": 4, "gradient": "rotation", "decay": None},
}
every_kind = pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)


def small(data_shape: Any = IMAGE, **options: Any) -> Any:
    torch.manual_seed(0)
    chosen = {"activation": "elu", "embedding_dim": 2, "channels": (4, 4), "hidden": (8,), "positions": 2, **options}
    return VQVAE(data_shape, **chosen)


def images(n: int = 10) -> Tensor:
    torch.manual_seed(1)
    return (torch.rand(n, *IMAGE) < 0.5).float()


@pytest.mark.parametrize("levels", [(8, 5, 5), (2, 3), (7,)])
def test_levels_and_codes_are_a_bijection(levels: tuple[int, ...]) -> None:
    book = ScalarCodebook(levels)
    by_hand = [
        [(digit - count // 2) / (count // 2) for digit, count in zip(reversed(digits), levels, strict=True)]
        for digits in itertools.product(*(range(count) for count in reversed(levels)))  # the first moves fastest
    ]
    torch.testing.assert_close(book.vectors, torch.tensor(by_hand))
    codes = torch.arange(math.prod(levels))
    assert torch.equal(book.find(book.lookup(codes)), codes)
    torch.manual_seed(0)
    encoding = 1.5 * torch.randn(20_000, len(levels))
    found = book.nearest(encoding)
    assert len(found.unique()) == math.prod(levels)  # each can be reached
    nearest, _, _ = book.quantize(encoding, True, lambda e, q: e)
    half = torch.tensor([n // 2 for n in levels])
    assert ((book.bounded(encoding) / half - nearest).abs() * half <= 0.5 + 1e-5).all()  # and it is the nearest
    assert torch.equal(book.lookup(book.nearest(torch.zeros(1, len(levels)))), torch.zeros(1, len(levels)))


def test_residual_codes_are_those_of_what_is_left_over() -> None:
    torch.manual_seed(0)
    book = ResidualCodebook(3, 5, 2, revive=0.0).double()
    encoding = torch.randn(4, 6, 2).double()
    codes = book.nearest(encoding)
    assert codes.shape == (4, 18)
    vectors = book.lookup(codes)
    assert torch.equal(book.find(vectors), codes)
    rest, chosen = encoding.clone(), []
    for j in range(3):
        distances = (rest.unsqueeze(-2) - book.vectors[j]).square().sum(-1)
        chosen.append(distances.argmin(-1))
        rest = rest - book.vectors[j][chosen[-1]]
    assert torch.equal(codes, torch.stack(chosen, -1).flatten(-2))
    torch.testing.assert_close(vectors.unflatten(-2, (6, 3)).sum(-2), encoding - rest)


def test_residual_codebooks_learn_each_its_own_share() -> None:
    """With no memory and two codes, the second is k-means of what the first leaves over; none is dead."""
    torch.manual_seed(0)
    book: Any = ResidualCodebook(2, 2, 1, decay=1e-6, revive=1.0)
    x = torch.tensor([-11.0, -9.0, 9.0, 11.0]).repeat(50).reshape(100, 2, 1)
    for _ in range(20):
        book.quantize(x, True, lambda e, q: e)
    sums = (book.books[0].vectors.unsqueeze(1) + book.books[1].vectors).flatten().sort().values
    torch.testing.assert_close(sums, torch.tensor([-11.0, -9.0, 9.0, 11.0]), atol=1e-3, rtol=0)


def test_the_rotation_takes_the_encoding_to_the_code_and_its_transpose_the_gradient_back() -> None:
    """Against the rotation in the plane of both, made of an orthonormal basis."""
    torch.manual_seed(0)
    encoding, code, gradient = torch.randn(3, 50, 4).double().unbind()
    encoding.requires_grad_()
    turned = rotated(encoding, code)
    torch.testing.assert_close(turned, code)
    (found,) = torch.autograd.grad(turned, encoding, gradient)
    for e, q, g, f in zip(encoding.detach(), code, gradient, found, strict=True):
        first = e / e.norm()
        second = q - (q @ first) * first
        second = second / second.norm()
        cosine, sine = q @ first / q.norm(), q @ second / q.norm()
        plane, turn = torch.stack([first, second]), torch.stack([cosine, -sine, sine, cosine]).reshape(2, 2)
        rotation = torch.eye(4).double() - plane.T @ plane + plane.T @ turn @ plane
        torch.testing.assert_close(f, q.norm() / e.norm() * rotation.T @ g)


def test_where_no_rotation_is_defined_the_gradient_passes_straight_through() -> None:
    encoding = torch.tensor([[1.0, 2.0], [0.0, 0.0], [1.0, 2.0]], requires_grad=True)
    code = torch.tensor([[-2.0, -4.0], [1.0, 0.0], [0.0, 0.0]])
    (found,) = torch.autograd.grad(rotated(encoding, code).sum(), encoding)
    torch.testing.assert_close(found, torch.ones(3, 2))


@every_kind
def test_the_value_is_the_code_and_the_bound_the_length_of_a_message(options: dict[str, Any]) -> None:
    vae = small(prior="autoregressive", **options).double().eval()
    x = images().double()
    codes, book = vae.codes(x), vae.posterior.codebook
    z = trace_pair(vae.model, vae.guide, (x,)).guide.nodes["z"]["value"]
    assert torch.equal(z, book.lookup(codes))
    assert torch.equal(book.find(z), codes)
    assert codes.shape == (10, *vae.prior.grid)
    expected = vae.decode(z).log_prob(x) + vae.prior.log_prob(codes)
    found = pv.bound(vae.model, vae.guide, x)
    torch.testing.assert_close(found.elbo, expected.detach())
    assert 1 <= vae.perplexity(x) <= book.codes
    assert particles_agree(vae.model, vae.guide, (x,))


@every_kind
def test_gradients_of_encoder(options: dict[str, Any]) -> None:
    """That of the bound at the sum of the codes reaches the encoding once, by the way that was chosen."""
    vae, x = small(**options).double(), images().double()
    vae.guide(x)
    vae.posterior.eval()
    book, commits = vae.posterior.codebook, 0.0 if "levels" in options else 0.7
    loss = VQ(commitment=0.7).differentiable_loss(vae.model, vae.guide, x)
    encoding = vae.encoder(x)
    z = book.lookup(vae.codes(x)).detach().requires_grad_()
    (slope,) = torch.autograd.grad(-vae.decode(z).log_prob(x).sum(), z)
    parts = z.detach().unflatten(-2, (-1, book.depth))  # (N, H, W, D, d)
    total, slope = parts.sum(-2), slope.unflatten(-2, (-1, book.depth))[..., 0, :]
    path = book.bounded(encoding) / torch.tensor([1, 2]) if "levels" in options else encoding
    path = rotated(encoding, total) if "gradient" in options else path
    left = encoding.unsqueeze(-2) - parts.cumsum(-2)  # after each code
    surrogate = (slope * path).sum() + commits * left.square().sum()
    weights = list(vae.encoder.parameters())
    for found, expected in zip(
        torch.autograd.grad(loss, weights), torch.autograd.grad(surrogate, weights), strict=True
    ):
        torch.testing.assert_close(found, expected)


@every_kind
@pytest.mark.parametrize("shape", [IMAGE, 6])
def test_it_trains_and_generates(options: dict[str, Any], shape: Any) -> None:
    vae = small(shape, prior="autoregressive", **options)
    x = (torch.rand(20, *vae.data_shape) < 0.5).float()
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    history = pv.fit(vae.model, vae.guide, x, elbo="vq", epochs=3, batch_size=10, lr=1e-2, seed=0)
    assert history.loss[-1] < history.loss[0]
    assert [name for name, p in vae.named_parameters() if torch.equal(p, before[name])] == []
    assert vae.sample(3).shape == (3, *vae.data_shape)
    assert vae.start_at_mean(x.mean(0)).reconstruct(x).shape == x.shape


def test_what_does_not_go_together_is_refused() -> None:
    for options, message in (
        ({"levels": (3, 4), "depth": 2}, "levels leave nothing over for further codes, so depth must be 1, got 2"),
        ({"levels": (3, 4), "gradient": "rotation"}, "those of levels are rounded, so leave it out"),
        ({"levels": (3, 1)}, "levels must be at least 2 each"),
        ({"levels": (999, 999, 999)}, "their product at most 1048576"),
        ({"depth": 0}, "depth must"),
        ({"gradient": "reflection"}, "gradient must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            small(**options)
    assert isinstance(small().posterior.codebook, Codebook)
