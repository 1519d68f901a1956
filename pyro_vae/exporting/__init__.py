"""A trained pair as programs that need neither Pyro nor this library."""

from pyro_vae.exporting.writing import Exported, Port, export

__all__ = ["Exported", "Port", "export"]
