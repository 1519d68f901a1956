"""Every example runs from its command line, in little; warnings are errors, as in all tests."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import matplotlib
import pytest

from tests.helpers.paths import EXAMPLES

TINY = {
    "aae.py": "--data digits --steps 4 --hidden 16",
    "stacked_mnist.py": "--data digits --steps 3 --num_samples 50 --channels 2 4",
    "veegan_modes.py": "--data ring high --steps 3 --runs 2 --hidden 8",
    "aae_labels.py": "--data digits --steps 4 --hidden 16 --labels 20 --clusters 12",
    "vgh.py": "--data digits --steps 3 --hidden 16 --latent_dims 2 --num_data 60",
    "vae_gan.py": "--data digits --steps 3 --num_samples 20 --channels 2 4",
    "auxiliary_labels.py": "--data digits --labels 50 --steps 2 2 --hidden 8 --latent_dim 2 --auxiliary_dim 2",
    "calibration.py": "--epochs 1 --num_simulations 30 --num_samples 9 --latent_dim 2",
    "compare_estimators.py": "--data digits --epochs 2 --num_data 8 --num_particles 1 2 --repeats 3 --num_samples 10",
    "custom_pair.py": "--epochs 2 --num_samples 10",
    "denoising_autoencoder.py": "--data digits --epochs 1",
    "discrete_latents.py": "--data digits --epochs 1 --num_samples 10 --num_data 20",
    "disentanglement.py": "--size 16 --num_images 300 --hidden 16 --epochs 2",
    "elbo_identity.py": "--num_samples 256",
    "flow_posterior.py": "--data digits --epochs 2 --num_samples 10",
    "gaussian_mixture.py": "--num_data 200 --starts 1 --iterations 10 --epochs 3",
    "gmvae.py": "--data digits --epochs 1 1 1 --starts 1 --hidden 16",
    "gumbel.py": "--draws 200",
    "gaussian_vae.py": "--epochs 2 --num_samples 10",
    "model_only.py": "--models mixture missing_columns eight_schools --epochs 2 --num_samples 20",
    "deep_hierarchy.py": "--data digits --epochs 1 --channels 4 4 --cells 0 1 --latents 1 2 --num_data 20 "
    "--num_samples 5 --likelihoods bernoulli pixelcnn --ema 0.9",
    "hierarchical_vae.py": "--data digits --epochs 2 --num_data 20 --num_samples 5",
    "invariant_vae.py": "--digits 3 4 --epochs 1 --copies 1 --hidden 8 --num_samples 5",
    "deep_markov.py": "--data counts --epochs 1 --num_series 20 --num_particles 3 --num_data 4 --every 20",
    "multimodal.py": "--data digits --epochs 1 --hidden 16 --num_data 20 --num_samples 5 --num_particles 2",
    "imputation.py": "--data wine --missing 0.5 --epochs 2 --num_samples 20",
    "inference_gaps.py": "--data digits --minutes 0 --num_data 2 --num_samples 10 --families diagonal_normal",
    "inpainting.py": "--data digits --epochs 1 --num_data 20 --num_samples 5 --quadrants 1 3",
    "iwae.py": "--data digits --epochs 2 --num_data 20 --num_samples 10",
    "marginal_likelihood.py": "--latent_dims 1 2 --epochs 1 --num_data 5 --num_samples 64 --num_chains 2 "
    "--num_temperatures 3",
    "molecules.py": "--num_molecules 150 --epochs 1 --hidden 16 --num_starts 3",
    "no_encoder.py": "--steps 3 --num_samples 10 --num_data 5 --max_steps 10",
    "posterior_collapse.py": "--epochs 2 --num_samples 10 --num_data 20",
    "priors.py": "--data digits --epochs 1 --num_data 20 --num_samples 5 --components 5 --priors standard_normal vamp "
    "flow",
    "representation.py": "--data digits --epochs 1 --num_codes 60 --latent_dims 2 5",
    "resume.py": "--epochs 2 --kills 1",
    "score_function.py": "--data digits --epochs 2 --num_data 8 --num_particles 1 2 --repeats 3 --num_samples 10",
    "sparse_autoencoder.py": "--epochs 1",
    "tabular.py": "--data wine --epochs 1 --num_particles 2 --num_samples 10 --hidden 8",
    "topic_model.py": "--num_documents 100 --epochs 1 --num_samples 5 --num_topics 3 --hidden 8",
    "text_vae.py": "--corpus built_in --epochs 2 --num_data 20 --num_samples 5 --hidden 8",
    "true_posterior_2d.py": "--data digits --epochs 1 --num_data 2 --max_steps 10",
    "sigma_vae.py": "--data digits --epochs 1",
    "semi_supervised.py": "--data digits --labels 50 --m1_steps 10 --steps 10 10 10 --code_steps 10 10 10",
    "signal_to_noise.py": "--data digits --num_data 8 --epochs 1 --num_particles 1 2 --repeats 3",
    "quantization.py": "--epochs 1 --channels 4 --num_data 40",
    "vqvae.py": "--data digits --epochs 2 --prior_epochs 1 --codes 16 --channels 8",
    "vae.py": "--data digits --epochs 2 --num_samples 10",
    "wasserstein_autoencoder.py": "--data digits --epochs 1",
}

SHARED = {"common.py", "games.py"}  # what examples import, no examples themselves
NEEDS = {"molecules.py": ("selfies", "rdkit")}  # the optional packages of an example


@pytest.mark.parametrize("name", sorted({path.name for path in EXAMPLES.glob("*.py")} - SHARED))
def test_example(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert name in TINY, f"add arguments for a tiny run of examples/{name} to this table"
    for package in NEEDS.get(name, ()):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))  # as `python examples/name.py` does
    monkeypatch.setattr(sys, "argv", [name, *TINY[name].split()])
    with matplotlib.rc_context():  # examples set the style of their process
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert capsys.readouterr().out
    assert list((tmp_path / "pictures").glob("*.png")), "no picture was written"


def test_every_row_has_an_example() -> None:
    assert not [name for name in TINY if not (EXAMPLES / name).is_file()]
