"""Any pair on incomplete data: the density of the observed elements alone."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Independent
from pyro.distributions import constraints as pyro_constraints
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent as TorchIndependent

from pyro_vae.pair.protocol import Program
from pyro_vae.support.arguments import checked

__all__ = ["INCOMPLETE", "with_missing"]

constraints: Any = pyro_constraints
INCOMPLETE = "_pyro_vae_incomplete"  # marks the site in a trace
# where the density of an element is finite at zero, the value that replaces a missing one
ZERO_IS_POSSIBLE = (constraints.real, constraints.boolean, constraints.nonnegative_integer)


class _MaskElements(Messenger):
    """Leaves missing elements out of the density of one observed site: the one called `site`, or shaped like x."""

    def __init__(self, mask: Tensor, site: str | None) -> None:
        super().__init__()
        self.mask, self.site = mask, site
        self.found = False
        self.seen: dict[str, tuple[int, ...]] = {}

    def _pyro_sample(self, msg: Any) -> None:
        value = msg["value"]
        if not msg["is_observed"] or not isinstance(value, Tensor):
            return
        self.seen[msg["name"]] = tuple(value.shape)
        if self.found or (value.shape != self.mask.shape if self.site is None else msg["name"] != self.site):
            return
        if value.shape != self.mask.shape:
            raise ValueError(
                f"site {self.site!r} observes a value of shape {tuple(value.shape)}, but the mask has shape "
                f"{tuple(self.mask.shape)}: give x, mask and the site one shape"
            )
        self.found = True
        fn, event_dim = msg["fn"], msg["fn"].event_dim
        while isinstance(fn, TorchIndependent):
            fn = fn.base_dist
        if fn.event_dim:
            raise ValueError(
                f"site {msg['name']!r} has one density for {fn.event_dim} event dimension(s) together "
                f"({type(fn).__name__}), so no element can be left out of it: use independent elements and .to_event(k)"
            )
        if fn.support not in ZERO_IS_POSSIBLE:
            with torch.no_grad():
                value = torch.where(self.mask, value, fn.sample().to(value))
        msg["value"] = value
        msg["infer"] = {**(msg["infer"] or {}), INCOMPLETE: True}
        # a mask for each element; Pyro's handler of that name has one for each event
        fn = fn.mask(self.mask)
        msg["fn"] = Independent(fn, event_dim) if event_dim else fn


@checked
def with_missing(model: Program, guide: Program, *, site: str | None = None) -> tuple[Program, Program]:
    r"""A pair for incomplete data, `model(x, mask, *args)` and `guide(x, mask, *args)`; True in `mask` means known.

    .. math:: \log p(x_o) = \log \int p(z) \prod_{d \in o} p(x_d \mid z) \, dz, \qquad q(z \mid x_o) = q(z \mid x_o, 0)

    Elements of x where `mask` is False are left out of the observed site's density. Both programs get zeros in their
    place, whatever x is there, NaN included. The result is a pair like any other:
    `pv.fit(model, guide, (x, mask), elbo="iwae", num_particles=20)` maximizes the bound that the literature calls
    MIWAE (not `elbo="miwae"`, another method of that name), and `pv.bound` and `pv.log_marginal` are those of the
    observed elements. The model is right if the probability that an element is missing does not depend on its value
    (missing at random). `fit` does not accept NaN: pass `(x.nan_to_num(), ~x.isnan())`.

    Args:
        model, guide: The pair for complete data. The elements of the observed site must be independent given z.
        site: Which observed site. Default: the first of the shape of x.

    Raises:
        ValueError: When run, if there is no such site, if its elements are not independent, or if the mask is not
            boolean and of the shape of x.

    Reference: Mattei and Frellsen 2019, arXiv 1812.02633, eq. 5.

    Example:
        >>> import pyro_vae as pv
        >>> vae = pv.VAE(4, latent_dim=2, likelihood="normal")
        >>> x = torch.tensor([[0.1, float("nan"), 0.3, 0.4]])
        >>> model, guide = with_missing(vae.model, vae.guide)
        >>> bool(pv.bound(model, guide, x, ~x.isnan()).elbo.isfinite().all())
        True
    """

    def masked_model(x: Tensor, mask: Tensor, *args: Any, **kwargs: Any) -> Any:
        handler = _MaskElements(mask, site)
        with handler:
            result = model(_zero_filled(x, mask), *args, **kwargs)
        if not handler.found:
            expected = f"called {site!r}" if site else f"of the shape of x, {tuple(x.shape)}"
            raise ValueError(f"the model observes no site {expected}; observed are {handler.seen or 'none'}")
        return result

    def masked_guide(x: Tensor, mask: Tensor, *args: Any, **kwargs: Any) -> Any:
        return guide(_zero_filled(x, mask), *args, **kwargs)

    return masked_model, masked_guide


def _zero_filled(x: Tensor, mask: Tensor) -> Tensor:
    if mask.dtype != torch.bool or mask.shape != x.shape:
        raise ValueError(
            f"expected a mask of booleans of the shape of x, {tuple(x.shape)}, True where an element is known, got a "
            f"mask of shape {tuple(mask.shape)} and type {mask.dtype}: pass mask = ~x.isnan()"
        )
    return x.masked_fill(~mask, 0)
