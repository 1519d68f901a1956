"""Variational autoencoders as Pyro programs: train any model/guide pair, and measure what it is worth.

A pair is two Pyro functions, `model(x, *args)` and `guide(x, *args)`, with the same latent sites. The names are those
of `pyro_vae.api`, which is imported when one of them is first asked for: `pyro-vae --help` need not wait for torch.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyro_vae.api import *  # noqa: F403
    from pyro_vae.api import __all__ as __all__
    from pyro_vae.api import __version__ as __version__
else:
    from pyro_vae.support.lazy_names import lazy_attributes

    __getattr__, __dir__ = lazy_attributes(__name__, "pyro_vae.api")
