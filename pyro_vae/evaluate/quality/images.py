"""Metrics of images without features: similarity of pairs, sharpness."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, pad

__all__ = ["ms_ssim", "pairwise_ms_ssim", "sharpness"]

_WINDOW, _SIGMA = 11, 1.5
_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, from the finest; Wang et al. 2003, section 3.2
_C1, _C2 = 0.01**2, 0.03**2


def ms_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Multi-scale structural similarity of pairs of images `(N, C, H, W)` with values in [0, 1]: `(N,)`, at most 1.

    It uses those of the five scales that have at least 8 pixels per side (two for 28 by 28), with rescaled weights. The
    Gaussian window has 11 pixels, or fewer in smaller images. Negative contrasts count as 0.

    Reference: Wang, Simoncelli and Bovik 2003, Multi-scale structural similarity for image quality assessment.

    Raises:
        ValueError: For other shapes.
    """
    if a.shape != b.shape or a.dim() != 4:
        raise ValueError(
            f"two sets of images (N, C, H, W) of one shape were expected, got {tuple(a.shape)}, {tuple(b.shape)}"
        )
    side, scales = min(a.shape[-2:]), 1
    while scales < len(_WEIGHTS) and side >> scales >= 8:
        scales += 1
    weights = torch.tensor(_WEIGHTS[:scales], dtype=a.dtype, device=a.device)
    weights = weights / weights.sum()
    result = torch.ones(len(a), dtype=a.dtype, device=a.device)
    for scale in range(scales):
        luminance, contrast = _terms(a, b)
        term = luminance * contrast if scale == scales - 1 else contrast
        result = result * term.mean((1, 2, 3)).clamp_min(0) ** weights[scale]
        a, b = avg_pool2d(a, 2), avg_pool2d(b, 2)
    return result


def pairwise_ms_ssim(x: Tensor, pairs: int = 1000, seed: int = 0) -> float:
    """Mean MS-SSIM of random pairs of different images; it is higher for more similar images.

    Compare it with the value of the data: a higher one means too little diversity, a lower one too much (such as
    noise).

    Reference: Odena et al. 2017, arXiv 1610.09585, section 4.2; Rosca et al. 2017, arXiv 1706.04987.
    """
    if len(x) < 2:
        raise ValueError(f"pairs of different images need at least two, got {len(x)}")
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(len(x), (pairs,), generator=generator)
    second = (first + torch.randint(1, len(x), (pairs,), generator=generator)) % len(x)
    parts = zip(first.split(500), second.split(500), strict=True)
    found = [ms_ssim(x[i.to(x.device)], x[j.to(x.device)]) for i, j in parts]
    return float(torch.cat(found).double().mean())


def sharpness(x: Tensor) -> Tensor:
    r"""Strength of the edges in each image `(N, C, H, W)`: `(N,)`, in squared units of the values per pixel.

    .. math:: \mathrm{mean}\; (\lambda_1 - \lambda_2)^2 / (\lambda_1 + \lambda_2)

    over the pixels, with the eigenvalues of the structure tensor: the products of the gradient's components, averaged
    over about 5 by 5 pixels. At an edge the gradients nearby agree in direction, and the second eigenvalue is near
    zero; in noise they do not, and the two are close. So blurring lowers the sharpness, and noise does not raise it
    (unlike the variance of the Laplacian). Less contrast lowers it too: compare it with that of the data.

    Reference: Zhu and Milanfar 2010, Automatic parameter selection for denoising algorithms using a no-reference
    measure of image content (the idea, for amplitudes in place of energies).

    >>> ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    >>> float(sharpness(0.5 * ramp))
    0.25
    """
    channels = x.shape[1]
    sobel = x.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    across, down = (conv2d(x, k.expand(channels, 1, 3, 3), groups=channels) for k in (sobel, sobel.T))
    products = torch.stack([across * across, down * down, across * down], 1).sum(2)  # (N, 3, H - 2, W - 2)
    line = x.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    window = (line[:, None] * line).expand(3, 1, 5, 5)
    a, b, c = conv2d(pad(products, (2, 2, 2, 2), mode="replicate"), window, groups=3).unbind(1)
    energy = a + b
    difference = (a - b).square() + 4 * c.square()  # of the eigenvalues, squared
    return (difference / energy.clamp_min(torch.finfo(x.dtype).tiny)).flatten(1).mean(1)


def _terms(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Luminance, and contrast times structure, at each pixel."""
    size = min(_WINDOW, *a.shape[-2:])
    offsets = torch.arange(size, dtype=a.dtype, device=a.device) - (size - 1) / 2
    line = (-0.5 * (offsets / _SIGMA).square()).exp()
    line = line / line.sum()
    channels = a.shape[1]
    window = (line[:, None] * line).expand(channels, 1, size, size)

    def smooth(v: Tensor) -> Tensor:
        return conv2d(v, window, groups=channels)

    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2
    both = smooth(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    return luminance, (2 * both + _C2) / (var_a + var_b + _C2)
