"""The base of likelihoods and posteriors: a module from features to a distribution, and bounded scales."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pyro_vae.nets import as_sizes, leading_shape

__all__ = ["Conditional", "bounded_exp", "soft_bound"]


def soft_bound(x: Tensor) -> Tensor:
    """Squeeze `x` into (-7, 7): the identity on [-3, 3], `3 + t / (1 + t / 4)` at `3 + t`, odd.

    Monotone, with a continuous derivative. The derivative decays like `1 / t**2`, so a feature that
    diverged can come back, where `tanh` or `softplus` would give it a gradient of zero. It costs five elementwise
    operations and no transcendental one.
    """
    core = x.clamp(-3.0, 3.0)
    rest = x - core
    return torch.addcdiv(core, rest, rest.abs() + 4.0, value=4.0)


def bounded_exp(log_scale: Tensor) -> Tensor:
    """`exp(soft_bound(log_scale))`, a scale between 0.0009 and 1097.

    An unbounded `exp` sooner or later overflows on some input: it gave test ELBOs of -1e24.

    >>> bounded_exp(torch.tensor([-1e4, 0.0, 1e4])).log().round(decimals=1)
    tensor([-7.,  0.,  7.])
    """
    return soft_bound(log_scale).exp()


class Conditional(nn.Module):
    """A distribution whose parameters are features `h`: a module `(*, *param_shape) -> Distribution`.

    The distribution has batch shape `*` and event shape `event_shape`. A subclass defines `distribution(h)`.
    Half-precision features are converted to float32 first: sums of log-probabilities need that precision.

    Attributes:
        shares: whether the elements of an event are shares that sum to one.

    Args:
        event_shape: Shape of one datum or one latent.
        param_shape: Shape of its features, the output of the network before.

    Raises:
        ValueError: For sizes below one, or features of another shape.
    """

    shares: ClassVar[bool] = False

    def __init__(self, event_shape: int | Sequence[int], param_shape: int | Sequence[int]) -> None:
        super().__init__()
        self.event_shape = as_sizes(event_shape, "event_shape")
        self.param_shape = as_sizes(param_shape, "param_shape")

    def forward(self, h: Tensor) -> Any:
        leading_shape(h, self.param_shape, type(self).__name__)
        return self.distribution(h.float() if h.dtype in (torch.float16, torch.bfloat16) else h)

    def distribution(self, h: Tensor) -> Any:
        """The `pyro.distributions` object for features `h`, whose shape is already checked."""
        raise NotImplementedError(f"{type(self).__name__} must define distribution(h)")

    def extra_repr(self) -> str:
        return f"event_shape={tuple(self.event_shape)}, param_shape={tuple(self.param_shape)}"
