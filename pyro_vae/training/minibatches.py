"""Pairs that cannot be trained on a part of the data at a time: found before the first step."""

from __future__ import annotations

import re
from typing import Any

import torch
from pyro.infer.autoguide import AutoContinuous, AutoDiscreteParallel, AutoGuide, AutoStructured

from pyro_vae.evaluate.preflight.probe import Run, fits, fresh_guide, plate_sizes, preserve_state, shorten
from pyro_vae.pair.arguments import slices, take
from pyro_vae.pair.forms import innermost
from pyro_vae.pair.networks import modules_of
from pyro_vae.pair.protocol import Program
from pyro_vae.support.random import fork_rng
from pyro_vae.training.batches import Batches, Head

__all__ = ["check_autoguide", "check_minibatches"]

PACKED = (AutoContinuous, AutoDiscreteParallel, AutoStructured)


def check_minibatches(model: Program, guide: Program, batches: Batches, head: Head, parts: int) -> None:
    """Refuse a pair that minibatches would train wrongly, or not at all.

    Args:
        model, guide: The pair.
        batches: The training data.
        head: The first of them.
        parts: Each batch is taken in so many parts.

    Raises:
        ValueError: If the pair has parameters for each datum of a batch; if a latent that all data share would be
            counted once for each batch; if batch normalization would meet a batch of one datum.
    """
    args = head.example_args
    n = len(args[0])
    if 1 in _sizes(batches, parts):
        _check_single_datum(model, guide, args)
    at_once = batches.steps_per_epoch == 1
    if n < 2 or (at_once and parts == 1):
        return
    runs = [_run(model, guide, take(args, {}, 0, size)[0]) for size in (n, n - 1)]
    if not any(run.raised for run in runs):
        _check_rows(guide, batches, *runs)
        if not at_once:
            _check_shared(batches, *runs)
    # else the first step will say what is wrong


def check_autoguide(guide: Program) -> None:
    """Refuse an autoguide that was set up on a part of a subsampled plate and has parameters for that part only.

    `AutoNormal` and `AutoDelta` have parameters for all of the plate. Those that pack the latents into one vector, and
    the discrete one, would share the rows of the first batch among all data.

    Raises:
        ValueError: Naming the plate.
    """
    for part in (m for net in modules_of(guide).values() for m in net.modules() if isinstance(m, PACKED)):
        for frame in getattr(part, "_prototype_frames", {}).values():
            if frame.full_size not in (None, frame.size):
                raise ValueError(
                    f"{type(part).__name__} has parameters for {frame.size} elements of the plate {frame.name!r}, "
                    f"those of the first batch, though the plate has {frame.full_size}: it does not take a subsampled "
                    "plate. Train on all data at once, use AutoNormal (continuous latents), or write a guide with "
                    "pyro.param(name, value of all rows, event_dim=...) inside the subsampled plate, or one whose "
                    "encoder network gives the distribution of each datum"
                )


def _run(model: Program, guide: Program, args: tuple[Any, ...]) -> Run:
    with fork_rng(), torch.no_grad(), preserve_state(model, guide):
        return Run.record(len(args[0]), model, fresh_guide(guide), args, {})


def _check_rows(guide: Program, batches: Batches, whole: Run, part: Run) -> None:
    shapes = [dict(run.params.shapes) for run in (whole, part)]
    rows = [name for name, shape in shapes[0].items() if shapes[1].get(name, shape) != shape]
    if isinstance(innermost(guide), AutoGuide) and not all(map(_fits, part.sites_of("model").values())):
        rows = [f"it was set up on {whole.n} data"]
    if rows:
        raise ValueError(_refusal(guide, batches, shorten(rows)))


def _refusal(guide: Program, batches: Batches, which: str) -> str:
    written = innermost(guide)
    who = f"the autoguide {type(written).__name__}" if isinstance(written, AutoGuide) else "the pair"
    everything = f"batch_size={batches.num_data}" if batches.in_memory else "with a tensor in place of a loader"
    return (
        f"{who} has parameters for each datum ({which}), which batches of other data would share: train on all data at "
        f"once, {everything}, or write a guide whose encoder network gives the distribution of each datum"
    )


def _check_shared(batches: Batches, whole: Run, part: Run) -> None:
    fewer = part.sites_of("model")
    sites = whole.sites_of("model")
    # z_0, z_1, ... of a loop over the data
    loops = {_pattern(name) for name in sites.keys() ^ fewer.keys()}
    seen = [float(torch.as_tensor(s["scale"]).mean()) for s in sites.values() if _observes(s)]
    for name, site in sites.items():
        if site["is_observed"] or name not in fewer or _pattern(name) in loops:
            continue
        over_data = {name: whole.n for name, size in _plates(fewer[name]).items() if size == part.n}
        if over_data.items() & _plates(site).items() or site["value"].shape != fewer[name]["value"].shape:
            continue
        if any(scale != float(torch.as_tensor(site["scale"]).mean()) for scale in seen):
            continue  # the data are scaled up to all of them
        size = batches.num_data or "N"
        raise ValueError(
            f"all data share the latent site {name!r}, whose KL would be counted once for each batch, and so many "
            f"times in all: give the plate over the data its full size wherever it stands, `with pyro.plate('data', "
            f"{size}, subsample_size=len(x)):`, which counts each batch as all data, or train on all data at once, "
            f"batch_size={size}"
        )


def _fits(site: dict[str, Any]) -> bool:
    """Whether an observation has the sizes of its plates, which those of the guide decide."""
    value = torch.as_tensor(site["value"])
    return not site["is_observed"] or fits(tuple(value.shape[: value.dim() - site["fn"].event_dim]), plate_sizes(site))


def _plates(site: dict[str, Any]) -> dict[str, int]:
    return {f.name: f.size for f in site["cond_indep_stack"]}


def _observes(site: dict[str, Any]) -> bool:
    return site["is_observed"] and type(site["fn"]).__name__ != "Unit"  # which is a pyro.factor


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _check_single_datum(model: Program, guide: Program, args: tuple[Any, ...]) -> None:
    error = _run(model, guide, take(args, {}, 0, 1)[0]).raised
    if error is not None and "more than 1 value per channel" in str(error[1]):
        raise ValueError(
            f"{error[0]} normalizes over the batch, which a batch of one datum does not allow ({error[1]}): choose a "
            "batch_size that leaves no single datum for the last batch (or the last part of one)"
        ) from error[1]


def _sizes(batches: Batches, parts: int) -> set[int]:
    """How many data are taken at a time, as far as that can be known."""
    size: Any = batches.batch_size or getattr(batches.loader, "batch_size", None)
    if batches.num_data is None or not isinstance(size, int):
        return set()
    drops = getattr(batches.loader, "drop_last", False)
    last = batches.num_data % size
    return {stop - start for n in {size, *([last] if last and not drops else [])} for start, stop in _cut(n, parts)}


def _cut(n: int, parts: int) -> list[tuple[int, int]]:
    return list(slices(n, -(-n // parts)))
