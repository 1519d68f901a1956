"""Residual cells of a convolutional hierarchy: the way up, and the way down with a latent in each cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = ["Cell", "Evidence", "Residual", "Upsample", "branch", "halved", "on_images"]

Activation = Callable[[], nn.Module]


def on_images(net: nn.Module, x: Tensor) -> Tensor:
    """A network of images `(N, ...) -> (N, ...)` at `(*, C, H, W)`."""
    # with the channels last in memory, convolutions of few channels take half the time on a CPU
    y = net(x.reshape(-1, *x.shape[-3:]).contiguous(memory_format=torch.channels_last))
    return y.reshape(x.shape[:-3] + y.shape[1:])


def branch(before: int, inside: int, after: int, act: Activation, gain: float) -> nn.Sequential:
    """A bottleneck of three convolutions, `(N, before, H, W) -> (N, after, H, W)`; a small gain begins near zero.

    No batch norm: it would couple the data of a batch, and log p(x|z) of one datum would depend on its neighbors.
    """
    convs = [nn.Conv2d(before, inside, 1), nn.Conv2d(inside, inside, 3, padding=1), nn.Conv2d(inside, after, 1)]
    for conv, factor in zip(convs, (1.0, 1.0, gain), strict=True):
        nn.init.xavier_uniform_(conv.weight, factor)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return nn.Sequential(act(), convs[0], act(), convs[1], act(), convs[2])


class Residual(nn.Module):
    """`x + f(x)` with a bottleneck f, `(N, C, H, W) -> (N, C, H, W)`."""

    def __init__(self, channels: int, act: Activation) -> None:
        super().__init__()
        self.branch = branch(channels, max(channels // 2, 1), channels, act, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x)


class Evidence(nn.Module):
    """The way up: images `(*, C, H, W)` to one tensor of features for each stage, finest first.

    Each stage halves height and width, rounding up, and has `cells` residual blocks.
    """

    def __init__(self, in_channels: int, channels: Sequence[int], cells: Sequence[int], act: Activation) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        for before, after, count in zip((in_channels, *channels), channels, cells, strict=False):
            width = 5 if before == in_channels else 3
            conv = nn.Conv2d(before, after, width, stride=2, padding=width // 2)
            nn.init.xavier_uniform_(conv.weight)
            self.stages.append(nn.Sequential(conv, *(Residual(after, act) for _ in range(count))))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        found = []
        for stage in self.stages:
            x = on_images(stage, x)
            found.append(x)
        return tuple(found)


class Cell(nn.Module):
    """The generative half of a cell: features of p(z|h) from the state h, and the next state from h and z.

    Args:
        channels: those of the state h.
        latents: channels of z, whose height and width are those of h.
    """

    def __init__(self, channels: int, latents: int, act: Activation) -> None:
        super().__init__()
        self.latents = latents
        self.prior = branch(channels, max(channels // 2, 1), 2 * latents + channels, act, 0.3)
        self.merge = nn.Conv2d(latents, channels, 1)
        nn.init.xavier_uniform_(self.merge.weight)
        self.after = Residual(channels, act)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Features of p(z|h), `(*, 2 latents, H, W)`, and the state with what needs no latent added."""
        y = on_images(self.prior, h)
        return y[..., : 2 * self.latents, :, :], h + y[..., 2 * self.latents :, :, :]

    def add(self, h: Tensor, z: Tensor) -> Tensor:
        """The next state."""
        return on_images(self.after, h + on_images(self.merge, z))


class Upsample(nn.Module):
    """A state at the next finer stage, `(*, A, h, w) -> (*, B, H, W)`, H and W at most twice h and w."""

    def __init__(self, before: int, after: int, size: Sequence[int], act: Activation) -> None:
        super().__init__()
        self.size = tuple(size)
        # a kernel size divisible by the stride avoids a checkerboard
        self.conv = nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)
        nn.init.xavier_uniform_(self.conv.weight, 2.0)
        self.act = act()

    def forward(self, h: Tensor) -> Tensor:
        height, width = self.size
        return on_images(nn.Sequential(self.act, self.conv), h)[..., :height, :width]

    def set_output_bias(self, features: Tensor) -> None:
        """Center the output on `features`, `(B, H, W)`: each channel's bias becomes its spatial mean."""
        with torch.no_grad():
            self.conv.get_parameter("bias").copy_(features.mean((-2, -1)))


def halved(height: int, width: int, times: int) -> list[tuple[int, int]]:
    """The sizes of an image that is halved, rounding up, `times` times; the first is the image's own."""
    sizes = [(height, width)]
    for _ in range(times):
        height, width = -(-height // 2), -(-width // 2)
        sizes.append((height, width))
    return sizes
