"""A script of Pyro with one import changed: the losses of `pyro.infer.SVI` for the same seed, eagerly and compiled."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.infer
import pyro.optim
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from tests.helpers.drop_in_programs import Script, deep_markov, mixture, semi_supervised, vae

pytestmark = pytest.mark.usefixtures("recorded")
I: Any = pyro.infer  # noqa: E741
O: Any = pyro.optim  # noqa: E741

Make = Callable[[], Any]
PLAIN: dict[str, Make] = {
    "Trace_ELBO": I.Trace_ELBO,
    "Trace_ELBO, 3 particles": lambda: I.Trace_ELBO(num_particles=3),
    "Trace_ELBO, 3 at once": lambda: I.Trace_ELBO(num_particles=3, vectorize_particles=True),
    "Trace_ELBO, 3 at once, nesting given": lambda: I.Trace_ELBO(
        num_particles=3, vectorize_particles=True, max_plate_nesting=1
    ),
    "TraceMeanField_ELBO": I.TraceMeanField_ELBO,
    "TraceMeanField_ELBO, 2 particles": lambda: I.TraceMeanField_ELBO(num_particles=2),
    "TraceGraph_ELBO": lambda: I.TraceGraph_ELBO(num_particles=2),
    "RenyiELBO": lambda: I.RenyiELBO(alpha=0.5, num_particles=3),
    "RenyiELBO at once": lambda: I.RenyiELBO(alpha=0.0, num_particles=3, vectorize_particles=True),
    "ReweightedWakeSleep": lambda: I.ReweightedWakeSleep(num_particles=3),
    "ReweightedWakeSleep in turn": lambda: I.ReweightedWakeSleep(num_particles=2, vectorize_particles=False),
    "TraceTailAdaptive_ELBO": lambda: I.TraceTailAdaptive_ELBO(num_particles=3, vectorize_particles=True),
}
ENUMERATED: dict[str, Make] = {
    "TraceEnum_ELBO": lambda: I.TraceEnum_ELBO(max_plate_nesting=1),
    "TraceEnum_ELBO, nesting guessed": lambda: I.TraceEnum_ELBO(num_particles=2),
    "TraceEnum_ELBO at once": lambda: I.TraceEnum_ELBO(num_particles=2, max_plate_nesting=1, vectorize_particles=True),
}
OPTIMIZERS: dict[str, Make] = {
    "Adam": lambda: O.Adam({"lr": 0.01}),
    "Adam with a rate for each parameter": lambda: O.Adam(lambda name: {"lr": 0.02 if "bias" in name else 0.01}),
    "Adam with rates by module": lambda: O.Adam(lambda module, name: {"lr": 0.02 if "coder" in module else 0.01}),
    "Adam, clipped": lambda: O.Adam({"lr": 0.01, "betas": [0.8, 0.99]}, {"clip_norm": 0.5, "clip_value": 0.2}),
    "ClippedAdam": lambda: O.ClippedAdam({"lr": 0.02, "lrd": 0.97, "clip_norm": 0.3, "weight_decay": 0.01}),
    "ClippedAdam, centered": lambda: O.ClippedAdam({"lr": 0.02, "centered_variance": True}),
    "AdamW": lambda: O.AdamW({"lr": 0.01, "weight_decay": 0.1}),
    "SGD": lambda: O.SGD({"lr": 0.01, "momentum": 0.9, "nesterov": True}),
    "RMSprop": lambda: O.RMSprop({"lr": 0.01, "centered": True}),
    "Adagrad": lambda: O.Adagrad({"lr": 0.05}),
    "NAdam": lambda: O.NAdam({"lr": 0.01}),
    "AdagradRMSProp": lambda: O.AdagradRMSProp({"eta": 0.1}),
    "ExponentialLR": lambda: O.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.7}),
    "ExponentialLR of ClippedAdam": lambda: O.ExponentialLR(
        {"optimizer": pyro.optim.clipped_adam.ClippedAdam, "optim_args": {"lr": 0.05, "lrd": 0.9}, "gamma": 0.7}
    ),
}


@pytest.fixture(autouse=True)
def _pyros_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*TraceEnum_ELBO found no sample sites.*")
        yield


def losses_of(
    svi_class: Any, script: Callable[[], Script], elbo: Make, optimizer: Make, **options: Any
) -> tuple[Tensor, Any]:
    """The losses of a script's steps, with a step of the scheduler after every third."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    program, optim = script(), optimizer()
    svi = svi_class(program.model, program.guide, optim, loss=elbo(), **options)
    torch.manual_seed(1)
    losses = []
    for i, args in enumerate(program.steps):
        loss = svi.step(*args)
        losses.append([float(part) for part in (loss if isinstance(loss, tuple) else (loss,))])
        if isinstance(optim, pyro.optim.PyroLRScheduler) and i % 3 == 2:
            optim.step()
    return torch.tensor(losses), svi


def assert_drop_in(script: Callable[[], Script], elbo: Make, optimizer: Make, *, graphs: int = 1) -> None:
    """Ten steps, eager and compiled, have Pyro's losses up to rounding, and Pyro's parameters in the end."""
    expected, _ = losses_of(I.SVI, script, elbo, optimizer)
    params = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    for compiles in (False, True):
        found, svi = losses_of(pv.SVI, script, elbo, optimizer, compile=compiles)
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-4)
        for name, value in pyro.get_param_store().items():
            torch.testing.assert_close(value.detach(), params[name], rtol=1e-3, atol=2e-4)
        if compiles:
            assert not svi.compilation.reason
            assert svi.compilation.graphs == graphs
    assert len(expected.unique()) > 1 or expected.isinf().all()  # TraceTailAdaptive_ELBO has no loss


EVERYTHING = bool(os.environ.get("PYRO_VAE_TEST_EVERYTHING"))


def pairs(elbos: dict[str, Make]) -> list[tuple[str, str]]:
    """Each objective with each optimizer, or to save time each of them at least once with another."""
    if EVERYTHING:
        return list(itertools.product(elbos, OPTIMIZERS))
    number = max(len(elbos), len(OPTIMIZERS))
    names, optimizers = list(elbos), list(OPTIMIZERS)
    return [(names[i % len(names)], optimizers[i % len(optimizers)]) for i in range(number)]


@pytest.mark.parametrize(("elbo", "optimizer"), pairs(PLAIN))
def test_a_vae(elbo: str, optimizer: str) -> None:
    assert_drop_in(vae, PLAIN[elbo], OPTIMIZERS[optimizer])


SOME = [*zip(ENUMERATED, ["Adam", "ClippedAdam", "Adam with rates by module"], strict=True)]


@pytest.mark.parametrize(("elbo", "optimizer"), pairs(ENUMERATED) if EVERYTHING else SOME)
def test_a_semi_supervised_vae(elbo: str, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_vae.compilation.gradients.PATIENCE", 1)
    assert_drop_in(semi_supervised, ENUMERATED[elbo], OPTIMIZERS[optimizer], graphs=2)


@pytest.mark.parametrize("elbo", [name for name in ENUMERATED if "at once" not in name])
def test_a_mixture_that_is_summed_out(elbo: str) -> None:
    assert_drop_in(mixture, ENUMERATED[elbo], OPTIMIZERS["Adam"])


IN_TURN = [name for name in PLAIN if "at once" not in name and "Tail" not in name and "Wake" not in name]


@pytest.mark.parametrize(
    ("elbo", "optimizer"),
    [*zip(IN_TURN, itertools.cycle(OPTIMIZERS))] if EVERYTHING else [("Trace_ELBO", "ClippedAdam")],
)
def test_a_deep_markov_model(elbo: str, optimizer: str) -> None:
    assert_drop_in(deep_markov, PLAIN[elbo], OPTIMIZERS[optimizer])


@pytest.mark.parametrize("traced", ["JitTrace_ELBO", "JitTraceMeanField_ELBO", "JitTraceGraph_ELBO"])
def test_pyros_jit_is_left_out(traced: str) -> None:
    """Its first step draws noise twice, so what it computes is compared with the class without it."""
    expected, _ = losses_of(I.SVI, vae, getattr(I, traced.removeprefix("Jit")), OPTIMIZERS["Adam"])
    for compiles in (False, True):
        found, svi = losses_of(pv.SVI, vae, getattr(I, traced), OPTIMIZERS["Adam"], compile=compiles)
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-4)
        assert bool(svi.compilation) == compiles


def test_pyros_jit_of_an_enumeration_is_left_out() -> None:
    def make() -> Any:
        return I.JitTraceEnum_ELBO(max_plate_nesting=1)

    expected, _ = losses_of(I.SVI, mixture, ENUMERATED["TraceEnum_ELBO"], OPTIMIZERS["Adam"])
    found, _ = losses_of(pv.SVI, mixture, make, OPTIMIZERS["Adam"], compile=True)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize("compiles", [False, True])
def test_two_svis_share_an_optimizer(compiles: bool) -> None:
    """The second loss trains a part of the networks; the optimizer's state is common, as in Pyro's own example."""

    def run(svi_class: Any, **options: Any) -> Tensor:
        pyro.clear_param_store()
        torch.manual_seed(0)
        program, optim = semi_supervised(), O.Adam({"lr": 0.05})
        net: Any = getattr(program.model, "__self__")  # noqa: B009

        def classify(x: Tensor, y: Tensor | None = None) -> None:
            pyro.module("semi_supervised", net)
            with pyro.plate("data", len(x)):
                if y is not None:
                    pyro.sample("aux", pyro.distributions.OneHotCategorical(logits=net.classifier(x)), obs=y)

        first = svi_class(program.model, program.guide, optim, loss=I.TraceEnum_ELBO(max_plate_nesting=1), **options)
        second = svi_class(classify, lambda x, y=None: None, optim, loss=I.Trace_ELBO(), **options)
        torch.manual_seed(1)
        losses = []
        for args in program.steps:
            losses.append(float(first.step(*args)))
            if len(args) == 2:
                losses.append(float(second.step(*args)))
        return torch.tensor(losses)

    torch.testing.assert_close(run(pv.SVI, compile=compiles), run(I.SVI), rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize("optimizer", ["Adam", "ClippedAdam", "SGD", "RMSprop", "ExponentialLR of ClippedAdam"])
@pytest.mark.parametrize("goes_on", ["pv.SVI", "pyro.infer.SVI"])
def test_states_are_pyros(optimizer: str, goes_on: str, tmp_path: Path) -> None:
    """What five of our steps save is what Pyro's would have saved, and either goes on from it."""

    def run(first: Any, second: Any) -> list[float]:
        pyro.clear_param_store()
        torch.manual_seed(0)
        program, optim = vae(), OPTIMIZERS[optimizer]()
        svi = first(program.model, program.guide, optim, loss=I.Trace_ELBO())
        torch.manual_seed(1)
        losses = [float(svi.step(*args)) for args in program.steps[:5]]
        if hasattr(optim, "step"):
            optim.step()
        optim.save(str(tmp_path / "optimizer"))
        new = OPTIMIZERS[optimizer]()
        new.load(str(tmp_path / "optimizer"))
        svi = second(program.model, program.guide, new, loss=I.Trace_ELBO())
        return losses + [float(svi.step(*args)) for args in program.steps[5:]]

    later = pv.SVI if goes_on == "pv.SVI" else I.SVI
    assert run(pv.SVI, later) == pytest.approx(run(I.SVI, I.SVI), rel=2e-5)


def test_a_parameter_that_appears_later() -> None:
    """A network that only some steps register and use is updated in these steps alone, with its own count of steps."""

    def run(svi_class: Any, **options: Any) -> list[float]:
        pyro.clear_param_store()

        def model(x: Tensor, extra: bool) -> None:
            shift = pyro.param("shift", torch.tensor(0.3)) if extra else 0.0
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", pyro.distributions.Normal(shift, 1.0))
                pyro.sample("x", pyro.distributions.Normal(z, 1.0), obs=x)

        def guide(x: Tensor, extra: bool) -> None:
            loc = pyro.param("loc", torch.zeros(()))
            with pyro.plate("data", len(x)):
                pyro.sample("z", pyro.distributions.Normal(loc, 0.7))

        svi = svi_class(model, guide, O.ClippedAdam({"lr": 0.1, "lrd": 0.9}), loss=I.TraceMeanField_ELBO(), **options)
        torch.manual_seed(1)
        return [float(svi.step(torch.linspace(0, 2, 5), i in (3, 4, 8))) for i in range(12)]

    expected = run(I.SVI)
    assert run(pv.SVI) == pytest.approx(expected, rel=1e-5)
    assert run(pv.SVI, compile=True) == pytest.approx(expected, rel=1e-5)


def test_an_optimizer_that_is_watched_takes_its_own_steps() -> None:
    program, optim = vae(2), OPTIMIZERS["Adam"]()
    svi = pv.SVI(program.model, program.guide, optim, loss=I.Trace_ELBO())
    svi.step(*program.steps[0])
    calls = []
    name = "prior_scale"
    param = pyro.get_param_store()._params[name]
    optim.optim_objs[param].register_step_post_hook(lambda *args: calls.append(name))
    svi.step(*program.steps[1])
    assert calls == [name]


def test_the_state_of_the_whole_is_pyros_to_load() -> None:
    program, optim = vae(1), OPTIMIZERS["Adam"]()
    svi = pv.SVI(program.model, program.guide, optim, loss=I.Trace_ELBO())
    svi.step(*program.steps[0])
    assert svi.lr == 0.01
    assert svi.optimizer is not None
    assert set(svi.optimizer.state) == set(optim.optim_objs)
    with pytest.raises(TypeError, match="set_state"):
        svi.optimizer.load_state_dict({})


@pytest.mark.parametrize("elbo", ["Trace_ELBO", "TraceMeanField_ELBO", "RenyiELBO"])
def test_fit_with_pyros_objects(elbo: str) -> None:
    """They train as torch's Adam does; the rates are Pyro's, and its scheduler is stepped after each epoch."""

    def run(optim: Any, **options: Any) -> list[float]:
        pyro.clear_param_store()
        torch.manual_seed(0)
        program = vae(1)
        x = (torch.rand(20, 6) < 0.5).float()
        kwargs: Any = {"epochs": 3, "batch_size": 10, "seed": 0, "progress": False, "compile": False, **options}
        history = pv.fit(program.model, program.guide, x, elbo=PLAIN[elbo](), optim=optim, **kwargs)
        return [epoch.loss for epoch in history.epochs] + [epoch.lr for epoch in history.epochs]

    ours = run(OPTIMIZERS["ExponentialLR"]())
    rates = {"lr_schedule": lambda t: 0.7 ** int(3 * t + 1e-9)}
    assert ours == pytest.approx(run(lambda params: torch.optim.Adam(params, lr=0.05), **rates), rel=1e-4)
    with pytest.raises(ValueError, match="lr_schedule sets the learning rate"):
        run(O.Adam({"lr": 0.01}), lr_schedule="linear")
    with pytest.raises(ValueError, match="rollbacks sets the learning rate"):
        run(O.Adam({"lr": 0.01}), rollbacks=1)


@pytest.mark.parametrize(
    "optimizer", ["ClippedAdam", "ExponentialLR of ClippedAdam", "Adam with a rate for each parameter"]
)
def test_fit_resumes_exactly(optimizer: str, tmp_path: Path) -> None:
    def make() -> tuple[Any, Any, list[Tensor]]:
        torch.manual_seed(0)
        program = vae(1)
        return program.model, program.guide, []

    def run(epochs: int, **options: Any) -> dict[str, Tensor]:
        pyro.clear_param_store()
        model, guide, _ = make()
        x = (torch.rand(20, 6) < 0.5).float()
        pv.fit(
            model, guide, x, elbo=I.Trace_ELBO(), optim=OPTIMIZERS[optimizer](), epochs=epochs, batch_size=10,
            seed=0, progress=False, compile=False, **options,
        )  # fmt: skip
        return {name: value.detach().clone() for name, value in pyro.get_param_store().items()}

    whole = run(4)
    run(2, checkpoints=tmp_path)
    resumed = run(4, checkpoints=tmp_path, resume=True)
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


def test_really_compiled(really: None) -> None:
    assert_drop_in(vae, PLAIN["RenyiELBO"], OPTIMIZERS["ClippedAdam"])
