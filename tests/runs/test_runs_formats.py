"""Runs of every format there has been are loaded forever, and what a run records about its making."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pyro
import pytest
import torch
from safetensors.torch import load_file

import pyro_vae as pv
from pyro_vae.runs import load_run, read_run, save_run
from pyro_vae.runs.machine import commit
from pyro_vae.runs.record import FORMAT, MIGRATIONS, parse_record, seal
from tests.helpers.paths import STORED
from tests.stored_pair import outside

FORMATS = sorted(path.name for path in STORED.iterdir())


def test_there_is_a_stored_run_of_each_format() -> None:
    assert [f"format_{n}" for n in range(1, FORMAT + 1)] == FORMATS
    assert sorted(MIGRATIONS) == list(range(1, FORMAT))


@pytest.mark.parametrize("name", FORMATS)
def test_a_stored_run_is_loaded(name: str) -> None:
    run = load_run(STORED / name / "vae")
    stored = load_file(STORED / name / "vae" / "weights.safetensors")
    assert all(torch.equal(value, stored[key]) for key, value in run.pair.state_dict().items())
    assert (run.pair.latent_dim, run.shape, len(run.history), run.history.best) == (2, (64,), 2, 2)
    assert run.record["format"] == FORMAT
    assert run.record["data"]["fingerprint"] == "e4c80147893bf9c9"
    test = run.data().test
    assert test is not None
    # as the run itself reported, in evaluation-test.json, from noise of the same seed
    reported = json.loads((STORED / name / "vae" / "evaluation-test.json").read_text())
    elbo = pv.bound(run.model, run.guide, test.x, num_samples=20, seed=0).elbo.mean()
    assert float(elbo) == pytest.approx(reported["elbo"], abs=0.05)


@pytest.mark.parametrize("name", FORMATS)
def test_a_stored_run_of_a_class_of_ones_own_is_loaded(name: str) -> None:
    run = load_run(STORED / name / "scattered", trust=True)
    stored = load_file(STORED / name / "scattered" / "weights.safetensors")
    assert torch.equal(run.pair.encoder.weight, stored["encoder.weight"])
    assert all(torch.equal(value, stored[f"network/outside/{key}"]) for key, value in outside.state_dict().items())
    assert torch.equal(dict(pyro.get_param_store().named_parameters())["scale"], stored["param/scale"])
    outside.train()


def test_an_old_record_is_brought_up_to_date() -> None:
    record = parse_record((STORED / "format_1" / "vae" / "run.json").read_bytes())
    assert (record["format"], record["files"], record["git"], record["seconds"]) == (2, {}, None, None)
    assert record["versions"]["pyro_vae"] == "0.1.0"


def test_what_a_run_records(tmp_path: Path) -> None:
    old = load_run(STORED / "format_1" / "vae")
    save_run(tmp_path, old.pair, old.config, old.record["data"], old.history, command="pyro-vae train --epochs 2")
    record = read_run(tmp_path).record
    assert record["command"] == "pyro-vae train --epochs 2"
    assert (record["data"]["binarize"], record["seconds"]) == ("dynamic", old.history[-1].seconds)
    assert record["hardware"]["cores"] == os.cpu_count()
    assert record["hardware"]["cpu"]
    assert record["hardware"]["threads"] == torch.get_num_threads()
    assert record["hardware"]["gpu"] is None
    assert record["peak_memory"] > 50 * 2**20  # torch alone takes more
    assert set(record["versions"]) == {"pyro_vae", "torch", "pyro", "numpy", "python"}
    assert "T" in record["started"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == old.history.to_dicts()


def test_the_commit_of_the_working_folder(tmp_path: Path) -> None:
    assert commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file").write_text("1")
    for words in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    commit.cache_clear()
    found = commit(tmp_path)
    assert found is not None
    assert (len(found["commit"]), found["dirty"]) == (40, False)
    (tmp_path / "file").write_text("2")
    commit.cache_clear()
    found = commit(tmp_path)
    assert found is not None
    assert found["dirty"]


def test_a_record_is_sealed() -> None:
    record = {**parse_record((STORED / "format_1" / "vae" / "run.json").read_bytes())}
    record["files"] = dict.fromkeys(("config.yaml", "weights.safetensors", "metrics.csv"), "0" * 64)
    text = seal({**record, "seconds": math.nan})
    assert parse_record(text.encode())["seconds"] is None
    with pytest.raises(ValueError, match="its checksum does not fit its content"):
        parse_record(text.replace('"epochs": 2', '"epochs": 1').encode())


@pytest.mark.slow
def test_another_process_loads_the_same(tmp_path: Path) -> None:
    run = load_run(STORED / "format_1" / "vae")
    save_run(tmp_path, run.pair, run.config, run.record["data"], run.history)
    code = (
        "import sys, pyro_vae as pv\n"
        "run = pv.load_run(sys.argv[1], device='cpu')\n"
        "x = run.data().test.head(7)\n"
        "print(repr(pv.bound(run.model, run.guide, x, seed=0).elbo.tolist()))\n"
        "print(repr(run.history.valid_elbo), run.config['binarize'], run.history.data['fingerprint'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    bounds, rest = done.stdout.splitlines()
    test = run.data().test
    assert test is not None
    assert json.loads(bounds) == pv.bound(run.model, run.guide, test.head(7), seed=0).elbo.tolist()
    assert rest == f"{run.history.valid_elbo!r} dynamic e4c80147893bf9c9"


@pytest.mark.gpu
def test_another_device_loads_the_same(gpu: torch.device) -> None:
    run = load_run(STORED / "format_1" / "vae", device=gpu.type)
    here = load_run(STORED / "format_1" / "vae")
    assert run.device.type == gpu.type
    assert all(torch.equal(v.cpu(), here.pair.state_dict()[k]) for k, v in run.pair.state_dict().items())
