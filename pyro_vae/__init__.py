"""Variational autoencoders as Pyro programs: train any model/guide pair, and measure what it is worth.

A pair is two Pyro functions, `model(x, *args)` and `guide(x, *args)`, with the same latent sites. The public names
stand in `__init__.pyi`. Each is imported when it is first asked for: `pyro-vae --help` need not wait for torch.
"""

from importlib.metadata import version as _version

import lazy_loader

__version__ = _version("pyro-vae")
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
