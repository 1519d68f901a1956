"""Codes of any pair, back from codes to data, and moves between them."""

from __future__ import annotations

import math
import sys
from typing import Literal

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.evaluate import attribute_vector, embed, interpolate, manifold, traverse
from pyro_vae.oracles import LinearGaussian, TopDownChain
from tests.helpers.counts_pair import counts_guide, counts_model


def test_codes_are_posterior_means() -> None:
    oracle = LinearGaussian()
    x = oracle.simulate(7)
    with torch.no_grad():
        expected = oracle.q(x).mean.float()
    torch.testing.assert_close(pv.encode(oracle.guide, x, memory=3 * 700, seed=0), expected)
    draws = pv.encode(oracle.guide, x[:1].expand(4000, 4), mean=False)
    scale = oracle.log_scale.detach().exp().float()
    assert ((draws.mean(0) - expected[0]).abs() < 4 * scale / 4000**0.5).all()
    torch.testing.assert_close(draws.std(0), scale, rtol=0.06, atol=0)


def test_decoding_is_the_models_mean() -> None:
    oracle = LinearGaussian()
    codes = torch.randn(9, 2).double()
    with torch.no_grad():
        expected = oracle.likelihood(codes).mean
    for x in (oracle.simulate(1), oracle.simulate(4), oracle.simulate(9)):
        torch.testing.assert_close(pv.decode(oracle.model, codes, x), expected)
    drawn = pv.decode(oracle.model, codes[:1].expand(4000, 2), oracle.simulate(1), mean=False)
    torch.testing.assert_close(drawn.std(0), torch.full((4,), 0.7).double(), atol=0.05, rtol=0)


def test_several_sites_an_extra_argument_and_no_event_dimension() -> None:
    x, exposure = torch.tensor([1.0, 4.0, 2.0]), torch.tensor([1.0, 2.0, 0.5])
    codes = pv.encode(counts_guide, x, exposure, latents=["mood", "rate"], mean=False, seed=0)
    assert codes.shape == (3, 2)
    # the mean of Poisson(rate exposure), whatever the mood
    torch.testing.assert_close(
        pv.decode(counts_model, codes[:, 1:], x, exposure, latents="rate"), codes[:, 1] * exposure
    )
    torch.testing.assert_close(pv.decode(counts_model, codes, x, exposure), codes[:, 1] * exposure)
    # with one row of arguments for many codes, the first is repeated
    many = torch.stack([torch.zeros(5), torch.arange(1.0, 6)], 1)
    torch.testing.assert_close(pv.decode(counts_model, many, x, exposure), torch.arange(1.0, 6))


def test_latents_that_are_not_given_come_from_the_model() -> None:
    chain = TopDownChain()
    x = torch.zeros(1, dtype=torch.float64)
    codes = torch.full((4000, 1), 2.0).double()
    found = pv.decode(chain.model, codes, x, latents="z2")
    assert float(found.mean()) == pytest.approx(1.3 * 2.0, abs=0.05)
    assert float(found.std()) == pytest.approx(0.6, rel=0.05)


def test_two_plates() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x), dim=-2):
            pyro.sample("level", dist.Normal(x.mean(1, keepdim=True), 1.0))
            with pyro.plate("columns", 3, dim=-1):
                pyro.sample("z", dist.Normal(x, 1.0))

    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x), dim=-2):
            level = pyro.sample("level", dist.Normal(torch.zeros(1, 1), 1.0))
            with pyro.plate("columns", 3, dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(level + 10 * z, 1.0), obs=x)

    x = torch.arange(6.0).reshape(2, 3)
    codes = pv.encode(guide, x, seed=0)
    torch.testing.assert_close(codes, torch.cat([x.mean(1, keepdim=True), x], 1))
    torch.testing.assert_close(pv.decode(model, codes, x), x.mean(1, keepdim=True) + 10 * x)


def test_classes_have_no_mean() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(logits=torch.tensor([0.0, 100.0, 0.0])))

    assert pv.encode(guide, torch.zeros(4, 2)).tolist() == [[1.0]] * 4


def test_bad_calls() -> None:
    oracle = LinearGaussian()
    x = oracle.simulate(2)
    with pytest.raises(ValueError, match="there is no latent site 'w'; the latent sites are z"):
        pv.encode(oracle.guide, x, latents="w", seed=0)
    with pytest.raises(ValueError, match=r"codes have 3 columns, but the latents \['z'\] have 2 elements"):
        pv.decode(oracle.model, torch.zeros(2, 3), x)
    with pytest.raises(ValueError, match=r"codes must be \(M, E\)"):
        pv.decode(oracle.model, torch.zeros(3), x)


def test_paths() -> None:
    a, b = torch.tensor([[3.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 3.0], [2.0, 2.0]])
    straight, curved = (interpolate(a, b, 5, path) for path in ("linear", "spherical"))
    for way in (straight, curved):
        assert way.shape == (5, 2, 2)
        torch.testing.assert_close(way[0], a)
        torch.testing.assert_close(way[-1], b)
    torch.testing.assert_close(straight[2], (a + b) / 2)
    torch.testing.assert_close(curved[:, 0].norm(dim=-1), torch.full((5,), 3.0))
    angles = torch.atan2(curved[:, 0, 1], curved[:, 0, 0])
    torch.testing.assert_close(angles, torch.linspace(0, math.pi / 2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(curved[:, 1], straight[:, 1])  # one direction: the sphere is no help
    opposite = interpolate(a[0], -a[0], 3, "spherical")
    assert opposite.isfinite().all()


def test_attribute_vector() -> None:
    g = torch.Generator().manual_seed(0)
    has = torch.rand(4000, generator=g) < 0.3
    step = torch.tensor([2.0, -1.0, 0.0])
    codes = torch.randn(4000, 3, generator=g) + has.unsqueeze(1) * step
    torch.testing.assert_close(attribute_vector(codes, has), step, atol=0.12, rtol=0)
    with pytest.raises(ValueError, match="4000 of 4000 data have the attribute"):
        attribute_vector(codes, torch.ones_like(has))


def test_traversals_and_manifold() -> None:
    code = torch.tensor([0.5, -0.5, 0.1])
    moved = traverse(code, torch.tensor([-2.0, 0.0, 2.0]), dims=[2, 0])
    assert moved.shape == (2, 3, 3)
    assert moved[0, :, 2].tolist() == [-2.0, 0.0, 2.0]
    assert moved[1, :, 0].tolist() == [-2.0, 0.0, 2.0]
    torch.testing.assert_close(moved[0, :, :2], code[:2].expand(3, 2))
    plane = manifold(5)
    torch.testing.assert_close(dist.Normal(0.0, 1.0).cdf(plane[:5, 0]), torch.linspace(0.1, 0.9, 5))
    assert (plane[:5, 1] == plane[0, 1]).all()
    assert plane[0, 1] > plane[-1, 1]


@pytest.mark.parametrize("method", ["tsne", pytest.param("umap", marks=pytest.mark.slow)])
def test_embedding_keeps_groups_apart(method: Literal["tsne", "umap"]) -> None:
    if method == "umap":
        pytest.importorskip("umap")
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(2).repeat_interleave(40)
    codes = torch.randn(80, 6, generator=g) + 12 * labels.unsqueeze(1)
    points = embed(codes, method=method, perplexity=10, seed=0)
    assert points.shape == (80, 2)
    gap = (points[labels == 0].mean(0) - points[labels == 1].mean(0)).norm()
    assert gap > 2 * points[labels == 0].std(0).norm()
    with pytest.raises(ValueError, match="above perplexity"):
        embed(codes[:10], seed=0)


def test_embedding_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ImportError, match="pip install umap-learn"):
        embed(torch.zeros(40, 2), method="umap", seed=0)
    with pytest.raises(ValueError, match="'tsne' or 'umap', got 'pca'"):
        embed(torch.zeros(40, 2), method="pca", seed=0)  # type: ignore[arg-type]
