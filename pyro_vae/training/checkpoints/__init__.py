"""Checkpoints: all that a training run needs to go on as if it had never stopped."""

from pyro_vae.training.checkpoints.directory import Checkpoints, FollowedCheckpoints

__all__ = ["Checkpoints", "FollowedCheckpoints"]
