"""Two hundred random programs against their exact values; `make fuzz` runs more of them."""

from __future__ import annotations

import random
from typing import Any

import pytest
from torch import Tensor

import pyro_vae as pv
from pyro_vae import elbo as elbos
from pyro_vae.elbo import Coefficients
from tests.fuzz.checks import cases, faults_of
from tests.fuzz.oracle import RandomOracle
from tests.fuzz.programs import random_program

PROGRAMS, CHUNK, CASES = 200, 10, 3


# of enumeration, about sites that do not read what it is about
@pytest.mark.filterwarnings("ignore:.*possibly invalid dependency")
@pytest.mark.filterwarnings("ignore:.*stands outside of the plate")
@pytest.mark.filterwarnings("ignore:the guide adds 'g' to its log-density")
@pytest.mark.parametrize("first", range(0, PROGRAMS, CHUNK))
def test_random_programs_have_their_exact_values(first: int) -> None:
    """On each, some estimators: their values, and the gradients of model and guide; and the questions."""
    report = []
    for seed in range(first, first + CHUNK):
        found = faults_of(seed, CASES)
        report += [f"{random_program(seed)}\n  " + "\n  ".join(found)] if found else []
    assert not report, "\n\n".join(report)


ORACLES = [program for program in map(random_program, range(500, 530)) if not program.is_global]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_check_estimator_on_random_programs() -> None:
    """What it finds right is right on other oracles than those that the library has."""
    failed = []
    for i, program in enumerate(ORACLES[:12]):
        oracle = RandomOracle(program)
        names = ("stl", "dreg", "mean_field") if oracle.reparameterized else ("vimco", "trace_graph", "reinforce")
        name = ("trace", "iwae", *names)[i % 5]
        found = pv.check_estimator(name, oracle, num_particles=2, repeats=12, seed=i)
        failed += [] if found.passed else [f"{name} on\n{program}\n{found}"]
    assert not failed, "\n\n".join(failed)


class Wrong(elbos.IWAE):
    """Half of the path's gradient."""

    def coefficients(self, log_w: Tensor, *args: Any) -> Coefficients:
        right = super().coefficients(log_w, *args)
        return right._replace(path=right.path / 2)

    follows_value = False


def test_check_estimator_sees_a_fault_on_a_random_program() -> None:
    oracle = next(o for o in map(RandomOracle, ORACLES) if o.reparameterized)
    found = pv.check_estimator(Wrong(num_particles=2), oracle, repeats=20, seed=0)
    assert [line.check for line in found.lines if line.passed is False] == ["gradient of the guide"]


def test_every_kind_is_among_them() -> None:
    programs = [random_program(seed) for seed in range(PROGRAMS)]
    sites = [site for program in programs for site in program.latents]
    assert {site.kind for site in sites} == {"bernoulli", "categorical", "onehot", "normal", "mvn"}
    observed = {site.kind for program in programs for site in program.observed}
    assert {"bernoulli", "normal", "factor"} <= observed
    weighings = [w for program in programs for site in program.sites.values() for w in site.weighing.values()]
    assert {w.mask for w in weighings} == {"", "x > 0", "x < 0", "first", "nothing"}
    assert {w.how for w in weighings if w.mask} == {"handler", "distribution"}
    assert {w.tensor for w in weighings if w.scale != 1} == {True, False}
    counts = {
        "global": sum(p.is_global for p in programs),
        "minibatch": sum(p.full_factor > 1 for p in programs),
        "inner plate": sum(bool(p.sizes) for p in programs),
        "part of an inner plate": sum(any(full > size for size, full in p.sizes.values()) for p in programs),
        "nested plates": sum(any(len(s.plates) == 2 for s in p.latents) for p in programs),
        "discrete after continuous in the guide": sum(
            any(s.discrete and any(not p.sites[n].discrete for n in s.parents["guide"]) for s in p.latents)
            for p in programs
        ),
        "noise of the guide": sum(bool(p.noise) for p in programs),
        "a factor in the guide": sum(bool(p.guide_terms) for p in programs),
        "another order": sum(p.guide_order != [s.name for s in p.latents] for p in programs),
    }
    assert min(counts.values()) >= 5, counts
    named = {case.name for seed, program in enumerate(programs) for case in cases(program, random.Random(seed))}
    assert named == {
        *("trace", "mean_field", "trace_graph", "enum", "stl", "dreg", "iwae", "miwae", "piwae", "ciwae", "renyi"),
        *("reinforce", "vimco", "rws", "tail_adaptive", "arms", "disarm", "double_cv", "rebar", "by_site", "gumbel"),
    }
