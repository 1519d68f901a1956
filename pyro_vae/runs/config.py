"""The configuration file of a run."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch.utils._pytree import tree_leaves

from pyro_vae.runs.directory import CONFIG, RECORD
from pyro_vae.runs.reading import LIMITS, read_files, read_plain
from pyro_vae.runs.record import parse_record
from pyro_vae.runs.trust import check_names
from pyro_vae.support.formats import check_entries, parse_yaml, parsing
from pyro_vae.support.import_paths import stable_paths
from pyro_vae.training.fitting import fit

__all__ = ["DATA_KEYS", "NOT_STORED", "as_yaml", "parse_config", "read_config", "with_stable_paths"]

DATA_KEYS = ("binarize", "flatten", "root", "valid", "test", "labels", "types", "tokens", "seed")
_MAY_NAME_CODE = ("model", "elbo", "kl_weight", "lr_schedule")
# arguments of `fit` that are not stored with a run
NOT_STORED = (
    *("guide", "callbacks", "checkpoints", "resume"),
    *("progress", "devices", "num_nodes", "strategy"),
)
_STORED = {"data_seed", "num_samples", *DATA_KEYS, *inspect.signature(fit).parameters} - {*NOT_STORED}
_FREE_TEXT = ("data", "root")  # names of files, which are opened, not imported
_DEVICE = re.compile(r"[a-z]{0,20}(:[0-9]{1,4})?")


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def with_stable_paths(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that names the classes of this library by paths that stay valid when modules move."""
    return {key: stable_paths(value) if key in _MAY_NAME_CODE else value for key, value in config.items()}


def as_yaml(config: Mapping[str, Any]) -> bytes:
    """A configuration as YAML."""
    return yaml.dump(with_stable_paths(config), Dumper=_NoAliases, sort_keys=False, default_flow_style=None).encode()


def parse_config(content: bytes) -> dict[str, Any]:
    """Parse a configuration, whose entries are checked as far as all commands need them.

    Raises:
        ValueError: If it is damaged.
    """
    return with_stable_paths(
        check_entries(
            parse_yaml(content),
            model=object,
            data=str,
            binarize=str,
            flatten=bool,
            root=(str, type(None)),
            valid=(int, float),
            test=(int, float),
            seed=int,
        )
    )


def read_config(path: Path, *, trust: bool = False) -> dict[str, Any]:
    """Read the configuration of a run that is to be resumed.

    Args:
        path: The run directory.
        trust: Allow links, and names outside `pyro_vae` and `torch.nn`, which are imported when they are used.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is damaged, was changed, or names such classes or has entries of its own and is not trusted.
    """
    file = path / CONFIG
    if (path / RECORD).exists():
        file, content = read_files(path, (CONFIG,), parse_record, trust=trust)[1][CONFIG]
    else:  # earlier versions wrote it before the first epoch had ended
        try:
            content = read_plain(file, LIMITS[CONFIG], trust=trust)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path} holds no {CONFIG}: there is no run to resume") from error
    with parsing(file):
        config = parse_config(content)
        check_entries(config, model=dict)
    if not trust:
        _check_untrusted(config, file)
    return config


def _check_untrusted(config: Mapping[str, Any], file: Path) -> None:
    """Refuse every entry that the parser of the command line could take for an option of another kind, or import.

    Raises:
        ValueError: At the first of them.
    """
    for name, value in config.items():
        if name not in _STORED:
            raise ValueError(
                f"{file} has an entry {name!r:.80}, which no configuration of this library has: remove it, or, if you "
                "trust the author of this directory, pass trust=True (--trust true on the command line)"
            )
        is_device = name == "device" and isinstance(value, str) and _DEVICE.fullmatch(value)
        is_text = name in _FREE_TEXT and isinstance(value, str | None)
        # names of columns and of their types, which are compared, not imported
        is_types = name == "types" and all(isinstance(text, str | None) for text in tree_leaves(value))
        names_functions = name == "model" and set(value) == {"functions"}  # these are never imported
        if not (is_device or is_text or is_types or names_functions):
            check_names(value, file, name)
