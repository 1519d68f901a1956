"""Networks that map images to feature vectors: a small classifier trained on the same data, or Inception v3."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from pyro_vae.nets import ConvEncoder
from pyro_vae.pair.networks import eval_mode
from pyro_vae.support.arguments import checked_from
from pyro_vae.support.files import checksum, read_file, write_file
from pyro_vae.support.formats import check_entries, parse_json, parse_metadata, parse_weights, parsing
from pyro_vae.support.progress import progress_bar
from pyro_vae.support.random import seeded

__all__ = ["FeatureNet", "OtherFeatures", "inception_features", "train_features"]

FORMAT = 1
MAX_BYTES = 2**30
_HEADER = "pyro_vae"


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
        path: A `.safetensors` file for the weights: read if it exists, else written. It says of which data and
            options they are, which must be these.
        progress: Show a bar.

    Raises:
        ValueError: If images and labels do not match, or the file is damaged, or is of other data or options.
    """
    if x.dim() != 4 or y.shape != (len(x),):
        raise ValueError(f"images (N, C, H, W) and labels (N,) were expected, got {tuple(x.shape)}, {tuple(y.shape)}")
    made_of = _description(x, y, steps=steps, batch_size=batch_size, lr=lr, seed=seed) if path is not None else {}
    with seeded(seed):
        net = FeatureNet(tuple(x.shape[1:]), int(y.max()) + 1)
        if path is not None and _load(net, Path(path), made_of):
            return net.requires_grad_(False).to(x.device).eval()
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
        tensors = {name: value.contiguous().cpu() for name, value in net.state_dict().items()}
        header = {"format": FORMAT, "made_of": made_of, "checksum": _checksum(tensors)}
        write_file(path, save(tensors, metadata={_HEADER: json.dumps(header)}))
    return net


def _description(x: Tensor, y: Tensor, **options: Any) -> dict[str, Any]:
    """What a net depends on: a digest of all training data, and the options."""
    digest = hashlib.sha256()
    for values in (x, y):
        digest.update(f"{tuple(values.shape)} {values.dtype} ".encode())
        digest.update(values.detach().cpu().contiguous().numpy().data)
    return {"data": digest.hexdigest(), **options}


def _load(net: FeatureNet, path: Path, made_of: dict[str, Any]) -> bool:
    """Load stored weights, if there are any.

    Raises:
        ValueError: If the file is damaged, or is not of a net of this kind.
        OtherFeatures: If it is of a net that was trained on other data or with other options.
    """
    try:
        content = read_file(path, MAX_BYTES)
    except FileNotFoundError:
        return False
    with parsing(path):
        tensors = parse_weights(content)
        if tensors.keys() != net.state_dict().keys():
            raise ValueError("it holds another kind of net: choose another file")
        metadata = parse_json(content[8 : 8 + int.from_bytes(content[:8], "little")]).get("__metadata__", {})
        unknown: dict[str, Any] = {"format": 0, "made_of": {}}
        header = parse_metadata(content, _HEADER) if _HEADER in metadata else unknown
        check_entries(header, format=int, made_of=dict)
        if header["format"] and header.get("checksum") != _checksum(tensors):
            raise ValueError("its checksum does not fit its tensors: delete it to train a new net")
    before: dict[str, Any] = header["made_of"]
    changed = [f"{name} was {before.get(name)!r:.80}, is now {value!r}" for name, value in made_of.items()]
    changed = [text for text, name in zip(changed, made_of, strict=True) if before.get(name) != made_of[name]]
    if changed:
        said = "; ".join(changed) if before else "an earlier version wrote it, and did not say of which"
        raise OtherFeatures(f"{path} is of other data or options ({said}): delete it to train a new net")
    with parsing(path):
        net.load_state_dict(tensors)
    return True


class OtherFeatures(ValueError):
    """A file holds a net that was trained on other data, or with other options."""


def _checksum(tensors: dict[str, Tensor]) -> str:
    return checksum(save({name: tensors[name] for name in sorted(tensors)}))


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
