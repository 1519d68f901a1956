"""Every example runs from its command line, in little; warnings are errors, as in all tests."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
TINY = {
    "compare_estimators.py": "--data digits --epochs 2 --num_data 8 --num_particles 1 2 --repeats 3 --num_samples 10",
    "custom_pair.py": "--epochs 2 --num_samples 10",
    "discrete_latents.py": "--data digits --epochs 1 --num_samples 10 --num_data 20",
    "elbo_identity.py": "--num_samples 256",
    "flow_posterior.py": "--data digits --epochs 2 --num_samples 10",
    "gaussian_vae.py": "--epochs 2 --num_samples 10",
    "inference_gaps.py": "--data digits --minutes 0 --num_data 2 --num_samples 10 --families diagonal_normal",
    "iwae.py": "--data digits --epochs 2 --num_data 20 --num_samples 10",
    "marginal_likelihood.py": "--latent_dims 1 2 --epochs 1 --num_data 5 --num_samples 64 --num_chains 2 "
    "--num_temperatures 3",
    "no_encoder.py": "--steps 3 --num_samples 10 --num_data 5 --max_steps 10",
    "posterior_collapse.py": "--epochs 2 --num_samples 10 --num_data 20",
    "score_function.py": "--data digits --epochs 2 --num_data 8 --num_particles 1 2 --repeats 3 --num_samples 10",
    "true_posterior_2d.py": "--data digits --epochs 1 --num_data 2 --max_steps 10",
    "signal_to_noise.py": "--data digits --num_data 8 --epochs 1 --num_particles 1 2 --repeats 3",
    "vae.py": "--data digits --epochs 2 --num_samples 10",
}


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_example(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert name in TINY, f"add arguments for a tiny run of examples/{name} to this table"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *TINY[name].split()])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert capsys.readouterr().out
    assert list((tmp_path / "pictures").glob("*.png")), "no picture was written"


def test_every_row_has_an_example() -> None:
    assert not [name for name in TINY if not (EXAMPLES / name).is_file()]
