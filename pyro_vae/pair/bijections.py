"""Supports of sites: what is inside of them, and the bijection from real values."""

from __future__ import annotations

from typing import Any

from torch.distributions import biject_to, constraints

__all__ = ["base_constraint", "bijection_of", "is_real"]


def base_constraint(support: Any) -> Any:
    """The constraint of single elements, or vectors, of a support, without the event dimensions around it."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def is_real(support: Any) -> bool:
    """Whether a support has all real values."""
    base = base_constraint(support)
    return base is constraints.real or base is constraints.real_vector


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
