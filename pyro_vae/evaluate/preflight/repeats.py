"""What a second run of a pair shows, on fewer data: sizes that are fixed, networks made anew, graphs that are kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from pyro_vae.evaluate.preflight.checks import check_plates, check_shapes
from pyro_vae.evaluate.preflight.gradients import Densities, graph_nodes
from pyro_vae.evaluate.preflight.probe import Run, plate_frames
from pyro_vae.evaluate.preflight.raised import line_of_text
from pyro_vae.pair.tracing import log_prob

__all__ = ["check_fixed_sizes", "check_kept_graph", "check_made_anew", "log_densities", "next_node", "saved_line"]


def check_fixed_sizes(run: Run, fewer: Run, estimator: Any, full_batch: bool | None, message: str) -> None:
    """Check that the pair runs on another number of data.

    Args:
        run: The run on all data given.
        fewer: The run on a part of them.
        estimator: The estimator.
        full_batch: As in `preflight`.
        message: What the second run raised, explained.
    """
    sizes = {frame.size for _, _, site in run.sites() for frame in plate_frames(site).values()}
    if sizes and run.n not in sizes:
        return  # its plates are over something else than the rows, or take a part of them by itself
    if fewer.raised:
        if fewer.n == 1 and "more than 1 value per channel" in str(fewer.raised[1]):
            return  # batch normalization
        text = message
    else:
        check_plates(fewer)
        check_shapes(fewer, estimator)
        errors = [problem for problem in fewer.problems if problem.level == "error"]
        if not errors:
            return
        text = f"{errors[0].code}, {errors[0].message}"
    rows = [name for name, shape in run.params.shapes.items() if "$$$" not in name and run.n in shape]
    if full_batch is None and (rows or any(problem.code == "no_data_plate" for problem in run.problems)):
        return  # it has parameters for each of the data, or no plate over them: it is trained on all data at once
    text = (
        f"the pair runs on {run.n} data, but not on {fewer.n} of them ({text}): a size of {run.n} is written into it, "
    )
    text += "take it from the data, `len(x)`, also in `.view` and in tensors made beforehand"
    if full_batch is None:
        run.warn("fixed_size", None, f"{text}, unless all data make one batch of {run.n}")
    else:
        run.error("fixed_size", None, text)


def check_made_anew(run: Run, again: Run) -> None:
    """Check for networks that are made in every run."""
    first = {name: tensor for name, tensor in run.params.offered if "$$$" in name}
    anew = [name for name, tensor in again.params.offered if name in first and first[name] is not tensor]
    for module in dict.fromkeys(name.partition("$$$")[0] for name in anew):
        text = (
            f"the network {module!r} is made anew in each run, so that its training is lost: make it once, outside of "
        )
        run.error("made_anew", None, f"{text}the model and the guide, and leave `pyro.module({module!r}, net)` in them")


def check_kept_graph(run: Run, again: Run, start: int, stop: int) -> None:
    """Check for values of the first run, with their graph, in the second.

    Args:
        run: The first run.
        again: The second run.
        start, stop: The numbers of the autograd nodes before and after the first run.
    """
    old = [
        node for node in graph_nodes(log_densities(again)) if start < node._sequence_nr() < stop and node.next_functions
    ]
    if old:
        text = (
            f"the pair keeps values of an earlier run, with the graph of their gradient ({len(old)} operations), in a "
        )
        text += "list or an attribute: each step would go through all those before it, and fail or slow down. Keep "
        run.error("kept_graph", None, f"{text}`value.detach()`")


def log_densities(run: Run) -> list[Tensor]:
    """The log-densities of a run that can be computed."""
    return list(_log_densities(run))


def _log_densities(run: Run) -> Iterator[Tensor]:
    for _, name, site in run.sites():
        try:
            yield log_prob(name, site)
        except Exception:  # the first run says what is wrong
            continue


def next_node() -> int:
    """The number that the next autograd node has."""
    with torch.enable_grad():
        node: Any = (torch.zeros(1, requires_grad=True) * 1).grad_fn
    return int(node._sequence_nr())


def saved_line(again: Callable[[], Run]) -> str:
    """The line of the pair's code whose value was changed before its gradient was taken; empty if none is found."""
    with warnings.catch_warnings(record=True) as seen, torch.autograd.set_detect_anomaly(True):
        warnings.simplefilter("always")
        run = again()
        densities = Densities(
            {where: [log_prob(n, s) for w, n, s in run.sites() if w == where] for where in ("guide", "model")}
        )
        densities.differentiate()
    return next((line for w in seen if (line := line_of_text(str(w.message)))), "")
