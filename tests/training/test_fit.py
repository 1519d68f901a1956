"""The training loop: what it learns, what it repeats, when it stops, what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from pyro_vae import data as datasets
from pyro_vae import elbo as elbos
from pyro_vae.elbo import Cyclical, MeanField, Trace, Warmup, registry
from pyro_vae.evaluate.bounds import bound
from pyro_vae.models import Autoencoder
from pyro_vae.oracles import LinearGaussian, ppca_log_prob
from pyro_vae.training.fitting import State, fit
from pyro_vae.training.history import Epoch, History
from pyro_vae.training.nonfinite import NonFiniteLoss

X = LinearGaussian().simulate(30)
VALID = LinearGaussian().simulate(20)


def train(pair: Any = None, data: Any = X, **options: Any) -> History:
    pair = LinearGaussian(seed=1) if pair is None else pair
    options = {"batch_size": 10, "progress": False, "seed": 0, **options}
    if "steps" not in options:
        options.setdefault("epochs", 3)
    return fit(pair.model, pair.guide, data, **options)


def weights(pair: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in pair.parameters()]


def metrics(history: History) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history.to_dicts()]


# Learning


@pytest.mark.parametrize("elbo", ["mean_field", "trace"])
def test_it_reaches_the_best_linear_gaussian_model(elbo: str) -> None:
    x = LinearGaussian().simulate(200)
    pair = LinearGaussian(seed=1)
    train(pair, x, elbo=elbo, epochs=60, batch_size=50, lr=0.05, lr_schedule="cosine")
    best = ppca_log_prob(x, 2, pair.scale)
    assert best - 0.05 < pair.elbo(x).mean().item() <= best


# no bound, or pairs of one kind: tests/elbo/test_adversarial.py and tests/models have these
OTHERS = ("vq", "semi_supervised", "subsampled_modalities")
TRAINABLE = [name for name in elbos.names() if name not in OTHERS and elbos.bound_of(name) != "none"]


@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
@pytest.mark.parametrize("name", TRAINABLE)
def test_every_estimator_trains(name: str) -> None:
    pair = LinearGaussian(seed=1)
    before = weights(pair)
    losses = train(pair, elbo=name, num_particles=5, epochs=15, lr=0.02, preflight=False).loss
    assert losses[-1] < losses[0] - 0.5
    assert all(bool((new != old).any()) for new, old in zip(weights(pair), before, strict=True))


@pytest.mark.parametrize("elbo", [pyro.infer.TraceMeanField_ELBO(), MeanField(num_particles=2)])
def test_an_elbo_of_your_own_trains(elbo: pyro.infer.ELBO) -> None:
    pair = LinearGaussian(seed=1)
    before = pair.elbo(X).mean().item()
    history = train(pair, elbo=elbo, epochs=15, lr=0.02)
    assert pair.elbo(X).mean().item() > before + 1
    assert history.elbo == type(elbo).__name__


def test_a_registered_elbo_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    elbos.register("mine", pyro.infer.Trace_ELBO)
    assert train(elbo="mine").elbo == "mine"


@pytest.mark.parametrize("elbo", ["mean_field", pyro.infer.TraceGraph_ELBO()], ids=["mean_field", "TraceGraph_ELBO"])
def test_wake_sleep_and_weights_need_no_differentiable_loss(elbo: Any) -> None:
    assert math.isfinite(train(elbo=elbo, kl_weight=2.0).loss[-1])


def test_the_two_losses_of_wake_sleep_are_summed() -> None:
    assert math.isfinite(train(elbo=pyro.infer.ReweightedWakeSleep(num_particles=2)).loss[-1])


# Figures


class Exact(LinearGaussian):
    """With the posterior for a guide, each draw of the `trace` loss is -log p(x)."""

    def guide(self, x: Tensor) -> None:
        self.exact_guide(x)


def test_the_loss_is_nats_per_datum_also_for_a_ragged_last_batch() -> None:
    pair = Exact()
    x = pair.simulate(1).expand(7, 4)
    history = train(pair, x, elbo="trace", batch_size=3, epochs=1, lr=1e-12, preflight=False)
    assert history[0].step == 3
    assert history.loss[0] == pytest.approx(-pair.log_prob(x[:1]).item())


def test_gradients_are_of_the_mean_so_that_sgd_does_not_depend_on_the_batch_size() -> None:
    steps = []
    for copies in (1, 5):
        pair = LinearGaussian(seed=1)
        x = torch.zeros(copies, 4, dtype=torch.float64)
        train(pair, x, batch_size=copies, steps=1, optim=lambda p: torch.optim.SGD(p, lr=0.1), num_particles=5000)
        pyro.clear_param_store()
        steps.append(pair.bias.detach())
    torch.testing.assert_close(steps[0], steps[1], rtol=0, atol=0.02)


def subsampled(pair: LinearGaussian, total: int) -> Any:
    class Pair:
        def model(self, x: Tensor) -> None:
            pyro.module("pair", pair)
            with pyro.plate("data", total, subsample=x):
                z = pyro.sample("z", pair.prior())
                p = dist.Normal(z @ pair.weight.T + pair.bias, pair.scale).to_event(1)
                pyro.sample("x", p, obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", total, subsample=x):
                pyro.sample("z", pair.q(x))

    return Pair()


def test_a_subsampled_plate_is_nats_per_datum_too() -> None:
    plain, scaled = LinearGaussian(seed=1), LinearGaussian(seed=1)
    first = train(plain)
    pyro.clear_param_store()
    second = train(subsampled(scaled, 30))
    assert first.loss == pytest.approx(second.loss)
    assert first.train_elbo == pytest.approx(second.train_elbo)
    torch.testing.assert_close(weights(plain), weights(scaled))


def test_latents_shared_by_all_data_are_normalized_by_their_number() -> None:
    class Pair:
        def model(self, x: Tensor) -> None:
            mu = pyro.sample("mu", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            with pyro.plate("data", 40, subsample=x):
                pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

        def guide(self, x: Tensor) -> None:
            loc = pyro.param("loc", torch.zeros((), dtype=x.dtype))
            pyro.sample("mu", dist.Normal(loc, 40**-0.5))

    x = torch.randn(40, dtype=torch.float64) + 1.0
    history = train(Pair(), x, epochs=80, lr=0.05, batch_size=20, valid=x[:10], keep_best=False)
    mean = x.sum() / 41
    exact = dist.MultivariateNormal(torch.zeros(40).double(), torch.ones(40, 40).double() + torch.eye(40)).log_prob(x)
    assert float(pyro.param("loc").detach()) == pytest.approx(float(mean), abs=0.1)
    assert history.train_elbo[-1] == pytest.approx(float(exact) / 40, abs=0.05)
    assert history.valid_elbo[-1] == pytest.approx(history.train_elbo[-1], abs=0.7)  # as if they were 40


def test_the_elbo_shown_is_the_true_one_whatever_is_minimized() -> None:
    pair = LinearGaussian(seed=1)
    history = train(pair, valid=VALID, kl_weight=4.0, keep_best=False)
    figure = bound(pair.model, pair.guide, VALID, seed=0)
    assert history[-1].valid_elbo == pytest.approx(figure.mean)
    assert history[-1].kl == pytest.approx(float(figure.kl.mean()))
    assert history[-1].log_likelihood == pytest.approx(float(figure.log_likelihood.mean()))
    assert history[-1].kl_weight == 4.0


@pytest.mark.parametrize("valid", [(VALID,), DataLoader(TensorDataset(VALID), batch_size=7)], ids=["tuple", "loader"])
def test_validation_data_of_many_kinds(valid: Any) -> None:
    pair = LinearGaussian(seed=1)
    history = train(pair, valid=valid, keep_best=False)
    assert history[-1].kl == pytest.approx(pair.kl(VALID).mean().item())


def test_epochs_are_measured_with_the_same_noise() -> None:
    history = train(lr=1e-15, epochs=2, valid=VALID)
    assert history.valid_elbo[0] == pytest.approx(history.valid_elbo[1], abs=1e-9)


# Repetition


@pytest.mark.parametrize("seed", [0, 3])
def test_the_same_seed_gives_the_same_run(seed: int) -> None:
    runs = []
    for _ in range(2):
        pyro.clear_param_store()
        pair = LinearGaussian(seed=1)
        history = train(pair, seed=seed, valid=VALID, num_particles=2)
        runs.append((metrics(history), weights(pair)))
        torch.rand(7)  # the state outside does not matter
    assert runs[0][0] == runs[1][0]
    torch.testing.assert_close(runs[0][1], runs[1][1], rtol=0, atol=0)


def test_another_seed_gives_another_run() -> None:
    first = train(seed=0)
    pyro.clear_param_store()
    assert train(seed=1).loss != first.loss


@pytest.mark.parametrize("data", [X, DataLoader(TensorDataset(X), batch_size=10, shuffle=True)])
def test_a_seed_leaves_the_generator_alone(data: Any) -> None:
    state = torch.get_rng_state()
    train(data=data, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "option", [{"preflight": False}, {"valid": VALID, "keep_best": False}, {"callbacks": [lambda s: None]}]
)
def test_looking_does_not_change_the_run(option: dict[str, Any]) -> None:
    plain, looked_at = LinearGaussian(seed=1), LinearGaussian(seed=1)
    train(plain)
    pyro.clear_param_store()
    train(looked_at, **option)
    torch.testing.assert_close(weights(plain), weights(looked_at), rtol=0, atol=0)


# Sources of data


@pytest.mark.parametrize(
    "source",
    [X, (X,), DataLoader(TensorDataset(X), batch_size=10), [X[:10], X[10:20], X[20:]], [[X[:15]], [X[15:]]]],
    ids=["tensor", "tuple", "loader", "list of batches", "list of tuples"],
)
def test_data_of_many_kinds(source: Any) -> None:
    pair = LinearGaussian(seed=1)
    before = pair.elbo(X).mean().item()
    train(pair, source, epochs=20, lr=0.02)
    assert pair.elbo(X).mean().item() > before + 1


def test_loaded_data_are_described_and_validated() -> None:
    loaded = datasets.load(X.float(), valid=10, test=0)
    history = train(LinearGaussian(seed=1).float(), loaded)
    assert history.data["counts"] == {"train": 20, "valid": 10, "test": 0}
    assert history.best is not None


def test_a_split_is_data_too() -> None:
    split = datasets.load(X.float(), valid=0, test=0).train
    assert train(LinearGaussian(seed=1).float(), split)[-1].step == 9


def test_members_of_a_tuple_are_cut_alike() -> None:
    shapes = set()

    class Pair(LinearGaussian):
        def model(self, x: Tensor, y: Tensor) -> None:  # type: ignore[override]
            shapes.add((len(x), bool((x[:, 0] == y).all())))
            super().model(x)

        def guide(self, x: Tensor, y: Tensor) -> None:  # type: ignore[override]
            super().guide(x)

    train(Pair(), (X, X[:, 0].clone()))
    assert {same for _, same in shapes} == {True}
    assert (10, True) in shapes


def test_parameters_of_each_datum_meet_their_datum_in_a_full_batch() -> None:
    class Pair:
        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x: Tensor) -> None:
            loc = pyro.param("loc", lambda: torch.zeros_like(x))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, 0.5**0.5))

    x = torch.linspace(-3, 3, 12, dtype=torch.float64)
    train(Pair(), x, batch_size=12, epochs=60, optim=lambda p: torch.optim.SGD(p, lr=3.0), lr_schedule="linear")
    torch.testing.assert_close(pyro.param("loc").detach(), x / 2, rtol=0, atol=0.3)


def test_labels_of_a_loader_are_dropped_where_the_pair_takes_none() -> None:
    loader = DataLoader(TensorDataset(X, torch.arange(30)), batch_size=10)
    assert train(data=loader)[-1].step == 9


class Stream:
    """Three batches a pass, of which nobody knows the number."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(X.split(10))


def test_a_stream_of_unknown_length_warms_up_by_epochs() -> None:
    history = train(data=Stream(), epochs=4, kl_weight=Warmup(4), lr_schedule="linear", lr=0.01)
    assert [e.kl_weight for e in history] == pytest.approx([0.0, (1 + 2 / 3) / 4, (2 + 2 / 3) / 4, (3 + 2 / 3) / 4])
    assert [e.lr for e in history] == pytest.approx([0.01 * (1 - w) for w in (0.0, 5 / 12, 8 / 12, 11 / 12)])


# Length


def test_epochs_and_ragged_batches() -> None:
    history = train(batch_size=8, epochs=2)
    assert [e.step for e in history] == [4, 8]


def test_steps_may_end_within_an_epoch() -> None:
    history = train(steps=5)
    assert [(e.epoch, e.step) for e in history] == [(1, 3), (2, 5)]


def test_steps_of_a_stream() -> None:
    assert train(data=Stream(), steps=5)[-1].step == 5


@pytest.mark.parametrize(
    ("schedule", "last"), [("constant", 1.0), ("linear", 1 / 9), ("cosine", None), (lambda t: 0.5, 0.5)]
)
def test_the_learning_rate_follows_its_schedule(schedule: Any, last: float | None) -> None:
    history = train(lr=0.01, lr_schedule=schedule)
    last = 0.5 * (1 + math.cos(math.pi * 8 / 9)) if last is None else last
    assert history[-1].lr == pytest.approx(0.01 * last)


# The weight on the KL


def test_warm_up_rises_within_epochs() -> None:
    history = train(kl_weight=Warmup(2), epochs=4)
    assert [e.kl_weight for e in history] == pytest.approx([1 / 3, 5 / 6, 1.0, 1.0])


def test_cycles() -> None:
    history = train(kl_weight=Cyclical(2, cycles=2), epochs=4)
    assert [e.kl_weight for e in history] == pytest.approx([2 / 3, 1.0, 2 / 3, 1.0])


def test_any_function_of_the_epoch() -> None:
    assert [e.kl_weight for e in train(kl_weight=lambda epoch: 7.0)] == [7.0] * 3


@pytest.mark.parametrize("length", [{"epochs": 3}, {"steps": 10}])
def test_a_schedule_longer_than_the_run(length: dict[str, int]) -> None:
    with pytest.raises(
        ValueError, match=r"settles at epoch 4, but the run ends after 3.* epochs with a weight of 0\.[78]"
    ):
        train(kl_weight=Warmup(4), **length)


# Stopping


def falling(pair: nn.Module) -> Callable[[State], None]:
    """A callback that makes each epoch worse than the last."""

    def spoil(state: State) -> None:
        with torch.no_grad():
            next(pair.parameters()).add_(1.0)

    return spoil


def test_early_stopping_keeps_the_best_weights() -> None:
    pair = LinearGaussian(seed=1)
    history = train(pair, valid=VALID, epochs=50, early_stopping=3, callbacks=[falling(pair)], lr=1e-6)
    assert (history.stopped, history.best, len(history)) == ("early stopping", 1, 4)
    assert bound(pair.model, pair.guide, VALID, seed=0).mean == pytest.approx(history[0].valid_elbo)


def test_the_last_weights_stay_if_asked_for() -> None:
    pair = LinearGaussian(seed=1)
    history = train(pair, valid=VALID, epochs=3, callbacks=[falling(pair)], lr=1e-6, keep_best=False)
    kept = bound(pair.model, pair.guide, VALID, seed=0).mean
    assert history.best is None
    assert kept < history[-1].monitored  # the callback came after the measurement


def test_early_stopping_waits_for_the_warm_up() -> None:
    pair = LinearGaussian(seed=1)
    spoil = falling(pair)
    history = train(pair, valid=VALID, epochs=20, early_stopping=2, kl_weight=Warmup(5), callbacks=[spoil], lr=1e-6)
    assert (history.best, len(history)) == (5, 7)


def test_a_callback_stops_the_run_and_all_are_called() -> None:
    seen: list[int] = []

    def note(state: State) -> None:
        seen.append(state.epoch.epoch)

    history = train(epochs=10, callbacks=[lambda state: state.epoch.epoch == 2, note])
    assert (history.stopped, seen) == ("callback", [1, 2])


def interrupt(state: State) -> None:
    if state.epoch.epoch == 2:
        raise KeyboardInterrupt


def test_control_c_between_epochs() -> None:
    pair = LinearGaussian(seed=1)
    history = train(pair, valid=VALID, epochs=10, callbacks=[falling(pair), interrupt], lr=1e-6)
    assert (history.stopped, len(history), history.best) == ("interrupted", 2, 1)
    assert bound(pair.model, pair.guide, VALID, seed=0).mean == pytest.approx(history[0].valid_elbo)


def test_control_c_within_a_step() -> None:
    class Pair(LinearGaussian):
        calls = 0

        def model(self, x: Tensor) -> None:
            self.calls += 1
            if self.calls > 30:
                raise KeyboardInterrupt
            super().model(x)

    pair = Pair(seed=1)
    history = train(pair, epochs=1000)
    assert history.stopped == "interrupted"
    assert all(p.grad is None and bool(p.isfinite().all()) for p in pair.parameters())
    pair.calls = -1000
    assert math.isfinite(bound(pair.model, pair.guide, X).mean)  # Pyro's handlers are gone


def test_finished() -> None:
    assert train().stopped == "finished"


# NaN


class Failing(LinearGaussian):
    """The decoder's mean becomes NaN when batch `at` of the training batches (of ten) comes."""

    def __init__(self, at: int, value: float = math.nan) -> None:
        super().__init__(seed=1)
        self.at, self.value, self.count = at, value, 0
        self.before: list[Tensor] = []

    def model(self, x: Tensor) -> None:
        pyro.module("failing", self)
        if len(x) == 10 and torch.is_grad_enabled():
            self.count += 1
        bad = self.count == self.at
        if bad and not self.before:
            self.before = weights(self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            loc = z @ self.weight.T + self.bias + (self.value if bad else 0.0)
            pyro.sample("x", dist.Normal(loc, self.scale).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.q(x))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("source", [X, DataLoader(TensorDataset(X), batch_size=10)], ids=["tensor", "loader"])
@pytest.mark.parametrize("at", [1, 2, 5])
def test_nan_names_site_step_and_batch_and_keeps_the_weights(at: int, source: Any, value: float) -> None:
    pair = Failing(at, value)
    with pytest.raises(NonFiniteLoss, match=f"at step {at}: model site 'x'") as caught:
        train(pair, source, preflight=False)
    assert caught.value.step == at - 1
    assert caught.value.batch[0].shape == (10, 4)
    assert "site 'x'" in caught.value.sites[0]
    torch.testing.assert_close(weights(pair), pair.before, rtol=0, atol=0)


@pytest.mark.parametrize("at", [2, 5])
def test_an_update_that_makes_weights_nan_is_undone(at: int) -> None:
    pair = LinearGaussian(seed=1)
    start = weights(pair)

    class Exploding(torch.optim.SGD):
        count = 0

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            self.count += 1
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.add_(math.nan if self.count == at else 0.001)

    with pytest.raises(NonFiniteLoss, match=r"The previous update had made 5 parameters non-finite, first '"):
        train(pair, optim=lambda p: Exploding(p))
    kept = 0 if at < 4 else 3  # steps in the epochs before
    torch.testing.assert_close(weights(pair), [w + 0.001 * kept for w in start])


def test_weights_that_the_last_update_made_nan_are_no_result() -> None:
    pair = LinearGaussian(seed=1)

    class Exploding(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.fill_(math.nan)

    start = weights(pair)
    with pytest.raises(NonFiniteLoss):
        train(pair, optim=lambda p: Exploding(p), steps=1)
    torch.testing.assert_close(weights(pair), start)


def test_running_averages_that_saw_the_nan_are_undone() -> None:
    class Normalised(Failing):
        def __init__(self) -> None:
            super().__init__(at=5)
            self.norm = nn.BatchNorm1d(4, dtype=torch.float64)

        def model(self, x: Tensor) -> None:
            super().model(x)
            if self.count == self.at:
                self.norm.running_mean.fill_(math.nan)

    pair = Normalised()
    with pytest.warns(UserWarning, match="no gradient"), pytest.raises(NonFiniteLoss):
        train(pair)
    assert pair.norm.running_mean.isfinite().all()


def test_an_error_that_is_no_nan_stays_what_it_is() -> None:
    bad = [X[:10], X[10:20, :3]]
    with pytest.raises((RuntimeError, ValueError), match=r"shape|size|mat"):
        train(data=bad)


def test_data_out_of_support_are_found_wherever_they_are() -> None:
    class Binary:
        def model(self, x: Tensor) -> None:
            logits = pyro.param("logits", torch.zeros(2))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=logits + z).to_event(1), obs=x)

        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    x = torch.ones(50, 2)
    x[40] = 0.3
    with pytest.raises(ValueError, match=r"site 'x': Expected value argument.*support"):
        train(Binary(), x)


def test_checks_of_data_already_seen_are_spared() -> None:
    seen: dict[str, list[bool]] = {}

    class Pair(LinearGaussian):
        def model(self, x: Tensor) -> None:
            if torch.is_grad_enabled():
                seen[kind].append(dist.is_validation_enabled())
            super().model(x)

    for kind, source in (("tensor", X), ("loader", DataLoader(TensorDataset(X), batch_size=10))):
        seen[kind] = []
        train(Pair(), source, epochs=2, preflight=False)
    assert seen == {"tensor": [True] * 3 + [False] * 3, "loader": [True] * 6}


# History


def test_a_table_of_the_epochs() -> None:
    text = repr(train(valid=VALID))
    assert all(name in text for name in ("valid_elbo", "kl_weight", "mean_field", "finished"))
    assert "valid_elbo" not in repr(train())


def test_csv_round_trip(tmp_path: Any) -> None:
    history = train(valid=VALID)
    history.save(tmp_path / "h.csv")
    assert History.load(tmp_path / "h.csv").epochs == history.epochs


def test_csv_keeps_what_was_not_measured(tmp_path: Any) -> None:
    history = History([Epoch(1, 2, 0.1, -math.inf, None, math.nan, 0.3, 1.0, 1e-3, 0.5)])
    history.save(tmp_path / "h.csv")
    loaded = History.load(tmp_path / "h.csv")[0]
    assert loaded.valid_elbo is None
    assert loaded.train_elbo == -math.inf
    assert math.isnan(loaded.log_likelihood)


def test_a_file_that_is_no_history(tmp_path: Any) -> None:
    (tmp_path / "h.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"is not a table of epochs with the columns epoch, step, loss"):
        History.load(tmp_path / "h.csv")


def test_the_plot_shows_both_elbos() -> None:
    history = train(valid=VALID)
    axes: Any = history.plot().axes[0]
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
    assert lines["training ELBO"] == history.train_elbo
    assert lines["validation ELBO"] == history.valid_elbo


def test_no_epoch_yet() -> None:
    assert repr(History()) == "History(no epoch, finished)"


# What is refused


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs must be a whole number above 0, got 0"),
        ({"epochs": 2.0}, TypeError, "epochs must be a whole number above 0, got 2.0"),
        ({"epochs": "3"}, TypeError, "epochs must be a whole number above 0, got '3'"),
        ({"steps": -1}, ValueError, "steps must be a whole number above 0, got -1"),
        ({"steps": 3, "epochs": 3}, ValueError, "give epochs or steps, not both"),
        ({"lr": 0.0}, ValueError, "lr must be a number above 0, got 0.0"),
        ({"lr": math.nan}, ValueError, "lr must be a number above 0, got nan"),
        ({"lr": math.inf}, ValueError, "lr must be a number above 0"),
        ({"lr": "fast"}, TypeError, "lr must be a number above 0, got 'fast'"),
        ({"num_particles": 0}, ValueError, "num_particles must be a whole number above 0"),
        ({"early_stopping": 3}, ValueError, "early_stopping needs validation data"),
        ({"early_stopping": 0, "valid": VALID}, ValueError, "early_stopping must be a whole number above 0"),
        ({"batch_size": 31}, ValueError, "batch_size must be between 1 and the number of data 30, got 31"),
        ({"batch_size": 2.5}, TypeError, "batch_size must be a whole number above 0, got 2.5"),
        ({"clip_norm": -1.0}, ValueError, "clip_norm must be a number above 0, got -1.0"),
        ({"skip_norm": 0.0}, ValueError, "skip_norm must be a number above 0, got 0.0"),
        ({"ema": 1.0}, ValueError, "ema must be a number above 0 below 1, got 1.0"),
        ({"lr_schedule": "steps"}, ValueError, "lr_schedule must be one of constant, linear, cosine or a function"),
        ({"elbo": "elbo"}, ValueError, "unknown ELBO 'elbo'"),
        ({"kl_weight": -1.0}, ValueError, "kl_weight must be a number from 0, got -1.0"),
        ({"device": "gpu"}, ValueError, "device 'gpu'"),
        ({"optim": 0.1}, TypeError, "optim must be a torch.optim.Optimizer, a function"),
        ({"data": iter([X])}, TypeError, "a tensor, a tuple of tensors or a re-iterable loader"),
        ({"data": "mnist"}, TypeError, r"pv.data.load returns.*got str"),
        ({"data": []}, ValueError, "the loader is empty: expected at least one batch"),
        ({"data": X[:0]}, ValueError, "the data are empty"),
        ({"data": (X, X[:5])}, ValueError, r"one row per datum, got shapes \[\(30, 4\), \(5, 4\)\]"),
        ({"data": [["a"]]}, TypeError, "the loader must yield tensors"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        train(**options)


def test_nan_in_the_data() -> None:
    x = X.clone()
    x[3, 1] = math.nan
    with pytest.raises(ValueError, match=r"NaN or infinite values in 1 of 30 data, first datum 3"):
        train(data=x)


def test_a_loader_that_runs_dry() -> None:
    class Once:
        def __init__(self) -> None:
            self.passes = 0

        def __iter__(self) -> Iterator[Tensor]:
            self.passes += 1
            return iter(X.split(10) if self.passes < 3 else [])  # one pass goes into a first look

    with pytest.raises(ValueError, match="the loader yielded no batch in epoch 2: it must start again"):
        train(data=Once())


def test_an_unsound_pair_is_refused_before_any_step() -> None:
    class Unsound(LinearGaussian):
        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("y", self.q(x))

    pair = Unsound(seed=1)
    before = weights(pair)
    with pytest.raises(ValueError, match="the model samples the latent site 'z', which the guide never samples"):
        train(pair)
    torch.testing.assert_close(weights(pair), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    "elbo", [Trace(), pyro.infer.TraceGraph_ELBO(), pyro.infer.Trace_ELBO()], ids=lambda e: type(e).__name__
)
def test_gradients_taken_in_parts_are_those_of_the_batch(elbo: pyro.infer.ELBO) -> None:
    """Without noise the weights are the same; the last batch is cut into unequal parts."""
    torch.manual_seed(0)
    x = (torch.rand(50, 6) < 0.5).float()
    trained = []
    for parts in (1, 3):
        pyro.clear_param_store()
        torch.manual_seed(1)
        pair = Autoencoder(6, latent_dim=2, hidden=(4,)).double()
        fit(
            pair.model,
            pair.guide,
            x.double(),
            elbo=elbo,
            epochs=3,
            batch_size=20,
            accumulate=parts,
            seed=0,
            optim=lambda params: torch.optim.SGD(params, lr=0.1),
        )
        trained.append(torch.cat([p.detach().flatten() for p in pair.parameters()]))
    torch.testing.assert_close(trained[0], trained[1], rtol=1e-9, atol=1e-12)


def test_a_subsampled_plate_in_parts() -> None:
    """Each part is scaled up to all data by its own size."""
    x = torch.linspace(-1, 2, 12, dtype=torch.float64)

    def model(x: torch.Tensor) -> None:
        mean = pyro.param("mean", torch.tensor(0.0, dtype=torch.float64))
        with pyro.plate("data", 12, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x: torch.Tensor) -> None:
        pass

    found = []
    for parts in (1, 5):
        pyro.clear_param_store()
        fit(
            model,
            guide,
            x,
            elbo="trace",
            epochs=2,
            batch_size=12,
            accumulate=parts,
            preflight=False,
            optim=lambda params: torch.optim.SGD(params, lr=0.1),
        )
        found.append(float(pyro.param("mean").detach()))
    assert found[0] == pytest.approx(found[1], rel=1e-9)
    assert found[0] == pytest.approx(float(x.mean()) * (1 - 0.9**2))


@pytest.mark.parametrize(("num_data", "size"), [(30, 30), (120, 100)])
def test_the_default_batch_is_a_hundred_data_or_all_there_are(num_data: int, size: int) -> None:
    pair, sizes = LinearGaussian(seed=1), set[int]()

    def model(x: Tensor) -> None:
        sizes.add(len(x))
        pair.model(x)

    history = fit(model, pair.guide, LinearGaussian().simulate(num_data), epochs=1, progress=False, preflight=False)
    assert history[-1].step == -(-num_data // size)
    assert size in sizes
