"""A run that was stopped and resumed ends with the bits of one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pyro_vae as pv
from pyro_vae.support.snapshots import Snapshot, read_snapshot, write_snapshot
from pyro_vae.training.checkpoints.svi import load_svi_state, svi_state
from pyro_vae.training.fitting import State
from pyro_vae.training.nonfinite import NonFiniteLoss
from pyro_vae.training.rollback import Rollbacks
from pyro_vae.training.state import TrainState
from pyro_vae.training.weights import WeightCopies
from tests.helpers.resuming import assert_resumes_exactly, digits, metrics, same_bits, stop_at, vae

Callback = Callable[[State], bool | None]


@pytest.mark.parametrize("binarize", ["dynamic", "threshold"])
def test_interrupted_within_epochs(tmp_path: Path, binarize: str) -> None:
    history = assert_resumes_exactly(tmp_path, vae, digits(binarize=binarize))
    assert len(history) == 4


def test_schedules_and_early_stopping(tmp_path: Path) -> None:
    assert_resumes_exactly(
        tmp_path,
        vae,
        digits(),
        epochs=6,
        lr_schedule="cosine",
        kl_weight=pv.elbo.Warmup(2),
        early_stopping=2,
        clip_norm=5.0,
        num_particles=3,
        elbo="iwae",
    )


@pytest.mark.parametrize("elbo", ["dreg", "vimco", "reinforce", "free_bits", "capacity", "tail_adaptive"])
def test_estimators(tmp_path: Path, elbo: str) -> None:
    particles = max(2, pv.elbo.min_particles(elbo))
    assert_resumes_exactly(tmp_path, vae, digits(), (7,), epochs=2, elbo=elbo, num_particles=particles)


def test_an_objective_with_a_state_of_its_own(tmp_path: Path) -> None:
    """A baseline that learns, a temperature that falls: both are taken up where they were."""

    class Bits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = pv.nets.MLP(64, (8,), 5), pv.nets.MLP(5, (8,), 64)

        def model(self, x: Tensor) -> None:
            pyro.module("bits_decoder", self.decoder)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(len(x), 5)).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

        def guide(self, x: Tensor) -> None:
            pyro.module("bits_encoder", self.encoder)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Bernoulli(logits=self.encoder(x)).to_event(1))

    def make() -> Bits:
        torch.manual_seed(1)
        return Bits()

    for i, objective in enumerate(
        [
            lambda: pv.elbo.Relaxed(temperature=pv.elbo.Cooling(1.0, 0.3, 20)),
            lambda: pv.elbo.Reinforce(baseline="running"),
            lambda: pv.elbo.REBAR(),
        ]
    ):
        settings: dict[str, Any] = {"seed": 3, "batch_size": 30, "epochs": 3, "preflight": False}
        pyro.clear_param_store()
        whole = make()
        expected = pv.fit(whole.model, whole.guide, digits(), elbo=objective(), optim=stop_at(0), **settings)
        for stop in (7, 0):
            pyro.clear_param_store()
            pair = make()
            history = pv.fit(
                pair.model,
                pair.guide,
                digits(),
                elbo=objective(),
                optim=stop_at(stop),
                checkpoints=tmp_path / str(i),
                resume=True,
                **settings,
            )
        assert metrics(history) == metrics(expected)
        assert same_bits(whole, pair)


@pytest.mark.parametrize("elbo", ["factor_vae", "aae", "wae_gan"])
def test_objectives_with_critics(tmp_path: Path, elbo: str) -> None:
    assert_resumes_exactly(tmp_path, vae, digits(), (3, 6), epochs=3, elbo=elbo)


def test_plain_functions_with_parameters_of_their_own(tmp_path: Path) -> None:
    class Plain:
        @staticmethod
        def model(x: Tensor) -> None:
            rate = pyro.param("rate", torch.tensor(2.0), constraint=dist.constraints.positive)
            with pyro.plate("data", len(x)):
                z = pyro.sample("h", dist.Gamma(2.0, 1.0))
                pyro.sample("counts", dist.Poisson(rate * z), obs=x)

        @staticmethod
        def guide(x: Tensor) -> None:
            a = pyro.param("a", torch.tensor(1.0), constraint=dist.constraints.positive)
            with pyro.plate("data", len(x)):
                pyro.sample("h", dist.LogNormal((x + a).log() - 1.0, 0.5))

    torch.manual_seed(0)
    assert_resumes_exactly(tmp_path, Plain, torch.poisson(3 * torch.ones(100)), (3, 4))


def test_batch_norm_and_dropout(tmp_path: Path) -> None:
    def make() -> pv.VAE:
        torch.manual_seed(0)
        encoder = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 6))
        return pv.VAE(64, 3, hidden=(8,), encoder=encoder)

    assert_resumes_exactly(tmp_path, make, digits(), (6, 5))


def test_a_shuffling_loader(tmp_path: Path) -> None:
    data = DataLoader(TensorDataset(digits(binarize="threshold").train.x), batch_size=30, shuffle=True)
    assert_resumes_exactly(tmp_path, vae, data, (4, 7))


@pytest.mark.slow
def test_compiled_steps(tmp_path: Path) -> None:
    """Ragged last batches run eagerly until they are compiled, too: at the same steps as without an interruption."""
    assert_resumes_exactly(tmp_path, vae, digits(), (4, 9, 190, 96), epochs=65, compile=True)


def test_a_finished_run_goes_on(tmp_path: Path) -> None:
    data = digits()
    settings: dict[str, Any] = {"seed": 0, "batch_size": 30, "preflight": False, "keep_best": False}
    whole, first, second = vae(), vae(), vae()
    expected = pv.fit(whole.model, whole.guide, data, epochs=5, **settings)
    pv.fit(first.model, first.guide, data, epochs=3, checkpoints=tmp_path, **settings)
    history = pv.fit(second.model, second.guide, data, epochs=5, resume=tmp_path, **settings)
    assert metrics(history) == metrics(expected)
    assert same_bits(whole, second)
    again = pv.fit(first.model, first.guide, data, epochs=5, resume=tmp_path, **settings)
    assert metrics(again) == metrics(expected)
    assert again.stopped == "finished"
    assert same_bits(whole, first)


def test_an_early_stop_stays_one(tmp_path: Path) -> None:
    data = digits()
    settings: dict[str, Any] = {
        "seed": 0,
        "batch_size": 30,
        "preflight": False,
        "epochs": 50,
        "lr": 0.5,
        "early_stopping": 2,
    }
    first, second = vae(), vae()
    stopped = pv.fit(first.model, first.guide, data, checkpoints=tmp_path, **settings)
    assert stopped.stopped == "early stopping"
    again = pv.fit(second.model, second.guide, data, resume=tmp_path, **settings)
    assert metrics(again) == metrics(stopped)
    assert again.stopped == "early stopping"
    assert same_bits(first, second)


def test_other_settings_are_refused(tmp_path: Path) -> None:
    pair, data = vae(), digits()
    pv.fit(pair.model, pair.guide, data, epochs=1, seed=0, checkpoints=tmp_path)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"lr": 0.5}, "lr was 0.001, is now 0.5"),
        ({"seed": 1}, "seed was 0, is now 1"),
        ({"elbo": "iwae"}, "elbo was"),
        ({"batch_size": 7}, "batch_size was 100, is now 7"),
        ({"kl_weight": pv.elbo.Warmup(1)}, "kl_weight was 1.0, is now 'Warmup"),
        ({"compile": True}, "compile was 'auto', is now True"),
    ]
    for settings, words in cases:
        with pytest.raises(ValueError, match=words):
            pv.fit(pair.model, pair.guide, data, epochs=2, resume=tmp_path, **{"seed": 0, **settings})
    with pytest.raises(ValueError, match=r"data\.fingerprint was"):
        pv.fit(pair.model, pair.guide, digits(seed=5), epochs=2, seed=0, resume=tmp_path)


def test_another_pair_is_refused_and_left_alone(tmp_path: Path) -> None:
    pair, data = vae(), digits()
    pv.fit(pair.model, pair.guide, data, epochs=1, seed=0, checkpoints=tmp_path)
    for other, words in [
        (pv.VAE(64, 3, hidden=(9,)), "of shape"),
        (pv.VAE(64, 3, hidden=(8, 8)), "that the checkpoint does not have"),
        (
            pv.VAE(64, 3, hidden=(8,), likelihood="continuous_bernoulli", prior="mixture"),
            "that the checkpoint does not have",
        ),
    ]:
        before = {k: v.clone() for k, v in other.state_dict().items()}
        with pytest.raises(ValueError, match=words):
            pv.fit(other.model, other.guide, data, epochs=2, seed=0, resume=tmp_path, preflight=False)
        assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())


def test_resume_needs_something_to_resume(tmp_path: Path) -> None:
    pair, data = vae(), digits()
    with pytest.raises(FileNotFoundError, match="there is no checkpoint in"):
        pv.fit(pair.model, pair.guide, data, resume=tmp_path / "nothing")
    with pytest.raises(ValueError, match="resume=True needs checkpoints="):
        pv.fit(pair.model, pair.guide, data, resume=True)
    with pytest.raises(ValueError, match="pass resume=True with checkpoints="):
        pv.fit(pair.model, pair.guide, data, resume=tmp_path, checkpoints=tmp_path / "other")


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    pair, data = vae(), digits()
    with pv.Checkpoints(tmp_path).locked(), pytest.raises(RuntimeError, match="another process is training in"):
        pv.fit(pair.model, pair.guide, data, epochs=1, checkpoints=tmp_path)
    pv.fit(pair.model, pair.guide, data, epochs=1, checkpoints=tmp_path)


def test_how_many_are_kept_and_when_they_are_written(tmp_path: Path) -> None:
    pair, seen = vae(), []

    def look(state: State) -> None:
        seen.append(sorted(int(f.stem.split("-")[1]) for f in tmp_path.glob("*.json")))

    every = pv.Checkpoints(tmp_path, steps=2, keep=2)
    pv.fit(pair.model, pair.guide, digits(), batch_size=30, epochs=3, checkpoints=every, callbacks=[look])
    assert seen == [[2, 4], [6, 8], [12, 14]] or seen == [[2, 4], [8, 10], [12, 14]]
    assert sorted(int(f.stem.split("-")[1]) for f in tmp_path.glob("*.safetensors"))[-1] == 15
    for bad in ({"steps": 0}, {"minutes": -1.0}, {"keep": 0}):
        with pytest.raises(ValueError, match=r"must be a (whole )?number above 0"):
            pv.Checkpoints(tmp_path, **bad)


def test_a_new_run_replaces_an_older_one_only_once_it_has_a_checkpoint(tmp_path: Path) -> None:
    pair, data = vae(), digits()
    pv.fit(pair.model, pair.guide, data, epochs=9, batch_size=30, checkpoints=tmp_path)
    with pytest.raises(ValueError, match="lr must be"):
        pv.fit(pair.model, pair.guide, data, epochs=1, lr=-1, checkpoints=tmp_path)
    assert [f.name for f in tmp_path.glob("*.json")] == ["checkpoint-000000045.json"]
    pv.fit(pair.model, pair.guide, data, epochs=1, batch_size=30, checkpoints=tmp_path)
    assert [f.name for f in tmp_path.glob("*.json")] == ["checkpoint-000000005.json"]


def test_a_second_interrupt_ends_the_run_at_once(tmp_path: Path) -> None:
    """Within a step the state is not whole: what is on the disk stays."""
    pair, before = vae(), signal.getsignal(signal.SIGINT)

    def impatient(params: list[Tensor]) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(params, lr=1e-2)
        calls = iter(range(100))

        def twice(*_: Any) -> None:
            if next(calls) == 6:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

        optimizer.register_step_pre_hook(twice)
        return optimizer

    every = pv.Checkpoints(tmp_path, steps=5)
    history = pv.fit(pair.model, pair.guide, digits(), batch_size=30, optim=impatient, checkpoints=every)
    assert history.stopped == "interrupted"
    assert [f.name for f in tmp_path.glob("*.json")] == ["checkpoint-000000005.json"]
    assert signal.getsignal(signal.SIGINT) is before


def test_snapshots_are_whole_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-000000001"
    write_snapshot(path, Snapshot({"w": torch.arange(5.0)}, {"a": [1, None]}))
    assert torch.equal(read_snapshot(path).tensors["w"], torch.arange(5.0))
    for ending in (".safetensors", ".json"):
        file = path.with_name(path.name + ending)
        content = file.read_bytes()
        for damaged in (content[:-1], b"", content[:20] + bytes([content[20] ^ 1]) + content[21:], content + b" x"):
            file.write_bytes(damaged)
            with pytest.raises(ValueError, match=f"{file.name} is damaged"):
                read_snapshot(path)
        file.write_bytes(content)
    figures_file = path.with_name(path.name + ".json")
    content = json.loads(figures_file.read_text())
    figures_file.write_text(json.dumps({**content, "format": 99}))
    with pytest.raises(ValueError, match="is damaged"):
        read_snapshot(path)


def test_what_is_no_plain_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-000000001"
    write_snapshot(path, Snapshot({"w": torch.arange(5.0)}, {}))
    tensors = path.with_name(path.name + ".safetensors")
    (tmp_path / "elsewhere").write_bytes(tensors.read_bytes())
    tensors.unlink()
    tensors.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is a link to another file"):
        read_snapshot(path)


def test_a_whole_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    pair, data = vae(), digits()
    values: Any
    for values in ({}, {"settings": {}}, {"settings": 3}, {"settings": {}, "compiles": False, "svi": []}):
        write_snapshot(tmp_path / "checkpoint-000000001", Snapshot({}, values))
        with pytest.raises(ValueError, match=r"is not of this run|with other settings"):
            pv.fit(pair.model, pair.guide, data, resume=tmp_path)


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    pair, data = vae(), digits()
    every = pv.Checkpoints(tmp_path, steps=5, keep=3)
    expected = pv.fit(pair.model, pair.guide, data, epochs=3, batch_size=30, seed=0, checkpoints=every)
    newest = sorted(tmp_path.glob("*.safetensors"))[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    again = vae()
    with pytest.warns(UserWarning, match="using the checkpoint before it"):
        history = pv.fit(again.model, again.guide, data, epochs=3, batch_size=30, seed=0, resume=tmp_path)
    assert metrics(history) == metrics(expected)
    assert same_bits(pair, again)
    for file in tmp_path.glob("*.json"):
        file.write_text("{}")
    with (
        pytest.warns(UserWarning, match="using the checkpoint before it"),
        pytest.raises(ValueError, match=r"no checkpoint in .* can be read"),
    ):
        pv.fit(again.model, again.guide, data, epochs=3, batch_size=30, seed=0, resume=tmp_path)


def test_a_nan_goes_back_with_half_the_rate(tmp_path: Path) -> None:
    pair, data = vae(), digits(binarize="threshold")
    calls = 0

    def poisoned(x: Tensor) -> None:
        nonlocal calls
        calls += torch.is_grad_enabled() and len(x) == 30  # steps, and no measurements
        pair.model(x)
        if calls == 7:
            pyro.factor("bad", torch.tensor(float("nan")))

    settings: dict[str, Any] = {"batch_size": 30, "epochs": 4, "seed": 0, "preflight": False, "lr": 1e-3}
    with pytest.warns(UserWarning, match=r"Going back from step \d+ to step \d+, with 0.5 times the learning rate"):
        history = pv.fit(poisoned, pair.guide, data, rollbacks=2, checkpoints=tmp_path, **settings)
    assert history.stopped == "finished"
    assert [epoch.epoch for epoch in history] == [1, 2, 3, 4]
    assert [epoch.step for epoch in history] == [5, 10, 15, 20]
    assert history[-1].lr == pytest.approx(5e-4)
    calls = 0
    with pytest.raises(NonFiniteLoss, match="Largest gradients") as caught:
        pv.fit(poisoned, pair.guide, data, **settings)
    assert caught.value.gradients
    with pytest.raises(ValueError, match="rollbacks must be"):
        pv.fit(pair.model, pair.guide, data, rollbacks=-1)


def test_going_back_a_second_time_finds_the_same_state() -> None:
    """What is trained after the first time leaves the state that it went back to alone."""
    pair, x = vae(), digits(binarize="threshold").train.x[:30]
    svi = pv.SVI(pair.model, pair.guide)
    svi.step(x)
    state = TrainState(svi, WeightCopies(svi), pv.History(), torch.Generator())
    state.step = 1
    rollbacks = Rollbacks(state, 2, (x,), keeps=False)
    (good,) = state.good
    before = good.copy()
    for _ in range(2):
        with pytest.warns(UserWarning, match="Going back"):
            rollbacks.go_back(NonFiniteLoss("the loss is nan", 0, (x,), []))
        svi.step(x)
        assert all(torch.equal(value, before.tensors[name]) for name, value in good.tensors.items())


def test_what_was_compiled_is_known_from_earlier_checkpoints() -> None:
    """They had the state of the only phase without its name."""
    pair, x = vae(), digits(binarize="threshold").train.x[:30]
    svi = pv.SVI(pair.model, pair.guide)
    svi.step(x)
    state = svi_state(svi).copy()
    state.values["compiled"] = {"calls": 7, "reason": "a reason", "seen": {}, "graphs": []}
    load_svi_state(svi, state, (x,))
    assert svi.compiled_state() == {"loss": state.values["compiled"]}
    assert "a reason" in svi.compilation.reason


def test_changed_checkpoints_are_never_half_read(tmp_path: Path) -> None:
    """400 changes of a byte, a cut, a swap: each is a ValueError that names the file, or leaves what was written."""
    path, draw = tmp_path / "checkpoint-000000001", random.Random(0)
    values = {"at": {"epoch": 1}, "history": [1.5, None], "names": ["a", "b"]}
    write_snapshot(path, Snapshot({"w": torch.arange(9.0), "b": torch.ones(2, 3)}, values))
    files = [path.with_name(path.name + ending) for ending in (".safetensors", ".json")]
    contents = [file.read_bytes() for file in files]
    messages: list[str] = []
    for _ in range(400):
        which = draw.randrange(2)
        changed = bytearray(contents[which])
        place = draw.randrange(len(changed))
        kind = draw.randrange(4)
        if kind == 0:
            changed[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del changed[place:]
        elif kind == 2:
            changed[place:place] = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 9)))
        else:
            other = draw.randrange(len(changed))
            changed[place], changed[other] = changed[other], changed[place]
        files[which].write_bytes(changed)
        try:
            found = read_snapshot(path)
        except ValueError as error:
            messages.append(str(error))
        else:
            assert found.values == values
            assert torch.equal(found.tensors["w"], torch.arange(9.0))
        files[which].write_bytes(contents[which])
    assert len(messages) > 350
    assert all(path.name in message for message in messages)
