"""A run directory: the configuration, the weights and the figures of one training, and the pair built back from it."""

from pyro_vae.runs.build import build
from pyro_vae.runs.directory import clear_run, create_run, replacing, save_json
from pyro_vae.runs.run import DATA_KEYS, LoadedRun, load_run, save_run

__all__ = [
    "DATA_KEYS",
    "LoadedRun",
    "build",
    "clear_run",
    "create_run",
    "load_run",
    "replacing",
    "save_json",
    "save_run",
]
