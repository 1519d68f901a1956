"""Training compared under several estimators, where one is known to be worse."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_vae.data import load
from pyro_vae.elbo import Coefficients, MeanField, Reinforce, SurrogateELBO
from pyro_vae.oracles import LinearGaussian
from pyro_vae.training.comparison.compare import compare_training
from pyro_vae.training.comparison.result import TrainingComparison, TrainingRun
from pyro_vae.training.history import Epoch, History


def build(seed: int) -> LinearGaussian:
    return LinearGaussian(data_dim=3, latent_dim=1, seed=seed)


DATA = LinearGaussian(data_dim=3, latent_dim=1, seed=9)
SHORT: dict[str, Any] = {"seeds": (0, 1), "epochs": 2, "batch_size": 20, "lr": 0.02, "num_samples": 20}


def simulate(n: int = 40) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return 2 * DATA.simulate(n)  # spread out, so that doing without the latent costs much


class NoReconstruction(SurrogateELBO):
    """An ELBO whose guide gradient points the wrong way."""

    def coefficients(self, log_w: Tensor, *args: Any) -> Coefficients:
        even = torch.full_like(log_w, 1 / len(log_w))
        return Coefficients(log_w.mean(0), model=even, path=-0.1 * even)


def test_estimators_by_site_with_and_without_labels() -> None:
    sites = {"z": "stl"}
    listed = compare_training(build, simulate(), [sites, "trace"], **SHORT)
    assert listed.estimators == ["z=stl", "trace"]
    labeled = compare_training(build, simulate(), {"sites": sites, "options": {"elbo": sites}, "stl": "stl"}, **SHORT)
    found = {(run.estimator, run.seed): run.train_elbo for run in [*listed.runs, *labeled.runs]}
    for seed in SHORT["seeds"]:
        values = [found[label, seed] for label in ("z=stl", "sites", "options", "stl")]
        assert values == pytest.approx([values[0]] * 4)
        assert found["trace", seed] != pytest.approx(values[0], rel=1e-6)


@pytest.fixture(scope="module")
def compared() -> TrainingComparison:
    pyro.clear_param_store()
    x = simulate(120)
    estimators: dict[str, Any] = {
        "mean field": "mean_field",
        "again": MeanField(),
        "beta 10": {"elbo": "mean_field", "kl_weight": 10.0},
        "wrong guide": NoReconstruction(),
    }
    return compare_training(
        build, x[:80], estimators, valid=x[80:], seeds=(0, 1, 2), epochs=40, batch_size=20, lr=0.05, num_samples=50
    )


def test_the_same_estimator_twice_differs_by_exactly_nothing(compared: TrainingComparison) -> None:
    same = [d for d in compared.differences() if d.estimator == "again"]
    assert [d.measure for d in same] == ["train_elbo", "valid_elbo", "log_prob"]
    assert all((d.mean, d.low, d.high) == (0, 0, 0) for d in same)


@pytest.mark.parametrize("worse", ["beta 10", "wrong guide"])
def test_a_harmful_estimator_is_found_worse(compared: TrainingComparison, worse: str) -> None:
    for d in compared.differences():
        if d.estimator == worse and d.measure != "log_prob":
            assert d.mean < 0
            assert d.high < 0, d
    assert all(d.mean > 0 for d in compared.differences(worse) if d.estimator == "again")


def test_what_a_run_holds(compared: TrainingComparison) -> None:
    assert compared.estimators == ["mean field", "again", "beta 10", "wrong guide"]
    for run in compared.runs:
        assert run.epochs == len(run.history) == 40
        assert run.valid_elbo == max(e.monitored for e in run.history)  # of the restored weights
        assert run.log_prob > run.valid_elbo - 0.1
    with pytest.raises(ValueError, match="no run of 'other'"):
        compared.runs_of("other")


def test_log_prob_is_that_of_the_trained_pair() -> None:
    made = []

    def remembering(seed: int) -> LinearGaussian:
        made.append(build(seed))
        return made[-1]

    x = simulate(40)
    result = compare_training(remembering, x, ["mean_field", "stl"], **{**SHORT, "num_samples": 2000, "epochs": 30})
    # the first pair only warms up
    for pair, (seed, name) in zip(made[1:], [(s, n) for s in (0, 1) for n in ("mean_field", "stl")], strict=True):
        run = next(r for r in result.runs_of(name) if r.seed == seed)
        assert run.log_prob == pytest.approx(float(pair.log_prob(x).detach().mean()), abs=0.03)
        assert run.valid_elbo is None


def test_the_interval_is_students() -> None:
    values = {"a": [0.0, 0.0, 0.0], "b": [1.0, 2.0, 6.0]}
    runs = [
        TrainingRun(name, seed, v, None, v, 0.0, 1, 1.0, History())
        for name, row in values.items()
        for seed, v in enumerate(row)
    ]
    train, marginal = TrainingComparison(runs).differences()
    assert train.mean == marginal.mean == 3.0
    assert train.high - 3.0 == pytest.approx(4.302653 * math.sqrt(7 / 3), rel=1e-5)  # sd^2 = 7
    assert train.seeds == 3
    single = TrainingComparison([r for r in runs if r.seed == 2]).differences()[0]
    assert (single.mean, single.low, single.high) == (6.0, -math.inf, math.inf)


def test_forms(compared: TrainingComparison, tmp_path: Path) -> None:
    assert set(compared.to_dicts()[0]) == {
        "estimator", "seed", "train_elbo", "valid_elbo", "log_prob", "log_prob_error", "epochs", "seconds",
    }  # fmt: skip
    assert "beta 10" in str(compared)
    with compared.save(tmp_path / "c.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 12
    content = json.loads(compared.save(tmp_path / "c.json").read_text())
    assert len(content["runs"][0]["history"]) == 40
    assert len(content["differences"]) == 9
    with pytest.raises(ValueError, match=r"\.json, \.csv, \.png or \.html"):
        compared.save(tmp_path / "c.txt")
    assert len(compared.plot().axes) == 2


def test_one_seed_is_saved_without_infinities(tmp_path: Path) -> None:
    result = compare_training(build, simulate(), ["trace", "stl"], **{**SHORT, "seeds": [0]})
    found = json.loads(result.save(tmp_path / "c.json").read_text())["differences"][0]
    assert found["low"] is None
    assert "inf" in str(result)


def test_equal_seconds() -> None:
    result = compare_training(build, simulate(), ["trace", "iwae"], **{**SHORT, "epochs": None}, seconds=0.2)
    for run in result.runs:
        assert run.history.stopped == "callback"
        assert run.seconds >= 0.2
        assert all(e.seconds < 0.2 for e in list(run.history)[:-1])


def test_data_sets_with_splits_and_more_arguments() -> None:
    data = load(simulate(), valid=0.25, test=0.0)
    result = compare_training(lambda seed: build(seed).float(), data, ["trace"], **SHORT)
    assert result.runs[0].valid_elbo is not None
    offset = torch.zeros(40, dtype=torch.float64)

    def with_offset(seed: int) -> tuple[Any, Any]:
        pair = build(seed)

        def model(x: Tensor, offset: Tensor) -> None:
            pair.model(x)

        def guide(x: Tensor, offset: Tensor) -> None:
            pair.guide(x)

        return model, guide

    assert len(compare_training(with_offset, (simulate(), offset), ["trace"], **SHORT).runs) == 2


def test_plain_functions_do_not_share_parameters_between_runs() -> None:
    def functions(seed: int) -> tuple[Any, Any]:
        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x), dtype=x.dtype), 1.0))
                pyro.sample("x", dist.Normal(z + pyro.param("b", torch.zeros(1, dtype=x.dtype)), 1.0), obs=x[:, 0])

        def guide(x: Tensor) -> None:
            w = pyro.param("w", torch.zeros(1, dtype=x.dtype))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(w * x[:, 0], 1.0))

        return model, guide

    pyro.param("b", torch.tensor(3.0))
    result = compare_training(functions, simulate(), {"a": "trace", "b": "trace"}, **SHORT)
    assert result.differences()[0].mean == 0
    assert list(pyro.get_param_store()) == ["b"]


def test_an_object_is_not_changed_and_no_generator_moves() -> None:
    learning = Reinforce(num_particles=2, baseline="running", every_site=True)
    state = torch.get_rng_state()
    compare_training(build, simulate(), [learning, "trace"], **SHORT)
    assert float(learning._steps) == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_a_pair_that_is_not_fresh_is_refused() -> None:
    pair = build(0)
    with pytest.raises(ValueError, match="that an earlier run has trained"):
        compare_training(lambda seed: pair, simulate(), ["trace", "stl"], **SHORT)
    with pytest.raises(ValueError, match="that an earlier run has trained"):
        compare_training(lambda seed: pair, simulate(), ["trace"], **SHORT)
    seeds = iter(range(100))
    with pytest.raises(ValueError, match="different weights at its first and its second call"):
        compare_training(lambda seed: build(next(seeds)), simulate(), ["trace", "stl"], **SHORT)


def test_an_error_says_which_run() -> None:
    with pytest.raises(ValueError, match="num_particles must be at least 2") as caught:
        compare_training(build, simulate(), ["trace", "vimco"], **SHORT)
    assert caught.value.__notes__ == ["while training under 'vimco' from seed 0"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimators": []}, "no estimator"),
        ({"estimators": ["trace", "trace"]}, "named alike"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"epochs": None}, "epochs or seconds"),
        ({"seconds": 1.0}, "epochs or seconds"),
        ({"epochs": None, "seconds": -1.0}, "above 0"),
        ({"epochs": None, "seconds": 1.0, "lr_schedule": "cosine"}, "lr_schedule"),
        ({"epochs": 0}, "epochs"),
        ({"epochs": None, "seconds": 1.0, "stacked": True}, "stacked trains runs side by side"),
        ({"epochs": None, "seconds": 1.0, "halving": True}, "halving trains runs side by side"),
        ({"halving": True, "processes": 2}, "leave processes at 1"),
        ({"estimators": {"a": {"elbo": "trace", "seed": 3}}}, "same for all runs"),
    ],
)
def test_bad_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare_training(**{"build": build, "data": simulate(), "estimators": ["trace"], **SHORT, **options})


def test_bad_types() -> None:
    with pytest.raises(TypeError, match="list of names"):
        compare_training(build, simulate(), "trace", **SHORT)
    with pytest.raises(TypeError, match=r"object with model and guide, .* got Linear"):
        compare_training(lambda seed: nn.Linear(1, 1), simulate(), ["trace"], **SHORT)
    with pytest.raises(TypeError, match="give x"):
        compare_training(build, [simulate()], ["trace"], **SHORT)


def test_halving_ends_what_is_beaten_and_changes_nothing_else() -> None:
    x = simulate(60)
    estimators: dict[str, Any] = {
        "wrong guide": NoReconstruction(),
        "mean field": "mean_field",
        "beta 10": {"elbo": "mean_field", "kl_weight": 10.0},
        "stl": "stl",
    }
    options: dict[str, Any] = {"valid": x[40:], "seeds": (0, 1), "batch_size": 20, "lr": 0.05, "num_samples": 5}
    halved = compare_training(build, x[:40], estimators, epochs=14, halving=True, preflight=False, **options)
    whole = compare_training(build, x[:40], estimators, epochs=14, preflight=False, **options)
    length = {name: {(run.epochs, run.history.stopped) for run in halved.runs_of(name)} for name in estimators}
    assert sorted(length.values(), key=str) == [
        {(14, "finished")}, {(2, "beaten")}, {(2, "beaten")}, {(6, "beaten")},
    ]  # fmt: skip
    assert length["wrong guide"] == length["beta 10"] == {(2, "beaten")}
    for one, other in zip(halved.runs, whole.runs, strict=True):
        ours, theirs = ([(e.loss, e.monitored) for e in run.history][: one.epochs] for run in (one, other))
        assert ours == theirs
    found = {d.measure: d for d in halved.differences("mean field") if d.estimator == "wrong guide"}
    ends = ([run.history[1].valid_elbo for run in whole.runs_of(n)] for n in ("wrong guide", "mean field"))
    assert found["valid_elbo"].mean == pytest.approx(
        sum(a - b for a, b in zip(*ends, strict=True)) / 2
    )  # both after two epochs
    assert "log_prob" not in found


def test_stacked_comparisons_are_the_same() -> None:
    x, estimators = simulate(40), ["mean_field", "iwae"]
    options: dict[str, Any] = {**SHORT, "compile": False, "preflight": False}
    alone = compare_training(build, x, estimators, **options)
    ways: list[dict[str, Any]] = [{"stacked": True}, {"stacked": True, "halving": True}]
    for way in ways:
        for one, other in zip(compare_training(build, x, estimators, **options, **way).runs, alone.runs, strict=True):
            n = one.epochs
            assert [e.loss for e in one.history] == pytest.approx([e.loss for e in other.history][:n], abs=1e-9)
            assert n == 2 or one.history.stopped == "beaten"
            assert n == 1 or one.log_prob == pytest.approx(other.log_prob, abs=1e-9)


def test_equal_time_takes_the_epochs_that_had_ended() -> None:
    def history(*points: tuple[float, float]) -> History:
        return History([Epoch(i, i, 0.0, elbo, None, 0.0, 0.0, 1.0, 0.1, s) for i, (s, elbo) in enumerate(points, 1)])

    slow = history((1.0, -9.0), (2.0, -5.0), (3.0, -4.0))
    fast = history((0.5, -9.0), (1.0, -6.0), (1.5, -5.5), (2.5, -5.25))
    runs = [TrainingRun(name, 0, 0.0, None, 0.0, 0.0, 1, 1.0, h) for name, h in (("slow", slow), ("fast", fast))]
    compared = TrainingComparison(runs)
    assert [d.mean for d in compared.at_equal_time()] == [-0.25]  # at 2.5 seconds
    assert [d.mean for d in compared.at_equal_time(1.6, baseline="fast")] == [-3.5]
    with pytest.raises(ValueError, match=r"in the training of all runs, 1 to 2\.5, got 9"):
        compared.at_equal_time(9.0)
