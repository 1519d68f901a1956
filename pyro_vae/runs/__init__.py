"""Run directories: the configuration, weights and metrics of a training, and the pair that is rebuilt from them."""

from pyro_vae.runs.building import build
from pyro_vae.runs.comparing import RunComparison, compare_runs
from pyro_vae.runs.config import DATA_KEYS
from pyro_vae.runs.directory import clear_run, create_run, save_json
from pyro_vae.runs.listing import RunTable, list_runs
from pyro_vae.runs.pairs import load_pair, save_pair
from pyro_vae.runs.run import LoadedRun, RunFiles, load_run, read_run
from pyro_vae.runs.saving import save_run
from pyro_vae.runs.training import train
from pyro_vae.runs.trust import check_names

__all__ = [
    "DATA_KEYS",
    "LoadedRun",
    "RunComparison",
    "RunFiles",
    "RunTable",
    "build",
    "check_names",
    "clear_run",
    "compare_runs",
    "create_run",
    "list_runs",
    "load_pair",
    "load_run",
    "read_run",
    "save_json",
    "save_pair",
    "save_run",
    "train",
]
