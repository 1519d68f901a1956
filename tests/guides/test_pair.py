"""A model that is a function, trained and loaded by the command line."""

import shutil
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
import yaml

import pyro_vae as pv
from pyro_vae.cli import main
from pyro_vae.guides import AmortizedPair

MODULE = """
import pyro, torch, pyro.distributions as dist

decoder = torch.nn.Linear(2, 64)


def model(x):
    pyro.module("decoder", decoder)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "a_model_of_mine.py").write_text(MODULE)
    arguments = "--flatten true --epochs 1 --num_samples 10 --out run --seed 3"
    main(["train", "--model", "a_model_of_mine.model", "--model.family", "full_normal", *arguments.split()])
    return tmp_path / "run"


def test_a_model_without_a_guide_is_trained_and_loaded(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())["model"]
    assert config["class_path"] == "pyro_vae.guides.AmortizedPair"
    assert config["init_args"]["program"] == "a_model_of_mine.model"
    assert config["init_args"]["family"] == "full_normal"
    loaded = pv.load_run(run, trust=True)
    assert isinstance(loaded.pair, AmortizedPair)
    column = loaded.pair.network.encoder.columns[0]
    assert column.kind == "binary"
    with torch.no_grad():
        for p in loaded.pair.parameters():  # the module's network is the same object in this process
            p.zero_()
    again = pv.load_run(run, trust=True)
    x = again.data().test.head(20)
    assert again.history.epochs[-1].train_elbo == pytest.approx(
        pv.bound(again.model, again.guide, x, num_samples=50, seed=0).mean, abs=4.0
    )


def test_without_trust_the_model_of_a_run_is_not_imported(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "of a stranger"
    shutil.copytree(run, copy)
    (tmp_path / "a_model_of_mine.py").write_text("raise SystemExit('imported')")
    with pytest.raises(ValueError, match=r"names 'a_model_of_mine\.model' as model\.init_args\.program"):
        pv.load_run(copy)


def test_the_inputs_are_scaled_by_the_training_data() -> None:
    def program(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand([*z.shape, 3]).to_event(1), obs=x)

    pair = AmortizedPair(program, 3)
    x = 5 + 2 * torch.randn(500, 3)
    pair.start_at_data(x)
    torch.testing.assert_close(pair.network.encoder.columns[0].mean, x.mean(0))
