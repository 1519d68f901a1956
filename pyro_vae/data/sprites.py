"""Procedural sprites: white shapes of known shape, scale, rotation and place, for measures of disentanglement."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["Sprites"]


class Sprites(Dataset[tuple[Tensor, Tensor]]):
    """Binary images of one shape each, all combinations of five factors; rendered when asked for.

    The design of dSprites (Matthey et al. 2017), drawn from formulas: a square, an ellipse or a heart; six sizes; 40
    angles, a full turn; 32 places across and 32 down. That is 737 280 images, of which a set holds a fixed random
    subset. A square looks the same after a quarter turn and an ellipse after half of one, there as here: the angle is
    no factor that could always be told from the image.

    `pv.data.load(Sprites(...))` is the set as training, validation and test data, with the factors as labels `(N, 5)`;
    `pv.data.load("sprites")` is that of the default arguments.

    Args:
        size: Height and width of the images in pixels.
        num_images: How many of all combinations, chosen at random; None for all, in order of the factors.
        seed: Of the choice.

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
        # the image is [-1, 1] squared; centers leave room for the largest shape at any angle
        radius = 0.2 + 0.2 * scale / 5
        center_x, center_y = ((2 * place / 31 - 1) * 0.5 for place in (across, down))
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
