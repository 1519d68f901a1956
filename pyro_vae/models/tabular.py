"""The VAE of tables: columns of several types, and missing values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyro
import torch
from torch import Tensor, nn

from pyro_vae.conditionals import Conditional
from pyro_vae.conditionals.cells import ColumnLikelihood
from pyro_vae.models.parts import NetworkFactory, as_network, as_posterior
from pyro_vae.models.vae import VAE
from pyro_vae.priors import Prior
from pyro_vae.support.arguments import checked
from pyro_vae.support.columns import Column, as_columns

__all__ = ["ColumnEncoder", "TabularVAE"]


class ColumnEncoder(nn.Module):
    """What a network sees of rows: `(*, C)` and a mask `(*, C)` to `(*, F)`, zeros where a value is missing.

    A real column gives its standardized value, a positive one that of its logarithm, a count that of log(1 + x); a
    column of levels gives one indicator for each, an ordinal one also its place between -1 and 1. The mask itself comes
    last.

    Args:
        columns: The columns.
    """

    loc: Tensor
    unit: Tensor
    positive: Tensor
    counts: Tensor

    def __init__(self, columns: Sequence[Column]) -> None:
        super().__init__()
        kinds = [column.type for column in columns]
        self.numbers = [j for j, kind in enumerate(kinds) if kind not in ("binary", "categorical")]
        self.levels = [(j, c.num_levels) for j, c in enumerate(columns) if c.num_levels]
        self.size = len(self.numbers) + sum(number for _, number in self.levels) + len(columns)
        places = [((c.num_levels - 1) / 2, (c.num_levels - 1) / 2) if c.type == "ordinal" else None for c in columns]
        units = [place or (c.loc, c.scale) for place, c in zip(places, columns, strict=True)]
        self.register_buffer("positive", torch.tensor([kind == "positive" for kind in kinds]), persistent=False)
        self.register_buffer("counts", torch.tensor([kind == "count" for kind in kinds]), persistent=False)
        self.register_buffer("loc", torch.tensor([loc for loc, _ in units]), persistent=False)
        self.register_buffer("unit", torch.tensor([unit for _, unit in units]), persistent=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        # impossible values are left to the likelihood, which says so
        logs = torch.where(self.counts, x.clamp_min(0).log1p(), x)
        values = torch.where(self.positive, x.clamp_min(torch.finfo(x.dtype).tiny).log(), logs)
        seen = mask.to(x.dtype)
        # a value far outside the training data would drown all others
        scaled = ((values - self.loc) / self.unit).clamp(-10, 10) * seen
        parts = [scaled[..., self.numbers]]
        for j, number in self.levels:
            level = x[..., j, None] == torch.arange(number, dtype=x.dtype, device=x.device)
            parts.append(level.to(x.dtype) * seen[..., j, None])
        return torch.cat([*parts, seen], -1)


class TabularVAE(VAE):
    r"""A VAE of tables with columns of several types and missing values: each column has a likelihood of its own.

    .. math:: z \sim p(z), \quad x_j \sim p_j(x_j \mid z); \qquad q(z \mid x_o) = \mathrm{posterior}(f(x_o, o));
        \qquad \log p(x_o) \ge E_q \Big[ \sum_{j \in o} \log p_j(x_j \mid z) \Big] - KL(q \,\|\, p)

    The pair takes `(x, mask)`: rows `(N, C)` and booleans `(N, C)`, True where a value is known; x alone is a complete
    table. A missing value is left out of the likelihood, and the encoder sees a zero and the mask in its place. So the
    ELBO, `elbo="iwae"` (which Mattei and Frellsen 2019, arXiv 1812.02633, call MIWAE) and log p(x) are those of the
    known values, in nats per datum **in the units of the table**: densities per unit of real and positive columns,
    probabilities of the others. The scaling inside, by the columns' own locations and scales, is part of the density.

    `pv.impute(vae.model, vae.guide, x, mask=mask)` fills in missing values, by the most probable level where a column
    has levels; `pv.sample(vae.model, n)` draws rows, and `table.decode` gives either the names and values of the table.
    Columns are independent given z. The model is right if what is missing does not depend on the missing value itself.

    Args:
        columns: The columns, `pv.data.table(...).columns`; `pv.train` and the command line fill them in.
        latent_dim: Size of z.
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse.
        activation: Name of the nonlinearity, see `pv.nets`.
        likelihoods: Likelihoods of some columns by name, in place of those of their types: "student_t" or "laplace" of
            a real column; "poisson", "zero_inflated_poisson" or "zero_inflated_negative_binomial" of a count.
        scale: Scales and dispersions: "column", learned, one for each column; "cell", from the decoder for each value.
        posterior, prior: As for `VAE`.
        encoder: A network from what `ColumnEncoder` shows, `(*, F)`, to the posterior's features, or its factory.
        decoder: As for `VAE`.

    Raises:
        ValueError: Without columns, and as `VAE` does.

    Reference: Nazabal et al. 2020 (HI-VAE), arXiv 1807.03653, section 3.

    Example:
        >>> import pyro_vae as pv
        >>> rows = {"height": [1.7, 1.6, None, 1.8], "children": [0, 2, 1, 3], "smokes": ["yes", "no", "no", None]}
        >>> table = pv.data.table(rows, valid=0, test=0)
        >>> vae = TabularVAE(table.columns, latent_dim=2)
        >>> pv.bound(vae.model, vae.guide, *table.train.args(), seed=0).elbo.shape
        torch.Size([4])
        >>> sorted(table.decode(pv.sample(vae.model, 3)))
        ['children', 'height', 'smokes']
    """

    typical: Tensor

    @checked
    def __init__(
        self,
        columns: Sequence[Any] | None = None,
        latent_dim: int | Sequence[int] = 8,
        hidden: Sequence[int] = (128, 128),
        activation: str = "elu",
        likelihoods: Mapping[str, str] | None = None,
        scale: Literal["column", "cell"] = "column",
        posterior: str | Conditional = "diagonal_normal",
        prior: str | Prior = "standard_normal",
        encoder: nn.Module | NetworkFactory | None = None,
        decoder: nn.Module | NetworkFactory | None = None,
    ) -> None:
        if columns is None:
            raise ValueError(
                "columns is missing: pass those of a table, pv.data.table(...).columns; pv.train and the command line "
                "fill them in where the data are a table, such as a .csv file"
            )
        made = as_columns(columns)
        q = as_posterior(posterior, latent_dim, shares=None)
        shown = ColumnEncoder(made)
        network = as_network(encoder, torch.Size((shown.size,)), q.param_shape, hidden, activation)
        super().__init__(
            len(made),
            latent_dim,
            hidden,
            activation,
            likelihood=ColumnLikelihood(made, likelihoods, scale),
            posterior=q,
            prior=prior,
            encoder=network,
            decoder=decoder,
        )
        self.columns = made
        self.shown = shown
        self.register_buffer("typical", torch.tensor([column.typical for column in made]), persistent=False)
        setter = getattr(self.decoder, "set_output_bias", None)
        if setter is not None:
            setter(torch.zeros(self.likelihood.param_shape))  # where each column has its own mean

    def model(self, x: Tensor, mask: Tensor | None = None) -> None:
        """The generative model of rows `(N, C)`, of their known values where a mask `(N, C)` is given."""
        x, mask = self._filled(x, mask)
        self._check(x, batch=True)
        self._register("prior", "decoder", "likelihood")
        if self.prior.uses_encoder:
            self._register("encoder", "posterior")
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior_distribution())
            cells: Any = self.likelihood.elements(self.decoder(z))
            pyro.sample("x", cells.mask(mask).to_event(1), obs=x)

    def guide(self, x: Tensor, mask: Tensor | None = None) -> None:
        """The amortized posterior of the latents of rows `(N, C)` whose known values a mask `(N, C)` shows."""
        self._check(x, batch=True)
        self._register("encoder", "posterior")
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.encode(x, mask))

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Any:
        """q(z|x) as a distribution: batch shape `*`, event shape `(latent_dim,)`, for x of shape `(*, C)`."""
        self._check(x)
        return self.posterior(self.encoder(self.shown(*self._filled(x, mask))))

    def start_at_mean(self, data_mean: Tensor) -> TabularVAE:
        """Nothing to do: the decoder starts at the columns' own means."""
        return self

    def _filled(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rows with a possible value where one is missing, so that no gradient of what is left out can be NaN."""
        if mask is None:
            return x, torch.ones_like(x, dtype=torch.bool)
        if mask.dtype != torch.bool or mask.shape != x.shape:
            raise ValueError(
                f"expected a mask of booleans of the shape of x, {tuple(x.shape)}, True where a value is known, got "
                f"one of shape {tuple(mask.shape)} and type {mask.dtype}"
            )
        return torch.where(mask, x, self.typical), mask
