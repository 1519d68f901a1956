"""Adam for the stacked parameters of several runs, with a learning rate for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["StackedAdam", "clip_each"]

BETAS, EPS = (0.9, 0.999), 1e-8  # those of torch.optim.Adam


class StackedAdam:
    """The fused Adam of torch, with the moments of each run in its row of a stack.

    Reference: Kingma and Ba 2015, arXiv 1412.6980, algorithm 1.
    """

    def __init__(self) -> None:
        self._moments: dict[Tensor, tuple[Tensor, Tensor, Tensor]] = {}

    def adopt(self, param: Tensor, states: Sequence[Mapping[str, Tensor]]) -> None:
        """Continue for a stack `(S, *)` of parameters from the state that the optimizer of each run has for its own."""
        if param in self._moments or not all(states):
            return
        first, second = (torch.stack([state[name] for state in states]) for name in ("exp_avg", "exp_avg_sq"))
        self._moments[param] = first, second, states[0]["step"].clone()

    def step(self, params: Sequence[Tensor], grads: Sequence[Tensor], rates: Sequence[float]) -> None:
        """Update the parameters `(S, *)` along their gradients, each run at its rate."""
        for param in params:
            if param not in self._moments:
                self._moments[param] = torch.zeros_like(param), torch.zeros_like(param), param.new_zeros(())
        moments = [self._moments[param] for param in params]
        first, second, steps = (list(column) for column in zip(*moments, strict=True))
        with torch.no_grad():
            torch._foreach_add_(steps, 1)
            if len(set(rates)) == 1:
                _update(params, grads, first, second, steps, rates[0])
                return
            for k, rate in enumerate(rates):
                rows = ([stack[k] for stack in stacks] for stacks in (params, grads, first, second))
                _update(*rows, steps, rate)  # type: ignore[call-arg, arg-type]


def _update(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    steps: Sequence[Tensor],
    rate: float,
) -> None:
    torch._fused_adam_(
        list(params),
        list(grads),
        list(first),
        list(second),
        [],
        list(steps),
        lr=rate,
        beta1=BETAS[0],
        beta2=BETAS[1],
        weight_decay=0.0,
        eps=EPS,
        amsgrad=False,
        maximize=False,
    )


def clip_each(grads: Sequence[Tensor], clip_norm: float) -> None:
    """Rescale the gradients `(S, *)` of each run to at most this norm, in place."""
    squares = [grad.flatten(1).square().sum(1) if grad.dim() > 1 else grad.square() for grad in grads]
    norms = torch.stack(squares).sum(0).sqrt()  # (S,)
    factors = (clip_norm / (norms + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
    for grad in grads:
        grad.mul_(factors.reshape(-1, *[1] * (grad.dim() - 1)))
