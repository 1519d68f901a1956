"""The vector-quantized VAE: a code for each position, from one codebook."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyro_vae.conditionals import Likelihood
from pyro_vae.models.codebooks import Codebook, ResidualCodebook, ScalarCodebook
from pyro_vae.models.codes import AutoregressiveCodes, NearestCode, UniformCodes
from pyro_vae.models.parts import as_likelihood
from pyro_vae.models.vae import VAE
from pyro_vae.nets import ACTIVATIONS, MLP, as_sizes, check_shape, leading_shape, lookup, residual_blocks
from pyro_vae.support.arguments import checked_from, choice

__all__ = ["VQVAE"]


class VQVAE(VAE):
    r"""A `VAE` whose latents are codes: at each position the guide picks the one nearest to the encoder's output.

    .. math:: k \sim p(k), \quad z_i = e_{k_i}, \quad x \sim p(x \mid \mathrm{decoder}(z)); \qquad
        q(z \mid x) = \delta_{e_{k(x)}}, \; k_i(x) = \arg\min_k \|\mathrm{encoder}(x)_i - e_k\|

    A point mass is a valid posterior of a discrete latent. The ELBO then is log p(x|z) + log p(k): minus the length, in
    nats, of a two-part message, the codes and then the data given the codes. `bound` measures it. It is below log p(x),
    and `log_marginal` cannot close that gap, since all its draws are the same code.

    Train with `elbo="vq"`. In training mode the codebook is a running average of the encodings; with `decay=None` it is
    a parameter. `prior="autoregressive"` learns a prior over the codes, which makes messages shorter and samples
    useful; it is trained along with the rest and does not affect the codes. To train it alone:
    `pv.fit(vae.prior.model, vae.prior.guide, vae.codes(x), elbo="trace")`.

    Args:
        data_shape: Shape of one datum. An image (C, H, W) gets convolutional networks, an int D perceptrons.
        codes: K, the size of the codebook.
        embedding_dim: d, the size of a code's vector.
        channels: Channels of an image's convolutions, each of which halves height and width; the last size is that of
            the array of codes.
        blocks: Residual blocks at that size, in the encoder and in the decoder.
        hidden: Widths of the perceptrons' hidden layers, for vectors.
        positions: Number of codes for a vector.
        activation: Name of the nonlinearity, see `pv.nets`.
        likelihood: p(x|z), see `VAE`. Bits per dimension need one for discrete data, "discretized_logistic" for images.
        prior: p(k), "uniform" or "autoregressive".
        decay: Decay of the codebook's running averages, or None, see above.
        revive: A code with fewer uses per batch than this moves to the encoding of a random datum; 0: never.
        depth: D, codes for each position: residual quantization. Each has a codebook of its own, for what those before
            it leave over, and the decoder gets their sum. An array of codes is D times as long in its last dimension.
        levels: Finite scalar quantization: each element of an encoding is bounded and rounded to so many levels. It
            takes the place of `codes` (K is their product), `embedding_dim` (their number), `decay` and `revive`.
        gradient: How the gradient at a code reaches the encoding: "straight_through", or "rotation", turned and scaled
            as the encoding is to its code.

    Raises:
        ValueError: As `VAE` does; for sizes below 1, a decay outside (0, 1), an unknown prior, and for `levels`
            together with a depth or a rotation.

    Reference: van den Oord et al. 2017, arXiv 1711.00937, eq. 1 to 3; appendix A.1 for the running averages. Lee et al.
    2022, arXiv 2203.01941 (residual); Mentzer et al. 2023, arXiv 2309.15505 (scalars); Fifty et al. 2024, arXiv
    2410.06424 (rotation).

    Example:
        >>> vae = VQVAE((3, 32, 32), likelihood="discretized_logistic")
        >>> vae.codes(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 8, 8])
    """

    posterior: NearestCode
    prior: UniformCodes | AutoregressiveCodes

    @checked_from(blocks=0, channels=1)
    def __init__(
        self,
        data_shape: int | Sequence[int],
        codes: int = 512,
        embedding_dim: int = 16,
        channels: Sequence[int] = (64, 64),
        blocks: int = 1,
        hidden: Sequence[int] = (200, 200),
        positions: int = 16,
        activation: str = "relu",
        likelihood: str | Likelihood = "bernoulli",
        prior: Literal["uniform", "autoregressive"] = "uniform",
        decay: float | None = 0.99,
        revive: float = 0.1,
        depth: int = 1,
        levels: Sequence[int] | None = None,
        gradient: Literal["straight_through", "rotation"] = "straight_through",
    ) -> None:
        shape = as_sizes(data_shape, "data_shape")
        likelihood = as_likelihood(likelihood, shape)
        codebook = _codebook(codes, embedding_dim, decay, revive, depth, levels)
        rotates = choice("gradient", gradient, ("straight_through", "rotation")) == "rotation"
        if rotates and levels is not None:
            raise ValueError(
                "gradient='rotation' turns encodings to codes; those of levels are rounded, so leave it out"
            )
        embedding_dim = codebook.dim
        if len(shape) == 3:
            encoder: nn.Module = _Encoder(shape, embedding_dim, channels, activation, blocks)
            decoder: nn.Module = _Decoder(embedding_dim, likelihood.param_shape, channels, activation, blocks)
            grid = tuple(_sizes(shape, len(channels))[-1])
        else:
            grid = tuple(as_sizes(positions, "positions", 1))
            encoder = MLP(shape, hidden, (*grid, embedding_dim), activation)
            decoder = MLP((*grid, embedding_dim), tuple(reversed(hidden)), likelihood.param_shape, activation)
        priors: dict[str, Any] = {"uniform": UniformCodes, "autoregressive": AutoregressiveCodes}
        posterior = NearestCode(codebook, grid, rotates)
        super().__init__(
            shape,
            posterior.event_shape,
            likelihood=likelihood,
            posterior=posterior,
            prior=lookup(priors, prior, "prior")(codebook, posterior.grid),
            encoder=encoder,
            decoder=_Summed(decoder, codebook.depth) if codebook.depth > 1 else decoder,
        )

    @torch.no_grad()
    def codes(self, x: Tensor, chunk: int = 1000) -> Tensor:
        """The codes of the data `x`, `(N, *data_shape)`: integers, `(N, *grid)`.

        The depth is a factor of the last dimension.
        """
        self._check(x, batch=True)
        device = next(self.parameters()).device
        nearest = self.posterior.codebook.nearest
        return torch.cat([nearest(self.encoder(part.to(device))) for part in x.split(chunk)])

    def perplexity(self, x: Tensor) -> float:
        """The effective number of codes in the data `x`, from 1 to K: the exponential of their frequencies' entropy.

        With several codebooks the entropy is their mean.
        """
        by_codebook = self.codes(x).reshape(-1, self.posterior.codebook.depth).T
        used = torch.stack([torch.bincount(codes, minlength=self.prior.codes) for codes in by_codebook]).double()
        return float(torch.special.entr(used / used.sum(-1, keepdim=True)).sum(-1).mean().exp())


def _codebook(
    codes: int, dim: int, decay: float | None, revive: float, depth: int, levels: Sequence[int] | None
) -> Codebook | ResidualCodebook | ScalarCodebook:
    if levels is None:
        return Codebook(codes, dim, decay, revive) if depth == 1 else ResidualCodebook(depth, codes, dim, decay, revive)
    if depth != 1:
        raise ValueError(f"levels leave nothing over for further codes, so depth must be 1, got {depth}")
    return ScalarCodebook(levels)


class _Summed(nn.Module):
    """A decoder of sums of `depth` neighboring vectors, `(*, W depth, d) -> (*, W, d)` before it."""

    def __init__(self, decoder: nn.Module, depth: int) -> None:
        super().__init__()
        self.decoder, self.depth = decoder, depth

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder(z.unflatten(-2, (-1, self.depth)).sum(-2))

    def set_output_bias(self, features: Tensor) -> None:
        """That of the decoder."""
        decoder: Any = self.decoder
        decoder.set_output_bias(features)


def _sizes(shape: torch.Size, halvings: int) -> list[tuple[int, int]]:
    """Heights and widths, from that of the data to that of the codes."""
    sizes = [(shape[1], shape[2])]
    for _ in range(halvings):
        sizes.append((-(-sizes[-1][0] // 2), -(-sizes[-1][1] // 2)))
    return sizes


class _Encoder(nn.Module):
    """Stride-2 convolutions and no dense layer: `(*, C, H, W) -> (*, H', W', d)`."""

    def __init__(self, shape: torch.Size, dim: int, channels: Sequence[int], activation: str, blocks: int) -> None:
        super().__init__()
        self.shape = shape
        act = lookup(ACTIVATIONS, activation, "activation")
        widths = as_sizes(channels, "channels")
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((shape[0], *widths)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), act()]
        self.body = nn.Sequential(
            *layers, *residual_blocks(widths[-1], blocks, act), act(), nn.Conv2d(widths[-1], dim, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        lead = leading_shape(x, self.shape, "VQVAE")
        h = self.body(x.reshape(-1, *self.shape)).movedim(1, -1)
        return h.reshape(*lead, *h.shape[1:])


class _Decoder(nn.Module):
    """A convolution, then transposed ones: `(*, H', W', d) -> (*, C, H, W)`."""

    def __init__(self, dim: int, shape: torch.Size, channels: Sequence[int], activation: str, blocks: int) -> None:
        super().__init__()
        self.shape = shape
        act = lookup(ACTIVATIONS, activation, "activation")
        widths = tuple(reversed(as_sizes(channels, "channels")))
        self.sizes = list(reversed(_sizes(shape, len(widths))[:-1]))
        self.head = nn.Sequential(
            nn.Conv2d(dim, widths[0], 3, padding=1), *residual_blocks(widths[0], blocks, act), act()
        )
        self.body = nn.ModuleList()
        for before, after in itertools.pairwise(widths):
            self.body.append(nn.Sequential(nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), act()))
        self.final = nn.ConvTranspose2d(widths[-1], shape[0], 4, stride=2, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        lead = z.shape[:-3]
        # compiled convolutions expect strides that those of a moved dimension do not give
        h = self.head(z.reshape(-1, *z.shape[-3:]).movedim(-1, 1).contiguous())
        for stage, (height, width) in zip([*self.body, self.final], self.sizes, strict=True):
            h = stage(h)[..., :height, :width]
        return h.reshape(lead + self.shape)

    def set_output_bias(self, features: Tensor) -> None:
        """Center the output on `features`, of shape `(C, H, W)`: each channel's bias becomes its spatial mean."""
        check_shape(features, self.shape, "set_output_bias")
        with torch.no_grad():
            self.final.get_parameter("bias").copy_(features.mean((-2, -1)))
