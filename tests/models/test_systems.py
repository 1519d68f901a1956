"""What every system keeps to: one contract over all of `pyro_vae.models`, and over configurations that have a name.

A system is added by a row in `SYSTEMS`: how it is built by name, the shape of a datum, what else a batch holds, and
the objective that usually trains it.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import models
from pyro_vae.pair.tracing import sample_sites, trace_pair
from pyro_vae.runs import build, create_run, load_run, save_run

N = 12


def binary(*shape: int) -> Tensor:
    return (torch.rand(N, *shape) < 0.5).float()


def real(*shape: int) -> Tensor:
    return torch.rand(N, *shape)


def tokens(*shape: int) -> Tensor:
    """Rows of words and, at their end, the token that ends them."""
    return torch.cat([torch.randint(2, 5, (N, shape[0] - 1)), torch.ones(N, 1, dtype=torch.int64)], 1)


def known() -> Tensor:
    """Which values of a table are known."""
    return torch.rand(N, 3) < 0.8


COLUMNS = [
    {"name": "a", "type": "real", "loc": 0.5},
    {"name": "b", "type": "count", "mean": 0.5},
    {"name": "c", "type": "ordinal", "levels": ["lo", "mid", "hi"], "shares": [0.3, 0.4, 0.3]},
]


def labels(classes: int) -> Callable[[], Tensor]:
    return lambda: torch.randint(0, classes, (N,))


@dataclass(frozen=True)
class System:
    """One row: the class's name, its arguments as they stand in a configuration, and what trains it on what."""

    name: str
    arguments: dict[str, Any]
    shape: tuple[int, ...] = (6,)
    elbo: Any = "mean_field"
    data: Callable[..., Tensor] = binary
    extra: Callable[[], Tensor] | None = None
    fixed: frozenset[str] = field(default_factory=frozenset)  # parameters that the objective leaves alone on purpose

    def make(self, seed: int = 0) -> Any:
        torch.manual_seed(seed)
        return build(self.spec, self.shape)

    @property
    def spec(self) -> dict[str, Any]:
        return {"class_path": f"pyro_vae.models.{self.name}", "init_args": self.arguments}

    def batch(self) -> tuple[Tensor, ...]:
        torch.manual_seed(7)
        x = self.data(*self.shape)
        return (x,) if self.extra is None else (x, self.extra())

    def objective(self) -> Any:
        return self.elbo() if callable(self.elbo) else pv.elbo.make(self.elbo)


def part(path: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": arguments}


SMALL: dict[str, Any] = {"latent_dim": 3, "hidden": [8]}
POINT = part("pyro_vae.conditionals.Point", latent_dim=3)
PIXELS = part("pyro_vae.conditionals.PixelCNN", shape=[1, 4, 4], channels=3, kernel=3, blocks=1)
SIGMOID = part("torch.nn.Sigmoid")
L1 = part("pyro_vae.priors.LaplacePrior", latent_dim=9)
CODES: dict[str, Any] = {"codes": 8, "channels": [4], "blocks": 1, "embedding_dim": 3}
DGM: dict[str, Any] = {**SMALL, "num_classes": 3, "auxiliary_dim": 2}
LAYERS: dict[str, Any] = {"latent_dims": [4, 2], "hidden": [[8], [6]]}


def normal(scale: Any, size: int = 6) -> dict[str, Any]:
    return part("pyro_vae.conditionals.Normal", shape=size, scale=scale)


SYSTEMS: dict[str, System] = {
    "VAE": System("VAE", SMALL),
    "VAE on images": System("VAE", {**SMALL, "likelihood": "categorical"}, (1, 4, 4)),
    **{
        f"VAE, {name} posterior": System("VAE", {**SMALL, "posterior": name}, elbo="trace")
        for name in ("iaf", "spline")
    },
    **{
        f"VAE, {name} prior": System("VAE", {**SMALL, "prior": name}, elbo="trace")
        for name in ("laplace", "mixture", "vamp", "flow", "autoregressive")
    },
    **{
        f"sigma-VAE, {scale}": System("VAE", {**SMALL, "likelihood": normal(scale)}, data=real)
        for scale in ("shared", "pixel", "optimal")
    },
    "beta-VAE": System("VAE", SMALL, elbo=lambda: pv.elbo.WeightedKL(pv.elbo.make("mean_field"), 4.0)),
    "IWAE": System("VAE", SMALL, elbo=lambda: pv.elbo.make("iwae", num_particles=3)),
    "InfoVAE": System("VAE", SMALL, elbo="info_vae"),
    "WAE-MMD": System("VAE", {**SMALL, "posterior": POINT, "likelihood": normal(0.5)}, elbo="wae"),
    "AuxiliaryVAE": System("AuxiliaryVAE", {**SMALL, "auxiliary_dim": 2}, elbo="trace"),
    "Autoencoder": System("Autoencoder", {**SMALL, "likelihood": normal(1.0)}),
    "denoising autoencoder": System("Autoencoder", SMALL, elbo="denoising"),
    "sparse autoencoder, L1": System("Autoencoder", {"latent_dim": 9, "hidden": [8], "prior": L1}),
    "sparse autoencoder, top-k": System(
        "Autoencoder", {"latent_dim": 9, "hidden": [8], "code": part("pyro_vae.conditionals.TopK", k=3)}
    ),
    "sparse autoencoder, KL": System("Autoencoder", {**SMALL, "code": SIGMOID}, elbo=lambda: pv.elbo.Sparse(rate=0.1)),
    "HierarchicalVAE": System("HierarchicalVAE", LAYERS, elbo="trace"),
    "LadderVAE": System("LadderVAE", LAYERS),
    "ConditionalVAE, label": System("ConditionalVAE", {**SMALL, "condition": 3}, extra=labels(3)),
    "DiscreteVAE, classes": System("DiscreteVAE", {"latent_dim": [3, 4], "hidden": [8]}, elbo="gumbel"),
    "DiscreteVAE, bits": System("DiscreteVAE", {"latent_dim": 5, "latents": "bernoulli", "hidden": [8]}, elbo="gumbel"),
    "GaussianMixture": System("GaussianMixture", {"components": 3}, elbo="enum", data=real),
    "GMVAE": System("GMVAE", {**SMALL, "num_classes": 3}, elbo="enum"),
    "SemiSupervisedVAE": System(
        "SemiSupervisedVAE", {**SMALL, "num_classes": 3}, elbo="semi_supervised", extra=lambda: labels(3)() - 1
    ),
    "TabularVAE": System("TabularVAE", {**SMALL, "columns": COLUMNS}, (3,), elbo="iwae", extra=known),
    **{
        f"MultimodalVAE, {combine}": System(
            "MultimodalVAE",
            {**SMALL, "others": [3], "combine": combine},
            elbo="subsampled_modalities" if combine == "poe" else lambda: pv.elbo.make("iwae", num_particles=4),
            extra=lambda: labels(3)() - 1,
        )
        for combine in ("poe", "moe", "mopoe")
    },
    **{
        name: System("AuxiliaryDGM", {**DGM, "skip": skip}, elbo="semi_supervised", extra=lambda: labels(3)() - 1)
        for name, skip in (("AuxiliaryDGM", False), ("AuxiliaryDGM, skip", True))
    },
    "TextVAE": System(
        "TextVAE",
        {"vocab_size": 5, "length": 3, "latent_dim": 2, "embedding_dim": 4, "hidden": 5},
        (3,),
        data=tokens,
    ),
    **{
        f"DeepMarkovModel, {transition}": System(
            "DeepMarkovModel",
            {"latent_dim": 2, "hidden": [4], "transition": transition, "transition_dim": 4, "rnn_dim": 5},
            (4, 2),
            data=real,
            extra=lambda: torch.arange(N) % 4 + 1,
        )
        for transition in ("gated", "linear")
    },
    "TopDownVAE": System("TopDownVAE", {"channels": [4, 4], "cells": [1, 1], "latents": [1, 2]}, (1, 5, 4)),
    "TopDownVAE, PixelCNN": System(
        "TopDownVAE", {"channels": [4], "cells": [2], "latents": [2], "likelihood": PIXELS}, (1, 4, 4)
    ),
    "VQVAE": System("VQVAE", CODES, (1, 8, 8), elbo="vq"),
    "VQVAE, scalars": System("VQVAE", {**CODES, "levels": [16, 15]}, (1, 8, 8), elbo="vq"),
    "VQVAE, residual": System("VQVAE", {**CODES, "depth": 2}, (1, 8, 8), elbo="vq"),
    "VQVAE, rotation": System("VQVAE", {**CODES, "gradient": "rotation", "decay": None}, (1, 8, 8), elbo="vq"),
    "ConditionalVAE, part": System("ConditionalVAE", {**SMALL, "condition": [4]}, extra=lambda: real(4)),
}

every_system = pytest.mark.parametrize("system", list(SYSTEMS.values()), ids=list(SYSTEMS))


def bound_of(pair: Any, batch: tuple[Tensor, ...]) -> Tensor:
    return pv.bound(pair.model, pair.guide, *batch, seed=0).elbo


def trained(system: System, pair: Any, seed: int = 0) -> Any:
    batch = system.batch()
    return pv.fit(
        pair.model,
        pair.guide,
        batch if len(batch) > 1 else batch[0],
        elbo=system.objective(),
        epochs=2,
        batch_size=6,
        lr=3e-3,
        seed=seed,
        progress=False,
    )


def test_every_system_has_a_row() -> None:
    shipped = {
        n for n in models.__all__ if inspect.isclass(getattr(models, n)) and hasattr(getattr(models, n), "guide")
    }
    assert shipped - {"Pair"} == {system.name for system in SYSTEMS.values()}


@every_system
@pytest.mark.filterwarnings("ignore:preflight")
def test_preflight_finds_no_error(system: System) -> None:
    pair, batch = system.make(), system.batch()
    report = pv.preflight(pair.model, pair.guide, *batch, elbo=system.objective(), strict=False)
    assert report.ok, str(report)
    assert not [problem for problem in report.issues if problem.code in ("no_gradient", "no_data_plate")]


@every_system
def test_model_and_guide_have_the_same_latents(system: System) -> None:
    pair, batch = system.make(), system.batch()
    traces = trace_pair(pair.model, pair.guide, batch)
    latent = {name for name, site in sample_sites(traces.model) if not site["is_observed"]}
    assert latent == set(traces.latents)
    assert traces.observed
    assert bound_of(pair, batch).shape == (N,)


@every_system
def test_every_parameter_gets_a_gradient(system: System) -> None:
    pair = system.make()
    system.objective().loss_and_grads(pair.model, pair.guide, *system.batch())
    idle = {n for n, p in pair.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())}
    assert idle == set(system.fixed)
    assert all(p.grad.isfinite().all() for p in pair.parameters() if p.grad is not None)


@every_system
@pytest.mark.filterwarnings("ignore:preflight")
def test_two_epochs_train_it_and_a_seed_repeats_them(system: System) -> None:
    first, second, other = (system.make() for _ in range(3))
    before = {name: value.clone() for name, value in first.state_dict().items()}
    histories = [trained(system, pair, seed) for pair, seed in ((first, 1), (second, 1), (other, 2))]
    assert all(math.isfinite(value) for value in (*histories[0].loss, histories[0][-1].train_elbo))
    assert histories[0].loss == histories[1].loss
    assert histories[0].loss != histories[2].loss  # another order of the data
    for name, value in first.state_dict().items():
        torch.testing.assert_close(value, second.state_dict()[name], rtol=0, atol=0)
    assert any(not torch.equal(value, before[name]) for name, value in first.state_dict().items())


@every_system
def test_state_and_copies(system: System) -> None:
    """A rebuilt system with the state of another, and a copy, give the same bound; the copy trains apart."""
    pair, batch = system.make(seed=1), system.batch()
    expected = bound_of(pair, batch)
    rebuilt = system.make(seed=2)
    rebuilt.load_state_dict(pair.state_dict())
    torch.testing.assert_close(bound_of(rebuilt, batch), expected, rtol=0, atol=0)
    twin = copy.deepcopy(pair)
    assert len({pair.name, rebuilt.name, twin.name}) == 3
    torch.testing.assert_close(bound_of(twin, batch), expected, rtol=0, atol=0)
    svi = pv.SVI(twin.model, twin.guide, loss=system.objective())
    svi.step(*batch)
    torch.testing.assert_close(bound_of(pair, batch), expected, rtol=0, atol=0)


@every_system
def test_a_run_directory_brings_it_back(system: System, tmp_path: Path) -> None:
    pair, batch = system.make(seed=1), system.batch()
    data = pv.data.load(real(*system.shape), valid=0, test=0).describe()
    config = {"model": system.spec, "data": "digits", "binarize": "none", "flatten": True, "root": None, "seed": 0}
    save_run(create_run(tmp_path / "run"), pair, {**config, "valid": 0.1, "test": 0.2}, data, pv.History())
    loaded = load_run(tmp_path / "run").pair
    assert type(loaded) is type(pair)
    torch.testing.assert_close(bound_of(loaded, batch), bound_of(pair.eval(), batch), rtol=0, atol=0)


@every_system
def test_repr_and_docstring(system: System) -> None:
    pair = system.make()
    assert repr(pair).startswith(f"{system.name}(")
    assert isinstance(pair, nn.Module)
    assert isinstance(pair, models.Pair)
    text = inspect.getdoc(type(pair)) or ""
    for section in ("Args:", "Reference:", "Example:", ".. math::"):
        assert section in text, section
