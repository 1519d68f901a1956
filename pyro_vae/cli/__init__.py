"""The command line, `pyro-vae COMMAND`."""

from pyro_vae.cli.entry import main

__all__ = ["main"]
