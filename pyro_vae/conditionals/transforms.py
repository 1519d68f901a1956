"""Bijections of a vector whose inverse, log-determinant and gradients are exact: planar, radial, autoregressive.

They replace those of `pyro.distributions.transforms`: Pyro's planar and radial transforms have no inverse, its planar
one is NaN at `w = 0`, its clamped scales have the gradient of unclamped ones, and its splines are NaN in float32 where
they are steep.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from pyro.nn.auto_reg_nn import MaskedLinear
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from torch.nn.functional import pad, softplus

from pyro_vae.conditionals.base import soft_bound

__all__ = ["Autoregressive", "Bijection", "Elementwise", "MaskedNet", "Planar", "Radial", "affine", "spline"]

Elementwise = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor]]


class Bijection(Transform):
    """A transform of vectors `(*, D)` that computes its log-determinant `(*,)` along with its value.

    A subclass defines `forward_log_det(x) -> (y, log_det)` and `inverse_log_det(y) -> (x, log_det)`, both with the
    log-determinant of dy/dx.
    """

    domain = codomain = constraints.real_vector
    bijective = True
    _last: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None)

    def forward_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y of `x`, and log |det dy/dx|."""
        raise NotImplementedError(f"{type(self).__name__} must define forward_log_det(x)")

    def inverse_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x of `y`, and log |det dy/dx|."""
        raise NotImplementedError(f"{type(self).__name__} must define inverse_log_det(y)")

    def _call(self, x: Tensor) -> Tensor:
        y, log_det = self.forward_log_det(x)
        self._last = x, y, log_det
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x, log_det = self.inverse_log_det(y)
        self._last = x, y, log_det
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        last_x, last_y, log_det = self._last
        if log_det is not None and x is last_x and y is last_y:
            return log_det
        return self.forward_log_det(x)[1]


class Planar(Bijection):
    r"""`y = x + u tanh(w'x + b)`, with u moved along w so that `w'u > -1`.

    The determinant lies between 0.0015 and 7.6. `u = 0` gives the identity, and `w = 0` is allowed.

    Args:
        u, w: `(*, D)`.
        b: `(*, 1)`.

    Reference: Rezende and Mohamed 2015, arXiv 1505.05770, eq. 10 and appendix A.1.
    """

    def __init__(self, u: Tensor, w: Tensor, b: Tensor) -> None:
        super().__init__()
        given = (u * w).sum(-1, keepdim=True)
        # softplus, shifted so that 0 stays 0
        self.dot = softplus(soft_bound(given) + math.log(math.e - 1)) - 1  # (*, 1)
        self.u = u + (self.dot - given) * w / (w.square().sum(-1, keepdim=True) + 1e-12)
        self.w, self.b = w, b

    def forward_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        t = torch.tanh((self.w * x).sum(-1, keepdim=True) + self.b)
        return x + self.u * t, self._log_det(t)

    def inverse_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        t = torch.tanh(self._solve((self.w * y).sum(-1, keepdim=True) + self.b))
        return y - self.u * t, self._log_det(t)

    def _log_det(self, t: Tensor) -> Tensor:
        return torch.log1p(self.dot * (1 - t.square())).squeeze(-1)

    def _solve(self, c: Tensor) -> Tensor:
        """The unique a with `a + dot tanh(a) = c`: by bisection, then a Newton step for gradients."""
        with torch.no_grad():
            low, high = c - self.dot.abs(), c + self.dot.abs()
            for _ in range(30 if c.dtype == torch.float32 else 60):
                middle = (low + high) / 2
                below = middle + self.dot * torch.tanh(middle) < c
                low, high = torch.where(below, middle, low), torch.where(below, high, middle)
            a = (low + high) / 2
            t = torch.tanh(a)
        return a - (a + self.dot * t - c) / (1 + self.dot * (1 - t.square()))


class Radial(Bijection):
    r"""`y = x + beta (x - x0) / (alpha + |x - x0|)`: an expansion or contraction around `x0`.

    `alpha = softplus(log_alpha) > 0` and `alpha + beta = softplus(log_sum) > 0`, so that equal arguments give the
    identity.

    Args:
        center: x0, `(*, D)`.
        log_alpha, log_sum: `(*, 1)`.

    Reference: Rezende and Mohamed 2015, arXiv 1505.05770, eq. 14 and appendix A.2.
    """

    def __init__(self, center: Tensor, log_alpha: Tensor, log_sum: Tensor) -> None:
        super().__init__()
        self.center, self.alpha = center, softplus(log_alpha)
        self.beta = softplus(log_sum) - self.alpha

    def forward_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        offset = x - self.center
        r = offset.norm(dim=-1, keepdim=True)
        return x + self.beta / (self.alpha + r) * offset, self._log_det(r, x.shape[-1])

    def inverse_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        offset = y - self.center
        s = offset.norm(dim=-1, keepdim=True)  # = r + beta r / (alpha + r), a quadratic equation for r
        b, product = self.alpha + self.beta - s, self.alpha * s
        root = (b.square() + 4 * product).sqrt()
        # of the two forms of the solution, the one in which nothing cancels
        r = torch.where(b > 0, 2 * product / (b.clamp_min(0) + root), (root - b) / 2)
        return self.center + offset / (1 + self.beta / (self.alpha + r)), self._log_det(r, y.shape[-1])

    def _log_det(self, r: Tensor, size: int) -> Tensor:
        tangential = torch.log1p(self.beta / (self.alpha + r))
        radial = torch.log1p(self.beta * self.alpha / (self.alpha + r).square())
        return ((size - 1) * tangential + radial).squeeze(-1)


def affine(x: Tensor, parameters: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """`y = scale x + shift` for each element, parameters `(*, 2)`: shift, bounded log-scale; zero gives the identity.

    Returns:
        y (the inverse's: x), and log dy/dx of each element.
    """
    shift, log_scale = parameters.unbind(-1)
    log_scale = soft_bound(log_scale)
    return (x - shift) * torch.exp(-log_scale) if inverse else x * log_scale.exp() + shift, log_scale


def spline(x: Tensor, parameters: Tensor, inverse: bool = False, bound: float = 4.0) -> tuple[Tensor, Tensor]:
    """A monotone rational-quadratic spline on [-bound, bound], the identity outside.

    Parameters are `(*, 3 B - 1)`: the widths and heights of B bins, and the slopes at the B - 1 knots between them, all
    on a logarithmic scale, the slopes' in halves, and bounded; zero gives the identity. The slope at a knot lies
    between 0.03 and 33.

    Returns:
        y (the inverse's: x), and log dy/dx of each element.

    Reference: Durkan et al. 2019, arXiv 1906.04032, eq. 4 to 8.
    """
    bins = (parameters.shape[-1] + 1) // 3
    e = soft_bound(parameters).exp()
    sizes = e[..., : 2 * bins].unflatten(-1, (2, bins))  # widths and heights, (*, 2, B)
    # no bin is smaller than a tenth of the mean
    sizes = 2 * bound * (0.9 * sizes / sizes.sum(-1, keepdim=True) + 0.1 / bins)
    lower = pad(sizes.cumsum(-1)[..., :-1], (1, 0)) - bound
    slopes = pad(e[..., 2 * bins :].sqrt(), (1, 1), value=1.0)
    inside = (x > -bound) & (x < bound)
    x_in = x.clamp(-bound, bound)

    index = (x_in.unsqueeze(-1) >= lower[..., int(inverse), 1:]).sum(-1, keepdim=True)  # the bin of x
    both = index.unsqueeze(-2).expand(*index.shape[:-1], 2, 1)
    (x0, y0), (w, h) = (t.gather(-1, both).squeeze(-1).unbind(-1) for t in (lower, sizes))
    s0, s1 = slopes.gather(-1, torch.cat([index, index + 1], -1)).unbind(-1)
    mean = h / w
    bend = s0 + s1 - 2 * mean
    if inverse:  # a t^2 + b t = c
        rise = x_in - y0
        a, b, c = h * (mean - s0) + rise * bend, h * s0 - rise * bend, mean * rise
        root = (b.square() + 4 * a * c).clamp_min(0).sqrt()
        # of the two forms of the solution, the one in which nothing cancels
        t = torch.where(b < 0, (root - b) / (2 * torch.where(b < 0, a, 1.0)), 2 * c / (b.clamp_min(0) + root))
    else:
        t = (x_in - x0) / w
    t = t + (t.clamp(0, 1) - t).detach()  # only rounding leaves [0, 1]
    if inverse:
        y = x0 + t * w
    else:
        y = y0 + h * (mean * t.square() + s0 * t * (1 - t)) / (mean + bend * t * (1 - t))
    steepness = s1 * t.square() + 2 * mean * t * (1 - t) + s0 * (1 - t).square()
    log_slope = 2 * mean.log() + steepness.log() - 2 * (mean + bend * t * (1 - t)).log()
    return torch.where(inside, y, x), torch.where(inside, log_slope, 0.0)


class MaskedNet(nn.Module):
    """A network `(x, context) -> (*, D, outputs)` whose output d depends on the elements of x of lower degree only.

    Its output starts near zero. The context enters the first layer, whose product with it is computed once for all
    particles of x.

    Args:
        degrees: degree of each element of x, from 0.
        context_dim: C, the size of the context.
        hidden: widths of the hidden layers, at least one.
        outputs: numbers per element of x.

    Reference: Germain et al. 2015 (MADE), arXiv 1502.03509; Paige and Wood 2016, arXiv 1602.06701, for the context.
    """

    degrees: Tensor

    def __init__(self, degrees: Tensor, context_dim: int, hidden: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.register_buffer("degrees", degrees)
        self.passes = int(degrees.max()) + 1
        # a hidden unit of degree g depends on the elements up to g, one of degree -1 on the context only
        levels = [torch.linspace(-1, self.passes - 2, width).round() for width in hidden]
        self.context = nn.Linear(context_dim, hidden[0])
        self.first = MaskedLinear(len(degrees), hidden[0], _mask(levels[0] + 1, degrees), bias=False)
        self.body = nn.ModuleList(MaskedLinear(len(a), len(b), _mask(b + 1, a)) for a, b in itertools.pairwise(levels))
        repeated = degrees.repeat_interleave(outputs)
        self.final = MaskedLinear(hidden[-1], len(repeated), _mask(repeated, levels[-1]))
        self.activation = nn.ELU()
        with torch.no_grad():
            self.final.weight.mul_(0.01)
            self.final.bias.zero_()

    def condition(self, context: Tensor) -> Callable[[Tensor], Tensor]:
        """The network as a function of x, for a fixed context `(*, C)`."""
        offset = self.context(context)
        return lambda x: self(x, offset)

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        h = self.activation(self.first(x) + offset)
        for layer in self.body:
            h = self.activation(layer(h))
        return self.final(h).unflatten(-1, (len(self.degrees), -1))  # (*, D, outputs)


def _mask(above: Tensor, below: Tensor) -> Tensor:
    """Which inputs of degrees `below` are lower than each output's degree `above`: `(out, in)`, ones and zeros."""
    return (above.unsqueeze(-1) > below).to(torch.get_default_dtype())


class Autoregressive(Bijection):
    """Each element goes through a bijection whose parameters depend on the elements of lower degree.

    The inverse takes one pass of the network for each degree: D of them for an autoregressive order, two where the
    elements fall into two halves.

    Args:
        net: x -> parameters `(*, D, P)`.
        degrees: degree of each element, `(D,)`.
        passes: number of different degrees.
        elementwise: `affine` or `spline`.

    Reference: Kingma et al. 2016 (inverse autoregressive flow), arXiv 1606.04934; Dinh et al. 2017 (coupling), arXiv
    1605.08803.
    """

    def __init__(
        self, net: Callable[[Tensor], Tensor], degrees: Tensor, passes: int, elementwise: Elementwise = affine
    ) -> None:
        super().__init__()
        self.net, self.degrees, self.passes, self.elementwise = net, degrees, passes, elementwise

    def forward_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, log_slope = self.elementwise(x, self.net(x), False)
        return y, log_slope.sum(-1)

    def inverse_log_det(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x, log_slope = torch.zeros_like(y), y
        for degree in range(self.passes):
            found, log_slope = self.elementwise(y, self.net(x), True)
            # the others stay zero until their turn: a wrong value could overflow, and inf times a mask is NaN
            x = torch.where(self.degrees == degree, found, x)
        return x, log_slope.sum(-1)
