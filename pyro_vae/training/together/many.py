"""`fit_many`: the same pair trained from many seeds at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pyro_vae.compilation.stacked import CannotStack
from pyro_vae.support.arguments import checked_from, flag
from pyro_vae.support.progress import progress_bar
from pyro_vae.training.together.building import FreshPairs
from pyro_vae.training.together.jobs import Fitted, Job, Stacked, one_after_another, stacked, why_not_stacked
from pyro_vae.training.together.processes import in_processes
from pyro_vae.training.together.result import SeedRuns

__all__ = ["check_seeds", "fit_many", "train_jobs"]

_RESERVED = ("seed", "devices", "num_nodes", "strategy", "checkpoints", "resume")


@checked_from(processes=1, stacked=None)
def fit_many(
    build: Callable[[int], Any],
    data: Any,
    *,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    stacked: Stacked = "auto",
    processes: int = 1,
    progress: bool | None = False,
    **options: Any,
) -> SeedRuns:
    """Train the same pair from many seeds, as `fit(seed=s)` would from each of them, in less time.

    Steps of several runs can be stacked: one graph, `torch.func.vmap` over the recorded step of one run, takes the
    gradient of all of them, and one fused Adam updates them. Each run has its own order of the data, noise, schedules
    and best weights. It draws what it would draw alone, in the same order, so its figures are those of
    `fit(seed=s, compile=True)` up to rounding. They do not depend on how many runs are stacked.

    Stacking removes what Python and the calls of operations cost per run, so it pays for small networks and batches. On
    a CPU it does not pay for large layers: their matrix products take as long side by side as one after another, and
    the weights of all runs together leave the cache. Several processes help then. Recording takes some 0.3 seconds per
    run, so that runs of less than a few hundred steps are not faster either.

    Args:
        build: `build(seed)` returns a fresh pair: an object with `model` and `guide`, or a tuple of the two. All
            networks and parameters must be made inside it, with torch's generators or the seed as the only source of
            randomness; torch is seeded with the seed before each call. It may be called more than once with a seed.
        data: As in `fit`.
        seeds: Different whole numbers.
        stacked: Whether to stack the steps. "auto": if it can be done, and if a step of the first two runs, measured
            once, tells that steps become at least twice as fast. `SeedRuns.why_not` says why they were not stacked.
        processes: Number of processes of one thread each, made by `fork`, which share the seeds. Functions among
            `options` run in them.
        progress: Show a bar over the runs.
        **options: Options of `fit`, for all runs: `valid`, `elbo`, `epochs`, `lr`, ... Of a stacked run, `compile` is
            about the one graph.

    Returns:
        SeedRuns: The history and the trained pair of each seed, and intervals over the seeds. The seconds of a stacked
        run are its share: those of all, divided by their number.

    Raises:
        ValueError, TypeError: For bad arguments; if `stacked=True` cannot be done, with the reason; and for errors of
            `fit`, with a note of the seed.
        NonFiniteLoss: As in `fit`, with a note of the seed, in one process.
        RuntimeError: If `processes` is above 1 where there is no `fork`, or after CUDA was used.

    Example:
        >>> import torch
        >>> from pyro_vae.models import VAE
        >>> x = (torch.rand(40, 6) < 0.5).float()
        >>> runs = fit_many(lambda seed: VAE(6, 2, hidden=(4,)), x, seeds=range(3), stacked=True, epochs=2)
        >>> [len(history) for history in runs.histories], runs.stacked
        ([2, 2, 2], True)
    """
    seeds = check_seeds(seeds)
    flag("stacked", stacked, "auto")
    if reserved := [name for name in _RESERVED if name in options]:
        raise ValueError(f"{', '.join(reserved)} cannot be given to fit_many: use fit for each seed")
    check = FreshPairs()
    jobs = [Job(build, data, seed, options, f"seed {seed}", check) for seed in seeds]
    with progress_bar("training", len(jobs), progress) as advance:
        fitted, reason = train_jobs(jobs, stacked, processes, advance)
    return SeedRuns(seeds, [each.history for each in fitted], fitted, reason)


def train_jobs(
    jobs: Sequence[Job], how: Stacked, processes: int, advance: Callable[[int], object] = lambda steps: None
) -> tuple[list[Fitted], str]:
    """Train jobs that differ in their seeds alone; returns the trained pairs, and why they were not stacked."""
    reason = why_not_stacked(jobs, how)
    processes = min(processes, len(jobs))
    if processes > 1:
        fitted = in_processes(jobs, processes, partial(_trained, is_stacked=reason is None, insists=how is True))
        advance(len(jobs))
        return [each for each, _ in fitted], reason or next((why for _, why in fitted if why), "")
    trained = _trained(jobs, is_stacked=reason is None, insists=how is True, advance=advance)
    return [each for each, _ in trained], reason or trained[0][1]


def check_seeds(seeds: Sequence[int]) -> list[int]:
    """The seeds as a list.

    Raises:
        ValueError: If there are none, or one comes twice.
    """
    found = list(seeds)
    if not found or len(set(found)) < len(found):
        raise ValueError(f"seeds must be different whole numbers, at least one, got {found}")
    return found


def _trained(
    jobs: Sequence[Job], *, is_stacked: bool, insists: bool, advance: Callable[[int], object] = lambda steps: None
) -> list[tuple[Fitted, str]]:
    """The trained pairs, each with the reason why stacking was given up after it had begun; "" if it was not."""
    reason = ""
    if is_stacked:
        try:
            found = stacked(jobs)
        except CannotStack as error:
            if insists:
                raise ValueError(f"stacked=True, but {error}: leave it at 'auto', or give stacked=False") from error
            reason = str(error)
        else:
            advance(len(jobs))
            return [(fitted, "") for fitted in found]
    trained = []
    for fitted in one_after_another(jobs):
        trained.append((fitted, reason))
        advance(1)
    return trained
