"""Indices of a subsampled plate: those that the model is given, against those that its guide has drawn."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

__all__ = ["SameIndicesAs"]


class SameIndicesAs(Messenger):
    """Around a model that runs on a guide's values: its plates must not be given other indices than the guide's.

    Pyro gives the model's plates the indices of the guide's trace. Where the model is called with indices, and the
    guide draws some by itself, the rows of parameters would be those of other data.

    Args:
        guide: The guide's trace.
        by_value: Also compare indices that both are given, which takes a look at their values.
    """

    def __init__(self, guide: Any, *, by_value: bool = False) -> None:
        super().__init__()
        self.guide, self.by_value = guide, by_value

    def _pyro_sample(self, msg: Any) -> None:
        name, given = msg["name"], msg["value"]
        if isinstance(given, Tensor) and isinstance(msg["fn"], _Subsample) and name in self.guide:
            node = self.guide.nodes[name]
            fn, used = node["fn"], node["value"]
            is_drawn = fn.subsample_size is not None and fn.subsample_size < fn.size
            if used is not given and (is_drawn or (self.by_value and not torch.equal(used, given))):
                raise ValueError(
                    f"the model's plate {name!r} is given indices, `subsample=`, and the guide's has others, or draws "
                    "them: the parameters of other data would be used. Give the guide's the same, "
                    f"`pyro.plate({name!r}, size, subsample=index)`; an autoguide takes it as "
                    f"`create_plates=lambda x, index: pyro.plate({name!r}, size, subsample=index)`"
                )
