"""Procedural sprites: every image is what its factors say."""

from __future__ import annotations

import itertools

import pytest
import torch

import pyro_vae as pv
from pyro_vae.data import Sprites


def test_the_design() -> None:
    sprites = Sprites(size=16, num_images=None)
    assert len(sprites) == 737_280
    assert sprites.factors.unique(dim=0).shape == (737_280, 5)
    assert sprites.factors.max(0).values.tolist() == [2, 5, 39, 31, 31]


def test_images_are_their_factors() -> None:
    sprites = Sprites(size=32, num_images=50)
    images = sprites.images()
    assert images.shape == (50, 1, 32, 32)
    assert set(images.unique().tolist()) == {0.0, 1.0}
    one, factors = sprites[7]
    assert torch.equal(one, images[7])
    assert torch.equal(sprites.render(factors), images[7])
    assert torch.equal(Sprites(size=32, num_images=50).images(), images)
    assert not torch.equal(Sprites(size=32, num_images=50, seed=1).factors, sprites.factors)


def test_no_shape_leaves_the_image_and_all_have_their_area() -> None:
    grid = torch.tensor(list(itertools.product(range(3), (0, 5), range(0, 40, 3), (0, 31), (0, 31))))
    images = Sprites(size=64).render(grid)
    assert not any(edge.any() for edge in (images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]))
    area = images.mean((1, 2, 3)) * 4
    radius = torch.where(grid[:, 1] == 0, 0.2, 0.4)
    exact = torch.stack([(1.6 * radius) ** 2, torch.pi * 1.1 * 0.55 * radius**2, 3.66 * (radius / 1.3) ** 2], 1)
    torch.testing.assert_close(area, exact.gather(1, grid[:, :1]).squeeze(1), rtol=0.1, atol=0)


def test_each_factor_does_what_it_is_called() -> None:
    sprites = Sprites(size=64)
    at = torch.tensor([1, 3, 0, 16, 16])

    def image(**changed: int) -> torch.Tensor:
        factors = at.clone()
        for name, value in changed.items():
            factors[list(Sprites.FACTORS).index(name)] = value
        return sprites.render(factors)[0]

    def center(x: torch.Tensor) -> tuple[float, float]:
        rows, columns = x.nonzero().double().mean(0).tolist()
        return rows, columns

    row, column = center(image())
    assert center(image(x=31)) == pytest.approx((row, column + 32 * 0.5 * 30 / 31), abs=0.6)
    assert center(image(y=31)) == pytest.approx((row + 32 * 0.5 * 30 / 31, column), abs=0.6)
    assert image(scale=5).sum() > 1.5 * image(scale=2).sum()
    turned = image(rotation=10)  # a quarter turn, so that width and height change places
    assert turned.any(1).sum() == image().any(0).sum()
    assert torch.equal(image(rotation=20), image())  # an ellipse after half a turn
    assert not torch.equal(image(shape=2, rotation=20), image(shape=2))


def test_a_heart_stands_upright() -> None:
    heart = Sprites(size=64).render(torch.tensor([2, 5, 0, 16, 16]))[0]
    rows = heart.sum(1)[heart.any(1)]
    assert rows[: len(rows) // 2].sum() > 1.5 * rows[len(rows) // 2 :].sum()


def test_loading() -> None:
    data = pv.data.load(Sprites(size=16, num_images=100), valid=0.1, test=0.2, flatten=True)
    assert (data.name, len(data.train), data.shape) == ("sprites", 72, (256,))
    assert data.train.y is not None
    assert data.train.y.shape == (72, 5)
    rendered = Sprites(size=16).render(data.train.y).flatten(1)
    assert torch.equal(rendered, data.train.x)


@pytest.mark.parametrize(("options", "message"), [({"size": 4}, "at least 8"), ({"num_images": 0}, "from 1 to 737280")])
def test_bad_arguments(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sprites(**options)


@pytest.mark.parametrize("factors", [torch.zeros(5), torch.zeros(4).long(), torch.tensor([3, 0, 0, 0, 0])])
def test_bad_factors(factors: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="factors must be integers"):
        Sprites().render(factors)
