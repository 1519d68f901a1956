"""Networks that map images to feature vectors: a small classifier trained on the same data, or Inception v3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pyro_vae.nets import ConvEncoder
from pyro_vae.pair.networks import eval_mode
from pyro_vae.support.arguments import checked_from
from pyro_vae.support.progress import progress_bar
from pyro_vae.support.random import seeded

__all__ = ["FeatureNet", "inception_features", "train_features"]


class FeatureNet(nn.Module):
    """A convolutional classifier `(N, C, H, W) -> (N, classes)` logits, whose last hidden layer gives the features.

    Args:
        shape: `(C, H, W)` of one image.
        classes: Number of labels.
        channels: Channels of the stride-2 convolutions.
        width: F, the number of features.
    """

    @checked_from(width=1)
    def __init__(
        self, shape: tuple[int, ...], classes: int, channels: tuple[int, ...] = (32, 64), width: int = 64
    ) -> None:
        super().__init__()
        self.net = ConvEncoder(shape, classes, channels, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def features(self, x: Tensor) -> Tensor:
        """`(N, width)`."""
        return self.net.head(self.net.body(x))


@checked_from(steps=1, batch_size=1)
def train_features(
    x: Tensor,
    y: Tensor,
    *,
    steps: int = 1000,
    batch_size: int = 100,
    lr: float = 1e-3,
    seed: int | None = None,
    path: str | Path | None = None,
    progress: bool | None = False,
) -> FeatureNet:
    """Train a `FeatureNet` to predict the labels `y`, `(N,)`, of the images `x`, `(N, C, H, W)`.

    Its features capture what matters for this kind of data. Values from them are comparable only with values from the
    same net, not with published ones.

    Args:
        x, y: Training data, distinct from the data that samples are compared with.
        steps, batch_size, lr: Options of Adam.
        seed: Seed of weights and batches. A number makes the call reproducible and leaves torch's generators as they
            were. None continues their stream.
        path: A `.safetensors` file for the weights: read if it exists, else written.
        progress: Show a bar.

    Raises:
        ValueError: If images and labels do not match, or the file holds another net.
    """
    if x.dim() != 4 or y.shape != (len(x),):
        raise ValueError(f"images (N, C, H, W) and labels (N,) were expected, got {tuple(x.shape)}, {tuple(y.shape)}")
    with seeded(seed):
        net = FeatureNet(tuple(x.shape[1:]), int(y.max()) + 1)
        if path is not None and Path(path).exists():
            try:
                net.load_state_dict(load_file(path))
            except RuntimeError as error:
                raise ValueError(f"{path} is of another net: delete it to train a new one") from error
            return net.to(x.device).eval()
        net.to(x.device)
        optimizer = torch.optim.Adam(net.parameters(), lr=lr, fused=True)
        size = min(batch_size, len(x))
        with progress_bar("feature net", steps, progress) as advance:
            for _ in range(steps):
                index = torch.randint(len(x), (size,), device=x.device)
                optimizer.zero_grad()
                cross_entropy(net(x[index]), y[index]).backward()
                optimizer.step()
                advance(1)
    net.requires_grad_(False).eval()
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous().cpu() for name, value in net.state_dict().items()}, path)
    return net


def inception_features(weights: str | Path) -> nn.Module:
    """torchvision's Inception v3 with weights from a local file, as a network for `sample_quality`.

    Its 2048 features are those before the last layer. They are close but not equal to the features of published FIDs,
    which use other weights and another resizing.

    Args:
        weights: torchvision's file `inception_v3_google-*.pth`, read by `torch.load`.
    """
    return _Inception(torch.load(weights, weights_only=True))


class _Inception(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, state: Any) -> None:
        from torchvision.models import inception_v3

        super().__init__()
        self.net = inception_v3(weights=None, aux_logits=True, init_weights=False, transform_input=False)
        self.net.load_state_dict(state)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1))
        self.requires_grad_(False).eval()

    def _ready(self, x: Tensor) -> Tensor:
        x = x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
        x = nn.functional.interpolate(x, (299, 299), mode="bilinear", antialias=True)
        return (x - self.mean) / self.std

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self._ready(x))

    def features(self, x: Tensor) -> Tensor:
        """`(N, 2048)`."""
        last, self.net.fc = self.net.fc, nn.Identity()
        try:
            return self.net(self._ready(x))
        finally:
            self.net.fc = last


def in_batches(net: Any, method: str, x: Tensor, size: int = 500) -> Tensor:
    """Apply a method of a network to all rows in evaluation mode: `(N, F)`."""
    call = getattr(net, method)
    with torch.no_grad(), eval_mode(net):
        return torch.cat([call(part).flatten(1) for part in x.split(size)])
