"""Several processes train as one does: equal weights on all, and those of a single process where there is no noise."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import pyro_vae as pv
from pyro_vae.distributed import ranks
from pyro_vae.distributed.ranks import Ranks
from tests.helpers.paths import ROOT

SCRIPT = ROOT / "tests/helpers/two_ranks.py"
NOISE_FREE = ["in_memory", "few_in_the_last_batch", "accumulated", "averaged", "pyro_optimizer", "shared_latent"]


def start(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    with socket.socket() as free:  # two launches at a time must not meet at one port
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "SLURM"))}
    env |= {"OMP_NUM_THREADS": "1", "MASTER_PORT": str(port), "MASTER_ADDR": "127.0.0.1", **environment}
    return subprocess.run(
        [sys.executable, *map(str, words)], env=env, capture_output=True, text=True, timeout=500, check=False
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, list[Any]]]:
    """What each scenario found on each rank, by the number of ranks."""
    result: dict[int, dict[str, list[Any]]] = {}
    for size in (1, 2):
        folder = tmp_path_factory.mktemp(f"ranks{size}")
        done = start(SCRIPT, folder, str(size), *([*NOISE_FREE, "averages"] if size == 1 else []))
        assert done.returncode == 0, done.stderr
        names = {path.stem.rsplit("-", 1)[0] for path in folder.glob("*.pt")}
        result[size] = {
            name: [torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in range(size)]
            for name in names
        }
        result[size]["printed"] = done.stdout.splitlines()
    return result


@pytest.mark.parametrize("name", NOISE_FREE)
def test_two_processes_do_what_one_does(found: Any, name: str) -> None:
    (one,), two = found[1][name], found[2][name]
    for rank in two:
        torch.testing.assert_close(rank["weights"].double(), one["weights"].double(), rtol=1e-5, atol=1e-6)
        for mine, alone in zip(rank["history"], one["history"], strict=True):
            assert {k: v for k, v in mine.items() if v is not None} == pytest.approx(
                {k: v for k, v in alone.items() if v is not None}, rel=1e-5
            )


@pytest.mark.parametrize(
    "name",
    [*NOISE_FREE, "batch_norm", "loader", "noisy", "phases", "early_end", "resumed", "stopped_by_signal", "exploding"],
)
def test_ranks_end_with_equal_weights_and_metrics(found: Any, name: str) -> None:
    first, second = found[2][name]
    assert torch.equal(first["weights"], second["weights"])
    assert first["history"] == second["history"]
    assert first["weights"].isfinite().all()


def test_all_leave_out_the_same_steps(found: Any) -> None:
    (alone,), two = found[1]["averaged"], found[2]["averaged"]
    assert 0 < alone["skipped"] < 12
    assert [rank["skipped"] for rank in two] == [alone["skipped"]] * 2


def test_running_averages_are_those_of_the_whole_batch(found: Any) -> None:
    (one,), two = found[1]["averages"], found[2]["averages"]
    for name, expected in one.items():
        assert torch.equal(two[0][name], two[1][name]), name
        difference = float((two[0][name].double() - expected.double()).abs().max())
        assert difference < 1e-4, name


def test_codes_move_to_data_of_all_shares(found: Any) -> None:
    first, second = (rank["vectors"] for rank in found[2]["revived"])
    assert torch.equal(first, second)
    torch.testing.assert_close(first.abs(), torch.full_like(first, 4.0), rtol=1e-3, atol=1e-3)
    assert set(first.sign().flatten().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize(("name", "steps"), [("in_memory", 51), ("loader", 52)])
def test_an_epoch_is_split_into_shards(found: Any, name: str, steps: int) -> None:
    # before the first step each rank looks at a few data; one datum is taken twice, so that all have 52
    seen = [[round(v * 103) for v in rank["seen"].tolist()] for rank in found[2][name]]
    first, second = seen[0][-steps:], seen[1][-52:]
    assert set(first) | set(second) == set(range(103))
    assert len(set(first) & set(second)) <= 1


def test_ranks_have_noise_of_their_own(found: Any) -> None:
    first, second = found[2]["noisy"]
    assert not torch.equal(first["noise"], second["noise"])


def test_callbacks_run_on_the_first_rank_and_stop_all(found: Any) -> None:
    first, second = found[2]["early_end"]
    assert (first["called"], second["called"]) == ([1, 2], [])
    assert first["stopped"] == second["stopped"] == "callback"
    assert len(second["history"]) == 2


def test_a_run_goes_on_as_if_it_had_not_stopped(found: Any) -> None:
    for rank in found[2]["resumed"]:
        assert torch.equal(rank["weights"], rank["straight"])
        assert rank["history"] == rank["straight_history"]
        assert "processes was None, is now 2" in rank["refused"]


def test_a_signal_to_one_rank_stops_all(found: Any) -> None:
    for rank in found[2]["stopped_by_signal"]:
        assert rank["stopped"] == "interrupted"
        assert 2 <= rank["epochs"] <= 5


def test_nan_on_one_rank_is_nan_on_all(found: Any) -> None:
    first, second = found[2]["exploding"]
    assert first["step"] == second["step"]
    assert "the loss is nan" in first["error"]
    assert "the loss is nan" in second["error"]
    assert torch.equal(first["after_error"], second["after_error"])
    assert first["history"][-1]["epoch"] == 5  # went back once, then on


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("loader", "ValueError: several processes cannot share the data of Batches"),
        ("data", "ValueError: the processes have been given different data"),
        ("shared", "ValueError: all data share the latent site 'center'"),
        ("per_datum", "ValueError: preflight"),
        ("devices", "ValueError: devices=3 on 1 node were requested, but this process is one of 2"),
        ("strategy", "ValueError: strategy must be 'auto' or 'ddp', got 'fsdp'"),
        ("few", "ValueError: 1 data cannot be split among 2 processes"),
    ],
)
def test_what_cannot_be_shared_is_refused_on_all_ranks(found: Any, name: str, words: str) -> None:
    for rank in found[2]["refusals"]:
        assert words in rank[name]


def test_log_marginal_is_shared_out_and_put_together_in_order(found: Any) -> None:
    first, second = found[2]["marginal"]
    for name in ("log_prob", "error", "khat", "bounds", "ais"):
        assert torch.equal(first[name], second[name])
    exact = first["exact"]
    assert ((first["log_prob"] - exact).abs() < 4 * first["error"] + 1e-6).all()
    assert ((first["ais"] - exact).abs() < 5 * first["ais_error"] + 0.05).all()
    assert first["summary"] == second["summary"] == pytest.approx(float(exact.mean()), abs=0.1)


def test_torchrun_starts_the_ranks_itself(tmp_path: Path, found: Any) -> None:
    words = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    done = start(*words, "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0", SCRIPT, tmp_path, "2", "in_memory")
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        again = torch.load(tmp_path / f"in_memory-{rank}.pt", weights_only=False)
        assert torch.equal(again["weights"], found[2]["in_memory"][0]["weights"])


def test_the_command_line_trains_and_evaluates_on_two_ranks(tmp_path: Path) -> None:
    run, small = tmp_path / "run", ["--epochs", "2", "--num_samples", "10", "--progress", "false", "--device", "cpu"]
    program = [Path(sys.executable).with_name("pyro-vae")]
    done = start(*program, "train", "--out", run, *small, "--model.hidden", "[8]", "--devices", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained for 2 epochs") == 1
    assert len(pv.load_run(run).history) == 2
    again = start(*program, "train", "--resume", run, "--epochs", "3", "--progress", "false", "--devices", "2")
    assert again.returncode == 0, again.stderr
    assert len(pv.load_run(run).history) == 3
    alone = start(*program, "train", "--resume", run, "--epochs", "4", "--progress", "false")
    assert alone.returncode == 1
    assert "processes was 2, is now None" in alone.stderr
    twice = start(*program, "train", "--out", run, *small, "--devices", "2")
    assert twice.returncode == 1
    assert twice.stderr.count("pyro-vae train:") == 1
    evaluated = start(*program, "evaluate", run, "--num_samples", "20", "--progress", "false", "--devices", "2")
    assert evaluated.returncode == 0, evaluated.stderr
    assert evaluated.stdout.count("importance samples") == 1
    assert json.loads((run / "evaluation-test.json").read_text())["num_data"] == 359


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("n", [1, 2, 5, 8, 64, 103])
def test_shards_weigh_each_row_equally(n: int, size: int) -> None:
    weight = [0.0] * n
    for rank in range(size):
        start, stop, share = Ranks(rank, size).rows(n)
        assert stop > start
        for row in range(start, stop):
            weight[row] += share / (stop - start)
    assert weight == pytest.approx([1 / n] * n)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"devices": 0}, "devices must be 'auto' or a whole number from 1, got 0"),
        ({"devices": "all"}, "got 'all'"),
        ({"num_nodes": 0}, "num_nodes must be a whole number from 1, got 0"),
        ({"strategy": "deepspeed"}, "strategy must be 'auto' or 'ddp', got 'deepspeed'"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pv.launch(**options)


def test_one_process_has_nothing_to_start() -> None:
    assert pv.launch() == pv.launch(1) == Ranks()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0, but no MASTER_ADDR and no MASTER_PORT"),
        ({"LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}, "LOCAL_RANK=0, but no MASTER_PORT"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK='x', expected a whole number"),
        ({"LOCAL_RANK": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}, "LOCAL_RANK=2, which devices=2 does not"),
        (
            {"LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "WORLD_SIZE": "4"},
            "devices=2 on 1 node were requested, but the environment has WORLD_SIZE=4",
        ),
        ({"LOCAL_RANK": "1", "PYRO_VAE_STORE": "/nowhere/store"}, "the run that set LOCAL_RANK=1 has ended"),
    ],
)
def test_what_another_run_has_left_in_the_environment_is_refused(
    environment: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "LOCAL_RANK", "PYRO_VAE_STORE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{words}.*unset LOCAL_RANK"):
        pv.launch(2, device="cpu")


def test_torchelastic_without_its_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match=r"LOCAL_WORLD_SIZE='', expected a whole number.*unset LOCAL_WORLD_SIZE"):
        pv.launch()


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's table of sockets")
def test_nobody_else_can_connect_and_nothing_is_left_in_the_environment(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import glob, os, pathlib, pyro_vae as pv\n"
        "ranks = pv.launch(2, device='cpu')\n"
        "mine = {os.readlink(f)[8:-1] for f in glob.glob('/proc/self/fd/*')\n"
        "        if os.path.lexists(f) and os.readlink(f).startswith('socket:')}\n"
        "rows = [line.split() for name in ('tcp', 'tcp6') for line in open(f'/proc/net/{name}').readlines()[1:]]\n"
        "listens = [row[1].split(':')[0] for row in rows if row[3] == '0A' and row[9] in mine]\n"
        "left = sorted(n for n in os.environ if n in ('LOCAL_RANK', 'WORLD_SIZE', 'NODE_RANK', 'PYRO_VAE_STORE'))\n"
        "pathlib.Path(f'{__file__}.{ranks.rank}').write_text(f'{listens} {left}')\n"
    )
    done = start(script, NODE_RANK="1", GROUP_RANK="3")  # left over, too
    assert done.returncode == 0, done.stderr
    listens, left = Path(f"{script}.0").read_text().rsplit(" [", 1)
    assert left == "'NODE_RANK']"  # as it was
    assert set(json.loads(listens.replace("'", '"'))) <= {"0100007F", "00000000000000000000000001000000"}


def test_the_end_does_not_wait_for_a_process_that_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()

    def waiting() -> None:
        asked.set()
        threading.Event().wait(30)

    monkeypatch.setattr(ranks.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(ranks.dist, "destroy_process_group", waiting)
    monkeypatch.setattr(ranks, "SECONDS_TO_END", 0.1)
    began = time.monotonic()
    ranks._destroy_group()
    assert asked.is_set()
    assert time.monotonic() - began < 20
