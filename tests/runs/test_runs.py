"""Run directories: what is written, what comes back, and what is said of damaged ones."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import yaml
from pyro.distributions import constraints
from safetensors.torch import load_file
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.runs import build, clear_run, create_run, load_run, save_json, save_run
from pyro_vae.training.history import Epoch, History
from tests.helpers.run_damage import change_weights, reseal, rewrite, truncate

HERE = __name__
CONFIG = {
    "model": {"class_path": "pyro_vae.VAE", "init_args": {"latent_dim": 2, "hidden": [4]}},
    "data": "digits",
    "binarize": "static",
    "flatten": True,
    "root": None,
    "valid": 0.1,
    "test": 0.2,
    "seed": 3,
}
HISTORY = History([Epoch(n, n, 9.0, -8.0, None, -7.0, 1.0, 1.0, 0.1, 0.5) for n in (1, 2)], best=2, elbo="trace")

outside = nn.Sequential(nn.Linear(2, 64), nn.BatchNorm1d(64))


class Scattered(nn.Module):
    """A pair with state in all places: its own network, one of the module's, and Pyro's parameter store."""

    def __init__(self, width: int = 2) -> None:
        super().__init__()
        self.encoder = nn.Linear(64, width)

    def model(self, x: Tensor) -> None:
        pyro.module("outside", outside)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=outside(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        scale = pyro.param("scale", lambda: torch.full((2,), 0.5), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), scale).to_event(1))


class Plain:
    """A pair that is no module."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.decoder = nn.Linear(size, 64)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.size), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(self.size), 1.0).to_event(1))


class WantsInt(nn.Module):
    def __init__(self, data_shape: int) -> None:
        super().__init__()
        self.size = data_shape

    def model(self, x: Tensor) -> None: ...

    def guide(self, x: Tensor) -> None: ...


class WantsShape(WantsInt):
    def __init__(self, data_shape, sizes: tuple[int, ...] = (1,), net: nn.Module | None = None) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        super().__init__(data_shape)
        self.sizes, self.net = sizes, net


class Half(nn.Module):
    def model(self, x: Tensor) -> None: ...


class Failing(WantsInt):
    def __init__(self) -> None:
        raise KeyError("no such thing")


@pytest.fixture(scope="module")
def data() -> pv.data.Data:
    return pv.data.load("digits", **{k: v for k, v in CONFIG.items() if k not in ("model", "data")})  # type: ignore[arg-type]


def _save(path: Path, data: pv.data.Data, pair: Any, spec: dict[str, Any], **params: Tensor) -> Path:
    create_run(path)
    save_run(path, pair, {**CONFIG, "model": spec}, data.describe(), HISTORY, params=params, command="a command")
    return path


@pytest.fixture
def run(tmp_path: Path, data: pv.data.Data) -> Path:
    vae = build(CONFIG["model"], data.shape)
    return _save(tmp_path / "run", data, vae, CONFIG["model"])  # type: ignore[arg-type]


def test_files(run: Path) -> None:
    assert sorted(p.name for p in run.iterdir()) == [
        "config.yaml",
        "metrics.csv",
        "metrics.jsonl",
        "run.json",
        "weights.safetensors",
    ]
    assert yaml.safe_load((run / "config.yaml").read_text()) == CONFIG
    assert [row["epoch"] for row in csv.DictReader((run / "metrics.csv").read_text().splitlines())] == ["1", "2"]
    record = json.loads((run / "run.json").read_text())
    assert record["command"] == "a command"
    assert record["versions"]["torch"] == torch.__version__
    assert record["data"]["binarize"] == "static"
    assert len(record["data"]["fingerprint"]) == 16
    assert (record["best"], record["stopped"], record["epochs"]) == (2, "finished", 2)


def test_the_pair_comes_back(run: Path, data: pv.data.Data) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    loaded = load_run(run)
    assert torch.equal(torch.get_rng_state(), state)  # building it initializes weights, with noise
    assert not loaded.pair.training
    assert loaded.shape == (64,)
    assert loaded.history == History(HISTORY.epochs, 2, "finished", data.describe(), 3, "trace")
    assert all(torch.equal(t, load_file(run / "weights.safetensors")[n]) for n, t in loaded.pair.state_dict().items())
    test, again = data.test, loaded.data().test
    assert test is not None
    assert again is not None
    assert torch.equal(test.x, again.x)
    bounds = [pv.bound(load_run(run).model, loaded.guide, test.head(5), seed=0).elbo for _ in range(2)]
    assert torch.equal(*bounds)


def test_state_in_all_places(tmp_path: Path, data: pv.data.Data) -> None:
    x = data.train.head(10)
    pair = Scattered()
    pair.guide(x)
    with torch.no_grad():
        pyro.get_param_store().get_state()["params"]["scale"].add_(1.0)
    outside(torch.randn(10, 2))  # moves the running averages
    before = {name: value.clone() for name, value in outside.state_dict().items()}
    expected = pv.bound(pair.model, pair.guide, x, seed=0).elbo
    params = dict(pyro.get_param_store().named_parameters())
    path = _save(tmp_path / "run", data, pair, {"class_path": f"{HERE}.Scattered"}, **params)
    assert set(load_file(path / "weights.safetensors")) == {
        "encoder.weight",
        "encoder.bias",
        *(f"network/outside/{name}" for name in before),
        "param/scale",
    }
    for value in outside.state_dict().values():
        value.zero_()
    pyro.clear_param_store()
    loaded = load_run(path, trust=True)
    assert all(torch.equal(value, before[name]) for name, value in outside.state_dict().items())
    assert not outside.training
    assert float(pyro.param("scale")[0].detach()) == pytest.approx(0.5 * math.e)
    assert torch.equal(pv.bound(loaded.model, loaded.guide, x, seed=0).elbo, expected)
    outside.train()


def test_a_parameter_that_another_pair_shares_is_announced(tmp_path: Path, data: pv.data.Data) -> None:
    pair = Scattered()
    pair.guide(data.train.head(2))
    params = dict(pyro.get_param_store().named_parameters())
    path = _save(tmp_path / "run", data, pair, {"class_path": f"{HERE}.Scattered"}, **params)
    with pytest.warns(UserWarning, match="parameter store has scale already"):
        load_run(path, trust=True)


def test_a_pair_that_is_no_module(tmp_path: Path, data: pv.data.Data) -> None:
    pair = Plain(3)
    path = _save(tmp_path / "run", data, pair, {"class_path": f"{HERE}.Plain", "init_args": {"size": 3}})
    assert torch.equal(load_run(path, trust=True).pair.decoder.weight, pair.decoder.weight)


def test_tied_weights_are_saved(tmp_path: Path, data: pv.data.Data) -> None:
    vae = build(CONFIG["model"], data.shape)
    vae.extra = vae.decoder
    _save(tmp_path / "run", data, vae, CONFIG["model"])  # type: ignore[arg-type]


def test_state_that_is_no_tensor_is_refused(tmp_path: Path, data: pv.data.Data) -> None:
    class Odd(WantsShape):
        def get_extra_state(self) -> dict[str, int]:
            return {"a": 1}

    with pytest.raises(TypeError, match=r"'_extra_state' is a dict: only tensors can be saved"):
        _save(tmp_path / "run", data, Odd(1), {})


def test_json_has_no_nan(tmp_path: Path) -> None:
    path = save_json(tmp_path / "a.json", {"a": math.nan, "b": [math.inf, {"c": -math.inf}], "d": (1.5, "x", None)})
    assert json.loads(path.read_text()) == {"a": None, "b": [None, {"c": None}], "d": [1.5, "x", None]}
    assert "NaN" not in path.read_text()


def test_create(tmp_path: Path) -> None:
    path = create_run(tmp_path / "a" / "b")
    assert create_run(path) == path  # empty: nothing to lose
    with pytest.raises(FileExistsError):
        create_run(path, exist_ok=False)
    (path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds files, but no run: choose another --out"):
        create_run(path, overwrite=True)
    (path / "weights.safetensors").write_text("")
    with pytest.raises(FileExistsError, match="pass --overwrite true"):
        create_run(path)
    (path / "evaluation-valid.json").write_text("")
    (path / "samples.npz").write_text("")
    assert create_run(path, overwrite=True) == path
    assert (path / "samples.npz").exists()
    clear_run(path)
    assert [p.name for p in path.iterdir()] == ["notes.txt"]


def test_create_where_it_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=r"cannot make the run directory .*; choose another --out"):
            create_run(path)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(PermissionError, match="cannot write to the run directory"):
        create_run(tmp_path / "new")


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "config garbled": (
        lambda r: (r / "config.yaml").write_text("a: [1,\n b: }"),
        "config.yaml is damaged: while parsing",
    ),
    "config binary": (lambda r: (r / "config.yaml").write_bytes(b"\xff\xfe\x00"), "config.yaml is damaged"),
    "config empty": (
        lambda r: (r / "config.yaml").write_text(""),
        "config.yaml is damaged: expected entries .* nothing",
    ),
    "config a list": (
        lambda r: (r / "config.yaml").write_text("- 1"),
        "config.yaml is damaged: expected entries .* list",
    ),
    "config cut": (
        lambda r: rewrite(r / "config.yaml", lambda c: c.pop("binarize")),
        "config.yaml is damaged: it has no entry 'binarize'",
    ),
    "model a number": (lambda r: rewrite(r / "config.yaml", lambda c: c.update(model=3)), "cannot import the model 3"),
    "model unknown": (
        lambda r: rewrite(r / "config.yaml", lambda c: c.update(model={"class_path": "no_such_file.Pair"})),
        "config.yaml names 'no_such_file.Pair' as model.class_path, which is not a class of pyro_vae",
    ),
    "model gone": (
        lambda r: rewrite(r / "config.yaml", lambda c: c.update(model={"class_path": "pyro_vae.NoPair"})),
        "config.yaml names 'pyro_vae.NoPair' as model.class_path",
    ),
    "argument unknown": (
        lambda r: rewrite(r / "config.yaml", lambda c: c["model"]["init_args"].update(latent=3)),
        "cannot build the model pyro_vae.VAE: .*does not accept option 'latent'",
    ),
    "run.json garbled": (lambda r: truncate(r / "run.json"), "run.json is damaged"),
    "run.json a list": (lambda r: (r / "run.json").write_text("[]"), "run.json is damaged: expected entries"),
    "run.json without data": (
        lambda r: rewrite(r / "run.json", lambda c: c.update(data={"shape": [64]})),
        "run.json is damaged: it has no entry 'fingerprint'",
    ),
    "another format": (
        lambda r: rewrite(r / "run.json", lambda c: c.update(format=99)),
        "run format 99, this version of pyro_vae reads 1 to 2: update pyro_vae",
    ),
    "metrics garbled": (lambda r: (r / "metrics.csv").write_text("\0\0\nx,y"), "metrics.csv is damaged"),
    "metrics cut in a row": (lambda r: truncate(r / "metrics.csv", 0.85), "metrics.csv is damaged"),
    "NaN in the weights": (
        lambda r: change_weights(r, lambda t: t["decoder.final.bias"].fill_(math.nan)),
        "weights.safetensors is damaged: the tensor 'decoder.final.bias' holds NaN",
    ),
    "weights of another type": (
        lambda r: change_weights(r, lambda t: t.update({"decoder.final.bias": torch.zeros(64, dtype=torch.float64)})),
        r"'decoder.final.bias' has shape \(64,\) \(torch.float64\), the model's has \(64,\) \(torch.float32\)",
    ),
    "metrics cut between rows": (
        lambda r: (r / "metrics.csv").write_text("".join((r / "metrics.csv").read_text().splitlines(True)[:2])),
        "metrics.csv is damaged: it has 1 of 2 epochs",
    ),
    "metrics binary": (lambda r: (r / "metrics.csv").write_bytes(b"\xff\xfe"), "metrics.csv is damaged"),
    "weights cut": (lambda r: truncate(r / "weights.safetensors"), "weights.safetensors is damaged"),
    "weights empty": (lambda r: (r / "weights.safetensors").write_bytes(b""), "weights.safetensors is damaged"),
    "weights garbled": (lambda r: (r / "weights.safetensors").write_text("x" * 999), "weights.safetensors is damaged"),
    "a tensor missing": (
        lambda r: change_weights(r, lambda t: t.pop("decoder.final.bias")),
        r"does not fit the model: it lacks the tensor 'decoder.final.bias'",
    ),
    "a tensor too many": (
        lambda r: change_weights(r, lambda t: t.update(more=torch.zeros(1))),
        r"does not fit the model: it has an unexpected tensor 'more'",
    ),
    "a tensor of another shape": (
        lambda r: change_weights(r, lambda t: t.update({"decoder.final.bias": torch.zeros(3)})),
        r"'decoder.final.bias' has shape \(3,\) .*, the model's has \(64,\)",
    ),
    "a foreign parameter": (
        lambda r: change_weights(r, lambda t: t.update({"param/scale": torch.zeros(3)})),
        r"a parameter 'scale' of shape \(3,\) .*, the pair makes none",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(run: Path, damage: str) -> None:
    harm, message = DAMAGES[damage]
    harm(run)
    reseal(run)  # what is behind the checksums is looked at, too
    with pytest.raises(ValueError, match=message) as caught:
        load_run(run)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "weights.safetensors", "metrics.csv"])
def test_missing_files(run: Path, name: str) -> None:
    (run / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"holds no {name}: it is not a run directory, or a damaged one"):
        load_run(run)


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run directory at"):
        load_run(tmp_path / "nowhere")


def test_a_device_that_is_not_there(run: Path) -> None:
    with pytest.raises(ValueError, match=r"^device 'cuda:99' cannot be used here"):
        load_run(run, device="cuda:99")


def test_a_parameter_of_another_shape(tmp_path: Path, data: pv.data.Data) -> None:
    pair = Scattered()
    path = _save(tmp_path / "run", data, pair, {"class_path": f"{HERE}.Scattered"}, scale=torch.zeros(5))
    with pytest.raises(ValueError, match=r"parameter 'scale' of shape \(5,\) .*, the pair makes one of shape \(2,\)"):
        load_run(path, trust=True)
    assert "scale" not in pyro.get_param_store()  # nothing of the failure stays


def test_data_that_have_changed(run: Path, tmp_path: Path) -> None:
    rewrite(run / "config.yaml", lambda c: c.update(seed=4))
    reseal(run)
    with pytest.raises(ValueError, match=r"the data 'digits' are not those that .* was trained on"):
        load_run(run).data()


def test_data_in_another_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = pv.data.load

    def spy(*args: Any, **kwargs: Any) -> pv.data.Data:
        seen.append(kwargs["root"])
        return original(*args, **kwargs)

    monkeypatch.setattr("pyro_vae.runs.run.load", spy)
    load_run(run).data("elsewhere")
    load_run(run).data()
    assert seen == ["elsewhere", None]


def test_a_moved_run(run: Path, tmp_path: Path) -> None:
    moved = shutil.move(run, tmp_path / "moved")
    assert load_run(moved).pair.latent_dim == 2


@pytest.mark.parametrize(("shape", "given"), [((64,), (64,)), ((1, 8, 8), (1, 8, 8))])
def test_shape_of_the_data_is_passed_on(shape: tuple[int, ...], given: tuple[int, ...]) -> None:
    pair = build({"class_path": f"{HERE}.WantsShape", "init_args": {"sizes": [1, 2]}}, shape)
    assert pair.size == given
    assert pair.sizes == (1, 2)


def test_shape_as_an_int() -> None:
    assert build({"class_path": f"{HERE}.WantsInt"}, (64,)).size == 64
    with pytest.raises(
        ValueError, match=r"data_shape is an int, but the data have shape \(1, 8, 8\): pass --flatten true"
    ):
        build({"class_path": f"{HERE}.WantsInt"}, (1, 8, 8))


def test_nested_classes() -> None:
    net = {"class_path": "pyro_vae.nets.MLP", "init_args": {"in_shape": 3, "hidden": [2], "out_shape": 4}}
    pair = build({"class_path": f"{HERE}.WantsShape", "init_args": {"net": net}}, (64,))
    assert isinstance(pair.net, pv.nets.MLP)


def test_what_cannot_be_built() -> None:
    with pytest.raises(ValueError, match=r"cannot build the model .*Failing: KeyError: 'no such thing'"):
        build({"class_path": f"{HERE}.Failing"}, (64,))
    with pytest.raises(ValueError, match=r"is not a pair: it has no method guide\(self, x\)"):
        build({"class_path": f"{HERE}.Half"}, (64,))


def test_what_does_not_fit_changes_nothing(tmp_path: Path, data: pv.data.Data) -> None:
    """Not even networks that the pair shares with others."""
    pair = Scattered()
    path = _save(tmp_path / "run", data, pair, {"class_path": f"{HERE}.Scattered"}, scale=torch.zeros(5))
    with torch.no_grad():
        next(outside.parameters()).add_(1.0)
    before = {name: value.clone() for name, value in outside.state_dict().items()}
    with pytest.raises(ValueError, match=r"parameter 'scale' of shape \(5,\)"):
        load_run(path, trust=True)
    assert all(torch.equal(value, before[name]) for name, value in outside.state_dict().items())
    outside.train()
