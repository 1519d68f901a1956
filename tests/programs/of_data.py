"""Forms of data: further arguments, keywords, dictionaries, tuples, arrays, other dtypes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from tests.programs.entry import Pair, program

X = torch.tensor([0.4, -1.2, 2.0, 0.1, -0.5, 1.3])
LOG_P = dist.Normal(0.0, math.sqrt(2)).log_prob(X)


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(0.4, dtype=x.dtype))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, 0.8))


@program()
def double_precision() -> Pair:
    """float64"""
    x = X.double()
    return Pair(model, guide, (x,), exact=dist.Normal(0.0, math.sqrt(2)).log_prob(x))


@program()
def further_arguments() -> Pair:
    """labels, a number and a flag after the data"""
    y = torch.tensor([0, 1, 1, 0, 1, 0])

    def labeled(x: Tensor, y: Tensor, shift: float, flag: bool) -> None:
        assert flag
        model(x - shift * y)

    return Pair(
        labeled,
        lambda x, y, shift, flag: guide(x - shift * y),
        (X, y, 0.5, True),
        exact=dist.Normal(0.5 * y.float(), math.sqrt(2)).log_prob(X),
    )


@program()
def keywords() -> Pair:
    """labels by keyword"""
    y = torch.tensor([0, 1, 1, 0, 1, 0])

    def labeled(x: Tensor, *, y: Tensor) -> None:
        model(x - 0.5 * y)

    def labeled_guide(x: Tensor, *, y: Tensor) -> None:
        guide(x - 0.5 * y)

    exact = dist.Normal(0.5 * y.float(), math.sqrt(2)).log_prob(X)
    return Pair(labeled, labeled_guide, (X,), {"y": y}, exact=exact)


@program()
def dictionary() -> Pair:
    """a dictionary of tensors"""
    return Pair(lambda batch: model(batch["x"]), lambda batch: guide(batch["x"]), ({"x": X, "y": 2 * X},), exact=LOG_P)


@program()
def tuple_of_data() -> Pair:
    """a tuple of tensors as one argument"""
    return Pair(lambda batch: model(batch[0]), lambda batch: guide(batch[0]), ((X, 2 * X),), exact=LOG_P)


@program()
def arrays() -> Pair:
    """an array of numpy"""

    def of(program: Callable[[Tensor], None]) -> Callable[[Any], None]:
        return lambda x: program(torch.as_tensor(x))

    return Pair(of(model), of(guide), (X.numpy(),), exact=LOG_P)


@program({"compiled": "the pair reads a value that changes from step to step and is not a tensor"})
def packed_sequences() -> Pair:
    """a tuple of a `PackedSequence` and labels"""
    packed = pack_sequence([x.expand(n) for x, n in zip(X, (2, 3, 1, 3, 1, 2), strict=True)], enforce_sorted=False)
    y = torch.tensor([0, 1, 1, 0, 1, 0])

    def means(batch: tuple[Any, Tensor]) -> Tensor:
        sequences, lengths = pad_packed_sequence(batch[0], batch_first=True)
        return sequences.sum(1) / lengths - 0.5 * batch[1]

    exact = dist.Normal(0.5 * y.float(), math.sqrt(2)).log_prob(X)
    pair = (packed, y)
    return Pair(lambda batch: model(means(batch)), lambda batch: guide(means(batch)), (pair,), exact=exact)


@program()
def autoguide_of_a_dictionary() -> Pair:
    """AutoNormal of a model of a dictionary"""

    def of_batch(batch: dict[str, Tensor]) -> None:
        model(batch["x"])

    batch = {"x": X, "y": 2 * X}
    guide = AutoNormal(of_batch, init_scale=0.6)
    guide(batch)
    return Pair(of_batch, guide, (batch,), exact=LOG_P)
