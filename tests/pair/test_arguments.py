"""Keywords that neither a question nor the pair knows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import Tensor

import pyro_vae as pv
from pyro_vae.evaluate.imputation import impute
from pyro_vae.oracles import LinearGaussian
from pyro_vae.pair.arguments import check_keywords, unwrapped

PAIR = LinearGaussian()
X = PAIR.simulate(6)
HOLED = torch.where(torch.eye(6, 4) > 0, torch.nan, X)
QUESTIONS: dict[str, Callable[..., Any]] = {
    "bound": lambda **k: pv.bound(PAIR.model, PAIR.guide, X, **k),
    "compare_elbos": lambda **k: pv.compare_elbos(PAIR.model, PAIR.guide, X, **k),
    "decode": lambda **k: pv.decode(PAIR.model, torch.zeros(6, 2), X, **k),
    "encode": lambda **k: pv.encode(PAIR.guide, X, **k),
    "fit_local": lambda **k: pv.fit_local(PAIR.model, PAIR.guide, X, **k),
    "impute": lambda **k: impute(PAIR.model, PAIR.guide, HOLED, **k),
    "inference_gaps": lambda **k: pv.inference_gaps(PAIR.model, PAIR.guide, X, **k),
    "latent_report": lambda **k: pv.latent_report(PAIR.model, PAIR.guide, X, **k),
    "log_marginal": lambda **k: pv.log_marginal(PAIR.model, PAIR.guide, X, **k),
    "posterior_samples": lambda **k: pv.posterior_samples(PAIR.model, X, **k),
    "reconstruct": lambda **k: pv.reconstruct(PAIR.model, PAIR.guide, X, **k),
    "sample": lambda **k: pv.sample(PAIR.model, X, **k),
    "summarize": lambda **k: pv.summarize(PAIR.model, PAIR.guide, X, **k),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_question_names_the_nearest_of_its_options(name: str) -> None:
    with pytest.raises(TypeError, match=rf"{name}\(\) got the keyword 'sed'.*did you mean 'seed'\?"):
        QUESTIONS[name](sed=3)
    with pytest.raises(TypeError, match=r"'zzz'.*the options are .*seed"):
        QUESTIONS[name](zzz=3)


def test_preflight_names_the_nearest_too() -> None:
    with pytest.raises(TypeError, match=r"preflight\(\) got the keyword 'num_particle'.*did you mean 'num_particles'"):
        pv.preflight(PAIR.model, PAIR.guide, X, num_particle=2)


def question(model: Any, guide: Any, *args: Any, num_samples: int = 3, **kwargs: Any) -> None:
    check_keywords(question, kwargs, model, guide)


def shifted(x: Tensor, shift: float = 0.0) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x)


def anything(x: Tensor, **kwargs: Any) -> None:
    shifted(x)


class Module(PyroModule):
    def forward(self, x: Tensor, shift: float = 0.0) -> None:
        shifted(x, shift)

    def model(self, x: Tensor, *, shift: float = 0.0) -> None:
        shifted(x, shift)

    @poutine.block
    def hidden(self, x: Tensor, shift: float = 0.0) -> None:
        shifted(x, shift)


PROGRAMS: dict[str, Callable[..., Any]] = {
    "function": shifted,
    "method": Module().model,
    "module": Module(),
    "partial": functools.partial(shifted, shift=1.0),
    "blocked": poutine.block(shifted),
    "handlers": pyro.plate("k", 2, dim=-2)(poutine.scale(shifted, 2.0)),
    "traced": poutine.trace(shifted),
    "blocked method": Module().hidden,
    "blocked module": poutine.block(Module()),
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=list(PROGRAMS))
def test_keywords_of_programs_of_every_kind(program: Any) -> None:
    question(program, anything, shift=2.0)
    with pytest.raises(TypeError, match=r"'shfit'.*the pair does not take: did you mean 'shift'"):
        question(program, anything, shfit=2.0)
    with pytest.raises(TypeError, match=r"'num_sample'.*did you mean 'num_samples'"):
        question(anything, program, num_sample=2.0)


def test_a_keyword_that_only_one_of_the_two_takes() -> None:
    with pytest.raises(TypeError, match="'shift'"):
        question(shifted, lambda x: None, shift=1.0)


def test_programs_that_take_every_keyword() -> None:
    question(anything, AutoNormal(shifted), whatever=1)
    with pytest.raises(TypeError, match="'whatever'"):
        question(shifted, AutoNormal(shifted), whatever=1)


def test_hints_come_before_near_names() -> None:
    with pytest.raises(TypeError, match=r"'chains'.*say method=AIS"):
        check_keywords(question, {"chains": 3}, shifted, None, hints={"chains": "say method=AIS"})


def test_what_is_wrapped() -> None:
    assert unwrapped(PROGRAMS["handlers"]) is shifted
    assert unwrapped(PROGRAMS["traced"]) is shifted
    assert unwrapped(shifted) is shifted
