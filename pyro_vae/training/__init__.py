"""The one training loop, its parts, and what a run records."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["tracking"])
