"""The data of a pair as inputs of networks: standardized reals, logarithms of counts, one-hot categories."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import one_hot
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_flatten_with_path

from pyro_vae.pair.bijections import base_constraint

__all__ = ["DataInput", "inputs_of", "mask_of", "tensors_at"]

MOST_CATEGORIES = 64


def tensors_at(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors among a pair's arguments, by where they stand.

    Raises:
        TypeError: For a `PackedSequence`, whose rows are steps of different data.
    """
    leaves = tree_flatten_with_path((args, kwargs), is_leaf=lambda a: isinstance(a, PackedSequence))[0]
    if any(isinstance(leaf, PackedSequence) for _, leaf in leaves):
        raise TypeError(
            "a guide made from a model reads tensors with a row for each datum, and a PackedSequence came: give the "
            "model padded data and a tensor of lengths, (N, T, ...) and (N,), and mask the steps beyond the lengths "
            "(poutine.mask)"
        )
    return {"".join(map(str, path[1:])): leaf for path, leaf in leaves if isinstance(leaf, Tensor) and leaf.dim() > 0}


class DataInput(nn.Module):
    """One tensor of data as features.

    Args:
        place: Where it stands among the arguments.
        example: `(N, ...)`.
        kind: "real", "positive", "count", "binary", "category" or "flag".
        shape: The shape of one datum as the observed site has it.
        plates: How many dimensions of `shape`, from the left, belong to plates inside the data plate.
        num_categories: For "category".
        seen: Which entries of the example are observed, if a boolean argument says so.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        place: str,
        example: Tensor,
        kind: str,
        shape: torch.Size,
        plates: int = 0,
        num_categories: int = 0,
        seen: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.place, self.kind, self.shape, self.plates = place, kind, shape, plates
        self.row_shape = example.shape[1:]
        self.num_categories = num_categories
        self.has_gaps = example.is_floating_point() and bool(example.isnan().any())
        self.is_image = plates == 0 and len(shape) == 3 and min(shape[1:]) >= 8 and kind not in ("category", "positive")
        value = self._transformed(example.reshape(len(example), *shape))
        known = value.isfinite()
        if seen is not None:
            known = known & self._as_value(seen, value)
        count = known.sum(0).clamp(min=1)
        mean = torch.where(known, value, 0.0).sum(0) / count
        spread = (torch.where(known, value - mean, 0.0).square().sum(0) / count).sqrt()
        fixed = kind in ("binary", "category", "flag")
        self.register_buffer("mean", torch.zeros_like(mean) if fixed else mean)
        self.register_buffer("scale", torch.ones_like(mean) if fixed else torch.where(spread > 1e-6, spread, 1.0))
        self.features = value.shape[1:].numel() * (2 if self.has_gaps else 1)

    def _transformed(self, x: Tensor) -> Tensor:
        """`(N, *shape)` -> `(N, *shape, ...)` in floating point."""
        if self.kind == "category":
            return one_hot(x.long().clamp(0, self.num_categories - 1), self.num_categories).to(_float(x))
        x = x.to(_float(x))
        if self.kind == "count":
            return x.clamp(min=0).log1p()
        if self.kind == "positive":
            return torch.stack([x, x.clamp(min=1e-6).log()], -1)
        return 2 * x - 1 if self.kind in ("binary", "flag") else x

    def forward(self, x: Tensor, seen: Tensor | None = None) -> Tensor:
        """Features `(N, *plates, F)` of `(N, ...)`.

        Args:
            x: The data.
            seen: Which entries are observed, a boolean tensor of the same shape; the others count as zero.
        """
        if x.shape[1:] != self.row_shape:
            raise ValueError(
                f"the guide was made for data of shape (N, {', '.join(map(str, self.row_shape))}) at {self.place}, got "
                f"{tuple(x.shape)}: make a guide from an example of these data"
            )
        value = self._transformed(x.reshape(len(x), *self.shape))
        value = (value - self.mean) / self.scale
        parts = [value]
        if self.has_gaps:
            known = ~value.isnan()
            parts = [torch.where(known, value, 0.0), known.to(value.dtype)]
        if seen is not None:
            seen = self._as_value(seen, value)
            parts = [torch.where(seen, part, 0.0) for part in parts]
        lead = (len(x), *self.shape[: self.plates])
        return torch.cat([part.reshape(*lead, -1) for part in parts], -1)

    def _as_value(self, seen: Tensor, value: Tensor) -> Tensor:
        """Which entries are observed, in the shape of the transformed data."""
        seen = seen.reshape(len(value), *self.shape)
        return seen.reshape(seen.shape + (1,) * (value.dim() - seen.dim()))

    def extra_repr(self) -> str:
        return f"{self.place}, {self.kind}, shape={tuple(self.shape)}"


def _float(x: Tensor) -> torch.dtype:
    return x.dtype if x.is_floating_point() else torch.get_default_dtype()


def inputs_of(
    args: tuple[Any, ...], kwargs: dict[str, Any], n: int, observed: dict[str, Any], data_dim: int
) -> list[DataInput]:
    """A `DataInput` for each tensor of data, by the observed site whose value it is.

    Args:
        args, kwargs: The pair's arguments.
        n: Number of data.
        observed: The observed sites of the data plate, of a trace of the model on these arguments.
        data_dim: The (negative) dimension of the data plate.
    """
    found = []
    leaves = {place: leaf for place, leaf in tensors_at(args, kwargs).items() if len(leaf) == n}
    for place, leaf in leaves.items():
        mask = mask_of(place, leaves)
        seen = None if mask is None else leaves[mask]
        site = next((s for s in observed.values() if _same(leaf, s["value"], n)), None)
        if site is None:
            found.append(DataInput(place, leaf, _kind_of_values(leaf, observed), leaf.shape[1:], seen=seen))
            continue
        fn, value = site["fn"], site["value"]
        # a plate to the left of the data plate would come before the rows, so its values are taken as a whole
        batch = value.dim() - len(fn.event_shape)
        plates = -data_dim - 1 if batch == -data_dim else 0
        kind, categories = _kind_of_support(fn.support)
        found.append(DataInput(place, leaf, kind, value.shape[1:], plates, categories, seen))
    return found


def mask_of(place: str, leaves: Mapping[str, Tensor]) -> str | None:
    """The place of the boolean tensor of the same shape, if there is exactly one: it marks what is observed."""
    leaf = leaves[place]
    same = [
        other
        for other, flag in leaves.items()
        if other != place and flag.dtype == torch.bool and flag.shape == leaf.shape
    ]
    return same[0] if len(same) == 1 and leaf.dtype != torch.bool else None


def _same(leaf: Tensor, value: Any, n: int) -> bool:
    """Whether a site observes a tensor as it is, whatever its shape; where values are missing, the rest."""
    if not isinstance(value, Tensor) or value.numel() != leaf.numel() or value.dim() == 0 or len(value) != n:
        return False
    a, b = leaf.reshape(-1), value.reshape(-1)
    if leaf.is_floating_point():
        known = ~a.isnan()
        a, b = a[known], b[known]
    return bool((a == b).all())


def _kind_of_support(support: Any) -> tuple[str, int]:
    support = base_constraint(support)
    if support is constraints.boolean:
        return "binary", 0
    if support is constraints.nonnegative_integer or isinstance(support, type(constraints.multinomial(1))):
        return "count", 0
    upper = getattr(support, "upper_bound", None)
    if getattr(support, "is_discrete", False) and upper is not None:
        most = int(torch.as_tensor(upper).max())
        return ("category", most + 1) if most < MOST_CATEGORIES else ("count", 0)
    lower = getattr(support, "lower_bound", None)
    if support is constraints.positive or (
        upper is None and lower is not None and bool((torch.as_tensor(lower) == 0).all())
    ):
        return "positive", 0
    return "real", 0


def _kind_of_values(leaf: Tensor, observed: dict[str, Any]) -> str:
    """The kind of data that no site observes as they are: of parts of them, of covariates and masks."""
    if leaf.dtype == torch.bool:
        return "flag"
    whole = leaf[~leaf.isnan()] if leaf.is_floating_point() else leaf
    if bool(((whole == 0) | (whole == 1)).all()):
        return "binary"
    kinds = {_kind_of_support(site["fn"].support)[0] for site in observed.values()}
    if kinds == {"count"} and bool((whole >= 0).all()) and bool((whole == whole.round()).all()):
        return "count"
    return "real"
