"""Procedural sprites: white shapes with known factors, for measures of disentanglement."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pyro_vae.support.arguments import checked

__all__ = ["Sprites"]


class Sprites(Dataset[tuple[Tensor, Tensor]]):
    """Binary images of one shape each, with five known factors, rendered on access.

    The design of dSprites (Matthey et al. 2017), drawn from formulas: a square, an ellipse or a heart; six sizes; 40
    angles of a full turn; 32 positions across and 32 down. These are 737 280 images; a set is a fixed random subset. As
    in dSprites, a square looks the same after a quarter turn and an ellipse after half a turn, so the angle cannot
    always be inferred from the image.

    `pv.data.load(Sprites(...))` is the set as training, validation and test data, with the factors as labels `(N, 5)`;
    `pv.data.load("sprites")` is that of the default arguments.

    Args:
        size: Height and width of the images in pixels.
        num_images: Number of random combinations; None for all of them, in the order of the factors.
        seed: Seed of that choice.

    Attributes:
        factors: `(N, 5)`, int64: the index of shape, scale, rotation, x and y of each image.

    Raises:
        ValueError: For a size below 8, or more images than there are combinations.

    Example:
        >>> sprites = Sprites(size=32, num_images=100)
        >>> image, factors = sprites[0]
        >>> image.shape, factors.shape, len(sprites)
        (torch.Size([1, 32, 32]), torch.Size([5]), 100)
    """

    FACTORS: ClassVar[dict[str, int]] = {"shape": 3, "scale": 6, "rotation": 40, "x": 32, "y": 32}
    SHAPES: ClassVar[tuple[str, ...]] = ("square", "ellipse", "heart")

    @checked
    def __init__(self, size: int = 64, num_images: int | None = 10_000, seed: int = 0) -> None:
        total = math.prod(self.FACTORS.values())
        if size < 8:
            raise ValueError(f"size must be at least 8 pixels, so that shapes can be told apart, got {size}")
        if num_images is not None and not 1 <= num_images <= total:
            raise ValueError(f"num_images must be from 1 to {total}, the number of combinations, got {num_images}")
        self.size = size
        if num_images is None:
            chosen = torch.arange(total)
        else:
            chosen = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:num_images]
        columns = []
        for values in reversed(self.FACTORS.values()):
            columns.append(chosen % values)
            chosen = chosen // values
        self.factors = torch.stack(columns[::-1], 1)

    def __len__(self) -> int:
        return len(self.factors)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.render(self.factors[index]), self.factors[index]

    def images(self) -> Tensor:
        """All images of the set, `(N, 1, size, size)`, floats 0 and 1."""
        return torch.cat([self.render(some) for some in self.factors.split(1000)])

    def render(self, factors: Tensor) -> Tensor:
        """The images `(*, 1, size, size)` of factors `(*, 5)`: a pixel is white if its center is inside the shape."""
        counts = torch.tensor(list(self.FACTORS.values()))
        if (
            factors.shape[-1:] != (5,)
            or factors.is_floating_point()
            or bool(((factors < 0) | (factors >= counts)).any())
        ):
            raise ValueError(f"factors must be integers (*, 5) below {counts.tolist()}, got {tuple(factors.shape)}")
        kind, scale, turn, across, down = factors.to(torch.float64)[..., None, None].unbind(-3)  # each (*, 1, 1)
        # the image is [-1, 1]^2; the largest shape fits at any angle and position
        radius = 0.2 + 0.2 * scale / 5
        center_x, center_y = ((2 * position / 31 - 1) * 0.5 for position in (across, down))
        line = (torch.arange(self.size, dtype=torch.float64) + 0.5) * 2 / self.size - 1
        dx, dy = (line - center_x) / radius, (line.unsqueeze(-1) - center_y) / radius
        angle = turn * (2 * math.pi / 40)
        u, v = angle.cos() * dx + angle.sin() * dy, angle.cos() * dy - angle.sin() * dx
        square = torch.maximum(u.abs(), v.abs()) <= 0.8
        ellipse = (u / 1.1).square() + (v / 0.55).square() <= 1
        side, up = 1.3 * u, 0.15 - 1.3 * v  # image rows count downwards
        heart = (side.square() + up.square() - 1) ** 3 <= side.square() * up**3
        inside = torch.where(kind == 0, square, torch.where(kind == 1, ellipse, heart))
        return inside.to(torch.float32).unsqueeze(-3)
