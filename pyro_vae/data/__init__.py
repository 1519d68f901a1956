"""Data sets in memory: loading, splitting, binarization, and batches that already live on the device."""

from pyro_vae.data.loading import Binarize, load
from pyro_vae.data.sources import NAMES, Source
from pyro_vae.data.splits import Data, Split, batches_of
from pyro_vae.data.sprites import Sprites
from pyro_vae.data.vocabulary import Vocabulary

__all__ = ["NAMES", "Binarize", "Data", "Source", "Split", "Sprites", "Vocabulary", "batches_of", "load"]
