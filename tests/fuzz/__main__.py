"""Random programs for as long as you like: `python -m tests.fuzz --programs 1000 --seed 0`."""

from __future__ import annotations

import argparse
import sys
import time
import warnings

import torch

from tests.fuzz.checks import COPIES, faults_of
from tests.fuzz.programs import random_program


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=10**9, help="how many")
    parser.add_argument("--seed", type=int, default=0, help="of the first program")
    parser.add_argument("--cases", type=int, default=None, help="estimators of each program; all of them by default")
    parser.add_argument("--copies", type=int, default=COPIES, help="draws of each gradient")
    parser.add_argument("--minutes", type=float, default=60.0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    started, failed, count = time.time(), 0, 0
    for seed in range(asked.seed, asked.seed + asked.programs):
        if time.time() - started > 60 * asked.minutes:
            break
        count += 1
        found = faults_of(seed, asked.cases, asked.copies)
        if count % 100 == 0:
            print(f"{count} programs in {time.time() - started:.0f} s", file=sys.stderr, flush=True)
        if found:
            failed += 1
            print(f"\n{random_program(seed)}")
            for fault in found:
                print(f"  FAULT seed {seed}: {fault}", flush=True)
    print(f"{count} programs from seed {asked.seed} in {time.time() - started:.0f} s, {failed} with faults")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
