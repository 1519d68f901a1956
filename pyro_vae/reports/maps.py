"""Codes in a plane: as they are, or by an embedding of their neighborhoods."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.evaluate import embed

__all__ = ["Map", "map_of_codes"]

FEWEST = 20  # data that an embedding needs
PERPLEXITY = 30.0


@dataclass(frozen=True)
class Map:
    """Points `(N, 2)`, the names of the axes, and how the points were made."""

    points: Tensor
    axes: tuple[str, str]
    note: str


def map_of_codes(codes: Tensor, elbo: Tensor | None, seed: int) -> Map:
    """Codes `(N, E)` in a plane: two dimensions as they are, one against the ELBO of the data, more by t-SNE.

    Raises:
        ValueError: If there is one dimension and no ELBO of each datum, or if there are too few data.
    """
    codes = codes.detach().double().cpu()
    n, size = codes.shape
    if size == 2:
        return Map(codes, ("first latent", "second latent"), "The two latent dimensions as they are.")
    if size == 1:
        if elbo is None or len(elbo) != n:
            raise ValueError("codes of one dimension, and no ELBO of each datum to draw them against")
        points = torch.stack([codes[:, 0], elbo.double().cpu()], 1)
        return Map(points, ("latent", "ELBO (nats)"), "The single latent dimension, against the ELBO of each datum.")
    if n < FEWEST:
        raise ValueError(f"{n} data are too few for a map of {size} dimensions: {FEWEST} are needed")
    points = embed(codes, perplexity=min(PERPLEXITY, n / 4), seed=seed)
    note = f"{size} dimensions by t-SNE: neighborhoods mean something; distances and sizes of groups do not."
    return Map(points, ("t-SNE 1", "t-SNE 2"), note)
