"""Every public question is called in the same way."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

import pytest
import torch

import pyro_vae as pv
from pyro_vae.oracles import LinearGaussian
from pyro_vae.pair import planning

PUBLIC: dict[str, Callable[..., Any]] = {
    name: value
    for module in (pv, pv.evaluate)
    for name in module.__all__
    if inspect.isfunction(value := getattr(module, name))
}
# Questions about one of the two programs, with their first parameters.
ONE_PROGRAM = {
    "decode": ["model", "codes"],
    "encode": ["guide"],
    "posterior_samples": ["model"],
    "sample": ["model", "x"],
}
# Functions that take no pair to be asked: tensors, results, names, files, or a pair that is still to be trained.
NO_PAIR = {
    "attribute_vector": ["codes", "has"],
    "check_estimator": ["elbo", "oracle"],
    "clustering_accuracy": ["clusters", "labels"],
    "compare_models": ["first", "second"],
    "compare_training": ["build", "data", "estimators"],
    "disentanglement": ["codes", "factors"],
    "embed": ["codes"],
    "explore": ["run"],
    "export": ["pair", "path"],
    "fit": ["model", "guide", "data"],
    "fit_many": ["build", "data"],
    "generalization": ["train", "test"],
    "inception_features": ["weights"],
    "interpolate": ["a", "b", "steps", "path"],
    "launch": ["devices", "num_nodes", "strategy", "device"],
    "load_pair": ["path", "model", "guide"],
    "load_run": ["path"],
    "manifold": ["side"],
    "parzen_log_likelihood": ["samples", "valid", "test", "scales"],
    "sample_quality": ["data", "samples", "features"],
    "report": ["runs", "out"],
    "save_pair": ["path", "model", "guide"],
    "train": ["pair", "data"],
    "train_features": ["x", "y"],
    "traverse": ["code", "values", "dims"],
}
OF_A_PAIR = sorted(PUBLIC.keys() - ONE_PROGRAM.keys() - NO_PAIR.keys())
QUESTIONS = sorted([*OF_A_PAIR, *ONE_PROGRAM])
# They run an objective with its particles; `num_samples` is for estimates.
OBJECTIVES = {
    "check_estimator",
    "compare_elbos",
    "compare_training",
    "fit",
    "fit_local",
    "fit_many",
    "preflight",
    "train",
}
# What they find is the same in every call: they draw nothing, or restore the generators.
DETERMINISTIC = {"preflight"}


def parameters(name: str) -> list[inspect.Parameter]:
    return list(inspect.signature(PUBLIC[name]).parameters.values())


def leading(name: str) -> list[str]:
    """The names of the positional parameters."""
    return [p.name for p in parameters(name) if p.kind is p.POSITIONAL_OR_KEYWORD]


def test_the_lists_of_exceptions_hold_public_names_only() -> None:
    assert ONE_PROGRAM.keys() | NO_PAIR.keys() | OBJECTIVES | DETERMINISTIC <= PUBLIC.keys()
    assert len(OF_A_PAIR) > 10


@pytest.mark.parametrize("name", OF_A_PAIR)
def test_a_question_begins_with_the_pair_and_the_data(name: str) -> None:
    assert leading(name) in (["model", "guide"], ["model", "guide", "x"])
    kinds = {p.kind for p in parameters(name)}
    assert {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} <= kinds


@pytest.mark.parametrize("name", [*ONE_PROGRAM, *NO_PAIR])
def test_other_functions_begin_with_what_they_are_about(name: str) -> None:
    assert leading(name) == (ONE_PROGRAM | NO_PAIR)[name]


@pytest.mark.parametrize("name", QUESTIONS)
def test_options_are_given_by_keyword(name: str) -> None:
    optional = [p for p in parameters(name) if p.default is not p.empty]
    assert optional
    assert all(p.kind is p.KEYWORD_ONLY for p in optional)


@pytest.mark.parametrize(
    "name", [name for name in sorted(PUBLIC) if "seed" in inspect.signature(PUBLIC[name]).parameters]
)
def test_a_seed_is_a_keyword_and_none_by_default(name: str) -> None:
    seed = inspect.signature(PUBLIC[name]).parameters["seed"]
    assert seed.kind is seed.KEYWORD_ONLY
    assert seed.default is None


@pytest.mark.parametrize("name", sorted(set(QUESTIONS) - DETERMINISTIC))
def test_a_question_that_draws_takes_a_seed(name: str) -> None:
    assert "seed" in inspect.signature(PUBLIC[name]).parameters


def test_a_question_without_a_seed_is_the_same_in_every_call() -> None:
    pair = LinearGaussian()
    x, state = pair.simulate(4), torch.get_rng_state()
    for name in DETERMINISTIC:
        assert repr(PUBLIC[name](pair.model, pair.guide, x)) == repr(PUBLIC[name](pair.model, pair.guide, x))
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_one_thing_has_one_name(name: str) -> None:
    names = {p.name for p in parameters(name)}
    assert not names & {"chunk", "num_draws", "reference_samples"}
    assert name in OBJECTIVES or "num_particles" not in names


# Whether work is chunked is read off the code: does the question come to one of these?
CHUNKING = [planning.data_that_fit, planning.plan_for, planning.rows_that_fit]


def names_in(code: CodeType) -> set[str]:
    inner = [names_in(const) for const in code.co_consts if isinstance(const, CodeType)]
    return {*code.co_names, *(name for names in inner for name in names)}


def functions_of(value: Any) -> Iterator[Any]:
    """A function itself, or the methods of a class."""
    if inspect.isclass(value):
        yield from (method for method in vars(value).values() if inspect.isfunction(method))
    elif inspect.isfunction(value):
        yield value


def reached_from(function: Any) -> set[Any]:
    """The functions and methods of the library that a function may call."""
    found: set[Any] = set()
    todo = [function]
    while todo:
        function = inspect.unwrap(todo.pop())
        if function in found or not inspect.isfunction(function) or not function.__module__.startswith("pyro_vae"):
            continue
        found.add(function)
        used = (function.__globals__.get(name) for name in names_in(function.__code__))
        todo += [inner for value in used for inner in functions_of(value)]
    return found


def is_chunked(name: str) -> bool:
    return not reached_from(PUBLIC[name]).isdisjoint(CHUNKING)


def test_chunked_work_is_found_in_the_code() -> None:
    assert is_chunked("bound")
    assert is_chunked("inference_gaps")
    assert not is_chunked("decode")


@pytest.mark.parametrize("name", QUESTIONS)
def test_memory_is_an_option_where_work_is_chunked_and_nowhere_else(name: str) -> None:
    memory = inspect.signature(PUBLIC[name]).parameters.get("memory")
    assert (memory is not None) == is_chunked(name)
    assert memory is None or (memory.kind is memory.KEYWORD_ONLY and memory.default is None)


@pytest.mark.parametrize("name", QUESTIONS)
def test_an_unknown_keyword_is_refused_with_the_nearest_match(name: str) -> None:
    pair = LinearGaussian()
    x = pair.simulate(4)
    option = max((p.name for p in parameters(name) if p.kind is p.KEYWORD_ONLY), key=len)
    needed = {"result": pv.log_marginal(pair.model, pair.guide, x, num_samples=30)} if name == "repair" else {}
    about = {"decode": (pair.model, torch.zeros(4, 2), x), "encode": (pair.guide, x)}
    args = about.get(name, (pair.model, x) if name in ONE_PROGRAM else (pair.model, pair.guide, x))
    with pytest.raises(TypeError, match=rf"^{name}\(\) got the keyword '{option[:-1]}', .*did you mean '{option}'\?"):
        PUBLIC[name](*args, **needed, **{option[:-1]: None})


def test_training_refuses_an_unknown_option() -> None:
    x = torch.zeros(8, 4)
    with pytest.raises(TypeError, match="no option 'epoch': did you mean epochs"):
        pv.train(LinearGaussian, x, epoch=2)
    with pytest.raises(TypeError, match=r"fit\(\) got an unexpected keyword argument 'epoch'"):
        pv.compare_training(lambda seed: LinearGaussian(), x, ["trace"], epochs=1, epoch=2)


@pytest.mark.parametrize(
    "name", sorted(NO_PAIR.keys() - {"compare_models", "compare_training", "export", "fit_many", "train"})
)
def test_other_functions_have_no_open_keywords(name: str) -> None:
    assert all(p.kind is not p.VAR_KEYWORD for p in parameters(name))
