"""Runs that name classes by paths of earlier layouts are loaded and resumed; paths that last are written."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import pyro_vae as pv
from pyro_vae.cli import main
from pyro_vae.runs import build, check_names, load_run, read_run
from pyro_vae.runs.config import as_yaml, read_config
from pyro_vae.support.import_paths import MOVED, stable_path, stable_paths
from pyro_vae.training.history import History
from pyro_vae.training.settings import describe
from tests.helpers.paths import STORED

# Public classes of modules that have moved since, by their paths of then: a configuration can name any of them.
OLD = {
    "pyro_vae.checkpoints": ["Checkpoints"],
    "pyro_vae.checkpoints.directory": ["Checkpoints", "FollowedCheckpoints"],
    "pyro_vae.checkpoints.files": ["Snapshot"],
    "pyro_vae.elbo.aggregate": ["AggregateELBO"],
    "pyro_vae.elbo.antithetic": ["DisARM"],
    "pyro_vae.elbo.bounds": ["MeanField", "TensorELBO", "Trace"],
    "pyro_vae.elbo.control": ["REBAR"],
    "pyro_vae.elbo.corruption": ["Denoising", "GaussianNoise", "MaskingNoise", "SaltAndPepper"],
    "pyro_vae.elbo.dip": ["DIP"],
    "pyro_vae.elbo.free_bits": ["Capacity", "FreeBits"],
    "pyro_vae.elbo.importance": [
        *("CIWAE", "DReG", "IWAE", "MIWAE", "PIWAE", "RWS", "Renyi", "StickingTheLanding", "TailAdaptive"),
    ],
    "pyro_vae.elbo.labels": ["SemiSupervised"],
    "pyro_vae.elbo.penalty": ["InfoVAE", "Sparse", "WAE"],
    "pyro_vae.elbo.quantized": ["VQ"],
    "pyro_vae.elbo.relaxed": ["Cooling", "Relaxed"],
    "pyro_vae.elbo.score": ["Reinforce", "VIMCO"],
    "pyro_vae.elbo.surrogate": ["Coefficients", "SurrogateELBO"],
    "pyro_vae.elbo.terms": ["ElboTerms"],
    "pyro_vae.elbo.total_correlation": ["BetaTC"],
    "pyro_vae.elbo.trace_graph": ["TraceGraph"],
    "pyro_vae.elbo.weights": ["Cyclical", "Warmup", "WeightedKL"],
    "pyro_vae.history": ["Epoch", "History"],
    "pyro_vae.models.pair": ["Pair"],
    "pyro_vae.names": ["Named"],
    "pyro_vae.ranks": ["Ranks"],
    "pyro_vae.svi": ["SVI"],
    "pyro_vae.tracking": ["JSONLines", "MLflow", "TensorBoard", "Tracker", "WandB"],
}
# Those of which a run that is not trusted may have objects built.
OBJECTIVES = [f"{module}.{name}" for module, names in OLD.items() if ".elbo." in module for name in names]


@pytest.mark.parametrize("path", [f"{module}.{name}" for module, names in OLD.items() for name in names])
def test_a_path_of_an_earlier_layout_is_followed(path: str) -> None:
    module, _, name = stable_path(path).rpartition(".")
    assert module not in MOVED
    found = getattr(importlib.import_module(module), name)
    assert found.__name__ == name == path.rpartition(".")[2]


@pytest.mark.parametrize("module", MOVED)
def test_a_module_that_moved_is_where_the_table_says(module: str) -> None:
    importlib.import_module(MOVED[module])


@pytest.mark.parametrize("path", OBJECTIVES)
def test_a_path_that_moved_passes_through_the_check_of_names(path: str) -> None:
    with pytest.raises(ValueError, match="which is not a class of pyro_vae"):
        check_names(path, Path("config.yaml"), "elbo")
    check_names(stable_path(path), Path("config.yaml"), "elbo")


def test_only_what_is_of_this_library_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "canary.py").write_text("open('sang', 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    others = ["canary.Bird", "torch.nn.Linear", "pyro_vae.elbo.weights.os.system", "pyro_vae.no.Such", "", "a" * 999]
    assert stable_paths([*others, None, 3, True]) == [
        *("canary.Bird", "torch.nn.Linear", "pyro_vae.elbo.objectives.weights.os.system", "pyro_vae.no.Such", ""),
        *("a" * 999, None, 3, True),
    ]
    assert not Path("sang").exists()


def test_a_stable_path_is_that_of_the_outermost_package() -> None:
    assert stable_path("pyro_vae.conditionals.likelihoods.Normal") == "pyro_vae.conditionals.Normal"
    assert stable_path("pyro_vae.models.vae.VAE") == "pyro_vae.VAE"
    assert stable_path("pyro_vae.elbo.Warmup") == "pyro_vae.elbo.Warmup"
    assert stable_paths({"class_path": "pyro_vae.elbo.dip.DIP"}) == {"class_path": "pyro_vae.elbo.DIP"}


def test_settings_of_a_checkpoint_name_functions_by_stable_paths() -> None:
    assert describe(pv.fit) == "pyro_vae.fit"
    assert stable_path("pyro_vae.fit.fit") == "pyro_vae.fit"
    assert stable_path("pyro_vae.svi.fused_adam.<locals>.make") == "pyro_vae.training.svi.fused_adam.<locals>.make"


@pytest.mark.parametrize("name", ["by_class", "warmup"])
def test_a_stored_run_with_paths_of_an_earlier_layout_is_loaded(name: str) -> None:
    run = load_run(STORED / "format_2" / name)
    stored = load_file(STORED / "format_2" / name / "weights.safetensors")
    assert all(torch.equal(value, stored[key]) for key, value in run.pair.state_dict().items())
    assert run.data().test is not None


def test_a_configuration_is_read_and_written_with_stable_paths() -> None:
    folder = STORED / "format_2" / "warmup"
    assert "pyro_vae.elbo.weights.Warmup" in (folder / "config.yaml").read_text()
    for config in (read_run(folder).config, read_config(folder)):
        assert config["kl_weight"]["class_path"] == "pyro_vae.elbo.Warmup"
        assert config["elbo"]["class_path"] == "pyro_vae.elbo.StickingTheLanding"
    init_args = read_run(STORED / "format_2" / "by_class").config["model"]["init_args"]
    assert init_args["likelihood"]["class_path"] == "pyro_vae.conditionals.Normal"
    assert init_args["prior"]["class_path"] == "pyro_vae.priors.MixturePrior"
    written = as_yaml({"data": "pyro_vae.svi.SVI", "elbo": {"class_path": "pyro_vae.elbo.importance.IWAE"}})
    assert yaml.safe_load(written) == {"data": "pyro_vae.svi.SVI", "elbo": {"class_path": "pyro_vae.elbo.IWAE"}}


def test_a_model_that_names_a_module_that_moved_is_built(tmp_path: Path) -> None:
    """By the names of then, the conditionals of `by_class`; only the objectives have moved since."""
    config = yaml.safe_load((STORED / "format_2" / "by_class" / "config.yaml").read_text())
    pair = build(config["model"], (64,))
    assert type(pair.prior) is pv.priors.MixturePrior
    assert type(pair.likelihood) is pv.conditionals.Normal


def test_a_stored_run_is_resumed_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(STORED / "format_2" / "warmup", "run")
    assert main(["train", "--resume", "run", "--epochs", "3", "--num_samples", "2"]) == 0
    history = History.load("run/metrics.csv")
    before = History.load(STORED / "format_2" / "warmup" / "metrics.csv")
    assert history.epochs[:2] == before.epochs
    # what the version that began the run gave
    assert history[2].loss == pytest.approx(32.63599395751953, rel=1e-5)
    assert history[2].valid_elbo == pytest.approx(-31.57220082812839, rel=1e-5)
    assert "weights.Warmup" not in Path("run/config.yaml").read_text()


def test_a_configuration_of_an_earlier_layout_is_trained_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = str(STORED / "format_2" / "warmup" / "config.yaml")
    assert main(["train", "--config", config, "--epochs", "1", "--num_samples", "2", "--out", "new"]) == 0
    assert (
        yaml.safe_load(Path("new/config.yaml").read_text())["elbo"]["class_path"] == "pyro_vae.elbo.StickingTheLanding"
    )
