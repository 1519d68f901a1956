"""The command line, as a user meets it: every command, every spelling of the options, and one line for each mistake."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from pyro_vae import elbo, models
from pyro_vae.cli import main
from pyro_vae.runs import load_run
from pyro_vae.training.fitting import fit

COMMANDS = ["train", "evaluate", "compare-elbos", "gaps", "diagnose", "calibrate"]
COMMANDS += ["sample", "reconstruct", "export", "report", "explore", "runs", "list"]
QUICK = ["--model.hidden", "[8]", "--epochs", "1", "--num_samples", "5"]

PAIRS = '''
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import nn


class MyVAE(nn.Module):
    """A pair of one's own.

    Args:
        latent: size of z.
    """

    def __init__(self, data_shape, latent: int = 2, widths=(4,)):
        super().__init__()
        self.latent, (size,) = latent, data_shape
        self.encoder = nn.Sequential(nn.Linear(size, widths[0]), nn.ReLU(), nn.Linear(widths[0], 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, widths[0]), nn.ReLU(), nn.Linear(widths[0], size))

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.clamp(-5, 5).exp()).to_event(1))


outside = nn.Linear(2, 64)


class Scattered(nn.Module):
    """No data_shape; a network that lives outside, and a parameter that lives in Pyro's store."""

    def __init__(self, width: int):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, width), nn.Linear(width, 2))

    def model(self, x):
        pyro.module("outside", outside)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=outside(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        scale = pyro.param("scale", lambda: torch.full((2,), 0.5), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), scale).to_event(1))


class Failing(MyVAE):
    """Gives NaN after a number of runs of the guide in training."""

    def __init__(self, data_shape, after: int):
        super().__init__(data_shape)
        self.after, self.runs = after, 0

    def guide(self, x):
        self.runs += self.training
        super().guide(x * float("nan") if self.runs > self.after else x)


class Namesake(MyVAE):
    """Its arguments are called as the VAE's, but have other defaults."""

    def __init__(self, data_shape, activation: str, latent_dim: int = 3, hidden: int = 4):
        super().__init__(data_shape, latent_dim, (hidden,))


class Raising(MyVAE):
    def model(self, x):
        raise KeyError("a slip")


class Half(nn.Module):
    def model(self, x):
        pass
'''


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, not to be changed."""
    path = tmp_path_factory.mktemp("runs") / "trained"
    assert main(["train", *QUICK, "--epochs", "2", "--out", str(path)]) == 0
    return path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> str:
    """A copy of a run."""
    return str(shutil.copytree(trained, tmp_path / "copied"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with a file of pairs."""
    (tmp_path / "my_pair.py").write_text(PAIRS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_pair", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


def _ok(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    status = main(list(words))
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    return out


def _error(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a mistake gives."""
    status = main(list(words))
    err = capsys.readouterr().err
    assert status in (1, 2)
    assert err.startswith(f"pyro-vae {words[0]}: ")
    assert err.count("\n") == 1
    return err


def _config(path: str) -> dict[str, object]:
    return yaml.safe_load(Path(path, "config.yaml").read_text())


# Commands -----------------------------------------------------------------------------------------


def test_train_writes_a_run_and_prints_where(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    out = _ok(capsys, "train", *QUICK, "--epochs", "2", "--out", "deep/run")
    assert sorted(p.name for p in Path("deep/run").iterdir()) == [
        "checkpoints",
        "config.yaml",
        "evaluation-test.json",
        "history.png",
        "metrics.csv",
        "metrics.jsonl",
        "reconstructions.png",
        "run.json",
        "samples.png",
        "weights.safetensors",
    ]
    assert out.splitlines()[-3:] == [f"deep/run/{name}.png" for name in ("reconstructions", "samples", "history")]
    assert "359 data of digits (test), binarize=dynamic" in out
    assert "the weights are those of epoch 2" in out
    assert "log p(x), 5 importance samples" in out
    figures = json.loads(Path("deep/run/evaluation-test.json").read_text())
    for name in ("elbo", "log_likelihood", "kl", "log_prob"):
        assert f"{figures[name]:.3f}" in out


def test_defaults_make_a_dated_run_of_a_vae_on_digits(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    for _ in range(2):  # within one second, perhaps
        _ok(capsys, "train", *QUICK)
    first, second = sorted(here.glob("runs/*-VAE-digits*"))
    assert _config(str(first)) == _config(str(second))


def test_a_run_can_be_repeated_from_its_configuration(capsys: pytest.CaptureFixture[str], run: str) -> None:
    _ok(capsys, "train", "--config", f"{run}/config.yaml", "--out", "again")
    for name in ("weights.safetensors", "config.yaml", "evaluation-test.json", "samples.png", "reconstructions.png"):
        assert Path("again", name).read_bytes() == Path(run, name).read_bytes(), name


def test_the_configuration_is_complete_and_only_that(run: str) -> None:
    config = _config(run)
    by_hand = {
        "guide",
        "valid",
        "optim",
        "callbacks",
        "progress",
        "checkpoints",
        "resume",
        "devices",
        "num_nodes",
        "strategy",
    }
    arguments = set(fit.__annotations__) - by_hand - {"return"}
    of_data = {"data", "binarize", "flatten", "root", "valid", "test", "labels", "types", "tokens", "seed"}
    assert set(config) == arguments | of_data | {"num_samples"}
    assert config["model"]["init_args"]["latent_dim"] == 20  # type: ignore[index]


def test_options_override_the_configuration(capsys: pytest.CaptureFixture[str], run: str) -> None:
    _ok(capsys, "train", "--config", f"{run}/config.yaml", "--model.latent_dim", "3", "--seed", "5", "--out", "new")
    old, new = _config(run), _config("new")
    assert new["model"]["init_args"]["latent_dim"] == 3  # type: ignore[index]
    assert new["seed"] == 5
    assert {k: v for k, v in old.items() if k not in ("model", "seed")} == {
        k: v for k, v in new.items() if k not in ("model", "seed")
    }


def test_printed_configuration_can_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", *QUICK, "--kl_weight", "Cyclical", "--kl_weight.period", "0.2", "--print_config"])
    Path("mine.yaml").write_text(capsys.readouterr().out)
    _ok(capsys, "train", "--config", "mine.yaml", "--out", "new")
    assert _config("new")["kl_weight"] == {"period": 0.2, "cycles": 4, "rise": 0.5, "end": 1.0}


def test_seeds_differ(capsys: pytest.CaptureFixture[str], run: str) -> None:
    _ok(capsys, "train", "--config", f"{run}/config.yaml", "--seed", "1", "--out", "again")
    assert Path("again/weights.safetensors").read_bytes() != Path(run, "weights.safetensors").read_bytes()


def test_evaluate(capsys: pytest.CaptureFixture[str], run: str) -> None:
    before = Path(run, "evaluation-test.json").read_text()
    _ok(capsys, "evaluate", run, "--num_samples", "5")
    assert Path(run, "evaluation-test.json").read_text() == before  # what train reported, from the directory alone
    for split in ("train", "valid"):
        words = ["evaluate", run, "--num_samples", "5", "--split", split, "--num_data", "50"]
        out = _ok(capsys, *words)
        assert f"50 data of digits ({split})" in out
        assert out.splitlines()[-1] == f"{run}/evaluation-{split}.json"
        figures = Path(run, f"evaluation-{split}.json").read_text()
        assert json.loads(figures)["num_data"] == 50
        assert _ok(capsys, *words) == out
        assert Path(run, f"evaluation-{split}.json").read_text() == figures


def test_a_partial_evaluation_does_not_stand_for_the_run(capsys: pytest.CaptureFixture[str], run: str) -> None:
    headline = Path(run, "evaluation-test.json")
    before = headline.read_text()
    for words, name in (
        (["--num_data", "10", "--num_samples", "5"], "evaluation-test-10-data-5-samples.json"),
        (["--num_samples", "2"], "evaluation-test-359-data-2-samples.json"),
    ):
        out = _ok(capsys, "evaluate", run, *words)
        assert headline.read_text() == before
        assert out.splitlines()[-2:] == [
            "evaluation-test.json has more data or samples, and still stands for the run",
            f"{run}/{name}",
        ]
        assert Path(run, name).exists()
    _ok(capsys, "evaluate", run, "--num_samples", "30")
    assert json.loads(headline.read_text())["num_samples"] == 30


def test_color_images_are_not_binarized(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    generator = np.random.default_rng(0)
    np.savez(here / "colors.npz", x=generator.integers(0, 256, (60, 3, 4, 4), dtype=np.uint8))
    words = ["--data", "colors.npz", "--batch_size", "20", "--epochs", "1", "--num_samples", "2", "--out", "new"]
    assert "outside the support" in " ".join(_error_lines(capsys, "train", *words))
    out = _ok(capsys, "train", *words, "--model.likelihood", "continuous_bernoulli")
    assert "binarize='none'" in out.splitlines()[0]
    assert "colors.npz (test), binarize=none" in out
    assert load_run("new").data().train.x.unique().numel() > 2
    _ok(capsys, "evaluate", "new", "--num_samples", "2")


def _error_lines(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    assert main(list(words)) == 1
    return capsys.readouterr().err.splitlines()


def test_evaluate_by_other_methods(capsys: pytest.CaptureFixture[str], run: str) -> None:
    words = ["evaluate", run, "--num_samples", "30", "--split", "valid", "--num_data", "4"]
    for method, text in (("prior", "30 samples each"), ("ais", "2 chains each"), ("bdmc", "<= log p(x) <=")):
        chains = ["--num_chains", "2", "--num_temperatures", "3", "--leapfrog_steps", "1"]
        out = _ok(capsys, *words, "--method", method, *(chains if method != "prior" else []))
        assert text in out
        assert out.splitlines()[-1] == f"{run}/log-marginal-valid-{method}.json"
        figures = json.loads(Path(run, f"log-marginal-valid-{method}.json").read_text())
        assert (figures["method"], figures["num_data"], len(figures["data"])) == (method, 4, 4)
    assert main([*words, "--num_chains", "2"]) == 1
    message = "--num_chains is not an option of --method importance, but of ais, bdmc"
    assert message in capsys.readouterr().err
    out = _ok(capsys, *words, "--target_error", "100", "--defensive", "0.1")
    assert out.splitlines()[-1] == f"{run}/log-marginal-valid-importance.json"


def test_compare_elbos(capsys: pytest.CaptureFixture[str], run: str) -> None:
    words = ["--estimators", "[trace,mean_field]", "--num_particles", "[1]", "--repeats", "3", "--num_data", "8"]
    out = _ok(capsys, "compare-elbos", run, *words)
    assert out.splitlines()[-3:] == [f"{run}/estimators.{ending}" for ending in ("csv", "json", "png")]
    assert "mean_field" in out


def test_sample(capsys: pytest.CaptureFixture[str], run: str) -> None:
    out = _ok(capsys, "sample", run, "--num", "7")
    assert out.splitlines() == [f"{run}/samples.npz", f"{run}/samples.png"]
    first = np.load(f"{run}/samples.npz")["x"]
    assert first.shape == (7, 64)
    assert len(np.unique(first)) > 2
    _ok(capsys, "sample", run, "--num", "7", "--mean", "false", "--out", "other/v1.2.png")
    assert np.unique(np.load("other/v1.2.npz")["x"]).tolist() == [0, 1]
    assert Path("other/v1.2.png").exists()
    _ok(capsys, "sample", run, "--num", "7", "--seed", "1", "--out", "other/x")
    assert not np.array_equal(np.load("other/x.npz")["x"], first)


def test_sampling_needs_no_data(capsys: pytest.CaptureFixture[str], run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_vae.runs.run.load", lambda *_, **__: pytest.fail("loaded data"))
    _ok(capsys, "sample", run, "--num", "1")


def test_reconstruct(capsys: pytest.CaptureFixture[str], run: str) -> None:
    out = _ok(capsys, "reconstruct", run, "--num", "3", "--split", "valid")
    assert out.splitlines() == [f"{run}/reconstructions.npz", f"{run}/reconstructions.png"]
    arrays = np.load(f"{run}/reconstructions.npz")
    data = load_run(run).data().valid
    assert data is not None
    assert np.array_equal(arrays["x"], data.head(3))
    assert arrays["reconstructed"].shape == (3, 64)


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    out = _ok(capsys, "list")
    shown = out.replace("│", " ").replace(",", " ").split()
    for name in (*elbo.names(), *models.__all__, "digits", "mnist", "bernoulli", "Warmup", "Cyclical", "ConvEncoder"):
        assert (name in shown) == (name != "Pair"), name


# Help ---------------------------------------------------------------------------------------------


def _help(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*words, "--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_top_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name in COMMANDS:
        assert f"  {name} " in out
    assert max(map(len, out.splitlines())) <= 100
    assert main([]) == 2
    assert capsys.readouterr().out == out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("pyro-vae 0.")


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_plain(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    out = _help(capsys, command)
    assert max(map(len, out.splitlines())) <= width
    for noise in ("<class", "Union[", "Callable[", "type: ", "known subclasses", "null", "(required)"):
        assert noise not in out


def test_train_help_has_groups_and_says_something_of_every_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "500")
    lines = _help(capsys, "train").splitlines()
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["options:", "model:", "data:", "training:", "evaluation and output:"]
    texts = [line.split("  ") for line in lines]
    after = [*lines[1:], ""]
    silent = [
        line
        for line, words, following in zip(lines, texts, after, strict=True)
        if line.startswith("  -") and len(words) < 3 and not following.startswith("      ")
    ]
    assert silent == []
    joined = "\n".join(lines)
    for name in [n for n in fit.__annotations__ if n not in ("guide", "optim", "callbacks", "checkpoints", "return")]:
        assert f"  --{name} " in joined, name


def test_help_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    for words, expected in (
        (["--model.help", "VAE"], ["--model.latent_dim LATENT_DIM", "Size of z: ", "(default: 20)"]),
        (["--model.help", "my_pair.MyVAE"], ["--model.latent INT", "size of z. (default: 2)"]),
        (["--kl_weight.help", "Warmup"], ["--kl_weight.epochs FLOAT", "(required)"]),
    ):
        with pytest.raises(SystemExit):
            main(["train", *words])
        out = capsys.readouterr().out
        assert all(text in out for text in expected)
        assert "--model.data_shape" not in out
        assert "<class" not in out
    assert "expected one argument" in _error(capsys, "train", "--model.help")


# Options ------------------------------------------------------------------------------------------


def _init_args(path: str) -> dict[str, object]:
    return _config(path)["model"]["init_args"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model", "VAE", "--model.latent_dim", "3"], {"latent_dim": 3}),
        (["--model.hidden", "[10,5]"], {"hidden": [10, 5]}),
        (["--model.likelihood", "normal", "--binarize", "none"], {"likelihood": "normal"}),
        (["--model.posterior", "full_normal", "--model.latent_dim", "2"], {"posterior": "full_normal"}),
    ],
)
def test_arguments_of_the_model(
    capsys: pytest.CaptureFixture[str], words: list[str], expected: dict[str, object]
) -> None:
    _ok(capsys, "train", *QUICK, *words, "--out", "new")
    assert _init_args("new").items() >= expected.items()
    _ok(capsys, "sample", "new", "--num", "2")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--elbo", "mean_field", "--num_particles", "2"], {"num_particles": 2}),
        (["--elbo", "trace"], {"elbo": "trace"}),
        (["--kl_weight", "4"], {"kl_weight": 4.0}),
        (
            ["--kl_weight", "Warmup", "--kl_weight.epochs", "0.5"],
            {"kl_weight": {"epochs": 0.5, "start": 0.0, "end": 1.0}},
        ),
        (["--steps", "3", "--epochs", "null"], {"steps": 3}),
        (["--lr_schedule", "cosine", "--lr", "1e-2", "--clip_norm", "5"], {"lr_schedule": "cosine", "clip_norm": 5.0}),
        (["--valid", "100", "--test", "0.5", "--keep_best", "false"], {"valid": 100, "test": 0.5}),
        (["--early_stopping", "1", "--device", "cpu", "--preflight", "false"], {"early_stopping": 1}),
        (["--valid", "0", "--test", "0"], {"valid": 0, "test": 0}),
    ],
)
def test_options_of_training(capsys: pytest.CaptureFixture[str], words: list[str], expected: dict[str, object]) -> None:
    _ok(capsys, "train", *QUICK, *words, "--out", "new")
    assert _config("new").items() >= expected.items()
    _ok(capsys, "train", "--config", "new/config.yaml", "--out", "again")
    assert Path("again/weights.safetensors").read_bytes() == Path("new/weights.safetensors").read_bytes()


def test_an_elbo_by_its_class(capsys: pytest.CaptureFixture[str]) -> None:
    _ok(capsys, "train", *QUICK, "--elbo", "pyro.infer.Trace_ELBO", "--elbo.num_particles", "2", "--out", "new")
    assert _config("new")["elbo"]["class_path"] == "pyro.infer.Trace_ELBO"  # type: ignore[index]
    _ok(capsys, "train", "--config", "new/config.yaml", "--out", "again")


def test_networks_as_classes(capsys: pytest.CaptureFixture[str]) -> None:
    encoder = ["--model.encoder", "ConvEncoder", "--model.encoder.channels", "[4]", "--model.encoder.hidden", "8"]
    decoder = ["--model.decoder", "ConvDecoder", "--model.decoder.channels", "[4]", "--model.decoder.hidden", "8"]
    words = ["--flatten", "false", "--model.latent_dim", "3", "--epochs", "1", "--num_samples", "2", "--out", "new"]
    _ok(capsys, "train", *encoder, *decoder, *words)
    _ok(capsys, "evaluate", "new", "--num_samples", "2", "--num_data", "5")
    _ok(capsys, "sample", "new", "--num", "3")
    assert np.load("new/samples.npz")["x"].shape == (3, 1, 8, 8)


def test_data_that_are_no_images(capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("table.npz", x=np.random.default_rng(0).normal(size=(60, 5)))
    words = ["--data", "table.npz", "--binarize", "none", "--model.likelihood", "normal", "--batch_size", "20"]
    out = _ok(capsys, "train", *QUICK, *words, "--out", "new")
    assert "no pictures: data of shape (12, 5) are not images" in out
    assert "continuous observations" in out
    assert not Path("new/samples.png").exists()
    out = _ok(capsys, "sample", "new", "--num", "4")
    assert out.splitlines()[0] == "new/samples.npz"
    assert "no picture: data of shape (4, 5) are not images" in out


# Pairs of the user's own --------------------------------------------------------------------------


def test_a_pair_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", "my_pair.MyVAE", "--model.latent", "3", "--model.widths", "[5]", "--binarize", "threshold"]
    _ok(capsys, "train", *words, "--epochs", "1", "--num_samples", "5", "--out", "new")
    assert _init_args("new") == {"latent": 3, "widths": [5]}
    figures = Path("new/evaluation-test.json").read_text()
    for command in ("evaluate", "sample", "reconstruct"):
        message = _error(capsys, command, "new")
        assert "new/config.yaml names 'my_pair.MyVAE' as model.class_path" in message
        assert "--trust true" in message
    _ok(capsys, "evaluate", "new", "--num_samples", "5", "--trust", "true")
    assert Path("new/evaluation-test.json").read_text() == figures
    _ok(capsys, "reconstruct", "new", "--num", "2", "--trust", "true")


def test_a_pair_of_ones_own_has_its_own_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    """Also where an argument is called as one of the VAE's."""
    words = ["--model", "my_pair.Namesake", "--model.activation", "relu"]
    for source in (words, ["--config", "mine.yaml"]):
        with pytest.raises(SystemExit):
            main(["train", *source, "--print_config"])
        Path("mine.yaml").write_text(capsys.readouterr().out)
        config = yaml.safe_load(Path("mine.yaml").read_text())
        assert config["model"]["init_args"] == {"latent_dim": 3, "hidden": 4, "activation": "relu"}
    Path("mine.yaml").write_text("model: {class_path: my_pair.Namesake, init_args: {activation: elu}}")
    _ok(capsys, "train", "--config", "mine.yaml", *QUICK[2:], "--out", "new")
    assert _init_args("new") == {"latent_dim": 3, "hidden": 4, "activation": "elu"}
    assert "needs --model.activation" in _error(capsys, "train", "--model", "my_pair.Namesake")


def test_state_outside_the_pair_is_kept_and_the_run_repeatable(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--model", "my_pair.Scattered", "--model.width", "3", "--epochs", "1", "--num_samples", "5"]
    _ok(capsys, "train", *words, "--out", "new")
    assert {"network/outside/weight", "param/scale", "encoder.0.weight"} < set(load_file("new/weights.safetensors"))
    figures = Path("new/evaluation-test.json").read_text()
    for out in ("evaluated", "again"):
        monkeypatch.delitem(sys.modules, "my_pair")  # as in a new process
        if out == "evaluated":
            _ok(capsys, "evaluate", "new", "--num_samples", "5", "--trust", "true")
            assert Path("new/evaluation-test.json").read_text() == figures
        else:
            _ok(capsys, "train", "--config", "new/config.yaml", "--out", out)
            assert Path(out, "weights.safetensors").read_bytes() == Path("new/weights.safetensors").read_bytes()


def test_errors_in_a_pair_name_the_line(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    line = PAIRS.splitlines().index('        raise KeyError("a slip")') + 1
    message = _error(capsys, "train", "--model", "my_pair.Raising", "--out", "new")
    assert f"the model raised KeyError on ((8, 64)): 'a slip' ({here}/my_pair.py, line {line})" in message
    assert not Path("new").exists()


# Mistakes -----------------------------------------------------------------------------------------

TRAIN_MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "unknown data": (["--data", "mist"], ["unknown data set 'mist'", "did you mean 'mnist'", "digits"]),
    "missing file": (["--data", "no.npz"], ["no file or folder at 'no.npz'"]),
    "unknown model": (
        ["--model", "VEA"],
        ["unknown model VEA, did you mean VAE? Known: GMVAE, VAE, ", "; or module.Class"],
    ),
    "unknown module": (["--model", "my_pare.MyVAE"], ["cannot import my_pare.MyVAE: No module named 'my_pare'"]),
    "unknown class": (["--model", "my_pair.Mine"], ["cannot import my_pair.Mine", "has no attribute 'Mine'"]),
    "broken file": (["--model", "broken.Pair"], ["SyntaxError", "broken.py, line 1"]),
    "no pair": (["--model", "my_pair.Half"], ["my_pair.Half is not a pair", "model(self, x) and guide(self, x)"]),
    "model a number": (["--config", "model.yaml"], ["--model: expected the name of a class", "got 3"]),
    "argument missing": (["--model", "my_pair.Failing"], ["--model Failing needs --model.after"]),
    "unknown argument": (
        ["--model.latent", "3"],
        ["unknown option --model.latent, did you mean --model.latent_dim? VAE takes latent_dim, hidden"],
    ),
    "argument of the wrong type": (["--model.latent_dim", "x"], ["--model.latent_dim: expected int, got x"]),
    "no list": (["--model.hidden", "8"], ["--model.hidden: expected a list, as [1,2], got 8"]),
    "negative size": (["--model.latent_dim", "-3"], ["cannot build the model pyro_vae.VAE", "positive", "-3"]),
    "unknown part": (["--model.likelihood", "nomal"], ["unknown likelihood 'nomal', did you mean 'normal'?"]),
    "unknown estimator": (["--elbo", "men_field"], ["unknown ELBO 'men_field', did you mean 'mean_field'?"]),
    "gray under Bernoulli": (["--binarize", "none"], ["Bernoulli", "outside the support", "binarize='dynamic'"]),
    "unknown choice": (
        ["--binarize", "dynamc"],
        ["expected none, dynamic, static, threshold or auto, got dynamc", "dynamic?"],
    ),
    "no such device": (["--device", "cuda:99"], ["device 'cuda:99' cannot be used here: use one of 'auto', 'cpu'"]),
    "negative rate": (["--lr", "-1"], ["lr must be a number above 0, got -1.0"]),
    "no number": (["--lr", "abc"], ["--lr: expected float, got abc"]),
    "no epochs": (["--epochs", "0"], ["epochs must be", "got 0"]),
    "half an epoch": (["--epochs", "2.5"], ["--epochs: expected int", "got 2.5"]),
    "epochs and steps": (["--epochs", "2", "--steps", "3"], ["give epochs or steps, not both"]),
    "large batch": (["--batch_size", "5000"], ["batch_size must be between 1 and the number of data 1294, got 5000"]),
    "no samples": (["--num_samples", "0"], ["--num_samples must be at least 1, got 0"]),
    "large share": (["--valid", "1.5"], ["valid=1.5: a fraction must lie in [0, 1)"]),
    "no number of data": (["--test", "x"], ["--test: expected int or float, got x"]),
    "nothing to stop by": (["--early_stopping", "2", "--valid", "0"], ["early_stopping needs validation data"]),
    "unknown schedule": (["--lr_schedule", "cosin"], ["--lr_schedule: expected constant, linear, cosine", "cosine?"]),
    "unknown weight": (
        ["--kl_weight", "Warmupp"],
        ["--kl_weight: expected float, Warmup, Cyclical", "did you mean Warmup?"],
    ),
    "weight incomplete": (["--kl_weight", "Warmup"], ["--kl_weight Warmup needs --kl_weight.epochs"]),
    "weight's argument": (
        ["--kl_weight", "Warmup", "--kl_weight.epoch", "1"],
        ["unknown option --kl_weight.epoch, did you mean --kl_weight.epochs? Warmup takes epochs, start, end"],
    ),
    "weight's value": (["--kl_weight", "Warmup", "--kl_weight.epochs", "-1"], ["a warm-up needs epochs > 0"]),
    "warm-up too long": (
        ["--kl_weight", "Warmup", "--kl_weight.epochs", "9"],
        ["the run ends after 1 epochs", "train longer"],
    ),
    "unknown option": (["--epohcs", "3"], ["unknown option --epohcs, did you mean --epochs? `pyro-vae train --help`"]),
    "abbreviation": (["--epoch", "3"], ["unknown option --epoch, did you mean --epochs?"]),
    "stray word": (["zzz"], ["unknown option zzz."]),
    "no truth value": (["--keep_best", "maybe"], ["--keep_best: expected true or false, got maybe"]),
    "missing config": (["--config", "no.yaml"], ["--config: ", "not exist", "no.yaml"]),
    "garbled config": (["--config", "garbled.yaml"], ["--config: the file is not valid YAML: while parsing", "line 2"]),
    "config a list": (["--config", "list.yaml"], ["--config: expected a file with `name: value` on each line"]),
    "config empty": (["--config", "empty.yaml"], ["--config: expected a file with `name: value` on each line"]),
    "config binary": (["--config", "binary.yaml"], ["--config: the file is not a text file"]),
    "config of other things": (["--config", "other.yaml"], ["unknown option --epochz, did you mean --epochs?"]),
    "out a file": (["--out", "my_pair.py"], ["cannot make the run directory my_pair.py: File exists"]),
    "out of someone else": (["--out", ".", "--overwrite", "true"], ["holds files, but no run: choose another --out"]),
}


@pytest.mark.parametrize("mistake", TRAIN_MISTAKES)
def test_mistakes_in_training(capsys: pytest.CaptureFixture[str], here: Path, mistake: str) -> None:
    Path("broken.py").write_text("def (:\n")
    Path("garbled.yaml").write_text("a: [1,\n b: }")
    Path("list.yaml").write_text("- 1\n- 2")
    Path("empty.yaml").write_text("")
    Path("other.yaml").write_text("epochz: 3")
    Path("model.yaml").write_text("model: 3")
    Path("binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    before = sorted(here.rglob("*"))
    words, parts = TRAIN_MISTAKES[mistake]
    message = _error(capsys, "train", *QUICK, "--out", "new", *words)
    for part in parts:
        assert part in message
    assert sorted(here.rglob("*")) == before  # nothing half-made stays


def test_images_of_another_shape(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--flatten", "false", "--model", "my_pair.Scattered", "--model.width", "2", "--epochs", "1"]
    assert "(8, 1, 8, 8)" in _error(capsys, "train", *words, "--out", "new")


def test_other_mistakes(capsys: pytest.CaptureFixture[str], run: str) -> None:
    for words, part in (
        (["evaluate"], "RUN is missing. `pyro-vae evaluate --help` lists the options"),
        (["evaluate", "nowhere"], "no run directory at nowhere"),
        (["evaluate", run, "--num_samples", "0"], "num_samples must be at least 1, got 0"),
        (["evaluate", run, "--num_data", "0"], "asked for 0 data: the test split has 359"),
        (["evaluate", run, "--num_data", "400"], "asked for 400 data: the test split has 359"),
        (["evaluate", run, "--split", "tset"], "--split: expected train, valid or test, got tset, did you mean test?"),
        (["evaluate", run, "--device", "cuda:99"], "device 'cuda:99' cannot be used here"),
        (["sample", run, "--num", "0"], "--num must be at least 1, got 0"),
        (["reconstruct", run, "--num", "-1"], "asked for -1 data"),
        (["sample", run, "--out", "my_pair.py/x"], "my_pair.py"),
    ):
        assert part in _error(capsys, *words)
    assert main(["tarin"]) == 2
    assert capsys.readouterr().err.startswith("pyro-vae: unknown command tarin, did you mean train? Known: train, ")


def test_a_split_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    out = _ok(capsys, "train", *QUICK, "--valid", "0", "--test", "0", "--out", "new")
    assert "data of digits (train)" in out
    assert Path("new/evaluation-train.json").exists()
    assert "the run's data have no test split; --split can be train" in _error(capsys, "evaluate", "new")


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "weights.safetensors", "metrics.csv"])
def test_damaged_runs(capsys: pytest.CaptureFixture[str], run: str, name: str) -> None:
    path = Path(run, name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    for command in ("evaluate", "sample", "reconstruct"):
        assert name in _error(capsys, command, run)
    path.unlink()
    assert f"holds no {name}" in _error(capsys, "evaluate", run)


def test_an_existing_run_is_safe(capsys: pytest.CaptureFixture[str], run: str) -> None:
    before = {p.name: p.read_bytes() for p in Path(run).rglob("*") if p.is_file() and p.name != ".lock"}
    message = _error(capsys, "train", *QUICK, "--out", run)
    assert "holds a run already: choose another --out, or pass --overwrite true" in message
    # nor does it go before its successor has something to show
    _error(capsys, "train", *QUICK, "--lr", "-1", "--out", run, "--overwrite", "true")
    assert {p.name: p.read_bytes() for p in Path(run).rglob("*") if p.is_file() and p.name != ".lock"} == before


def test_overwriting_leaves_nothing_stale(capsys: pytest.CaptureFixture[str], run: str) -> None:
    _ok(capsys, "evaluate", run, "--num_samples", "2", "--split", "valid", "--num_data", "5")
    _ok(capsys, "sample", run, "--num", "2")
    Path(run, "notes.txt").write_text("mine")
    _ok(capsys, "train", *QUICK, "--model.latent_dim", "2", "--out", run, "--overwrite", "true")
    names = {p.name for p in Path(run).iterdir()}
    assert not names & {"evaluation-valid.json", "samples.npz"}
    assert names >= {"notes.txt", "evaluation-test.json"}
    assert load_run(run).pair.latent_dim == 2


def test_no_permission(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    assert "cannot write to the run directory new: choose another --out" in _error(capsys, "train", "--out", "new")


def test_figures_are_shown_even_if_they_cannot_be_saved(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, run: str
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr("pyro_vae.cli.console.save_json", refuse)
    assert main(["evaluate", run, "--num_samples", "2", "--num_data", "3"]) == 1
    out, err = capsys.readouterr()
    assert "log p(x), 2 importance samples" in out
    assert err.startswith("pyro-vae evaluate: read-only")


def test_warnings_are_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, run: str) -> None:
    def warn(*_: object, **__: object) -> None:
        warnings.warn("take care", stacklevel=1)

    monkeypatch.setattr("pyro_vae.cli.evaluate.report", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(["evaluate", run]) == 0
    assert capsys.readouterr().err == "pyro-vae: warning: take care\n"


def test_faults_of_our_own_keep_their_traceback(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_vae.cli.evaluate.report", lambda *_, **__: [][1])
    monkeypatch.setattr("pyro_vae.cli.entry._place", lambda _: "")
    with pytest.raises(IndexError):
        main(["evaluate", run])


# Interrupts ---------------------------------------------------------------------------------------


def test_nan_keeps_the_last_good_weights(capsys: pytest.CaptureFixture[str]) -> None:
    for after, epochs in ((20, 1), (4, 0)):
        words = ["--model", "my_pair.Failing", "--model.after", str(after), "--epochs", "3", "--overwrite", "true"]
        message = _error(capsys, "train", *words, "--out", "new")
        assert "the loss is nan at step" in message
        assert "guide site 'z'" in message
        assert "The weights are saved in new" in message
        assert all(bool(t.isfinite().all()) for t in load_file("new/weights.safetensors").values())
        loaded = load_run("new", trust=True)
        assert (len(loaded.history), loaded.history.stopped, loaded.history.best) == (epochs, "non-finite loss", None)


def test_ctrl_c_while_reporting(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pyro_vae.cli.train.report", interrupt)
    assert main(["train", *QUICK, "--out", "new"]) == 130
    assert "pyro-vae train: interrupted: trained for 1 epoch, " in capsys.readouterr().err
    assert len(load_run("new").history) == 1


def test_ctrl_c_before_training_leaves_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pyro_vae.data.load", interrupt)
    assert main(["train", *QUICK, "--out", "new"]) == 130
    assert capsys.readouterr().err == "pyro-vae train: interrupted\n"
    assert not Path("new").exists()


def test_ctrl_c_while_training() -> None:
    """In a process of its own, started as a user starts it."""
    command = [str(Path(sys.executable).with_name("pyro-vae")), "train", *QUICK, "--epochs", "100000", "--out", "new"]
    command += ["--compile", "false"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not Path("new/run.json").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    waits, err = err.split("\n", 1)
    assert waits == "stopping after this step; press Ctrl-C again to stop immediately"
    assert err.startswith("pyro-vae train: interrupted: trained for ")
    assert err.endswith(
        "`pyro-vae train --resume new` resumes it; `pyro-vae evaluate new` reports its ELBO and log p(x)\n"
    )
    assert err.count("\n") == 1
    loaded = load_run("new")
    assert loaded.history.stopped == "interrupted"
    assert f"the weights are those of epoch {loaded.history.best}" in err
    assert f"trained for {len(loaded.history)} epoch" in err
    assert not list(Path("new").glob(".partial*"))


def test_compare_elbos_writes_what_it_prints(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--estimators", "[iwae,vimco]", "--num_particles", "[1,2]", "--repeats", "2", "--num_data", "5"]
    out = _ok(capsys, "compare-elbos", run, *words)
    assert "vimco" in out
    rows = json.loads((Path(run) / "estimators.json").read_text())["rows"]
    assert [(r["estimator"], r["num_particles"]) for r in rows] == [("iwae", 1), ("iwae", 2), ("vimco", 2)]
    assert (Path(run) / "estimators.csv").is_file()
    assert (Path(run) / "estimators.png").is_file()


def test_diagnose(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = _ok(capsys, "diagnose", run, "--num_data", "50", "--num_samples", "2", "--split", "train")
    assert "latent space of 50 data, 2 draws each" in out
    assert out.splitlines()[-3:] == [f"{run}/latent.{ending}" for ending in ("csv", "json", "png")]
    found = json.loads(Path(run, "latent.json").read_text())
    assert len(found["dimensions"]) == len(Path(run, "latent.csv").read_text().splitlines()) - 1 == 20
    assert Path(run, "latent.png").is_file()
    assert _ok(capsys, "diagnose", run, "--num_data", "50", "--num_samples", "2", "--split", "train") == out


def test_export(run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", run, "--out", str(tmp_path / "out"), "--onnx", "false"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("encoder: x (N, 64) float32 -> z (N, ")
    assert [Path(line).name for line in lines[2:]] == ["encoder.pt2", "decoder.pt2", "export.json"]
    loaded = load_run(run)
    x = loaded.data().test.head(9)
    found = torch.export.load(tmp_path / "out" / "encoder.pt2").module()(x)["z"]
    with torch.no_grad():
        torch.testing.assert_close(found, loaded.pair.encode(x).mean)


def test_calibrate(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["calibrate", run, "--num_data", "40", "--num_simulations", "30", "--num_samples", "9"]
    out = _ok(capsys, *words)
    assert "30 simulations of a datum, ranks among 9 draws" in out
    assert out.splitlines()[-3:] == [f"{run}/calibration.{ending}" for ending in ("csv", "json", "png")]
    found = json.loads(Path(run, "calibration.json").read_text())
    assert found["num_simulations"] == 30
    assert len(found["rows"]) == len(Path(run, "calibration.csv").read_text().splitlines()) - 1
    assert {"z[0]", "log p(x|z)", "all latents", "mean"} <= {row["quantity"] for row in found["rows"]}
    assert _ok(capsys, *words) == out


def test_gaps(run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_vae.evaluate.local.descent.CHECK_EVERY", 5)
    words = ["gaps", run, "--num_data", "3", "--num_samples", "20", "--families", "[diagonal_normal,full_normal]"]
    out = _ok(capsys, *words)
    assert "amortization gap" in out
    assert out.splitlines()[-3:] == [f"{run}/gaps.{ending}" for ending in ("csv", "json", "png")]
    found = json.loads(Path(run, "gaps.json").read_text())
    assert found["num_data"] == len(Path(run, "gaps.csv").read_text().splitlines()) - 1 == 3
    assert found["inference"] == pytest.approx(found["approximation"] + found["amortization"])
    assert Path(run, "gaps.png").is_file()


def test_an_autoencoder_has_a_loss_and_no_log_p(capsys: pytest.CaptureFixture[str]) -> None:
    out = _ok(capsys, "train", *QUICK, "--model", "Autoencoder", "--out", "new")
    assert "no log p(x): the guide has a point mass at the continuous site 'z'" in out
    assert "no bound on log p(x): point masses at z" in out
    assert "new/reconstructions.png" in out
    assert "elbo" in json.loads(Path("new/evaluation-test.json").read_text())


def test_labels_reach_a_pair_that_takes_them(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    quick = ("--epochs", "1", "--num_samples", "5", "--batch_size", "200")
    _ok(capsys, "train", *quick, "--model", "ConditionalVAE", "--labels", "all", "--out", "given")
    for command in ("evaluate", "sample", "reconstruct", "diagnose"):
        options = ("--num_samples", "5") if command == "evaluate" else ("--num", "4") if command == "sample" else ()
        _ok(capsys, command, "given", *options)
    few = ("--labels", "20", "--elbo", "semi_supervised")
    _ok(capsys, "train", *quick, "--model", "SemiSupervisedVAE", *few, "--out", "few")
    assert _config("few")["labels"] == 20
