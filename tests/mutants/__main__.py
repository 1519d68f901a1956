"""The mutation score of the checks and tests: `python -m tests.mutants --only NAME --minutes 60`."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tests.mutants.in_estimators import ESTIMATOR_MUTANTS
from tests.mutants.in_pairs import PAIR_MUTANTS
from tests.mutants.running import CHECKS, Verdict, judge_estimator, judge_pair
from tests.mutants.score import Score

JUDGED: dict[str, tuple[Sequence[Any], Callable[..., Verdict]]] = {
    "estimators": (ESTIMATOR_MUTANTS, judge_estimator),
    "pairs": (PAIR_MUTANTS, judge_pair),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="mutants with these words in their names, or 'estimators', 'pairs'")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--checks", nargs="*", default=CHECKS, choices=CHECKS, help="these checks alone")
    parser.add_argument("--docs", action="store_true", help="write the result into docs/developing.md")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    started, found = time.time(), dict[str, list[Verdict]]()
    for kind, (mutants, judge) in JUDGED.items():
        for mutant in mutants:
            if asked.only not in (*JUDGED, "") and asked.only not in mutant.name:
                continue
            if asked.only in JUDGED and asked.only != kind:
                continue
            if time.time() - started > 60 * asked.minutes:
                print("the time is over", file=sys.stderr)
                break
            verdict = judge(mutant, asked.checks)
            found.setdefault(kind, []).append(verdict)
            print(f"{kind}: {verdict}", file=sys.stderr, flush=True)
    score = Score(found, time.time() - started)
    print(score)
    if asked.docs:
        score.write()
    return int(not score.is_sound)


if __name__ == "__main__":
    sys.exit(main())
