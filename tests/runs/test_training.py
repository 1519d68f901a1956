"""Training into a run directory from Python: whatever the pair and the data, the run comes back and goes on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import yaml
from pyro.distributions import constraints
from safetensors.torch import load_file
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.cli import main
from pyro_vae.runs import LoadedRun, compare_runs, list_runs, load_run, read_run, train
from pyro_vae.training.fitting import fit
from pyro_vae.training.nonfinite import NonFiniteLoss
from tests.stored_pair import StoredPair

DIGITS = {"binarize": "static", "flatten": True}
SMALL = {"latent_dim": 2, "hidden": [4]}
QUICK: dict[str, Any] = {"data_args": DIGITS, "epochs": 2, "batch_size": 400, "seed": 3}

Programs = tuple[Callable[..., Any], Callable[..., Any]]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def two_functions() -> Programs:
    """A pair of plain functions, with two networks and a parameter of its own."""
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(64, 2), nn.Linear(2, 64)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        scale = pyro.param("scale", lambda: torch.full((2,), 0.5), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), scale).to_event(1))

    return model, guide


def metrics(run: LoadedRun) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in run.history.to_dicts()]


def test_a_class_is_trained_as_by_the_command_line() -> None:
    run = train(pv.VAE, "digits", init_args=SMALL, out="python", **QUICK)
    words = ["--binarize", "static", "--epochs", "2", "--batch_size", "400", "--seed", "3", "--num_samples", "2"]
    assert main(["train", "--model.latent_dim", "2", "--model.hidden", "[4]", *words, "--out", "shell"]) == 0
    ours, theirs = load_run("python"), load_run("shell")
    assert metrics(ours) == metrics(theirs) == metrics(run)
    assert all(torch.equal(v, theirs.pair.state_dict()[k]) for k, v in ours.pair.state_dict().items())
    assert set(theirs.config) - set(ours.config) == {"num_samples"}
    assert {k: v for k, v in ours.config.items() if k != "model"} == {
        k: v for k, v in theirs.config.items() if k not in ("model", "num_samples")
    }
    assert compare_runs("python", "shell").results["loss"][0] == run.history[-1].loss
    assert main(["train", "--config", "python/config.yaml", "--num_samples", "2", "--out", "again"]) == 0
    assert metrics(load_run("again")) == metrics(run)


def test_what_is_returned() -> None:
    state = torch.get_rng_state()
    run = train(pv.VAE, "digits", init_args=SMALL, out="a", **QUICK)
    assert torch.equal(torch.get_rng_state(), state)
    assert (run.path, run.history.stopped, len(run.history)) == (Path("a"), "finished", 2)
    assert run.record == read_run("a").record
    assert run.config == read_run("a").config
    data = run.data()
    assert data is run.data()
    assert torch.equal(load_run("a").data().train.x, data.train.x)
    assert float(pv.bound(run.model, run.guide, data.test.x[:9], seed=0).elbo.mean()) < 0


def test_data_that_were_loaded_before() -> None:
    data = pv.data.load("digits", binarize="dynamic", flatten=True, valid=100, seed=7)
    train(pv.VAE, data, init_args=SMALL, out="a", epochs=1, batch_size=400, seed=3)
    run = load_run("a")
    assert (run.config["seed"], run.config["data_seed"], run.config["valid"]) == (3, 7, 100)
    again = run.data()
    assert torch.equal(again.train.intensity, data.train.intensity)
    assert len(again.valid) == 100  # type: ignore[arg-type]


def test_the_command_line_goes_on_with_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    data = pv.data.load("digits", binarize="static", flatten=True, seed=7)
    options: dict[str, Any] = {"batch_size": 400, "seed": 3}
    train(pv.VAE, data, init_args=SMALL, out="a", epochs=1, **options)
    whole = train(pv.VAE, data, init_args=SMALL, out="whole", epochs=2, **options)
    assert main(["train", "--resume", "a", "--epochs", "2", "--num_samples", "2"]) == 0
    assert metrics(load_run("a")) == metrics(whole)
    assert load_run("a").config["data_seed"] == 7
    train(pv.VAE(64, 2, hidden=(4,)), data, out="b", epochs=1, **options)
    capsys.readouterr()
    assert main(["train", "--resume", "b", "--epochs", "2"]) == 1
    assert "b is a run of a pair made in Python and can only be resumed there" in capsys.readouterr().err


def test_data_from_memory_are_named_and_not_loaded_again() -> None:
    x = torch.rand(50, 64).round()
    run = train(pv.VAE, x, init_args=SMALL, out="a", epochs=1, batch_size=10, seed=3)
    assert run.history.data["counts"] == {"train": 36, "valid": 4, "test": 10}
    assert read_run("a").config["data"] == "tensor"
    with pytest.raises(ValueError, match="unknown data set 'tensor'"):
        load_run("a").data()


def test_a_pair_of_two_functions() -> None:
    pyro.get_param_store().clear()
    pyro.param("foreign", torch.zeros(2))
    model, guide = two_functions()
    run = train((model, guide), "digits", out="a", **QUICK)
    assert set(load_file("a/weights.safetensors")) == {
        *(f"network/{net}/{part}" for net in ("encoder", "decoder") for part in ("weight", "bias")),
        "param/scale",
    }
    x = run.data().test.x[:9]
    expected = pv.bound(model, guide, x, seed=0).elbo
    pyro.clear_param_store()
    other = two_functions()
    assert not torch.equal(pv.bound(*other, x, seed=0).elbo, expected)
    pyro.clear_param_store()
    with pytest.raises(ValueError, match=r"not the functions: pass them, load_run\(path, pair=\(model, guide\)\)"):
        load_run("a")
    loaded = load_run("a", pair=other)
    assert torch.equal(pv.bound(loaded.model, loaded.guide, x, seed=0).elbo, expected)
    assert [row.model for row in list_runs(".").rows] == ["two_functions"]


def test_an_object_made_before() -> None:
    vae = pv.VAE(64, latent_dim=2, hidden=(4,))
    train(vae, "digits", out="a", **QUICK)
    assert read_run("a").config["model"] == {"functions": ["pyro_vae.VAE.model", "pyro_vae.VAE.guide"]}
    assert [row.model for row in list_runs(".").rows] == ["VAE"]
    loaded = load_run("a", pair=pv.VAE(64, latent_dim=2, hidden=(4,)))
    assert all(torch.equal(v, vae.state_dict()[k]) for k, v in loaded.pair.state_dict().items())
    with pytest.raises(ValueError, match="does not fit the model"):
        load_run("a", pair=pv.VAE(64, latent_dim=3, hidden=(4,)))


def test_a_class_of_ones_own() -> None:
    pyro.clear_param_store()
    run = train(StoredPair, "digits", init_args={"width": 2}, out="a", **QUICK)
    assert "param/scale" in load_file("a/weights.safetensors")
    with pytest.raises(ValueError, match="not a class of pyro_vae"):
        load_run("a")
    pyro.clear_param_store()
    assert metrics(load_run("a", trust=True)) == metrics(run)


@pytest.mark.parametrize("form", ["class", "functions"])
def test_a_run_goes_on_as_if_it_had_not_stopped(form: str) -> None:
    def go(out: str, **options: Any) -> LoadedRun:
        pyro.clear_param_store()
        pair: Any = pv.VAE if form == "class" else two_functions()
        init_args = SMALL if form == "class" else None
        return train(pair, "digits", init_args=init_args, out=out, **{**QUICK, "epochs": 3, **options})

    def stop(state: pv.State) -> bool:
        return len(state.history) == 2

    whole = go("whole", resume=True)  # from the start, since there is nothing yet
    first = go("a", callbacks=[stop])
    assert (len(first.history), first.history.stopped) == (2, "callback")
    second = go("a", resume=True)
    assert metrics(second) == metrics(whole)
    files = [load_file(f"{name}/weights.safetensors") for name in ("whole", "a")]
    assert all(torch.equal(value, files[1][name]) for name, value in files[0].items())
    assert second.record["started"] == first.record["started"]
    with pytest.raises(ValueError, match=r"lr was 0\.001, is now 0\.5"):
        go("a", resume=True, lr=0.5, epochs=4)
    with pytest.raises(ValueError, match=r"a holds a run of .*, but this pair is .*Autoencoder"):
        train(pv.Autoencoder, "digits", out="a", resume=True, **QUICK)
    assert metrics(load_run("a", pair=None if form == "class" else two_functions())) == metrics(whole)


def test_a_run_that_is_there_is_safe() -> None:
    train(pv.VAE, "digits", init_args=SMALL, out="a", **QUICK)
    before = Path("a/weights.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="a holds a run already"):
        train(pv.VAE, "digits", init_args=SMALL, out="a", **QUICK)
    with pytest.raises(ValueError, match="lr must be"):
        train(pv.VAE, "digits", init_args=SMALL, out="a", overwrite=True, lr=-1.0, **QUICK)
    assert Path("a/weights.safetensors").read_bytes() == before
    train(pv.VAE, "digits", init_args=SMALL, out="a", overwrite=True, **{**QUICK, "seed": 4})
    assert Path("a/weights.safetensors").read_bytes() != before


def test_a_run_that_cannot_begin_leaves_nothing(here: Path) -> None:
    for options, error, message in (
        ({"lr": -1.0}, ValueError, "lr must be"),
        ({"init_args": {"latent_dim": 0}}, ValueError, r"cannot build the model pyro_vae\.VAE"),
        ({"epohcs": 3}, TypeError, "fit has no option 'epohcs': did you mean epochs?"),
        ({"resume": True, "out": None}, ValueError, "resume=True needs out="),
    ):
        with pytest.raises(error, match=message):
            train(pv.VAE, "digits", **{"out": "new", "data_args": DIGITS, **options})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a class with the methods model and guide"):
        train(pv.bound, "digits", out="new")
    with pytest.raises(ValueError, match="init_args are the arguments of a class"):
        train(two_functions(), "digits", init_args={"a": 1}, out="new")
    assert list(here.iterdir()) == []


def test_every_option_of_fit_is_taken_and_recorded() -> None:
    seen: list[int] = []
    run = train(
        pv.VAE,
        "digits",
        init_args=SMALL,
        data_args=DIGITS,
        steps=4,
        elbo=pv.elbo.IWAE(num_particles=2),
        optim=functools.partial(torch.optim.SGD, lr=1e-4),
        kl_weight=pv.elbo.Warmup(1),
        lr_schedule=_half,
        batch_size=400,
        callbacks=[lambda state: seen.append(len(state.history))],
        checkpoint_steps=2,
        progress=False,
    )
    assert run.path.parent == Path("runs")
    assert run.path.name.endswith("-VAE-digits")
    assert seen == [1]
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    assert config["elbo"] == "pyro_vae.elbo.IWAE"
    assert config["kl_weight"]["class_path"] == "pyro_vae.elbo.Warmup"
    assert config["kl_weight"]["init_args"]["epochs"] == 1
    assert config["lr_schedule"].endswith("._half")
    assert isinstance(config["seed"], int)
    assert "SGD" in str(config["optim"])
    of_data = {"data", "binarize", "flatten", "root", "valid", "test", "labels", "types", "tokens", "seed"}
    options = set(config) - of_data - {"model"}
    by_hand = {"model", "guide", "data", "valid", "callbacks", "checkpoints", "resume", "seed", "progress"}
    assert options == set(fit.__annotations__) - by_hand - {"devices", "num_nodes", "strategy", "return"}
    assert len(list((run.path / "checkpoints").glob("*.json"))) == 2


def _half(share: float) -> float:
    return 0.5


def test_a_loss_that_is_not_finite_keeps_the_last_good_weights() -> None:
    model, guide = two_functions()
    runs = 0

    def failing(x: Tensor) -> None:
        nonlocal runs
        runs += 1
        guide(x * float("nan") if runs > 30 else x)

    pyro.clear_param_store()
    with pytest.raises(NonFiniteLoss, match="The weights are saved in a"):
        train((model, failing), "digits", out="a", **{**QUICK, "epochs": 50, "preflight": False})
    assert read_run("a").history.stopped == "non-finite loss"


def test_an_interrupted_run_is_saved_and_returned() -> None:
    def interrupt(state: pv.State) -> None:
        raise KeyboardInterrupt

    run = train(pv.VAE, "digits", init_args=SMALL, out="a", callbacks=[interrupt], **QUICK)
    assert run.history.stopped == "interrupted"
    assert load_run("a").history.stopped == "interrupted"


def test_the_run_is_shown_before_it_starts() -> None:
    started: list[LoadedRun] = []
    run = train(pv.VAE, "digits", init_args=SMALL, out="a", on_start=started.append, **QUICK)
    assert (started[0].path, len(started[0].history), started[0].pair) == (Path("a"), 0, run.pair)


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again() -> None:
    Path("run/checkpoints").mkdir(parents=True)
    for name in (".lock", ".partial-checkpoint-000000001.json"):
        Path("run/checkpoints", name).touch()
    run = train(pv.VAE, "digits", init_args=SMALL, out="run", **QUICK)
    assert len(run.history) == 2
    Path("other/checkpoints").mkdir(parents=True)
    Path("other/checkpoints/thesis.txt").touch()
    with pytest.raises(FileExistsError, match="other holds files, but no run"):
        train(pv.VAE, "digits", init_args=SMALL, out="other", **QUICK)


@pytest.mark.parametrize("option", ["resume", "overwrite"])
def test_a_folder_of_checkpoints_that_is_a_link_is_refused(option: str) -> None:
    """The run may come from somebody else, and the link lead anywhere."""
    train(pv.VAE, "digits", init_args=SMALL, out="run", **QUICK)
    Path("run/checkpoints").rename("mine")
    Path("run/checkpoints").symlink_to(Path("mine").absolute())
    before = {file.name: file.read_bytes() for file in Path("mine").iterdir()}
    options = {**QUICK, "epochs": 3, option: True}
    with pytest.raises(ValueError, match=r"run/checkpoints is a link to another folder"):
        train(pv.VAE, "digits", init_args=SMALL, out="run", **options)
    assert {file.name: file.read_bytes() for file in Path("mine").iterdir()} == before


def test_another_test_set_or_other_labels_are_other_data() -> None:
    x, y = torch.rand(40, 9).round(), torch.arange(40) % 3
    np.savez("d.npz", x_train=x, y_train=y, x_test=x[:9])
    run = train(pv.VAE, "d.npz", init_args=SMALL, out="run", epochs=1, batch_size=20, seed=0)
    assert len(load_run("run").data().train) == len(run.data().train)
    for changed, split in (({"x_test": 1 - x[:9]}, "test"), ({"y_train": 2 - y}, "train")):
        arrays: dict[str, Any] = {"x_train": x, "y_train": y, "x_test": x[:9], **changed}
        np.savez("d.npz", **arrays)
        with pytest.raises(
            ValueError, match=f"are not those that run was trained on .fingerprint of the {split} split"
        ):
            load_run("run").data()
