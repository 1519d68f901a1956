"""The VAE of several modalities: any subset of them observed, in training and afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from pyro_vae.conditionals import DiagonalNormal, Likelihood
from pyro_vae.models.experts import NormalMixture, normal_product, subsets
from pyro_vae.models.parts import NetworkFactory, as_likelihood, as_network
from pyro_vae.nets import as_sizes
from pyro_vae.pair.names import Named
from pyro_vae.pair.protocol import Pair
from pyro_vae.priors import StandardNormal
from pyro_vae.support.arguments import checked

__all__ = ["MultimodalVAE"]


class MultimodalVAE(Named, nn.Module, Pair):
    r"""A VAE of M modalities that share one latent, of which any subset may be observed: MVAE, MMVAE or MoPoE-VAE.

    .. math:: z \sim N(0, I), \quad x_m \sim p(x_m \mid z), \quad m = 1, \dots, M; \qquad
        q(z \mid x_O) = \frac1{|S|} \sum_{A \in S} q_A(z), \quad
        q_A(z) \propto N(z; 0, I) \prod_{m \in A} N(z; \mu_m(x_m), \sigma_m^2(x_m))

    O are the modalities that a datum has. The posterior is a configuration, `combine`:

    - "poe", a product of experts: S holds O alone. Wu and Goodman 2018, with their objective
      `elbo=pv.elbo.SubsampledModalities()`.
    - "moe", a mixture of experts: S holds each modality of O alone, and without the prior as a factor, so that each
      expert is a posterior. Shi et al. 2019, with `elbo="iwae"` or `elbo="dreg"`.
    - "mopoe", a mixture of products: S holds every subset of O but the empty one. Sutter et al. 2021.

    Where O is empty, q is the prior in all three. In training mode several particles of a datum are drawn from the
    components in equal shares, the stratified bound of Shi et al.; in evaluation mode they are independent.

    The pair takes the modalities as its arguments, `model(x_1, ..., x_M)`, and as a last one optionally `observed`,
    `(N, M)` of booleans, False where a datum lacks a modality; its value does not matter then. A label of -1 is
    missing, too, and so are modalities at the end that are left out. `arguments(x_1, None)` makes such arguments:
    `pv.log_marginal(vae.model, vae.guide, *vae.arguments(x_1, None))` is log p(x_1). The sites are "z" and "x1", "x2",
    and so on.

    Args:
        data_shape: Shape of a datum of the first modality: an int D, or an image shape (C, H, W).
        others: The other modalities: for each an int C for labels 0, ..., C - 1, `(N,)`, or the shape of a datum,
            `(D,)` or `(C, H, W)`.
        latent_dim: Size of z.
        hidden: Widths of the hidden layers of each encoder; the decoders have them in reverse.
        activation: Name of the nonlinearity, see `pv.nets`.
        likelihood: p(x_m|z) of all modalities that are not labels, by its name in `pv.conditionals.LIKELIHOODS`; or a
            list, one for each of them, of names or `Likelihood` objects. Labels have a categorical one.
        combine: "poe", "moe" or "mopoe", see above.
        encoders: For each modality a network `(*, *shape) -> (*, 2 * latent_dim)` in place of the default MLP, or a
            class or function that makes one from these two shapes; None for the default. Labels come one-hot.
        decoders: The same for `(*, latent_dim) -> (*, *likelihood.param_shape)`.

    Raises:
        ValueError: For unknown names, sizes below 1, parts that are not as many as the modalities, or whose shapes do
            not fit. When run, for modalities of another shape, and for labels outside -1, ..., C - 1.

    Reference: Wu and Goodman 2018, arXiv 1802.05335, section 2.1; Shi et al. 2019, arXiv 1911.03393, section 3; Sutter
    et al. 2021, arXiv 2105.02470, section 3.

    Example:
        >>> vae = MultimodalVAE(784, others=[10], latent_dim=5)
        >>> image, label = vae.generate(None, torch.tensor([7, 7, 1]))
        >>> image.shape, label
        (torch.Size([3, 784]), tensor([7, 7, 1]))
    """

    @checked
    def __init__(
        self,
        data_shape: int | Sequence[int],
        others: Sequence[int | Sequence[int]] = (10,),
        latent_dim: int = 20,
        hidden: Sequence[int] = (200, 200),
        activation: str = "elu",
        likelihood: str | Sequence[str | Likelihood] = "bernoulli",
        combine: Literal["poe", "moe", "mopoe"] = "poe",
        encoders: Sequence[nn.Module | NetworkFactory | None] | None = None,
        decoders: Sequence[nn.Module | NetworkFactory | None] | None = None,
    ) -> None:
        super().__init__()
        if combine not in ("poe", "moe", "mopoe"):
            raise ValueError(f"combine must be 'poe', 'moe' or 'mopoe', got {combine!r}")
        latent = as_sizes(latent_dim, "latent_dim", 1)
        self.data_shape, self.latent_dim, self.combine = as_sizes(data_shape, "data_shape"), latent_dim, combine
        self.labels = (False, *(isinstance(other, int) for other in others))
        self.shapes = (self.data_shape, *(as_sizes(other, "others") for other in others))
        if len(self.shapes) < 2:
            raise ValueError("others is empty, expected at least one modality beside the first: for one use pv.VAE")
        self.likelihoods = nn.ModuleList(self._likelihoods(likelihood))
        self.prior, self.posterior = StandardNormal(latent_dim), DiagonalNormal(latent_dim)
        down = tuple(reversed(hidden))
        self.encoders, self.decoders = nn.ModuleList(), nn.ModuleList()
        given = self._as_many("encoders", encoders), self._as_many("decoders", decoders)
        for i, (shape, encoder, decoder) in enumerate(zip(self.shapes, *given, strict=True)):
            out = shape if self.labels[i] else self._likelihood(i).param_shape
            self.encoders.append(as_network(encoder, shape, self.posterior.param_shape, hidden, activation))
            self.decoders.append(as_network(decoder, latent, out, down, activation))
        self._possible = [0.0 if label else self._in_support(i) for i, label in enumerate(self.labels)]
        self._members = subsets(len(self.shapes), combine)
        self._in_product = ~self._members.any(-1) if combine == "moe" else torch.ones(len(self._members)).bool()

    def model(self, x: Tensor, *others: Tensor) -> None:
        """The generative model of the data `x`, `(N, *data_shape)`, and of the other modalities."""
        modalities, observed = self._complete((x, *others))
        pyro.module(f"{self.name}.decoders", self.decoders)
        pyro.module(f"{self.name}.likelihoods", self.likelihoods)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            for i, value in enumerate(modalities):
                here: Any = observed[:, i]
                with pyro.poutine.mask(mask=here):
                    pyro.sample(f"x{i + 1}", self.decode(z, i + 1), obs=value)

    def guide(self, x: Tensor, *others: Tensor) -> None:
        """The posterior of "z" given the modalities that each datum has."""
        modalities, observed = self._complete((x, *others))
        pyro.module(f"{self.name}.encoders", self.encoders)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self._posterior(modalities, observed))

    def encode(self, *modalities: Tensor | None) -> Any:
        """q(z|x_O): batch shape `(N,)`, event shape `(latent_dim,)`; None is a modality that all data lack."""
        return self._posterior(*self._complete(self.arguments(*modalities)))

    def decode(self, z: Tensor, modality: int = 1) -> Any:
        """p(x_m|z) for z of shape `(*, latent_dim)` and m from 1 to M; over integers `(*,)` if it is a label.

        Raises:
            ValueError: For another m.
        """
        if not 1 <= modality <= len(self.shapes):
            raise ValueError(f"modality must be from 1 to {len(self.shapes)}, got {modality}")
        h = self.decoders[modality - 1](z)
        return dist.Categorical(logits=h) if self.labels[modality - 1] else self._likelihood(modality - 1)(h)

    def arguments(self, *modalities: Tensor | None, n: int = 1) -> tuple[Tensor, ...]:
        """The arguments of the pair for modalities of which some are None, and are missing for all data.

        Args:
            *modalities: Up to M tensors of N rows, or None; and perhaps `observed`, see the class.
            n: The number of data N if all are None.

        Raises:
            ValueError: For more modalities than there are, for no data, and for `observed` of another number of data.
            TypeError: For a modality that is no tensor.
        """
        for i, value in enumerate(modalities):
            if value is not None and not isinstance(value, Tensor):
                raise TypeError(f"modality {i + 1} must be a tensor, or None where it is missing, got {value!r}")
        *found, mask = modalities if self._is_mask(modalities) else (*modalities, None)
        total = len(self.shapes)
        if len(found) > total:
            raise ValueError(
                f"expected at most {total} modalities and perhaps `observed`, booleans of shape (N, {total}), got "
                f"{len(found)} tensors, the last of shape {_shape(found[-1])}"
            )
        found += [None] * (total - len(found))
        n = next((len(value) for value in found if value is not None), n)
        if n < 1:
            raise ValueError(f"the number of data must be at least 1, got {n}")
        if mask is not None and len(mask) != n:
            raise ValueError(f"`observed` has {len(mask)} rows, but there are {n} data: give a row for each datum")
        here = torch.tensor([value is not None for value in found], device=self._device).expand(n, -1)
        filled = [self._placeholder(i, n) if value is None else value for i, value in enumerate(found)]
        return (*filled, here if mask is None else here & mask.to(here.device))

    @torch.no_grad()
    def generate(self, *modalities: Tensor | None, n: int = 1, mean: bool = False) -> tuple[Tensor, ...]:
        """All modalities of each datum: those that are given as they are, the others drawn given them.

        z is drawn from q(z|x_O), which is the prior where nothing is given, then the missing modalities from p(x_m|z).

        Args:
            *modalities: As in `arguments`.
            n: The number of data if all are None.
            mean: True gives the means of p(x_m|z) in place of draws, for labels the most probable class.
        """
        args = tuple(v.to(self._device) for v in self.arguments(*modalities, n=n))
        given, observed = self._complete(args)
        z = self._posterior(given, observed).sample()
        drawn = []
        for i, value in enumerate(given):
            p = self.decode(z, i + 1)
            new = p.sample() if not mean else p.logits.argmax(-1) if self.labels[i] else p.mean
            known = observed[:, i].reshape(-1, *[1] * (value.dim() - 1))
            drawn.append(torch.where(known, value, new.to(value.dtype)))
        return tuple(drawn)

    @torch.no_grad()
    def sample(self, n: int, *, mean: bool = False) -> tuple[Tensor, ...]:
        """All modalities of `n` data drawn from the prior: `generate` without any given."""
        if n < 1:
            raise ValueError(f"sample({n}): expected at least 1")
        return self.generate(n=n, mean=mean)

    def _posterior(self, modalities: Sequence[Tensor], observed: Tensor) -> Any:
        experts = [
            self.posterior(encoder(self._features(i, value))).base_dist
            for i, (encoder, value) in enumerate(zip(self.encoders, modalities, strict=True))
        ]
        loc = torch.stack([q.loc for q in experts], 1)  # (N, M, L)
        scale = torch.stack([q.scale for q in experts], 1)
        device = loc.device
        members, prior = self._members.to(device), self._in_product.to(device)
        log_weight, loc, scale = normal_product(loc, scale, observed, members, prior)
        if self.combine == "poe":
            return dist.Normal(loc.squeeze(1), scale.squeeze(1)).to_event(1)
        return NormalMixture(log_weight, loc, scale, stratified=self.training)

    def _features(self, i: int, value: Tensor) -> Tensor:
        """A modality as its encoder takes it."""
        if not self.labels[i]:
            return value
        return one_hot(value, self.shapes[i][0]).to(self._parameter)

    def _complete(self, args: tuple[Tensor | None, ...]) -> tuple[list[Tensor], Tensor]:
        """All modalities, with a possible value where one is missing, and which are observed, `(N, M)`."""
        values = self.arguments(*args)
        observed = values[-1]
        complete = []
        for i, value in enumerate(values[:-1]):
            here = observed[:, i]
            if self.labels[i]:
                self._check_labels(i, value, len(observed))
                here = here & (value >= 0)
                observed = torch.where(torch.arange(len(self.shapes), device=here.device) == i, here[:, None], observed)
                complete.append(value.long().masked_fill(~here, 0))
                continue
            if value.shape != (len(observed), *self.shapes[i]) or value.dtype == torch.bool:
                expected = ", ".join(map(str, ("N", *self.shapes[i])))
                raise ValueError(
                    f"modality {i + 1}: expected numbers of shape ({expected}), N = {len(observed)}, got "
                    f"{tuple(value.shape)} of type {value.dtype}; missing modalities are None in `arguments`, and "
                    f"`observed` is a last argument of booleans, (N, {len(self.shapes)})"
                )
            complete.append(torch.where(here.reshape(-1, *[1] * (value.dim() - 1)), value, self._possible[i]))
        return complete, observed

    def _check_labels(self, i: int, value: Tensor, n: int) -> None:
        classes = self.shapes[i][0]
        if value.shape != (n,) or value.is_floating_point() or value.dtype == torch.bool:
            raise ValueError(
                f"modality {i + 1}: expected integer labels of shape ({n},), -1 where one is missing, got "
                f"{tuple(value.shape)} of type {value.dtype}"
            )
        # reading values waits for a GPU, so like Pyro's own checks it is left out once training runs
        if pyro.distributions.is_validation_enabled() and bool(((value < -1) | (value >= classes)).any()):
            raise ValueError(
                f"modality {i + 1}: expected labels from 0 to {classes - 1}, and -1 where one is missing, got "
                f"{int(value.min())} to {int(value.max())}"
            )

    def _is_mask(self, values: Sequence[Tensor | None]) -> bool:
        last = values[-1] if len(values) > 1 else None
        return last is not None and last.dtype == torch.bool and last.shape[1:] == (len(self.shapes),)

    def _placeholder(self, i: int, n: int) -> Tensor:
        if self.labels[i]:
            return torch.full((n,), -1, device=self._device)
        return torch.zeros(n, *self.shapes[i], device=self._device, dtype=self._parameter.dtype)

    @property
    def _parameter(self) -> Tensor:
        return next(self.encoders.parameters())

    @property
    def _device(self) -> torch.device:
        return self._parameter.device

    def _in_support(self, i: int) -> float:
        """A number in the support of a modality that is no label."""
        tried = torch.tensor([0.0, 0.5, 1.0])
        return float(tried[self._likelihood(i).support.check(tried).int().argmax()])

    def _likelihood(self, i: int) -> Likelihood:
        found = self.likelihoods[sum(not label for label in self.labels[:i])]
        assert isinstance(found, Likelihood)
        return found

    def _likelihoods(self, given: str | Sequence[str | Likelihood]) -> list[Likelihood]:
        shapes = [shape for shape, label in zip(self.shapes, self.labels, strict=True) if not label]
        parts = [given] * len(shapes) if isinstance(given, str) else list(given)
        if len(parts) != len(shapes):
            raise ValueError(f"likelihood has {len(parts)} entries, but {len(shapes)} modalities are not labels")
        return [as_likelihood(part, shape) for part, shape in zip(parts, shapes, strict=True)]

    def _as_many(self, name: str, networks: Sequence[Any] | None) -> Sequence[Any]:
        found = [None] * len(self.shapes) if networks is None else networks
        if len(found) != len(self.shapes):
            raise ValueError(f"{name} has {len(found)} entries, but there are {len(self.shapes)} modalities")
        return found


def _shape(value: Tensor | None) -> str:
    return "None" if value is None else f"{tuple(value.shape)} and type {value.dtype}"
