"""Two hundred random programs against their exact values; `make fuzz` runs more of them."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.checks import cases, faults_of
from tests.fuzz.programs import random_program

PROGRAMS, CHUNK, CASES = 200, 10, 3


# of enumeration, about sites that do not read what it is about
@pytest.mark.filterwarnings("ignore:.*possibly invalid dependency")
@pytest.mark.filterwarnings("ignore:.*stands outside of the plate")
@pytest.mark.parametrize("first", range(0, PROGRAMS, CHUNK))
def test_random_programs_have_their_exact_values(first: int) -> None:
    """On each, some estimators: their values, and the gradients of model and guide; and the questions."""
    report = []
    for seed in range(first, first + CHUNK):
        found = faults_of(seed, CASES)
        report += [f"{random_program(seed)}\n  " + "\n  ".join(found)] if found else []
    assert not report, "\n\n".join(report)


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
        *("reinforce", "vimco", "rws", "tail_adaptive", "disarm", "rebar"),
    }
