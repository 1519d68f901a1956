"""Guides made from a model."""

from pyro_vae.guides.amortized import AmortizedGuide

__all__ = ["AmortizedGuide"]
