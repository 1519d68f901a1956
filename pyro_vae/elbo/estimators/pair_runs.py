"""How the estimators of Pyro in this library run a pair: as all others do."""

from __future__ import annotations

import math
from typing import Any

import pyro.infer
from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_site_shape

from pyro_vae.pair.protocol import Program
from pyro_vae.pair.running import traced
from pyro_vae.pair.site_masks import filled_value, has_mask
from pyro_vae.pair.tracing import plate_nesting, sample_sites

__all__ = ["RunsPairs"]

UNLIMITED: Any = math.inf


class RunsPairs(pyro.infer.ELBO):
    """An ELBO of Pyro whose traces are made by `_PairRuns`."""

    def _guess_max_plate_nesting(self, model: Program, guide: Program, args: Any, kwargs: Any) -> None:
        runs = _PairRuns(model, guide)
        with poutine.block():
            runs(*args, **kwargs)
        traces = [prune_subsample_sites(trace) for trace in runs.traces]
        if is_validation_enabled():  # as Pyro does, while no dimension is one of enumeration
            for trace in traces:
                trace.compute_log_prob()
                sites: Any = sample_sites(trace)
                for _, site in sites:
                    check_site_shape(site, max_plate_nesting=UNLIMITED)
        self.max_plate_nesting = plate_nesting(*traces) + (self.vectorize_particles and self.num_particles > 1)

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        of_pyro: Any = super()
        return of_pyro._get_trace(model, _PairRuns(model, guide), args, kwargs)


class _PairRuns(Messenger):
    """Runs the guide and the model on its values, in the place of a guide that makes both traces."""

    def __init__(self, model: Program, guide: Program) -> None:
        super().__init__()
        self.model, self.guide = model, guide
        self.traces: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        guide = traced(self.guide, args, kwargs)
        model = traced(self.model, args, kwargs, on=guide)
        for name, site in sample_sites(model):
            if name in guide.nodes:
                # the guide gave the dimension; in the model, what the site depends on may have it already
                site["infer"] = {key: value for key, value in site["infer"].items() if key != "_enumerate_dim"}
            if site["is_observed"] and has_mask(site):
                site["value"] = filled_value(site)
        self.traces = model, guide

    def get_traces(self) -> Any:
        """The model's and the guide's."""
        return self.traces
