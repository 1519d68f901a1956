"""The configuration file of a run, which is written before the first epoch has ended."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pyro_vae.runs.directory import CONFIG, replacing
from pyro_vae.runs.reading import LIMITS, check_entries, parse_yaml, parsing, read_plain
from pyro_vae.runs.trust import check_names
from pyro_vae.support.import_paths import stable_paths

__all__ = ["as_yaml", "read_config", "save_config", "with_stable_paths"]

_MAY_NAME_CODE = ("model", "elbo", "kl_weight", "lr_schedule")


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def with_stable_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that names the classes of this library by paths that stay valid when modules move."""
    return {key: stable_paths(value) if key in _MAY_NAME_CODE else value for key, value in config.items()}


def as_yaml(config: Mapping[str, Any]) -> bytes:
    """A configuration as YAML."""
    return yaml.dump(with_stable_paths(config), Dumper=_NoAliases, sort_keys=False, default_flow_style=None).encode()


def save_config(path: Path, config: Mapping[str, Any]) -> None:
    """Write the configuration of a new run."""
    with replacing(path / CONFIG) as temporary:
        temporary.write_bytes(as_yaml(config))


def read_config(path: Path, *, trust: bool = False) -> dict[str, Any]:
    """Read the configuration of a run, which may have completed no epoch yet.

    Args:
        path: The run directory.
        trust: Allow classes outside `pyro_vae` and `torch.nn`. They are imported when the configuration is used.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, or names such classes and is not trusted.
    """
    file = path / CONFIG
    if not file.exists():
        raise FileNotFoundError(f"{path} holds no {CONFIG}: there is no run to resume")
    with parsing(file):
        config = with_stable_paths(check_entries(parse_yaml(read_plain(file, LIMITS[CONFIG], trust=trust)), model=dict))
    if not trust:
        for name in _MAY_NAME_CODE:
            if name != "model" or set(config["model"]) != {"functions"}:  # these are never imported
                check_names(config.get(name), file, name)
    return config
