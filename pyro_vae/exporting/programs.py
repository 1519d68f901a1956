"""The two halves of a pair as functions of tensors: data to latents, and latents to what is observed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyro.distributions import Unit
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.exporting.centers import center, expectation, probabilities
from pyro_vae.exporting.inputs import Arguments
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.rows import rows_named
from pyro_vae.pair.running import traced
from pyro_vae.pair.site_masks import base_distribution
from pyro_vae.pair.subsampling import on_all_data
from pyro_vae.pair.tracing import sample_sites

__all__ = ["Decoding", "Encoding"]


class _Given(Messenger):
    """Latents have given values, or else the centers of their distributions."""

    def __init__(self, values: Mapping[str, Tensor], owner: Encoding | Decoding) -> None:
        super().__init__()
        self.values, self.owner = values, owner
        self.kinds: dict[str, str] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample):
            return
        name = self.owner.latest = msg["name"]
        if msg["is_observed"] or msg["value"] is not None:
            return
        if name in self.values:
            msg["value"] = self.values[name]
        else:
            msg["value"], self.kinds[name] = center(name, msg["fn"])
        msg["done"] = True


class Encoding:
    """The guide as a function of the tensors among its arguments: to the center of each latent.

    Attributes:
        kinds: What each output is, by name, after a call.
        latest: The site that a call has come to, "" before the first.
    """

    def __init__(self, guide: Program, arguments: Arguments) -> None:
        self.program, self.arguments = on_all_data(guide), arguments
        self.kinds: dict[str, str] = {}
        self.latest = ""

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """The center of each latent, and the probabilities of those that are classes."""
        args, kwargs = self.arguments.filled(tensors)
        self.latest, self.kinds = "", {}
        with _Given({}, self) as given, rows_named(self.program, self.program, args, kwargs):
            trace = traced(self.program, args, kwargs)
        found: dict[str, Tensor] = {}
        for name, site in sample_sites(trace):
            if name not in given.kinds:
                continue
            found[name], self.kinds[name] = site["value"], given.kinds[name]
            probs = probabilities(site["fn"])
            if probs is not None:
                found[f"{name}_probs"], self.kinds[f"{name}_probs"] = probs, "probabilities"
        return list(found.values())


class Decoding:
    """The model as a function of latents and of the tensors among its arguments: to the mean of what it observes.

    Args:
        model: The model.
        arguments: The arguments.
        names: The latents, in the order in which their values come.

    Attributes:
        kinds: What the output of each observed site is, by name, after a call.
        observed: What each observed site observes, after a call.
        latest: The site that a call has come to, "" before the first.
    """

    def __init__(self, model: Program, arguments: Arguments, names: Sequence[str]) -> None:
        self.program, self.arguments, self.names = on_all_data(model), arguments, list(names)
        self.kinds: dict[str, str] = {}
        self.observed: dict[str, Tensor] = {}
        self.latest = ""

    def draw(self, *tensors: Tensor, on: Any = None) -> dict[str, Tensor]:
        """A value of each latent, drawn from the model, or those of a trace of the guide."""
        args, kwargs = self.arguments.filled(tensors)
        with rows_named(self.program, self.program, args, kwargs):
            trace = traced(self.program, args, kwargs, on)
        sites = sample_sites(prune_subsample_sites(trace))
        return {name: site["value"] for name, site in sites if not site["is_observed"]}

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        """What is expected of each observed site."""
        count = len(self.names)
        args, kwargs = self.arguments.filled(tensors[count:])
        self.latest, self.kinds = "", {}
        values = dict(zip(self.names, tensors[:count], strict=True))
        with _Given(values, self), rows_named(self.program, self.program, args, kwargs):
            trace = traced(self.program, args, kwargs)
        means = []
        self.observed = {}
        for name, site in sample_sites(trace):
            if site["is_observed"] and not isinstance(base_distribution(site["fn"]), Unit):
                mean, self.kinds[name] = expectation(name, site["fn"])
                means.append(mean)
                self.observed[name] = site["value"]
        return means
