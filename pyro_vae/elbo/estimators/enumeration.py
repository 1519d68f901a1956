"""Pyro's ELBO with discrete latents summed over, for guides in any order."""

from __future__ import annotations

import warnings
from typing import Any

import pyro.infer
from pyro.infer.util import is_validation_enabled

from pyro_vae.elbo.estimators.pair_runs import RunsPairs
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.tracing import Site, sample_sites

__all__ = ["Enumeration"]


class Enumeration(RunsPairs, pyro.infer.TraceEnum_ELBO):
    r"""The ELBO with the sites marked `infer={"enumerate": "parallel"}` summed over, not drawn.

    .. math:: L = \sum_c q(c|x)\, E_{q(z|c, x)}[\log p(x, z, c) - \log q(z, c|x)]

    This is Pyro's estimator, which sums in the guide, or in the model over a site that the guide leaves out. Here the
    guide may draw a site given one that it sums over which the model draws the other way round. Other sites get
    pathwise gradients, or a score function.

    Raises:
        ValueError: If a site stands outside of a plate and depends on one that is summed over inside it: the elements
            of the plate are then summed over one by one, as if they were always equal.

    Warns:
        RuntimeWarning: If a site is drawn with a score function in a plate, and a later one stands outside of that:
            Pyro takes it not to depend on the first.

    Reference: Obermeyer et al. 2019, arXiv 1902.03210 (tensor variable elimination); Foerster et al. 2018, arXiv
    1802.05098 (the score function).
    """

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> Any:
        traces = super()._get_trace(model, guide, args, kwargs)
        for trace in traces:
            _refuse_outer_sites(trace, traces[1])
        if is_validation_enabled():
            for trace in traces:
                _warn_of_outer_sites(trace, traces[1])
        return traces


def _refuse_outer_sites(trace: Any, guide: Any) -> None:
    """Refuse a site that varies with an enumerated one of the guide, and not with all of its plates."""
    owners: dict[int, list[tuple[str, set[Any]]]] = {}  # several of one dimension in a Markov chain
    for name, site in sample_sites(guide):
        dim = site["infer"].get("_enumerate_dim")
        if dim is not None:
            owners.setdefault(dim, []).append((name, _plates(site)))
    for name, site in sample_sites(trace):
        shape, plates = site["log_prob"].shape, _plates(site)
        for dim, found in owners.items():
            varies = len(shape) >= -dim and shape[dim] > 1
            if varies and not any(its <= plates for _, its in found):
                other, its = found[0]
                raise ValueError(
                    f"site {name!r} stands outside of the plate {min(its - plates)!r} and depends on {other!r}, which "
                    "is summed over inside it: a sum over all combinations of its elements would be needed. Make an "
                    "event of that plate, .to_event(1), or use elbo='trace_graph' or 'reinforce'"
                )


def _warn_of_outer_sites(trace: Any, guide: Any) -> None:
    drawn: dict[str, Site] = {
        name: site
        for name, site in sample_sites(guide)
        if not site["is_observed"] and not site["fn"].has_rsample and not site["infer"].get("enumerate")
    }
    before: dict[str, set[Any]] = {}
    for name, site in sample_sites(trace):
        plates = _plates(site)
        for other, its in before.items():
            if not its <= plates:
                plate = sorted(its - plates)[0]
                warnings.warn(
                    f"site {name!r} stands outside of the plate {plate!r} in which {other!r} is drawn, and if it "
                    f"depends on {other!r}, the gradient of the guide is wrong: make an event of that plate, "
                    ".to_event(1), or use elbo='trace_graph' or 'reinforce'",
                    RuntimeWarning,
                    stacklevel=2,
                )
                return
        if name in drawn:
            before[name] = _plates(drawn[name])


def _plates(site: Site) -> set[Any]:
    return {frame.name for frame in site["cond_indep_stack"] if frame.vectorized}
