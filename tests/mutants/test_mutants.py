"""The faults of `make mutants` can be planted, and take effect; two that random programs have missed are seen."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pyro_vae.elbo import Trace
from pyro_vae.evaluate import check_estimator
from tests.mutants.in_estimators import ESTIMATOR_MUTANTS, oracle
from tests.mutants.in_pairs import PAIR_MUTANTS, PairMutant
from tests.mutants.judges import outcome
from tests.mutants.planting import Change


def test_there_are_enough_and_no_name_is_given_twice() -> None:
    names = [each.name for each in ESTIMATOR_MUTANTS] + [each.name for each in PAIR_MUTANTS]
    assert len(ESTIMATOR_MUTANTS) >= 35
    assert len(PAIR_MUTANTS) >= 25
    assert len(set(names)) == len(names)


def test_every_fault_can_be_planted_and_leaves_no_trace() -> None:
    """That what it changes stands there once: the sources move on."""
    for mutant in ESTIMATOR_MUTANTS:
        with mutant.change.planted():
            pass
    pair = oracle("linear")
    before = outcome(Trace(), pair)
    change = Change(
        "elbo.estimators.bounds:Trace.particle_loss", "value = sign * scale_and_mask", "value = scale_and_mask"
    )
    with change.planted():
        assert not torch.equal(outcome(Trace(), pair)[0], before[0])
    assert all(torch.equal(a, b) for a, b in zip(outcome(Trace(), pair), before, strict=True))


@pytest.mark.parametrize("name", ["pooled plates in trace", "closed-form KL in any order"])
def test_what_random_programs_have_missed_is_seen(name: str) -> None:
    (mutant,) = [m for m in ESTIMATOR_MUTANTS if m.name == name]
    options: dict[str, Any] = {"repeats": 60, "seed": 0}
    assert check_estimator(mutant.make(), oracle(mutant.on), **options).passed
    with mutant.change.planted():
        found = check_estimator(mutant.make(), oracle(mutant.on), **options)
    assert found["gradient of the guide"].passed is False


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mutant", PAIR_MUTANTS, ids=lambda mutant: mutant.name)
def test_every_fault_of_a_pair_takes_effect(mutant: PairMutant) -> None:
    assert mutant.right().outcome() == mutant.right().outcome()
    assert mutant.right().outcome() != mutant.wrong().outcome()
