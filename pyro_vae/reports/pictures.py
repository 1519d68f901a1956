"""Images as small PNG files inside a page."""

from __future__ import annotations

import base64
import io

import torch
from torch import Tensor

from pyro_vae.plots import as_images

__all__ = ["are_images", "as_uri", "sheet"]

SMALLEST = 36  # pixels; fewer columns, even a square number of them, are a table


def are_images(x: Tensor) -> bool:
    """Whether data `(N, ...)` look like images: their shape, or a square number of columns, all in [0, 1]."""
    if not x.is_floating_point() or x.dim() < 2 or x[0].numel() < SMALLEST:
        return False
    try:
        as_images(x[:1])
    except ValueError:
        return False
    return bool(((x >= 0) & (x <= 1)).all())


def as_uri(pixels: Tensor) -> str:
    """A picture `(C, H, W)` with values in [0, 1], 1 or 3 channels, as a `data:` address of a PNG."""
    from PIL import Image

    values = (pixels.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).squeeze(-1).cpu().numpy()
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def sheet(x: Tensor, columns: int) -> str:
    """Images in a grid with a line between them, as a `data:` address; the page enlarges it without blur."""
    images = as_images(x)
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    canvas = torch.full((channels, rows * (height + 1) - 1, columns * (width + 1) - 1), 0.5)
    for i, image in enumerate(images):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        canvas[:, top : top + height, left : left + width] = image
    return as_uri(canvas)
