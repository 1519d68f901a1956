"""The objective of a vector-quantized pair: its bound, and terms that pull encodings and codebook together."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_vae.elbo.estimators.bounds import Trace
from pyro_vae.pair.site_masks import base_distribution
from pyro_vae.pair.tracing import PairTrace, sample_sites
from pyro_vae.support.arguments import checked

__all__ = ["VQ"]


class VQ(Trace):
    r"""The bound of a vector-quantized pair, less the squared distances between encodings and their codes.

    .. math:: L = \log p(x \mid e_k) + \log p(k)
        - \|\mathrm{sg}[z_e(x)] - e_k\|^2 - \beta \|z_e(x) - \mathrm{sg}[e_k]\|^2

    with z_e the encoder's output, e_k the nearest code, and sg the stop-gradient. The pair's guide is a point mass at
    that code, so the first two terms are its ELBO: minus the length of a two-part code in nats. Their gradient reaches
    the encoder as if the draw were the encoding itself (straight-through). The third term pulls a codebook that is a
    parameter toward the encodings, in addition to the bound's own gradient, which the paper leaves out. A codebook of
    running averages gets neither. The fourth term keeps encodings near their codes.

    For any pair with such a site: its distribution in the guide has, in addition to a straight-through value, the
    tensors `encoding` and `nearest` (the code with its gradient), both of the value's shape.

    Args:
        num_particles: K. The guide is deterministic, so more than one repeats it.
        commitment: beta >= 0. The paper finds similar results from 0.1 to 2.0.
        vectorize_particles: As for `TensorELBO`.

    Raises:
        ValueError: For a negative commitment, and for a pair without a quantized site.

    Reference: van den Oord et al. 2017, arXiv 1711.00937, eq. 3.

    Example:
        >>> import torch, pyro_vae as pv
        >>> vae = pv.models.VQVAE((1, 8, 8), channels=(4,), embedding_dim=2, codes=8)
        >>> history = pv.fit(vae.model, vae.guide, torch.ones(4, 1, 8, 8), elbo="vq", epochs=2, batch_size=2)
    """

    bound: ClassVar[str] = "own"
    needs_path: ClassVar[bool] = True

    @checked
    def __init__(
        self, num_particles: int = 1, commitment: float = 0.25, vectorize_particles: bool | None = None
    ) -> None:
        if not 0 <= commitment < math.inf:
            raise ValueError(f"commitment must be a number >= 0, got {commitment}")
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self.commitment = commitment

    def particle_loss(self, traces: PairTrace) -> Tensor:
        loss, found = super().particle_loss(traces), 0
        for _, site in sample_sites(traces.guide):
            fn: Any = base_distribution(site["fn"])
            if not hasattr(fn, "encoding") or not hasattr(fn, "nearest"):
                continue
            found += 1
            to_code = (fn.encoding.detach() - fn.nearest).square()
            to_encoding = (fn.encoding - fn.nearest.detach()).square()
            distance = (to_code + self.commitment * to_encoding).flatten(-fn.event_dim).sum(-1)
            loss = loss + scale_and_mask(distance, site["scale"], site["mask"]).sum()
        if not found:
            kinds = {name: type(base_distribution(site["fn"])).__name__ for name, site in sample_sites(traces.guide)}
            raise ValueError(
                f"no latent of the guide is quantized (it draws {kinds or 'nothing'}), so 'vq' has no codebook to "
                "train: use it for pyro_vae.models.VQVAE, or another ELBO for this pair"
            )
        return loss
