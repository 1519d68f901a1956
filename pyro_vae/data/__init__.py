"""Data sets in memory: loading, splitting, binarization, and batches that already live on the device."""

from pyro_vae.data.frames import Table, table
from pyro_vae.data.loading import Binarize, load
from pyro_vae.data.sources import NAMES, Source
from pyro_vae.data.splits import Data, Split, batches_of
from pyro_vae.data.sprites import Sprites
from pyro_vae.data.vocabulary import Vocabulary
from pyro_vae.support.columns import Column

__all__ = [
    "NAMES",
    "Binarize",
    "Column",
    "Data",
    "Source",
    "Split",
    "Sprites",
    "Table",
    "Vocabulary",
    "batches_of",
    "load",
    "table",
]
