"""The public names: all of them are there, and none is imported before it is asked for."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

import pyro_vae as pv
from pyro_vae import api


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_every_public_name_is_there() -> None:
    assert dir(pv) == sorted([*api.__all__, "__all__", "__version__"])
    assert pv.__all__ == api.__all__
    for name in api.__all__:
        assert getattr(pv, name) is getattr(api, name)
    assert pv.__version__.count(".") == 2
    assert isinstance(pv.models, ModuleType)


@pytest.mark.parametrize("name", ["nope", "annotations", "__wrapped__", "version"])
def test_no_other_name_is(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'pyro_vae' has no attribute '{name}'"):
        getattr(pv, name)


@pytest.mark.parametrize(
    "code",
    [
        "import pyro_vae",
        "from pyro_vae.cli import main; main(['--help']); main(['--version']); main(['tarin'])",
    ],
)
def test_nothing_slow_is_imported_before_it_is_needed(code: str) -> None:
    assert run(f"import sys; {code}; print([m for m in ('torch', 'pyro', 'scipy') if m in sys.modules])").endswith("[]")


@pytest.mark.slow
@pytest.mark.parametrize("module", ["models", "conditionals", "evaluate", "training.fitting", "cli.train", "api"])
def test_a_module_can_be_imported_first(module: str) -> None:
    assert run(f"import pyro_vae.{module}; from pyro_vae import VAE, elbo; print(VAE.__name__)") == "VAE"
