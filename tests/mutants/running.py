"""One mutant after the other, each in a process of its own that ends with it."""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyro
import torch

from pyro_vae.elbo import BySite
from tests.mutants import judges
from tests.mutants.in_estimators import EstimatorMutant, oracle
from tests.mutants.in_pairs import PairMutant

__all__ = ["CHECKS", "Verdict", "judge_estimator", "judge_pair"]

LONGEST = 400.0  # seconds of one mutant
Checks = Collection[str]
CHECKS = ("check_estimator", "compare_elbos", "tests", "preflight", "fit", "calibration")
RIGHT: dict[Any, Verdict] = {}  # the verdicts on what is right


@dataclass
class Verdict:
    """What was found of one mutant: by check, the findings that the right one does not have."""

    name: str
    took_effect: bool = False
    found: dict[str, list[str]] = field(default_factory=dict)
    sound: bool = True  # whether the right one has no findings by the checks of which none are expected
    error: str = ""
    seconds: float = 0.0

    @property
    def noticed(self) -> bool:
        return any(self.found.values())


def judge_estimator(mutant: EstimatorMutant, checks: Checks) -> Verdict:
    """Put the right estimator to each check, once, then the same with the fault."""
    made = mutant.make()
    key = type(made), str(made) if isinstance(made, BySite) else made.num_particles, mutant.on, str(mutant.options)
    if key not in RIGHT:
        RIGHT[key] = alone(partial(_of_estimator, mutant, set(checks) - {"tests"}), mutant.name)
    right = RIGHT[key]

    def judge() -> Verdict:
        pair, verdict = oracle(mutant.on), Verdict(mutant.name)
        before = judges.outcome(mutant.make(), pair)
        with mutant.change.planted():
            try:
                after = judges.outcome(mutant.make(), pair)
                verdict.took_effect = not all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
            except Exception:
                verdict.took_effect = True
            verdict.found = _taken_off(_of_estimator(mutant, checks), right)
        verdict.sound = not right.found.get("check_estimator") and not right.error
        return verdict

    return alone(judge, mutant.name)


def _of_estimator(mutant: EstimatorMutant, checks: Checks) -> Verdict:
    """What the checks say of the estimator as it is now."""
    pair = oracle(mutant.on)
    torch.manual_seed(judges.SEED)
    x = pair.simulate(20)
    asked = {
        "check_estimator": lambda: judges.by_check(mutant.make(), pair, **{"repeats": 60, **mutant.options}),
        "compare_elbos": lambda: judges.by_comparison(mutant.make(), pair.model, pair.guide, x),
        "tests": lambda: judges.by_tests(mutant.tests, mutant.keyword),
    }
    return _verdict(asked, checks)


def judge_pair(mutant: PairMutant, checks: Checks) -> Verdict:
    """Put the right pair to each check, once, then the pair with the fault."""
    if mutant.right not in RIGHT:
        RIGHT[mutant.right] = alone(partial(_of_pair, mutant.right, checks), mutant.name)
    right = RIGHT[mutant.right]

    def judge() -> Verdict:
        verdict = Verdict(mutant.name)
        verdict.found = _taken_off(_of_pair(mutant.wrong, checks), right)
        verdict.took_effect = mutant.right().outcome() != mutant.wrong().outcome()
        # a question that cannot be put to the right pair says nothing of the wrong one
        verdict.sound = all(each.startswith("raises") for found in right.found.values() for each in found)
        return verdict

    return alone(judge, mutant.name)


def _of_pair(make: Callable[[], Any], checks: Checks) -> Verdict:
    pyro.clear_param_store()
    made = make()
    asked = {
        "preflight": lambda: judges.by_preflight(made),
        "fit": lambda: judges.by_fit(made),
        "calibration": lambda: judges.by_calibration(made.model, made.guide, made.x),
        "compare_elbos": lambda: judges.by_comparison(made.objective(), made.model, made.guide, made.x[:20]),
    }
    return _verdict(asked, checks)


def _verdict(asked: dict[str, Callable[[], set[str]]], checks: Checks) -> Verdict:
    """The findings of those checks that are wanted."""
    return Verdict("", found={check: sorted(ask()) for check, ask in asked.items() if check in checks})


def _taken_off(wrong: Verdict, right: Verdict) -> dict[str, list[str]]:
    return {check: sorted({*found} - {*right.found.get(check, ())}) for check, found in wrong.found.items()}


def alone(judge: Callable[[], Verdict], name: str) -> Verdict:
    """The verdict of a forked process, which takes what it has changed with it."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    started = time.perf_counter()

    def work() -> None:
        try:
            theirs.send(judge())
        except BaseException:
            theirs.send(Verdict(name, error=traceback.format_exc()))

    process: Any = context.Process(target=work)
    process.start()
    theirs.close()
    try:
        verdict = ours.recv() if ours.poll(LONGEST) else Verdict(name, error=f"no answer in {LONGEST:.0f} s")
    except EOFError:
        verdict = Verdict(name, error="the process died")
    if process.is_alive() and verdict.error:
        process.kill()
    process.join()
    verdict.seconds = time.perf_counter() - started
    return verdict
