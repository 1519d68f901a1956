"""Checkpoints: all that a training run needs to go on as if it had never stopped."""

from pyro_vae.support.files import replacing
from pyro_vae.support.random import noise_state, restore_noise
from pyro_vae.support.snapshots import Snapshot, read_snapshot, write_snapshot
from pyro_vae.training.checkpoints.directory import Checkpoints, FollowedCheckpoints
from pyro_vae.training.checkpoints.signals import Stop, stop_between_steps
from pyro_vae.training.checkpoints.svi import load_svi_state, objective_values, svi_state

__all__ = [
    "Checkpoints",
    "FollowedCheckpoints",
    "Snapshot",
    "Stop",
    "load_svi_state",
    "noise_state",
    "objective_values",
    "read_snapshot",
    "replacing",
    "restore_noise",
    "stop_between_steps",
    "svi_state",
    "write_snapshot",
]
