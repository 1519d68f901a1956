"""Networks `(*, in) -> (*, out)`: perceptrons, convolutional and residual encoders and decoders."""

import difflib
import itertools
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import SupportsIndex, TypeVar

import torch
from torch import Tensor, nn

from pyro_vae.support.arguments import checked

__all__ = ["ACTIVATIONS", "MLP", "ConvDecoder", "ConvEncoder", "ResidualDecoder", "ResidualEncoder"]

T = TypeVar("T")

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "softplus": nn.Softplus,
}


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """The entry of `table` called `name`; `what` names the kind of thing in the error.

    Raises:
        ValueError: for an unknown name, with the nearest known one.
    """
    if name not in table:
        nearest = difflib.get_close_matches(str(name), table, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown {what} {name!r}, did you mean {nearest!r}? Known: {', '.join(table)}")
    return table[name]


def as_sizes(sizes: int | Iterable[int], name: str, length: int | None = None, empty: bool = False) -> torch.Size:
    """`sizes`, an int or a sequence of ints, as a checked `torch.Size`.

    Raises:
        TypeError: for anything but ints.
        ValueError: for zero or negative sizes, for an empty sequence unless `empty`, for a number of sizes
            other than `length`.
    """
    try:
        result = torch.Size(map(operator.index, (sizes,) if isinstance(sizes, SupportsIndex) else sizes))
    except TypeError:
        raise TypeError(f"{name} must be an int or a sequence of ints, got {sizes!r}") from None
    if any(size < 1 for size in result) or not (result or empty):
        raise ValueError(f"{name} must hold positive sizes, at least one, got {tuple(result)}")
    if length is not None and len(result) != length:
        raise ValueError(f"{name} must have {length} sizes, got {len(result)}: {tuple(result)}")
    return result


def leading_shape(x: Tensor, event_shape: torch.Size, what: str) -> torch.Size:
    """The leading dimensions of `x`, after a check that its trailing ones are `event_shape`.

    Raises:
        ValueError: if `x` does not end in `event_shape`.
    """
    split = x.dim() - len(event_shape)
    if split < 0 or x.shape[split:] != event_shape:
        expected = ", ".join(map(str, event_shape))
        raise ValueError(f"{what} expects a tensor of shape (*, {expected}), got {tuple(x.shape)}")
    return x.shape[:split]


def check_shape(x: Tensor, shape: torch.Size, what: str) -> None:
    """Check that `x` has exactly `shape`.

    Raises:
        ValueError: if it has another.
    """
    if x.shape != shape:
        raise ValueError(f"{what} expects a tensor of shape {tuple(shape)}, got {tuple(x.shape)}")


def _glorot(module: nn.Module) -> None:
    """Glorot-uniform weights and zero biases, as Burda et al. (2016, arXiv 1509.00519) use."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
        # an output of a transposed convolution depends on one in stride**2 of the kernel's weights
        gain = module.stride[0] if isinstance(module, nn.ConvTranspose2d) else 1
        nn.init.xavier_uniform_(module.weight, gain)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class MLP(nn.Module):
    """A multilayer perceptron `(*, *in_shape) -> (*, *out_shape)`.

    Args:
        in_shape: size, or image shape, of one input; image dimensions are flattened.
        hidden: widths of the hidden layers; `()` makes the map linear.
        out_shape: size, or image shape, of one output.
        activation: one of `ACTIVATIONS`.

    Raises:
        ValueError: for sizes below one, an unknown activation, or an input of another shape.

    >>> MLP((1, 28, 28), (200, 200), 2 * 20)(torch.zeros(5, 8, 1, 28, 28)).shape
    torch.Size([5, 8, 40])
    """

    @checked
    def __init__(
        self,
        in_shape: int | Sequence[int],
        hidden: Sequence[int],
        out_shape: int | Sequence[int],
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.in_shape = as_sizes(in_shape, "in_shape")
        self.out_shape = as_sizes(out_shape, "out_shape")
        act = lookup(ACTIVATIONS, activation, "activation")
        widths = (self.in_shape.numel(), *as_sizes(hidden, "hidden", empty=True))
        self.body = nn.Sequential()
        for width, next_width in itertools.pairwise(widths):
            self.body.append(nn.Linear(width, next_width)).append(act())
        self.final = nn.Linear(widths[-1], self.out_shape.numel())
        self.apply(_glorot)

    def forward(self, x: Tensor) -> Tensor:
        lead = leading_shape(x, self.in_shape, "MLP")
        if len(self.in_shape) > 1:
            x = x.reshape(*lead, self.in_shape.numel())
        y = self.final(self.body(x))  # (*, out)
        return y if len(self.out_shape) == 1 else y.reshape(lead + self.out_shape)

    def set_output_bias(self, features: Tensor) -> None:
        """Set the output for a last hidden layer of zeros to `features`, of shape `out_shape`."""
        check_shape(features, self.out_shape, "set_output_bias")
        with torch.no_grad():
            self.final.bias.copy_(features.reshape(-1))


class _Residual(nn.Module):
    """`x + f(x) / 10` with two convolutions, `(N, C, H, W) -> (N, C, H, W)`.

    No batch norm: it would couple the data of a batch, and log p(x|z) of one datum would depend on its neighbors
    and on the batch size. The factor keeps any number of blocks near the identity at first.
    """

    def __init__(self, channels: int, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        convs = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2)]
        self.branch = nn.Sequential(act(), convs[0], act(), convs[1])

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.branch(x), alpha=0.1)


def residual_blocks(channels: int, blocks: int, act: Callable[[], nn.Module]) -> list[nn.Module]:
    """Residual blocks `(N, C, H, W) -> (N, C, H, W)`, `blocks` of them.

    Raises:
        ValueError: For a negative number of blocks.
    """
    if blocks < 0:
        raise ValueError(f"blocks must be at least 0, got {blocks}")
    return [_Residual(channels, act) for _ in range(blocks)]


class ConvEncoder(nn.Module):
    """Stride-2 convolutions, then one hidden layer: `(*, C, H, W) -> (*, *out_shape)`, any `H, W >= 1`.

    Args:
        in_shape: `(C, H, W)` of one image.
        out_shape: size or shape of one output.
        channels: output channels of each convolution; each halves height and width, rounding up.
        hidden: width of the fully connected hidden layer.
        activation: one of `ACTIVATIONS`.
        blocks: residual blocks after each convolution.

    Raises:
        ValueError: for sizes below one, an unknown activation, or an input of another shape.

    >>> ConvEncoder((3, 33, 17), 10)(torch.zeros(3, 33, 17)).shape
    torch.Size([10])
    """

    @checked
    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: int | Sequence[int],
        channels: Sequence[int] = (32, 64),
        hidden: int = 256,
        activation: str = "relu",
        blocks: int = 0,
    ) -> None:
        super().__init__()
        self.in_shape = as_sizes(in_shape, "in_shape", 3)
        self.out_shape = as_sizes(out_shape, "out_shape")
        act = lookup(ACTIVATIONS, activation, "activation")
        (width,) = as_sizes(hidden, "hidden", 1)
        before, height, breadth = self.in_shape
        self.body = nn.Sequential()
        for after in as_sizes(channels, "channels"):
            conv = nn.Conv2d(before, after, 3, stride=2, padding=1)
            self.body.extend([conv, *residual_blocks(after, blocks, act), act()])
            before, height, breadth = after, -(-height // 2), -(-breadth // 2)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(before * height * breadth, width), act())
        self.final = nn.Linear(width, self.out_shape.numel())
        self.apply(_glorot)

    def forward(self, x: Tensor) -> Tensor:
        lead = leading_shape(x, self.in_shape, type(self).__name__)
        x = x.reshape(math.prod(lead), *self.in_shape)  # (N, C, H, W)
        return self.final(self.head(self.body(x))).reshape(lead + self.out_shape)


class ConvDecoder(nn.Module):
    """One hidden layer, then stride-2 transposed convolutions: `(*, *in_shape) -> (*, C, H, W)`, any `H, W >= 1`.

    Args:
        in_shape: size or shape of one input.
        out_shape: `(C, H, W)` of one output, for example a likelihood's `param_shape`.
        channels: input channels of each transposed convolution; the sizes run through those of a `ConvEncoder`
            backwards, and end at exactly `H` and `W`.
        hidden: width of the fully connected hidden layer.
        activation: one of `ACTIVATIONS`.
        blocks: residual blocks before each transposed convolution.

    Raises:
        ValueError: for sizes below one, an unknown activation, or an input of another shape.

    >>> ConvDecoder(10, (3, 33, 17))(torch.zeros(5, 8, 10)).shape
    torch.Size([5, 8, 3, 33, 17])
    """

    @checked
    def __init__(
        self,
        in_shape: int | Sequence[int],
        out_shape: Sequence[int],
        channels: Sequence[int] = (64, 32),
        hidden: int = 256,
        activation: str = "relu",
        blocks: int = 0,
    ) -> None:
        super().__init__()
        self.in_shape = as_sizes(in_shape, "in_shape")
        self.out_shape = as_sizes(out_shape, "out_shape", 3)
        act = lookup(ACTIVATIONS, activation, "activation")
        (width,) = as_sizes(hidden, "hidden", 1)
        widths = as_sizes(channels, "channels")
        self._sizes = [(self.out_shape[1], self.out_shape[2])]  # after each transposed convolution
        for _ in widths:
            height, breadth = self._sizes[0]
            self._sizes.insert(0, (-(-height // 2), -(-breadth // 2)))
        start = (widths[0], *self._sizes.pop(0))
        self.head = nn.Sequential(
            nn.Linear(self.in_shape.numel(), width),
            act(),
            nn.Linear(width, math.prod(start)),
            nn.Unflatten(-1, start),
            *residual_blocks(widths[0], blocks, act),
            act(),
        )
        self.body = nn.ModuleList()
        # a kernel size divisible by the stride avoids a checkerboard; sizes double, and `forward` crops odd ones
        for before, after in itertools.pairwise(widths):
            conv = nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)
            self.body.append(nn.Sequential(conv, *residual_blocks(after, blocks, act), act()))
        self.final = nn.ConvTranspose2d(widths[-1], self.out_shape[0], 4, stride=2, padding=1)
        self.apply(_glorot)

    def forward(self, x: Tensor) -> Tensor:
        lead = leading_shape(x, self.in_shape, type(self).__name__)
        x = self.head(x.reshape(math.prod(lead), self.in_shape.numel()))  # (N, C', H', W')
        for stage, (height, breadth) in zip([*self.body, self.final], self._sizes, strict=True):
            x = stage(x)[..., :height, :breadth]
        return x.reshape(lead + self.out_shape)

    def set_output_bias(self, features: Tensor) -> None:
        """Center the output on `features`, of shape `out_shape`: each channel's bias becomes its spatial mean."""
        check_shape(features, self.out_shape, "set_output_bias")
        with torch.no_grad():
            self.final.get_parameter("bias").copy_(features.mean((-2, -1)))


class ResidualEncoder(ConvEncoder):
    """A `ConvEncoder` with `blocks` residual blocks after each convolution (He et al. 2016, arXiv 1603.05027).

    >>> ResidualEncoder((1, 5, 7), 4, channels=(8,), hidden=16, blocks=2)(torch.zeros(2, 1, 5, 7)).shape
    torch.Size([2, 4])
    """

    @checked
    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: int | Sequence[int],
        channels: Sequence[int] = (32, 64),
        hidden: int = 256,
        activation: str = "relu",
        blocks: int = 1,
    ) -> None:
        super().__init__(in_shape, out_shape, channels, hidden, activation, blocks)


class ResidualDecoder(ConvDecoder):
    """A `ConvDecoder` with `blocks` residual blocks before each transposed convolution (arXiv 1603.05027).

    >>> ResidualDecoder(4, (1, 5, 7), channels=(8,), hidden=16, blocks=2)(torch.zeros(2, 4)).shape
    torch.Size([2, 1, 5, 7])
    """

    @checked
    def __init__(
        self,
        in_shape: int | Sequence[int],
        out_shape: Sequence[int],
        channels: Sequence[int] = (64, 32),
        hidden: int = 256,
        activation: str = "relu",
        blocks: int = 1,
    ) -> None:
        super().__init__(in_shape, out_shape, channels, hidden, activation, blocks)
