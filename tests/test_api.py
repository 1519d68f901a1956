"""The public names: all of them are there, and none is imported before it is asked for."""

from __future__ import annotations

import ast
import subprocess
import sys
from types import ModuleType

import pytest

import pyro_vae as pv
from tests.helpers.paths import ROOT


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_every_public_name_is_there() -> None:
    stub = ast.parse((ROOT / "pyro_vae" / "__init__.pyi").read_text())
    stated = next(ast.literal_eval(node.value) for node in stub.body if isinstance(node, ast.Assign))
    assert sorted(stated) == sorted(pv.__all__) == sorted(dir(pv))
    assert all(hasattr(pv, name) for name in stated)
    assert pv.__version__.count(".") == 2
    assert isinstance(pv.models, ModuleType)


@pytest.mark.parametrize("name", ["nope", "annotations", "__wrapped__", "version"])
def test_no_other_name_is(name: str) -> None:
    with pytest.raises(AttributeError, match=f"pyro_vae attribute {name}"):
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


TRAINED = """
import sys, torch, pyro_vae as pv
vae = pv.VAE(4, 2, hidden=(3,))
pv.fit(vae.model, vae.guide, torch.rand(20, 4).round(), epochs=1, batch_size=10, compile=False, progress=False)
pv.bound(vae.model, vae.guide, torch.rand(20, 4).round())
slow = ("scipy.stats", "scipy.special", "sklearn", "pandas", "matplotlib", "torchvision", "jsonargparse")
print([name for name in slow if name in sys.modules])
"""


@pytest.mark.slow
def test_training_imports_nothing_slow_besides() -> None:
    assert run(TRAINED).splitlines()[-1] == "[]"


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", ["models", "conditionals", "evaluate", "training.fitting", "cli.train", "training.tracking"]
)
def test_a_module_can_be_imported_first(module: str) -> None:
    assert run(f"import pyro_vae.{module}; from pyro_vae import VAE, elbo; print(VAE.__name__)") == "VAE"
