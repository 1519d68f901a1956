"""Guides made from a model."""

from pyro_vae.guides.amortized import AmortizedGuide
from pyro_vae.guides.pair import AmortizedPair

__all__ = ["AmortizedGuide", "AmortizedPair"]
