"""Functions as graphs for any number of data."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pyro_vae.compilation.free_batch import BoundToSize, record_with_free_batch

NETWORK = nn.GRU(2, 3, batch_first=True)


def recurrent(x: Tensor) -> Tensor:
    return NETWORK(x.reshape(len(x), 6, 2))[0].reshape(-1, 3)


def written_into(x: Tensor) -> Tensor:
    y = torch.zeros(len(x), 13)
    y[:, 1:] += x.reshape(len(x), 12)
    return y.flatten()[1:]


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows of parts": lambda x: (x.reshape(len(x) * 4, 3) @ torch.ones(3, 2)).reshape(len(x), 8),
    "one more than the data": lambda x: torch.cat([x.new_zeros(1, 12), x.flatten(1)]).cumsum(0)[: len(x) + 1],
    "an outer product": lambda x: x.flatten(1) @ x.flatten(1).T,
    "a recurrent network": recurrent,
    "in place": written_into,
    "a range": lambda x: torch.arange(len(x)) + x.flatten(1)[:, 0],
    "sizes that are those of the records": lambda x: x.flatten(1).repeat(1, 2)[:, :13] @ torch.ones(13, 11),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@torch.no_grad()
def test_it_gives_the_same_numbers_at_any_size(name: str) -> None:
    f = FUNCTIONS[name]
    module = record_with_free_batch(lambda x: [f(x)], lambda n: [torch.rand(n, 3, 4)])
    for n in (1, 2, 11, 50):
        x = torch.rand(n, 3, 4)
        torch.testing.assert_close(module(x)[0], f(x))


BOUND: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "a loop": (lambda x: sum((row for row in x), torch.zeros(3, 4)), "operations for 19 data, of .* for 23"),
    "a number": (lambda x: x * (1 / len(x)), "takes 0.05.* for 19 data and 0.04.* for 23"),
    "halves": (lambda x: x[: len(x) // 2], "takes 9 for 19 data and 11 for 23"),
    "a constant": (lambda x: x + torch.tensor([float(i) for i in range(len(x))])[:, None, None], "constant tensor of"),
    "a branch": (
        lambda x: x.exp() if len(x) in (13, 23) else x.sin(),
        "does aten.sin.default for 19 data where",
    ),
}


@pytest.mark.parametrize("name", BOUND)
def test_what_depends_on_the_number_of_data_in_another_way_is_refused(name: str) -> None:
    f, message = BOUND[name]
    with pytest.raises(BoundToSize, match=message):
        record_with_free_batch(lambda x: [f(x)], lambda n: [torch.rand(n, 3, 4)])


def test_random_draws_that_nothing_reads_are_left_out() -> None:
    module = record_with_free_batch(lambda x: [x + 0 * len(torch.randperm(3))], lambda n: [torch.rand(n, 2)])
    assert "randperm" not in str(module.graph)
