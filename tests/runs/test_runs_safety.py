"""Run directories from strangers: no code of theirs runs, nothing outside is read or written, refusals are clear."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from pyro_vae.runs import check_names, load_run, reading, save_run
from tests.helpers import paths
from tests.helpers.run_damage import reseal, rewrite

STORED = paths.STORED / "format_2" / "vae"
CANARY = "import pathlib; pathlib.Path(__file__).with_name('sang').write_text('')\n"


class Bystander(nn.Module):
    """A class of the program that loads the run."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return shutil.copytree(STORED, tmp_path / "run")


@pytest.fixture
def sang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], bool]]:
    """Whether the module `canary`, which can be imported from the current folder, was."""
    (tmp_path / "canary.py").write_text(CANARY + "class Song:\n    pass\n\ndef sing(*args):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield lambda: (tmp_path / "sang").exists() or "canary" in sys.modules
    sys.modules.pop("canary", None)


def test_the_canary_sings_when_trusted(run: Path, sang: Callable[[], bool]) -> None:
    rewrite(run / "config.yaml", lambda c: c["model"]["init_args"].update(encoder="canary.sing"))
    reseal(run)
    with pytest.raises(ValueError, match=r"config\.yaml"):
        load_run(run, trust=True)
    assert sang()


HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "the class": lambda m: m.update(class_path="canary.Song"),
    "a class of the standard library": lambda m: m.update(class_path="subprocess.Popen", init_args={"args": ["ls"]}),
    "a plain string for a callable": lambda m: m["init_args"].update(encoder="canary.sing"),
    "a function of the system": lambda m: m["init_args"].update(decoder="os.system"),
    "a module inside the library": lambda m: m["init_args"].update(decoder="pyro_vae.runs.directory.os.system"),
    "what the library imports": lambda m: m["init_args"].update(decoder="pyro_vae.models.vae.itertools.count"),
    "a part that is not allowed": lambda m: m.update(class_path="pyro_vae.data.Sprites"),
    "a function of torch": lambda m: m["init_args"].update(decoder="torch.load"),
    "a function of torch.nn": lambda m: m["init_args"].update(decoder="torch.nn.functional.relu"),
    "a nested class": lambda m: m["init_args"].update(
        encoder={"class_path": "torch.nn.Sequential", "init_args": {"args": [{"class_path": "canary.Song"}]}}
    ),
    "YAML in a string": lambda m: m["init_args"].update(encoder="{class_path: canary.Song}"),
    "JSON in a string": lambda m: m["init_args"].update(encoder='{"class_path": "canary.Song"}'),
    "a key with a dot": lambda m: m["init_args"].update({"encoder.class_path": "canary.Song"}),
    "a nested key": lambda m: m["init_args"].update({"encoder": {"canary.Song": 1}}),
    "further arguments": lambda m: m.update(dict_kwargs={"encoder": "canary.sing"}),
    "the path of a file": lambda m: m["init_args"].update(encoder="./canary.py"),
    "a class without a module": lambda m: m.update(class_path="Song"),
    "a relative module": lambda m: m.update(class_path="..canary.Song"),
    "a private use of a dunder": lambda m: m["init_args"].update(decoder="pyro_vae.nets.__builtins__.eval"),
    "a very long word": lambda m: m["init_args"].update(activation="a" * 500),
    "the name of a class that is known already": lambda m: m["init_args"].update(encoder="Bystander"),
    "a key of the parser": lambda m: m["init_args"].update(encoder={"__path__": "x"}),
    "a list of paths": lambda m: m["init_args"].update(hidden=["canary.sing"]),
    "a model by name alone": lambda m: m.update(class_path=["canary.Song"]),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_nothing_foreign_is_imported(run: Path, sang: Callable[[], bool], attack: str) -> None:
    rewrite(run / "config.yaml", lambda c: HOSTILE[attack](c["model"]))
    reseal(run)
    with pytest.raises(ValueError, match=r"config\.yaml names .* as model.*trust=True \(--trust true") as caught:
        load_run(run)
    assert len(str(caught.value)) < 700
    assert not sang()


def test_a_model_that_is_a_string(run: Path, sang: Callable[[], bool]) -> None:
    for model in ("canary.Song", "{class_path: canary.Song}"):
        rewrite(run / "config.yaml", lambda c, model=model: c.update(model=model))  # type: ignore[misc]
        reseal(run)
        with pytest.raises(ValueError, match=r"config\.yaml names .* as model, which is not a class"):
            load_run(run)
    assert not sang()


def test_what_is_allowed() -> None:
    net = {"class_path": "pyro_vae.nets.MLP", "init_args": {"in_shape": 3, "hidden": [2], "out_shape": 4}}
    layers = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 3, "bias": False, "x": None, "y": 0.5}}
    likelihood = {"class_path": "pyro_vae.conditionals.Normal", "init_args": {"scale": "pixel"}}
    check_names({"class_path": "pyro_vae.VAE", "init_args": {"a": net, "b": layers, "c": likelihood}}, Path("x"))
    check_names("pyro_vae.models.vae.VAE", Path("x"))
    check_names("torch.nn.modules.linear.Linear", Path("x"))
    check_names("pyro_vae.elbo.Warmup", Path("x"))


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "weights.safetensors", "metrics.csv"])
def test_links_are_not_followed(run: Path, name: str) -> None:
    shutil.move(run / name, run.parent / name)
    (run / name).symlink_to(run.parent / name)
    with pytest.raises(ValueError, match=rf"{name} is a link to another file.*trust=True"):
        load_run(run)
    assert load_run(run, trust=True).pair.latent_dim == 2
    (run / name).unlink()
    (run / name).symlink_to(run / "nowhere")
    with pytest.raises(ValueError, match=f"{name} is a link"):
        load_run(run)


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "weights.safetensors", "metrics.csv"])
def test_neither_folders_nor_pipes_are_read(run: Path, name: str) -> None:
    (run / name).unlink()
    (run / name).mkdir()
    with pytest.raises(ValueError, match=f"{name} is not a plain file"):
        load_run(run)
    (run / name).rmdir()
    os.mkfifo(run / name)  # to open it would wait forever
    for trust in (False, True):
        with pytest.raises(ValueError, match=f"{name} is not a plain file"):
            load_run(run, trust=trust)


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "weights.safetensors", "metrics.csv"])
def test_huge_files_are_not_read(run: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(reading.LIMITS, "weights.safetensors", 2**29)  # in place of this machine's memory
    with open(run / name, "r+b") as file:
        file.truncate(2**30)  # sparse: it takes no space
    with pytest.raises(ValueError, match=rf"{name} has 1,073,741,824 bytes, more than"):
        load_run(run)


@pytest.mark.parametrize("name", ["config.yaml", "weights.safetensors", "metrics.csv"])
def test_a_changed_bit_is_seen(run: Path, name: str) -> None:
    content = bytearray((run / name).read_bytes())
    content[-2] ^= 4
    (run / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is damaged, or was changed after training: its checksum"):
        load_run(run)


def test_a_changed_record_is_seen(run: Path) -> None:
    text = (run / "run.json").read_text()
    (run / "run.json").write_text(text.replace('"finished"', '"finishes"'))
    with pytest.raises(ValueError, match=r"run\.json is damaged: its checksum does not fit its content"):
        load_run(run)


BOMBS: dict[str, tuple[str, str, str]] = {
    "aliases": (
        "config.yaml",
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n",
        "it has an alias, \\*a, which no configuration",
    ),
    "deep YAML": ("config.yaml", "a: " + "[" * 5000 + "]" * 5000, "more than 30 levels|maximum nesting depth"),
    "wide YAML": ("config.yaml", "a: [" + "1," * 200_000 + "]", "more than 30 levels or 10,000 values"),
    "a Python object": (
        "config.yaml",
        "model: !!python/object/apply:os.system ['touch sang']\n",
        "could not determine a constructor",
    ),
    "deep JSON": ("run.json", "[" * 200_000 + "]" * 200_000, "RecursionError while reading it"),
    "deep JSON objects": ("run.json", '{"a":' * 100_000 + "1" + "}" * 100_000, "RecursionError while reading it"),
    "NaN in JSON": ("run.json", '{"format": NaN}', "NaN is not valid JSON"),
    "a key twice": ("run.json", '{"format": 2, "format": 1}', "it has a duplicate key"),
    "a huge number": ("run.json", '{"format": ' + "9" * 10_000 + "}", "digits"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs(run: Path, sang: Callable[[], bool], bomb: str) -> None:
    name, text, message = BOMBS[bomb]
    (run / name).write_text(text)
    reseal(run)
    with pytest.raises(ValueError, match=f"{name} is damaged: .*({message})"):
        load_run(run)
    assert not sang()


def test_a_model_far_larger_than_its_weights_takes_no_memory(run: Path) -> None:
    rewrite(run / "config.yaml", lambda c: c["model"]["init_args"].update(hidden=[2**40]))
    reseal(run)
    with pytest.raises(
        ValueError, match=r"describes a model that takes more than [\d,]+ bytes to build, but 4,624 are"
    ):
        load_run(run)


def test_data_of_an_absurd_shape(run: Path) -> None:
    for shape, message in (
        ([2**40], "numbers each"),
        ([], "expected a list"),
        ([-1], "expected a list"),
        (["a"], "expected a list"),
        ([True], "expected a list"),
    ):
        rewrite(run / "run.json", lambda r, shape=shape: r["data"].update(shape=shape))  # type: ignore[misc]
        reseal(run)
        with pytest.raises(ValueError, match=rf"run\.json is damaged: its data have shape .*{message}"):
            load_run(run)


WRONG_ENTRIES: dict[str, list[Any]] = {
    "epochs": ["2", 1.5, None, True, -1],
    "best": ["2", 0, 3, False],
    "stopped": [None, 1],
    "elbo": [["mean_field"]],
    "seconds": ["long"],
    "started": [5],
    "files": [None, ["config.yaml"]],
    "data": [None, "digits"],
}


@pytest.mark.parametrize("entry", WRONG_ENTRIES)
def test_entries_of_the_wrong_type(run: Path, entry: str) -> None:
    original = (run / "run.json").read_text()
    for value in WRONG_ENTRIES[entry]:
        (run / "run.json").write_text(original)
        rewrite(run / "run.json", lambda r, value=value: r.update({entry: value}))  # type: ignore[misc]
        reseal(run)
        with pytest.raises(ValueError, match=r"run\.json is damaged"):
            load_run(run)


def test_a_folder_that_only_the_run_names_is_not_made(run: Path, tmp_path: Path) -> None:
    there = tmp_path / "made" / "by" / "a" / "stranger"
    rewrite(run / "config.yaml", lambda c: c.update(data="mnist", root=str(there)))
    reseal(run)
    with pytest.raises(FileNotFoundError, match=r"the folder of the data, .*stranger.* does not exist: pass"):
        load_run(run).data()
    assert not there.exists()


def test_a_run_is_whole_whenever_its_saving_is_cut(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before, after or between any two moves of a file: what is there is the old run or the new one, whole."""
    old = load_run(run)
    new = load_run(run)
    with torch.no_grad():
        for value in new.pair.parameters():
            value.add_(1.0)
    real = os.replace
    seen = set()
    for cut in range(20):
        shutil.rmtree(run)
        shutil.copytree(STORED, run)
        left = cut

        def dies(source: Any, target: Any) -> None:
            nonlocal left
            if left == 0:
                raise SystemExit
            left -= 1
            real(source, target)

        monkeypatch.setattr(os, "replace", dies)
        try:
            save_run(run, new.pair, {**new.config, "seed": 9}, new.record["data"], new.history)
        except SystemExit:
            finished = False
        else:
            finished = True
        monkeypatch.setattr(os, "replace", real)
        loaded = load_run(run)
        which = old if loaded.config["seed"] == 0 else new
        seen.add(which is new)
        assert loaded.config["seed"] == (9 if which is new else 0)
        assert all(torch.equal(v, which.pair.state_dict()[k]) for k, v in loaded.pair.state_dict().items())
        if finished:
            break
    assert seen == {True, False}
    assert finished
    assert load_file(run / "weights.safetensors").keys() == old.pair.state_dict().keys()
    assert not [p for p in run.iterdir() if p.name.startswith(".")]


def test_a_configuration_is_written_without_aliases(tmp_path: Path) -> None:
    old = load_run(STORED)
    shared = [8]
    config = {**old.config, "more": [shared, shared]}
    save_run(tmp_path, old.pair, config, old.record["data"], old.history)
    assert load_run(tmp_path).config == config
    assert "*" not in (tmp_path / "config.yaml").read_text()
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == config
    assert json.loads((tmp_path / "run.json").read_text())["format"] == 2
