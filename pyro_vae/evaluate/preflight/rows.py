"""The rows of what preflight is given: data in any form, or none for a pair that has its data itself."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.evaluate.preflight.probe import Run, plate_frames, preserve_state
from pyro_vae.pair.forms import InForm, by_keyword, held, in_rows
from pyro_vae.pair.protocol import Program
from pyro_vae.support.random import fork_rng

__all__ = ["on_rows"]

ADVICE = "preflight(model, guide, x[:8])"


def on_rows(
    model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Program, Program, tuple[Any, ...], dict[str, Any], bool | None]:
    """The pair and its arguments, the data first, and whether these stand for all data, which the pair has itself.

    Raises:
        TypeError: For a first argument without a length.
        ValueError: For no data.
    """
    args, kwargs = by_keyword(model, (args, kwargs))
    if not (args and isinstance(args[0], Tensor | np.ndarray)):
        with preserve_state(model, guide):
            model, guide, (args, kwargs), form = in_rows(model, guide, (args, kwargs))
        if form is None and not args and not kwargs and all(map(_takes_nothing, (model, guide))):
            form = held((args, kwargs))
            n = _size(model, guide)
            return InForm(model, form), InForm(guide, form), (torch.zeros(n),), {}, True
    if not args or not hasattr(args[0], "__len__") or (isinstance(args[0], Tensor) and args[0].dim() == 0):
        came = type(args[0]).__name__ if args else "nothing"
        raise TypeError(f"preflight needs a batch of data with a length after the pair, got {came}: {ADVICE}")
    if not len(args[0]):
        raise ValueError(f"preflight needs at least one datum, got none: {ADVICE}")
    return model, guide, args, kwargs, None


def _takes_nothing(program: Program) -> bool:
    try:
        inspect.signature(program).bind()
    except TypeError:
        return False
    except ValueError:  # of no known signature
        return True
    return True


def _size(model: Program, guide: Program) -> int:
    """The size of the plate over the data of a pair without arguments; 1 if nothing observed stands in one."""
    with torch.no_grad(), fork_rng(), preserve_state(model, guide):
        run = Run.record(1, model, guide, (), {})
    seen = [plate_frames(site).values() for site in run.sites_of("model").values() if site["is_observed"]]
    frames = [frame for found in seen for frame in found]
    named = [frame for frame in frames if frame.name == "data"]
    return min(named or frames, key=lambda frame: frame.dim).size if frames else 1
