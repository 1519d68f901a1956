"""Import paths in stored files: paths of earlier versions are still read, and only stable paths are written."""

from __future__ import annotations

import importlib
import re
from typing import Any

__all__ = ["MOVED", "stable_path", "stable_paths"]

# Modules of earlier versions, and where their content is now. A row stays as long as a stored run may name it.
MOVED = {
    "pyro_vae.checkpoints": "pyro_vae.training.checkpoints",
    "pyro_vae.checkpoints.files": "pyro_vae.support.snapshots",
    "pyro_vae.checkpoints.noise": "pyro_vae.support.random",
    "pyro_vae.checkpoints.svi_state": "pyro_vae.training.checkpoints.svi",
    "pyro_vae.compare_training": "pyro_vae.training.comparison.compare",
    "pyro_vae.compiled": "pyro_vae.compilation.gradients",
    "pyro_vae.course": "pyro_vae.training.schedules",
    "pyro_vae.device": "pyro_vae.pair.device",
    "pyro_vae.elbo.aggregate": "pyro_vae.elbo.objectives.aggregate",
    "pyro_vae.elbo.antithetic": "pyro_vae.elbo.estimators.antithetic",
    "pyro_vae.elbo.bounds": "pyro_vae.elbo.estimators.bounds",
    "pyro_vae.elbo.control": "pyro_vae.elbo.estimators.control",
    "pyro_vae.elbo.corruption": "pyro_vae.elbo.objectives.corruption",
    "pyro_vae.elbo.dip": "pyro_vae.elbo.objectives.dip",
    "pyro_vae.elbo.free_bits": "pyro_vae.elbo.objectives.free_bits",
    "pyro_vae.elbo.importance": "pyro_vae.elbo.estimators.importance",
    "pyro_vae.elbo.labels": "pyro_vae.elbo.objectives.labels",
    "pyro_vae.elbo.missing": "pyro_vae.elbo.objectives.missing",
    "pyro_vae.elbo.penalty": "pyro_vae.elbo.objectives.penalty",
    "pyro_vae.elbo.quantized": "pyro_vae.elbo.objectives.quantized",
    "pyro_vae.elbo.relaxed": "pyro_vae.elbo.estimators.relaxed",
    "pyro_vae.elbo.score": "pyro_vae.elbo.estimators.score",
    "pyro_vae.elbo.surrogate": "pyro_vae.elbo.estimators.surrogate",
    "pyro_vae.elbo.terms": "pyro_vae.elbo.estimators.terms",
    "pyro_vae.elbo.total_correlation": "pyro_vae.elbo.objectives.total_correlation",
    "pyro_vae.elbo.trace_graph": "pyro_vae.elbo.estimators.trace_graph",
    "pyro_vae.elbo.tracing": "pyro_vae.pair.tracing",
    "pyro_vae.elbo.weights": "pyro_vae.elbo.objectives.weights",
    "pyro_vae.evaluate.bound": "pyro_vae.evaluate.bounds",
    "pyro_vae.evaluate.chunks": "pyro_vae.pair.arguments",
    "pyro_vae.evaluate.clustering": "pyro_vae.evaluate.representation.clustering",
    "pyro_vae.evaluate.codes": "pyro_vae.evaluate.representation.codes",
    "pyro_vae.evaluate.impute": "pyro_vae.evaluate.imputation",
    "pyro_vae.evaluate.latent_moves": "pyro_vae.evaluate.representation.traversals",
    "pyro_vae.evaluate.local.fit": "pyro_vae.evaluate.local.fitting",
    "pyro_vae.evaluate.local.generalization": "pyro_vae.evaluate.local.generalizing",
    "pyro_vae.evaluate.local.per_datum": "pyro_vae.evaluate.local.rows",
    "pyro_vae.evaluate.marginal.annealed": "pyro_vae.evaluate.marginal.annealing",
    "pyro_vae.evaluate.marginal.bidirectional": "pyro_vae.evaluate.marginal.brackets",
    "pyro_vae.evaluate.marginal.importance": "pyro_vae.evaluate.marginal.importance_sampling",
    "pyro_vae.evaluate.marginal.posterior_samples": "pyro_vae.evaluate.marginal.posterior",
    "pyro_vae.evaluate.marginal.repair": "pyro_vae.evaluate.marginal.repairs",
    "pyro_vae.evaluate.modules": "pyro_vae.pair.networks",
    "pyro_vae.feed": "pyro_vae.training.batches",
    "pyro_vae.fit": "pyro_vae.training.fitting",
    "pyro_vae.guard": "pyro_vae.training.nonfinite",
    "pyro_vae.history": "pyro_vae.training.history",
    "pyro_vae.memory": "pyro_vae.support.memory",
    "pyro_vae.meter": "pyro_vae.training.monitor",
    "pyro_vae.models.pair": "pyro_vae.pair.protocol",
    "pyro_vae.names": "pyro_vae.pair.names",
    "pyro_vae.paired": "pyro_vae.training.comparison.result",
    "pyro_vae.phased": "pyro_vae.training.phases",
    "pyro_vae.precision": "pyro_vae.compilation.precision",
    "pyro_vae.progress": "pyro_vae.support.progress",
    "pyro_vae.ranks": "pyro_vae.distributed.ranks",
    "pyro_vae.resumption": "pyro_vae.training.state",
    "pyro_vae.rewrites": "pyro_vae.compilation.rewrites",
    "pyro_vae.runs.build": "pyro_vae.runs.building",
    "pyro_vae.runs.environment": "pyro_vae.runs.machine",
    "pyro_vae.svi": "pyro_vae.training.svi",
    "pyro_vae.tables": "pyro_vae.support.tables",
    "pyro_vae.tracking": "pyro_vae.training.tracking",
}

_PATH = re.compile(r"pyro_vae(\.[A-Za-z_]\w*)+", re.ASCII)
_MAX_LENGTH = 100


def stable_path(path: str) -> str:
    """The shortest import path of an object of this package, given its path in this or an earlier version.

    Any other text is returned unchanged. Only modules of this package are imported.

    >>> stable_path("pyro_vae.elbo.weights.Warmup")
    'pyro_vae.elbo.Warmup'
    >>> stable_path("my_module.MyVAE")
    'my_module.MyVAE'
    """
    if len(path) > _MAX_LENGTH or not path.startswith("pyro_vae."):
        return path
    path = _moved(path)
    if not _PATH.fullmatch(path):
        return path
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):  # the import that follows reports the error
        return path
    parts = module.split(".")
    packages = (".".join(parts[:n]) for n in range(1, len(parts)))
    exporting = (package for package in packages if getattr(importlib.import_module(package), name, None) is found)
    return f"{next(exporting, module)}.{name}"


def stable_paths(value: Any) -> Any:
    """Apply `stable_path` to every string in nested mappings and lists."""
    if isinstance(value, dict):
        return {key: stable_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [stable_paths(inner) for inner in value]
    return stable_path(value) if isinstance(value, str) else value


def _moved(path: str) -> str:
    module = path
    while "." in module:
        module = module.rpartition(".")[0]
        if module in MOVED:
            return MOVED[module] + path.removeprefix(module)
    return path
