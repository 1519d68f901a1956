"""The command line: `pyro-vae COMMAND`, one module here for each command."""

from pyro_vae.cli.entry import main

__all__ = ["main"]
