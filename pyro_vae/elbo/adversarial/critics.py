"""Networks of adversarial training: critics, and encoders without a known density."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from pyro_vae.nets import MLP, ConvEncoder, as_sizes, leading_shape

__all__ = ["Critic", "NoisyEncoder"]


class Critic(nn.Module):
    """A critic `(N, *in_shape) -> (N,)`: convolutions for images of at least 8 by 8, else a perceptron.

    Args:
        in_shape: Shape of one input.
        hidden: Widths of the hidden layers of the perceptron; after convolutions only the last one is used.
        channels: Output channels of the stride-2 convolutions; empty for a perceptron on images as well.
        activation: One of `pv.nets.ACTIVATIONS`.
        spectral: Divide each layer's weight by its largest singular value (Miyato et al. 2018, arXiv 1802.05957), so
            that the layer cannot stretch a distance.
    """

    def __init__(
        self,
        in_shape: int | Sequence[int],
        hidden: Sequence[int] = (128, 128),
        channels: Sequence[int] = (32, 64),
        activation: str = "leaky_relu",
        spectral: bool = False,
    ) -> None:
        super().__init__()
        shape = as_sizes(in_shape, "in_shape")
        self.net: MLP | ConvEncoder
        if channels and len(shape) == 3 and min(shape[1:]) >= 8:
            self.net = ConvEncoder(shape, 1, channels, as_sizes(hidden, "hidden")[-1], activation)
        else:
            self.net = MLP(shape, hidden, 1, activation)
        if spectral:
            for layer in self.net.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    spectral_norm(layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)

    def features(self, x: Tensor) -> Tensor:
        """The output of the last convolution, or of the last hidden layer, for `(N, *in_shape)`: `(N, F)`."""
        if isinstance(self.net, MLP):
            return self.net.body(x.flatten(1))
        return self.net.body(x).flatten(1)


class NoisyEncoder(nn.Module):
    """A perceptron with noise as a second input, `(*, *in_shape) -> (*, *out_shape)`: an encoder of any q(z|x).

    With a posterior that is a point mass (`posterior=pv.conditionals.Point(D)`) its output is a draw of z whose density
    is not known, the universal approximator of Makhzani et al. 2015, arXiv 1511.05644, section 2. Only objectives that
    do not evaluate the density of the guide can train it, and the ELBO of such a pair is not a bound.

    Args:
        in_shape, out_shape: Shape of one input, and of one output.
        noise_dim: Size of the standard normal noise.
        hidden, activation: As for `pv.nets.MLP`.
    """

    def __init__(
        self,
        in_shape: int | Sequence[int],
        out_shape: int | Sequence[int],
        noise_dim: int = 10,
        hidden: Sequence[int] = (200, 200),
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.in_shape = as_sizes(in_shape, "in_shape")
        (self.noise_dim,) = as_sizes(noise_dim, "noise_dim", 1)
        self.net = MLP(self.in_shape.numel() + self.noise_dim, hidden, out_shape, activation)

    def forward(self, x: Tensor) -> Tensor:
        lead = leading_shape(x, self.in_shape, "NoisyEncoder")
        noise = torch.randn(*lead, self.noise_dim, dtype=x.dtype, device=x.device)
        return self.net(torch.cat([x.reshape(*lead, self.in_shape.numel()), noise], -1))
