"""From the data of a pair to features for the guides of its latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.guides.alignment import align
from pyro_vae.guides.inputs import DataInput, mask_of
from pyro_vae.nets import MLP, ConvEncoder

__all__ = ["DataEncoder", "Encoded"]

MOST_RAW = 256  # inputs that also enter the networks of the sites as they are


@dataclass
class Encoded:
    """Features of one batch: of each datum, `(N, 1, ..., F)`, and of the elements of inner plates."""

    whole: Tensor
    columns: list[Tensor]  # each `(N, *plates, f)`


class DataEncoder(nn.Module):
    """Features of each datum from all tensors of data.

    Args:
        columns: The tensors of data.
        args, kwargs: Example arguments.
        encoder: A network from the first data tensor to features, in the place of the default.
        features: A function of the arguments that returns the encoder's input, `(N, F)`, in the place of `columns`.
        hidden: Widths of the layers; the last is the number of features.
    """

    def __init__(
        self,
        columns: Sequence[DataInput],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        encoder: nn.Module | None,
        features: Callable[..., Tensor] | None,
        hidden: Sequence[int],
        data: Mapping[str, Tensor],
    ) -> None:
        super().__init__()
        self.columns = nn.ModuleList(columns)
        self.features, self.own = features, encoder
        self.seen = [mask_of(column.place, data) for column in columns]
        self.images = nn.ModuleDict()
        self.net: nn.Module | None = None
        with torch.no_grad():
            if encoder is not None:
                h = encoder(data[columns[0].place])
                self._check(h, "encoder", len(data[columns[0].place]))
                self.size = h.shape[-1]
                return
            if features is None:
                for i, column in enumerate(columns):
                    if column.is_image:
                        channels = column.features // column.shape[1:].numel()
                        self.images[str(i)] = ConvEncoder((channels, *column.shape[1:]), hidden[0])
            flat = self._flat(self._read(data), args, kwargs)
        self.net = MLP(flat.shape[-1], hidden[:-1], hidden[-1], "elu")
        self.raw = flat.shape[-1] <= MOST_RAW and not self.images
        self.size = hidden[-1] + (flat.shape[-1] if self.raw else 0)

    @property
    def places(self) -> list[str]:
        """Where the tensors of data stand among the arguments."""
        return [column.place for column in self.columns]  # type: ignore[misc]

    def sizes_at(self, inner: set[int], data_dim: int) -> int:
        """Number of features for a site inside the inner plates of these dimensions."""
        if not inner:
            return self.size
        total = self.size
        for column in self.columns:
            sizes = self._sizes(column, data_dim)
            if apart := [size for dim, size in sizes.items() if dim in inner]:
                total += column.features // math.prod(apart)  # type: ignore[operator]
        return total

    def at(self, encoded: Encoded, inner: set[int], data_dim: int, nesting: int) -> list[Tensor]:
        """Features for a site inside the inner plates of these dimensions."""
        found = [encoded.whole]
        for column, value in zip(self.columns, encoded.columns, strict=True):
            sizes = self._sizes(column, data_dim)
            if inner & set(sizes):
                found.append(align(value, nesting, {dim: size for dim, size in sizes.items() if dim not in inner}))
        return found

    @staticmethod
    def _sizes(column: Any, data_dim: int) -> dict[int, int]:
        """The sizes of a column's plates inside the data plate, by dimension."""
        return dict(zip(range(data_dim + 1, 0), column.shape[: column.plates], strict=True)) if column.plates else {}

    def forward(
        self, data: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], data_dim: int
    ) -> Encoded:
        """Features of a batch.

        Args:
            data: The tensors among the arguments, by place.
            args, kwargs: The arguments.
            data_dim: The (negative) dimension of the data plate, 0 without one.
        """
        columns = self._read(data)
        if self.own is not None:
            x = data[self.places[0]]
            h = self.own(x)
            self._check(h, "encoder", len(x))
        else:
            assert self.net is not None
            flat = self._flat(columns, args, kwargs)
            h = self.net(flat)
            if self.raw:
                h = torch.cat([h, flat], -1)
        # the rows to the dimension of the data plate
        return Encoded(h.reshape(len(h), *(1,) * (-data_dim - 1), h.shape[-1]), columns)

    def _read(self, data: Mapping[str, Tensor]) -> list[Tensor]:
        """The features of each tensor of data; only of those that something reads."""
        found = []
        for column, mask in zip(self.columns, self.seen, strict=True):
            needed = column.plates or (self.own is None and self.features is None)
            seen = None if mask is None else data[mask]
            found.append(column(data[column.place], seen) if needed else torch.empty(0))  # type: ignore[index]
        return found

    def _flat(self, columns: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        if self.features is not None:
            flat = self.features(*args, **kwargs)
            self._check(flat, "features", flat.shape[0])
            return flat
        parts = []
        for i, value in enumerate(columns):
            if str(i) in self.images:
                column: Any = self.columns[i]
                value = self.images[str(i)](value.reshape(len(value), -1, *column.shape[1:]))
            parts.append(value.flatten(1))
        return torch.cat(parts, -1)

    @staticmethod
    def _check(h: Any, what: str, n: int) -> None:
        if not isinstance(h, Tensor) or h.dim() != 2 or len(h) != n:
            came = tuple(h.shape) if isinstance(h, Tensor) else type(h).__name__
            raise ValueError(f"{what} must return features (N, F), one row per datum, got {came}")
