"""The bijection from real values to the support of a latent site."""

from __future__ import annotations

from typing import Any

from torch.distributions import biject_to

__all__ = ["bijection_of"]


def bijection_of(name: str, support: Any) -> Any:
    """The bijection from real values to the support of the site of this name.

    Raises:
        ValueError: If none is known, as for a sphere.
    """
    try:
        return biject_to(support)
    except NotImplementedError as error:
        raise ValueError(
            f"the latent site {name!r} has the support {support}, onto which no bijection from real values is known: "
            "local posteriors, Hamiltonian moves and MCMC need one. Use log_marginal by importance sampling, with a "
            "guide on that support or from the prior"
        ) from error
