"""The deep Markov model: a state-space model of time series with neural transitions, emissions and guide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.conditionals import DiagonalNormal, Likelihood
from pyro_vae.models.parts import as_likelihood
from pyro_vae.nets import MLP, as_sizes, lookup
from pyro_vae.pair.names import Named
from pyro_vae.pair.protocol import Pair
from pyro_vae.support.arguments import checked_from

__all__ = ["DeepMarkovModel"]


class DeepMarkovModel(Named, nn.Module, Pair):
    r"""A state-space model of series of real numbers or counts, with neural networks: the deep Markov model.

    .. math:: z_1 \sim N(\mu_1, \sigma_1^2), \quad z_t \sim N(\mu(z_{t-1}), \sigma^2(z_{t-1})), \quad x_t \sim p(x_t
        \mid z_t); \qquad q(z_{1:T} \mid x) = \prod_t q(z_t \mid z_{t-1}, h_t), \quad h_t = \mathrm{GRU}(x_t, \dots,
        x_T)

    The guide has the dependencies of the posterior: given the state before, a state depends on the data from then on,
    which a GRU reads backwards. The pair takes `(x, lengths)`: series `(N, T, *step)`, and for series of different
    lengths padded to T their lengths, `(N,)` of integers; what stands after the end of a series does not matter. T may
    differ from that of `data_shape`. The latents are the sites "z_1", ..., "z_T". All observations are one site, "x":
    emissions run once for all times.

    Train it with a warm-up of the KL, `kl_weight=pv.elbo.Warmup(...)`, as the paper does. `pv.forecast` draws how
    series go on; `pv.log_marginal` with `method=pv.SMC()` is a particle filter's log p(x), and without it an importance
    sampler's. Standardize real numbers first; the GRU sees the data as they are.

    Args:
        data_shape: Shape of a series: `(T, D)`, or `(T, *step)`; `(T,)` is a series of single numbers.
        latent_dim: L, the size of a state.
        hidden: Widths of the hidden layers of the emission.
        transition: "gated", the paper's, see below; or "linear", a matrix and noise that does not depend on the state.
        transition_dim: Width of the hidden layer of the gated transition.
        rnn_dim: Size of the GRU's state.
        activation: Name of the nonlinearity of the emission, see `pv.nets`.
        likelihood: p(x_t|z_t), its name in `pv.conditionals.LIKELIHOODS`, or a `Likelihood` of one step.

    The gated transition has the mean (1 - g) (W z + b) + g m(z) for a gate g(z) in (0, 1), a network m with one hidden
    layer, and W that starts as the identity. The scale is that of `pv.conditionals.DiagonalNormal` on a linear function
    of the rectified m(z), where the paper has a softplus.

    Raises:
        ValueError: For unknown names, sizes below 1, or a likelihood of another shape. When run, for series of another
            shape, and for lengths outside 1, ..., T.

    Reference: Krishnan, Shalit and Sontag 2017, arXiv 1609.09869, sections 4 (the guide DKS) and 5.

    Example:
        >>> model = DeepMarkovModel((20, 3), latent_dim=2, likelihood="normal")
        >>> model.sample(4).shape
        torch.Size([4, 20, 3])
    """

    @checked_from(latent_dim=1, transition_dim=1, rnn_dim=1)
    def __init__(
        self,
        data_shape: int | Sequence[int],
        latent_dim: int = 16,
        hidden: Sequence[int] = (64,),
        transition: str = "gated",
        transition_dim: int = 64,
        rnn_dim: int = 64,
        activation: str = "relu",
        likelihood: str | Likelihood = "normal",
    ) -> None:
        super().__init__()
        self.data_shape, self.latent_dim = as_sizes(data_shape, "data_shape"), latent_dim
        self.step_shape = self.data_shape[1:] or torch.Size([1])
        self.likelihood = as_likelihood(likelihood, self.step_shape)
        self.state = DiagonalNormal(latent_dim)
        self.initial = nn.Parameter(torch.zeros(2 * latent_dim))
        self.transition = lookup(TRANSITIONS, transition, "transition")(latent_dim, transition_dim)
        self.emission = MLP(latent_dim, hidden, self.likelihood.param_shape, activation)
        self.rnn = nn.GRU(self.step_shape.numel(), rnn_dim, batch_first=True)
        self.combiner = _Combiner(latent_dim, rnn_dim)

    def model(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """The generative model of the series `x`, `(N, T, *step)`, of the given lengths, `(N,)`."""
        x, inside = self._series(x, lengths)
        pyro.module(f"{self.name}.generative", nn.ModuleList([self.transition, self.emission, self.likelihood]))
        initial = pyro.param(f"{self.name}.initial", self.initial)
        states: list[Tensor] = []
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                p = self.state(self.transition(states[-1]) if t else initial)
                with _masked(inside, t):
                    states.append(pyro.sample(f"z_{t + 1}", p))
            each = self.decode(torch.stack(states, -2))  # batch shape (*, N, T)
            pyro.sample("x", (each if inside is None else each.mask(inside)).to_event(1), obs=x)

    def guide(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """The posterior of the states of `x`, `(N, T, *step)`: forwards, each given the data from then on."""
        x, inside = self._series(x, lengths)
        pyro.module(f"{self.name}.inference", nn.ModuleList([self.rnn, self.combiner]))
        h, z = self.read(x, lengths), None
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                with _masked(inside, t):
                    z = pyro.sample(f"z_{t + 1}", self.state(self.combiner(z, h[:, t])))

    def decode(self, z: Tensor) -> Any:
        """p(x_t|z_t) of each step: batch shape `*`, event shape `step`, for states of shape `(*, latent_dim)`."""
        return self.likelihood(self.emission(z))

    def read(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """What the GRU has read when it comes back to each time, `(N, T, rnn_dim)`; padding is left out."""
        steps = torch.arange(x.shape[1], device=x.device)
        last = x.shape[1] - 1 if lengths is None else lengths.unsqueeze(-1) - 1
        # each series reversed within its own length, so that padding comes last again; the same order leads back
        order = torch.where(steps <= last, last - steps, steps).expand(x.shape[:2]).unsqueeze(-1)
        flat = x.flatten(2).to(self.initial.dtype)
        h = self.rnn(flat.gather(1, order.expand_as(flat)))[0]
        return h.gather(1, order.expand_as(h))

    @torch.no_grad()
    def sample(self, n: int, *, length: int | None = None, mean: bool = False) -> Tensor:
        """`(n, T, *step)` drawn from the model, T by default that of `data_shape`; or the means of p(x_t|z_t)."""
        length = self.data_shape[0] if length is None else length
        if n < 1 or length < 1:
            raise ValueError(f"sample({n}, length={length}): expected numbers of at least 1")
        states = [self.state(self.initial.expand(n, -1)).sample()]
        for _ in range(1, length):
            states.append(self.state(self.transition(states[-1])).sample())
        p = self.decode(torch.stack(states, 1))
        return p.mean if mean else p.sample()

    def _series(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Series `(N, T, *step)` with possible values as padding, and which steps are no padding, `(N, T)`."""
        if len(self.data_shape) == 1 and x.dim() == 2:
            x = x.unsqueeze(-1)
        if x.dim() < 3 or x.shape[2:] != self.step_shape or 0 in x.shape:
            expected = ", ".join(map(str, ("N", "T", *self.step_shape)))
            raise ValueError(f"expected series of shape ({expected}), got {tuple(x.shape)}")
        if lengths is None:
            return x, None
        if lengths.shape != x.shape[:1] or lengths.is_floating_point() or lengths.dtype == torch.bool:
            raise ValueError(
                f"lengths must be integers of shape ({len(x)},), one for each series, got {tuple(lengths.shape)} of "
                f"type {lengths.dtype}"
            )
        # reading values waits for a GPU, so like Pyro's own checks it is left out once training runs
        if pyro.distributions.is_validation_enabled() and bool(((lengths < 1) | (lengths > x.shape[1])).any()):
            raise ValueError(
                f"lengths must be from 1 to {x.shape[1]}, the steps of x, got {int(lengths.min())} to "
                f"{int(lengths.max())}"
            )
        inside = torch.arange(x.shape[1], device=x.device) < lengths.unsqueeze(-1)
        # the first step of a series is in the support of the likelihood
        return torch.where(inside.reshape(*inside.shape, *[1] * (x.dim() - 2)), x, x[:, :1]), inside


class _Gated(nn.Module):
    """The gated transition, `(*, L) -> (*, 2 L)`: means and log-scales."""

    def __init__(self, latent_dim: int, hidden: int) -> None:
        super().__init__()
        self.gate = MLP(latent_dim, (hidden,), latent_dim, "relu")
        self.proposed = MLP(latent_dim, (hidden,), latent_dim, "relu")
        self.linear = nn.Linear(latent_dim, latent_dim)
        self.log_scale = nn.Linear(latent_dim, latent_dim)
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(latent_dim))
            self.linear.bias.zero_()

    def forward(self, z: Tensor) -> Tensor:
        gate, proposed = self.gate(z).sigmoid(), self.proposed(z)
        mean = (1 - gate) * self.linear(z) + gate * proposed
        return torch.cat([mean, self.log_scale(proposed.relu())], -1)


class _Linear(nn.Module):
    """A linear transition with the same noise everywhere, `(*, L) -> (*, 2 L)`: means and log-scales."""

    def __init__(self, latent_dim: int, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(latent_dim, latent_dim)
        self.log_scale = nn.Parameter(torch.zeros(latent_dim))
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(latent_dim))
            self.linear.bias.zero_()

    def forward(self, z: Tensor) -> Tensor:
        mean = self.linear(z)
        return torch.cat([mean, self.log_scale.expand_as(mean)], -1)


TRANSITIONS: dict[str, Callable[[int, int], nn.Module]] = {"gated": _Gated, "linear": _Linear}


class _Combiner(nn.Module):
    """The guide's features of a state, `(*, L), (*, R) -> (*, 2 L)`: the state before, and what the GRU has read."""

    def __init__(self, latent_dim: int, rnn_dim: int) -> None:
        super().__init__()
        self.before = nn.Linear(latent_dim, rnn_dim)
        self.start = nn.Parameter(torch.zeros(latent_dim))  # the state before the first
        self.final = nn.Linear(rnn_dim, 2 * latent_dim)

    def forward(self, z: Tensor | None, h: Tensor) -> Tensor:
        return self.final((self.before(self.start if z is None else z).tanh() + h) / 2)


def _masked(inside: Tensor | None, t: int) -> AbstractContextManager[Any]:
    """Leaves a state out of the density of the series that have ended."""
    if inside is None:
        return nullcontext()
    here: Any = inside[:, t]
    context: AbstractContextManager[Any] = pyro.poutine.mask(mask=here)
    return context
