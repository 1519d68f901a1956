"""Pairs without a row for each datum in a first argument: latents that all data share, data elsewhere than in a tensor.

A question works on rows. Where a part of the data can be taken, along another axis or inside of containers, the pair
takes that part as rows. Otherwise its data stand behind it, and in their place it takes a tensor with a row for each
element of the plate that all sites share, or a single row for all data together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.pair.arguments import check_data
from pyro_vae.pair.elimination import without_enumerated
from pyro_vae.pair.forms import InForm, by_keyword, held, in_rows
from pyro_vae.pair.networks import modules_of
from pyro_vae.pair.planning import run_on_examples
from pyro_vae.pair.plates import NoDataPlate, common_plates, data_plate
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.pair.subsampling import on_all_data
from pyro_vae.pair.tracing import PairTrace, plate_nesting, trace_pair
from pyro_vae.support.random import fork_rng

__all__ = ["Asked", "asked_pair", "prior_of"]


def prior_of(model: Program) -> Program:
    """The model's prior as a guide: the model without its observations."""
    hidden: Program = poutine.block(model, hide_fn=lambda site: site["type"] == "sample" and site["is_observed"])
    return hidden


@dataclass(frozen=True)
class Asked:
    """A pair in the form that questions take.

    Attributes:
        model, guide: The pair.
        data: Its arguments; the first is a tensor of N rows.
        num_data: N; 1 for all data together.
        joint: Why its numbers are of all data together; "" if they are per datum.
        is_given: Whether the data are the arguments that were given.
    """

    model: Program
    guide: Program
    data: Data
    num_data: int
    joint: str = ""
    is_given: bool = True


def asked_pair(model: Program, guide: Program | None, data: Data) -> Asked:
    """The pair in the form that questions take; call it with the networks in evaluation mode.

    Discrete latents that the model enumerates and the guide does not draw are summed out. Without a guide, the model's
    prior takes its place.

    Raises:
        ValueError: For a pair without sites, or whose sites do not fit.
    """
    data = by_keyword(model, data)
    args, _ = data
    if args and isinstance(args[0], Tensor | list):
        check_data(args)
    if guide is not None and any(_is_new(part) for net in modules_of(guide).values() for part in net.modules()):
        with torch.no_grad(), fork_rng():
            on_all_data(guide)(*args, **data[1])  # an autoguide takes the sizes of its first run: all data
    asked = _by_rows(model, guide, data)
    if isinstance(asked, Asked):
        return asked
    program, proposal, rows, form = in_rows(model, guide, data)
    in_form = "" if form is None else _by_rows(program, proposal, rows)
    if isinstance(in_form, Asked):
        return replace(in_form, is_given=False)
    model, guide = _whole(model, guide, data)
    with torch.no_grad(), fork_rng():
        traces = trace_pair(model, guide, *data)
    frames, all_of_it = common_plates(traces), held(data)
    frame = frames.get("data") or min(frames.values(), key=lambda f: f.dim, default=None)
    if frame is not None:
        some = _rows(frame.size, model, guide, traces)
        pair = InForm(model, all_of_it), InForm(guide, all_of_it)
        return Asked(pair[0], pair[1], ((some,), {}), frame.size, is_given=False)
    # of no size: it leaves the shapes of the sites as they are
    together = pyro.plate("all data together", dim=-1 - plate_nesting(traces.model, traces.guide))
    pair = InForm(together(model), all_of_it), InForm(together(guide), all_of_it)
    outside = asked or "no plate holds all sites of the pair, so there is no number per datum"
    return Asked(pair[0], pair[1], ((_rows(1, model, guide, traces),), {}), 1, outside, is_given=False)


def _whole(model: Program, guide: Program | None, data: Data) -> tuple[Program, Program]:
    """The pair on all data of its plates, without what the model sums out; the prior where there is no guide."""
    model, guide = on_all_data(model), None if guide is None else on_all_data(guide)
    model = without_enumerated(model, guide, data)
    return model, prior_of(model) if guide is None else guide


def _by_rows(model: Program, guide: Program | None, data: Data) -> Asked | str:
    """The pair on the rows of a first tensor; why it has no number for each, "" if the first argument is no tensor."""
    args, _ = data
    if not (args and isinstance(args[0], Tensor)):
        return ""
    model, proposal = _whole(model, guide, data)
    try:
        with torch.no_grad(), fork_rng():
            run_on_examples(lambda some: data_plate(trace_pair(model, proposal, *some), len(some[0][0])), data)
    except NoDataPlate as error:
        return str(error)
    return Asked(model, proposal, data, len(args[0]))


def _is_new(part: Any) -> bool:
    return getattr(part, "prototype_trace", "") is None


def _rows(n: int, model: Program, guide: Program, traces: PairTrace) -> Tensor:
    """A tensor of n rows, of the dtype and on the device of what the pair observes."""
    values = [site["value"] for _, site, _ in traces.sites() if isinstance(site["value"], Tensor)]
    like = next((v for v in values if v.is_floating_point()), None)
    if like is None:
        like = next((p for net in modules_of(model, guide).values() for p in net.parameters()), torch.zeros(()))
    return torch.zeros(n, dtype=like.dtype, device=like.device)
