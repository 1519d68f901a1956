"""What a run leaves on the disk and in the process when it fails, is killed, or shares a folder with other files."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.support.snapshots import Snapshot, read_snapshot, write_snapshot
from pyro_vae.training.batches import Batches
from pyro_vae.training.checkpoints.signals import stop_between_steps
from pyro_vae.training.losses import AT_MOST, EpochLosses

X = (torch.rand(80, 8, generator=torch.Generator().manual_seed(0)) < 0.5).float()


def vae() -> pv.VAE:
    pyro.clear_param_store()
    torch.manual_seed(0)
    return pv.VAE(8, 2, hidden=(4,))


def fit(pair: Any, data: Any = X, **options: Any) -> pv.History:
    if "steps" not in options:
        options.setdefault("epochs", 2)
    options = {"seed": 0, "progress": False, "preflight": False, **options}
    if isinstance(data, Tensor):
        options.setdefault("batch_size", 20)
    return pv.fit(pair.model, pair.guide, data, **options)


def steps_in(folder: Path) -> list[int]:
    return sorted(int(file.stem.split("-")[1]) for file in folder.glob("checkpoint-*.json"))


def values(pair: nn.Module) -> list[Tensor]:
    return [value.clone() for value in pair.state_dict().values()]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# The folder of checkpoints


def test_files_of_others_stay(tmp_path: Path) -> None:
    pair = vae()
    pv.save_pair(tmp_path / "precious", pair.model, pair.guide)
    names = [
        "other.safetensors",
        ".partial-thesis.docx",
        "checkpoint-best.safetensors",
        ".partial-checkpoint-best.json",
    ]
    for name in names:
        (tmp_path / name).write_bytes(b"somebody else's")
    own = ["checkpoint-000000007.safetensors", ".partial-checkpoint-000000009.json"]  # of a process that was killed
    for name in own:
        (tmp_path / name).write_bytes(b"half")
    before = (tmp_path / "precious.safetensors").read_bytes()
    fit(pair, checkpoints=pv.Checkpoints(tmp_path, steps=1, keep=1))
    assert steps_in(tmp_path) == [8]
    assert [(tmp_path / name).read_bytes() for name in names] == [b"somebody else's"] * len(names)
    assert (tmp_path / "precious.safetensors").read_bytes() == before
    assert not any((tmp_path / name).exists() for name in own)


def test_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    target, folder = tmp_path / "mine", tmp_path / "checkpoints"
    target.write_text("mine")
    folder.mkdir()
    (folder / ".lock").symlink_to(target)
    with pytest.raises(ValueError, match="is not a plain file"):
        fit(vae(), checkpoints=folder)
    assert target.read_text() == "mine"


@pytest.mark.parametrize("change", ["cut", "header", "values", "sha256", "format"])
def test_a_checkpoint_made_wrong_with_right_checksums_is_skipped(tmp_path: Path, change: str) -> None:
    fit(vae(), checkpoints=pv.Checkpoints(tmp_path, steps=4))
    straight = vae()
    fit(straight, epochs=3)
    name = tmp_path / "checkpoint-000000008"
    if change in ("cut", "header"):
        data = (tmp_path / f"{name}.safetensors").read_bytes()
        snapshot = read_snapshot(name)
        broken = data[:-4] if change == "cut" else b"\xff" * 8 + data[8:]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pyro_vae.support.snapshots.save", lambda tensors: broken)
            write_snapshot(name, snapshot)
    else:
        file = tmp_path / f"{name}.json"
        file.write_text(file.read_text().replace(f'"{change}"', '"another"'))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pyro_vae.support.snapshots._checksum", lambda content: content["checksum"])
            with pytest.raises(ValueError, match=r"checkpoint-000000008.* is damaged"):
                read_snapshot(name)
        return
    pair = vae()
    with pytest.warns(UserWarning, match=r"checkpoint-000000008\.safetensors is damaged.*using the checkpoint before"):
        fit(pair, epochs=3, checkpoints=tmp_path, resume=True)
    assert equal(values(pair), values(straight))


def test_checkpoints_in_use_are_refused(tmp_path: Path) -> None:
    every = pv.Checkpoints(tmp_path, steps=1)

    def nested(state: pv.State) -> None:
        fit(vae(), checkpoints=every)

    with pytest.raises(RuntimeError, match="a run that has not ended uses these checkpoints"):
        fit(vae(), checkpoints=every, callbacks=[nested])
    fit(vae(), checkpoints=every)  # and afterwards they can be used


# Signals


def test_a_signal_handler_only_sets_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def write(self, text: str) -> int:
            raise BrokenPipeError

        flush = write

    monkeypatch.setattr("sys.stderr", Broken())
    with stop_between_steps() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        stop.acknowledge()  # whoever read the messages has ended


# Errors


class Loader:
    """Batches, with a NaN after so many of them."""

    def __init__(self, good: int) -> None:
        self.good, self.seen = good, 0

    def __iter__(self) -> Iterator[Tensor]:
        for batch in X.split(20):
            self.seen += 1
            yield batch if self.seen <= self.good else batch.clone().fill_(float("nan"))


@pytest.mark.parametrize("good", [3, 6])
def test_a_nan_leaves_the_last_good_weights_on_the_disk(tmp_path: Path, good: int) -> None:
    pair = vae()
    with pytest.raises(pv.NonFiniteLoss) as caught:
        fit(pair, Loader(good + 1), epochs=5, checkpoints=tmp_path)  # one batch was an example
    assert steps_in(tmp_path) == [caught.value.step]
    straight = vae()
    fit(straight, Loader(100), steps=caught.value.step)
    again = vae()
    fit(again, Loader(100), steps=caught.value.step, checkpoints=tmp_path, resume=True)
    assert equal(values(straight), values(pair))
    assert equal(values(straight), values(again))


class Exploding(torch.optim.Adam):
    """Makes the weights infinite at one step."""

    def __init__(self, params: Any, at: int) -> None:
        super().__init__(params)
        self.at, self.made = at, 0

    def step(self, closure: Any = None) -> Any:
        self.made += 1
        super().step(closure)
        if self.made == self.at:
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.fill_(float("inf"))


def test_infinite_weights_are_never_written(tmp_path: Path) -> None:
    """Those of the epoch before are, which the pair has, too."""
    pair = vae()
    with pytest.raises(pv.NonFiniteLoss, match="The previous update had made"):
        fit(pair, epochs=3, optim=lambda p: Exploding(p, 6), checkpoints=pv.Checkpoints(tmp_path, steps=3))
    assert steps_in(tmp_path)[-1] == 4
    for step in steps_in(tmp_path):
        snapshot = read_snapshot(tmp_path / f"checkpoint-{step:09d}")
        assert all(t.isfinite().all() for t in snapshot.tensors.values() if t.is_floating_point())
    straight = vae()
    fit(straight, epochs=1, optim=lambda p: Exploding(p, 99))
    assert equal(values(straight), values(pair))


def test_an_error_in_a_callback_loses_no_epoch(tmp_path: Path) -> None:
    def fail(state: pv.State) -> None:
        if len(state.history) == 2:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(vae(), epochs=4, checkpoints=tmp_path, callbacks=[fail])
    assert steps_in(tmp_path) == [8]
    pair, straight = vae(), vae()
    history = fit(pair, epochs=4, checkpoints=tmp_path, resume=True)
    pyro.clear_param_store()
    fit(straight, epochs=4)
    assert [epoch.epoch for epoch in history] == [1, 2, 3, 4]
    assert equal(values(pair), values(straight))


def test_nan_in_a_loader_of_validation_data_is_named_and_loses_no_epoch(tmp_path: Path) -> None:
    bad = X[:20].clone()
    bad[3, 2] = float("nan")
    valid = [X[20:40], bad]
    with pytest.raises(ValueError, match=r"validation data, batch 1: argument 0 .* in 1 of 20 data, first datum 3"):
        fit(vae(), valid=[X[20:40], bad], epochs=3, checkpoints=tmp_path, optim=None)
    assert steps_in(tmp_path) == [4]
    pair, straight = vae(), vae()
    with pytest.raises(ValueError, match=r"valid\.content was"):
        fit(pair, valid=[X[20:40], X[:20]], epochs=3, checkpoints=tmp_path, resume=True)
    bad[3, 2] = X[3, 2]
    assert torch.equal(valid[1], X[:20])
    with pytest.raises(ValueError, match=r"validation data: argument 0 of the data has NaN"):
        fit(pair, valid=torch.full((3, 8), float("nan")))
    fit(straight, valid=valid, epochs=3)


# Rollbacks


class Poisoned(nn.Module):
    """Finite at the end of the second epoch, and NaN in every step from there: only the state before helps."""

    steps: Tensor

    def __init__(self, at: int) -> None:
        super().__init__()
        self.back, self.there = nn.Linear(2, 8), nn.Linear(8, 4)
        self.register_buffer("steps", torch.zeros(()))
        self.at = at

    def model(self, x: Tensor) -> None:
        pyro.module("back", self.back)
        trains = self.training and torch.is_grad_enabled()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            logits = self.back(z)
            if self.steps >= self.at:
                logits = logits * float("nan")
            pyro.sample("x", dist.Bernoulli(logits=logits, validate_args=False).to_event(1), obs=x)
        if trains:
            self.steps += 1

    def guide(self, x: Tensor) -> None:
        pyro.module("pair", self)
        with pyro.plate("data", len(x)):
            loc, scale = self.there(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


def test_weights_that_give_nan_in_the_next_step_are_not_gone_back_to_again() -> None:
    pyro.clear_param_store()
    torch.manual_seed(0)
    pair = Poisoned(at=8)
    with pytest.warns(UserWarning, match="from step 9 to step 4, with 0.5 times"), pytest.raises(pv.NonFiniteLoss):
        fit(pair, epochs=3, rollbacks=1)


def test_a_rollback_in_the_first_epoch_goes_to_the_start() -> None:
    pair, start = vae(), vae()
    with pytest.warns(UserWarning, match="from step 3 to step 0"):
        history = fit(pair, epochs=2, optim=lambda p: Exploding(p, 2), rollbacks=1)
    assert [epoch.step for epoch in history] == [4, 8]
    with pytest.raises(pv.NonFiniteLoss):
        fit(start, epochs=1, optim=lambda p: Exploding(p, 2))


class Chance(Poisoned):
    """A loss that is NaN by chance."""

    def model(self, x: Tensor) -> None:
        pyro.module("back", self.back)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            logits = self.back(z)
            if self.back.training and torch.is_grad_enabled() and torch.rand(()) < 0.05:
                logits = logits * float("nan")
            pyro.sample("x", dist.Bernoulli(logits=logits, validate_args=False).to_event(1), obs=x)


def run_with_chance(folder: Path, steps: int) -> tuple[list[Tensor], list[tuple[int, int]], int]:
    pyro.clear_param_store()
    torch.manual_seed(0)
    pair = Chance(at=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        every = pv.Checkpoints(folder, steps=1)
        history = fit(pair, steps=steps, batch_size=10, rollbacks=50, checkpoints=every, resume=True, seed=1)
    return values(pair), [(e.epoch, e.step) for e in history], len(caught)


@pytest.mark.parametrize("stop", [3, 11, 20, 37])
def test_a_resumed_run_goes_back_to_the_same_states(tmp_path: Path, stop: int) -> None:
    whole = run_with_chance(tmp_path / "whole", 48)
    run_with_chance(tmp_path / "broken", stop)
    for file in (tmp_path / "broken").glob(f"checkpoint-{stop:09d}*"):
        file.unlink()  # which has ended the run; the one before has not
    again = run_with_chance(tmp_path / "broken", 48)
    assert whole[2] > 0
    assert equal(again[0], whole[0])
    assert again[1] == whole[1]


# What is the same data


def test_every_value_counts_for_the_fingerprint(tmp_path: Path) -> None:
    x = (torch.rand(2000, 8) < 0.5).float()
    fit(vae(), x, epochs=1, batch_size=500, checkpoints=tmp_path)
    changed = x.clone()
    changed[1999, 7] = 1 - changed[1999, 7]
    with pytest.raises(ValueError, match=r"data\.content was"):
        fit(vae(), changed, batch_size=500, checkpoints=tmp_path, resume=True)
    fit(vae(), x, batch_size=500, checkpoints=tmp_path, resume=True)
    cpu = torch.device("cpu")
    labels = torch.arange(2000)
    one, two = (Batches((x, y), 10, cpu, 2).describe()["content"] for y in (labels, labels + (labels == 1999)))
    assert one != two
    loaders = [torch.utils.data.DataLoader(torch.utils.data.TensorDataset(t)) for t in (x, changed)]
    assert len({Batches(loader, None, cpu, 1).describe()["content"] for loader in loaders}) == 2
    assert len({Batches([x[:9], t[9:]], None, cpu, 1).describe()["content"] for t in (x, changed)}) == 2


# Where it is called


def test_two_threads_are_told_apart() -> None:
    started, go_on, said = threading.Event(), threading.Event(), []

    def wait(state: pv.State) -> None:
        started.set()
        assert go_on.wait(30)

    thread = threading.Thread(target=fit, args=(vae(),), kwargs={"callbacks": [wait]}, name="the first")
    thread.start()
    assert started.wait(30)
    try:
        fit(vae())
    except RuntimeError as error:
        said.append(str(error))
    go_on.set()
    thread.join()
    assert "another fit is running in the thread 'the first'" in said[0]
    fit(vae())  # which waits for no one
    assert len(fit(vae(), callbacks=[lambda state: bool(fit(vae(), epochs=1)) and False])) == 2  # one inside the other


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_no_grad_is_named(context: Any) -> None:
    pair = vae()
    svi = pv.SVI(pair.model, pair.guide)
    svi.step(X)
    before = values(pair)
    with context():
        with pytest.raises(RuntimeError, match=rf"fit needs gradients.*torch\.{context.__name__}\(\)"):
            fit(pair)
        with pytest.raises(RuntimeError, match="a gradient step needs gradients"):
            svi.step(X)
    assert equal(values(pair), before)


# An endless loader


def test_losses_take_constant_memory() -> None:
    losses, drawn = EpochLosses(), torch.randn(3 * AT_MOST + 17)
    for n, loss in enumerate(drawn, 1):
        losses.add(loss)
        if n in (5, AT_MOST, 2 * AT_MOST + 1, len(drawn)):
            assert losses.mean() == pytest.approx(float(drawn[:n].double().mean()), abs=1e-6)
    assert len(losses) == len(drawn)
    assert len(losses._latest) < AT_MOST
    snapshot = Snapshot()
    losses.add_to(snapshot)
    again = EpochLosses.of(snapshot, None)
    assert (len(again), again.mean()) == (len(losses), losses.mean())


def test_a_long_epoch_is_resumed_to_the_bit(tmp_path: Path) -> None:
    pairs = vae(), vae()
    one = fit(pairs[0], X[:20], steps=600, batch_size=20)
    loader = [X[:20]] * 600
    whole = fit(vae(), loader, steps=600)
    fit(vae(), loader, steps=300, checkpoints=pv.Checkpoints(tmp_path, steps=299))
    (tmp_path / "checkpoint-000000300.json").unlink()
    again = fit(vae(), loader, steps=600, checkpoints=tmp_path, resume=True)
    assert len(one) == 600
    assert again.loss == whole.loss
