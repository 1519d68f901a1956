"""The moving average of the weights, and steps that are left out: against averages and steps computed by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.optim
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.pair.running import traced
from pyro_vae.training.fitting import State
from tests.helpers.resuming import assert_resumes_exactly, digits, same_bits, vae

DECAY = 0.7


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().double().flatten() for p in net.parameters()])


def recording(pair: nn.Module, after: list[Tensor], before: list[Tensor] | None = None) -> Callable[..., Any]:
    """Adam, which records the weights of the pair after each step (and before it)."""

    def make(params: list[Tensor]) -> torch.optim.Optimizer:
        optimizer = torch.optim.Adam(params, lr=0.02)
        optimizer.register_step_pre_hook(lambda *_: None if before is None else before.append(weights(pair)))
        optimizer.register_step_post_hook(lambda *_: after.append(weights(pair)))
        return optimizer

    return make


def averaged(steps: list[Tensor]) -> Tensor:
    """The sum over steps s of d^(t - s) w_s, divided by that of d^(t - s)."""
    shares = torch.tensor([DECAY ** (len(steps) - 1 - s) for s in range(len(steps))], dtype=torch.float64)
    return (shares.unsqueeze(1) * torch.stack(steps)).sum(0) / shares.sum()


@pytest.mark.parametrize("compiled", [False, True])
def test_the_pair_ends_with_the_average(compiled: bool) -> None:
    pair = vae()
    after: list[Tensor] = []
    before: list[Tensor] = []
    shown = []

    def look(state: State) -> None:
        shown.append((weights(pair), averaged(after)))

    history = pv.fit(
        pair.model,
        pair.guide,
        digits(binarize="threshold").train.x,
        epochs=3,
        batch_size=30,
        seed=0,
        ema=DECAY,
        optim=recording(pair, after, before),
        callbacks=[look],
        compile=compiled,
    )
    assert len(after) == 15
    torch.testing.assert_close(weights(pair), averaged(after), rtol=1e-5, atol=1e-6)
    assert (weights(pair) - after[-1]).abs().max() > 1e-3
    for seen, expected in shown:  # callbacks see the average
        torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-6)
    for left, taken_up in zip(after, before[1:], strict=False):  # and training goes on from the latest weights
        assert torch.equal(left, taken_up)
    x = digits(binarize="threshold").train.x
    assert history[-1].train_elbo == pytest.approx(float(pv.bound(pair.model, pair.guide, x, seed=0).elbo.mean()))


def test_the_best_epoch_is_that_of_the_average() -> None:
    pair, data, seen = vae(), digits(), {}
    options: dict[str, Any] = {"epochs": 6, "batch_size": 30, "seed": 0, "lr": 0.1, "ema": DECAY}

    def look(state: State) -> None:
        seen[len(state.history)] = weights(pair)

    history = pv.fit(pair.model, pair.guide, data, callbacks=[look], **options)
    assert history.best is not None
    assert torch.equal(weights(pair), seen[history.best])
    assert history[history.best - 1].valid_elbo == max(e for e in history.valid_elbo if e is not None)


def test_a_stopped_run_goes_on_with_its_average(tmp_path: Path) -> None:
    history = assert_resumes_exactly(tmp_path, vae, digits(), (3, 6), epochs=3, ema=0.9, skip_norm=7.5, keep_best=False)
    again = vae()
    with pytest.raises(ValueError, match=r"ema was 0\.9, is now None"):
        pv.fit(again.model, again.guide, digits(), epochs=3, checkpoints=tmp_path, resume=True)
    assert 0 < history.skipped < 15


def test_a_run_directory_has_the_average(tmp_path: Path) -> None:
    run = pv.train(
        pv.VAE,
        "digits",
        init_args={"latent_dim": 3, "hidden": [8]},
        data_args={"flatten": True, "binarize": "static", "valid": 0},
        out=tmp_path / "run",
        epochs=1,
        seed=0,
        ema=0.9,
    )
    loaded = pv.load_run(tmp_path / "run")
    assert same_bits(loaded.pair, run.pair)
    x = loaded.data().train.x[:1000]
    measured = float(pv.bound(loaded.model, loaded.guide, x, seed=0).elbo.mean())
    assert run.history[-1].train_elbo == pytest.approx(measured, abs=1e-3)


class Slope(nn.Module):
    """A pair whose gradient for its one parameter is the mean of x: a model without latents."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.0))

    def model(self, x: Tensor) -> None:
        pyro.module("slope", self)
        with pyro.plate("data", len(x)):
            pyro.factor("x", self.level * x)

    def guide(self, x: Tensor) -> None:
        pass


@pytest.mark.parametrize("optimizer", ["torch", "pyro"])
def test_steps_with_a_large_gradient_are_left_out(optimizer: str) -> None:
    x, levels, pair = torch.tensor([1.0, -2.0, 7.0, 3.0, -9.0, 0.5]), [], Slope()
    pyro.clear_param_store()
    of_pyro: Any = pyro.optim
    sgd = of_pyro.SGD({"lr": 1.0}) if optimizer == "pyro" else lambda params: torch.optim.SGD(params, lr=1.0)

    def look(state: State) -> None:
        levels.append(pair.level.item())

    history = pv.fit(
        pair.model,
        pair.guide,
        [*x.split(1)],
        elbo=lambda model, guide, x: -traced(model, (x,), {}).log_prob_sum(),
        epochs=1,
        optim=sgd,
        skip_norm=5.0,
        clip_norm=2.5,
        callbacks=[look],
        preflight=False,
    )
    # 7 and -9 are left out; 3 is clipped, though it is not left out
    assert levels == pytest.approx([1.0 - 2.0 + 2.5 + 0.5])
    assert history.skipped == 2


def test_a_limit_that_leaves_most_steps_out_is_pointed_out() -> None:
    pair = vae()
    before = weights(pair)
    with pytest.warns(UserWarning, match=r"skip_norm=1e-06 left out 5 of the 5 steps of this epoch"):
        history = pv.fit(pair.model, pair.guide, digits(), batch_size=30, epochs=1, skip_norm=1e-6, ema=0.9)
    assert torch.equal(weights(pair), before)
    assert history.skipped == 5


def test_objectives_with_phases_refuse_a_limit() -> None:
    pair = vae()
    with pytest.raises(ValueError, match="AAE steps its phases in turn, each with a gradient of its own, so skip_norm"):
        pv.fit(pair.model, pair.guide, digits(), elbo="aae", skip_norm=1.0)
