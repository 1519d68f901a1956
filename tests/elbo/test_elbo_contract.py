"""What every estimator that has a name keeps to."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import Any

import pyro.infer
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.optim import ClippedAdam
from torch import Tensor

import pyro_vae as pv
from pyro_vae import elbo as elbos
from pyro_vae.elbo import registry
from pyro_vae.evaluate import check_estimator
from pyro_vae.oracles import (
    BitsAndClasses,
    Discrete,
    Grid,
    Interleaved,
    LinearGaussian,
    Oracle,
    TopDownChain,
    Weighting,
)

pytestmark = pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")


class Marked(Discrete):
    """With its latent marked for enumeration."""

    def guide(self, x: Tensor) -> None:
        config_enumerate(super().guide)(x)


class MarkedInterleaved(Interleaved):
    """With its class marked for enumeration and its bit drawn, in no plate of its own: see "enum" below."""

    def part_plate(self) -> Any:
        return nullcontext()

    def guide(self, x: Tensor) -> None:
        poutine.infer_config(super().guide, lambda site: {"enumerate": "parallel"} if site["name"] == "c" else {})(x)


HALF = torch.tensor(0.5, dtype=torch.float64)
# on one side, as a number and as a tensor; on both, as a weight on the KL
ONE_SIDE = Weighting({("model", "z"): HALF, ("guide", "c"): 2.0, ("guide", "y"): HALF, ("model", "b"): 3.0})
BOTH_SIDES = Weighting({(side, site): 0.3 for side in ("model", "guide") for site in "bzcy"})
# the observation reads them all
MASKED = Weighting(masks=[("model", "c"), ("guide", "c"), ("guide", "b"), ("model", "y"), ("guide", "z")])
SCALED_CHAIN = Weighting({("model", "z2"): HALF, ("guide", "z1"): 2.0, ("model", "x"): 1.5})
MASKED_CHAIN = Weighting(masks=[("guide", "z2"), ("model", "z1")])
SCALED_BITS = Weighting({("model", "b"): HALF, ("guide", "c"): 3.0}, [("guide", "b"), ("model", "b")])

GAUSSIAN: dict[str, Oracle] = {"linear": LinearGaussian(seed=3), "chain": TopDownChain()}
# whose value is the ELBO or L_K of what the pair's scales and masks make of it
WEIGHTED: dict[str, Oracle] = {"scaled chain": TopDownChain(SCALED_CHAIN), "masked chain": TopDownChain(MASKED_CHAIN)}
CONTINUOUS = {**GAUSSIAN, **WEIGHTED}
BITS, CLASSES, BOTH, GRID = BitsAndClasses(bits=3, classes=0), BitsAndClasses(bits=0), BitsAndClasses(), Grid()
SCALED_BOTH = BitsAndClasses(weighting=SCALED_BITS)
INTERLEAVED: dict[str, Oracle] = {
    "interleaved": Interleaved(),
    "interleaved subsampled": Interleaved(parts=2, all_parts=4, full_size=1000),
    "interleaved scaled": Interleaved(ONE_SIDE),
    "interleaved weighted": Interleaved(BOTH_SIDES),
    "interleaved masked": Interleaved(MASKED),
}
ANY: dict[str, Oracle] = {
    "categorical": Discrete(),
    "bits and classes": BOTH,
    "scaled bits": SCALED_BOTH,
    "grid": GRID,
    **CONTINUOUS,
    **INTERLEAVED,
}

# Every name: the pairs that it takes
PAIRS: dict[str, dict[str, Oracle]] = {
    "mean_field": CONTINUOUS,
    "trace": ANY,
    "stl": CONTINUOUS,
    "iwae": ANY,
    "dreg": CONTINUOUS,
    "miwae": ANY,
    "piwae": ANY,
    "ciwae": ANY,
    "renyi": ANY,
    "rws": ANY,
    "reinforce": ANY,
    "vargrad": ANY,
    "vimco": ANY,
    "ovis": ANY,
    # the guide's gradient of few draws is biased, beyond the noise on the chains: tests/elbo/test_more_estimators.py
    "tvo": {name: pair for name, pair in ANY.items() if "chain" not in name},
    "free_bits": {"linear": GAUSSIAN["linear"]},
    "capacity": {"linear": GAUSSIAN["linear"]},
    "beta_tc": {"linear": GAUSSIAN["linear"]},
    "dip": {"linear": GAUSSIAN["linear"]},
    "gumbel": {"bits": BITS, "classes": CLASSES, "bits and classes": BOTH, "scaled bits": SCALED_BOTH, **CONTINUOUS},
    "disarm": {"bits": BITS, "scaled bits": BitsAndClasses(3, 2, 0, weighting=SCALED_BITS), "grid": GRID, **CONTINUOUS},
    "arms": {"bits": BITS, "scaled bits": BitsAndClasses(3, 2, 0, weighting=SCALED_BITS), "grid": GRID, **CONTINUOUS},
    "rebar": {
        "bits": BITS,
        "classes": CLASSES,
        "bits and classes": BOTH,
        "scaled bits": SCALED_BOTH,
        "grid": GRID,
        **CONTINUOUS,
    },
    "double_cv": {"bits": BITS, "classes": CLASSES, **ANY},
    "trace_graph": ANY,
    # on the grid Pyro's is biased: a site in an inner plate moves an observation outside of it
    "enum": {
        "marked": Marked(),
        "bits and classes": BOTH,
        "interleaved": MarkedInterleaved(),
        "interleaved scaled": MarkedInterleaved(ONE_SIDE),
        **CONTINUOUS,
    },
    "tail_adaptive": CONTINUOUS,
    "denoising": CONTINUOUS,
    "info_vae": CONTINUOUS,
    "wae": CONTINUOUS,
}
MODEL, GUIDE = "gradient of the model", "gradient of the guide"
# whose guide's gradient belongs to another objective than the value, on purpose, and is known on some pairs only
ELSEWHERE = {"rws", "tail_adaptive"}
LANDS = {"stl", "dreg", "tail_adaptive"}  # no variance where the guide is the posterior
VECTORIZED = {"vectorize_particles": True, "max_plate_nesting": 2}
OPTIONS: dict[str, dict[str, Any]] = {
    "miwae": {"groups": 2},
    "ciwae": {"beta": 0.3},
    "trace_graph": VECTORIZED,
    "enum": {"max_plate_nesting": 2},
}
CASES = [pytest.param(name, pair, id=f"{name}-{on}") for name, pairs in PAIRS.items() for on, pair in pairs.items()]
# no ELBO at all, and several losses: tests/test_adversarial.py has their contract
# objectives of one kind of pair: tests/test_vqvae.py and tests/test_semi_supervised.py have theirs
OWN_PAIRS = {"vq", "semi_supervised", "subsampled_modalities"}
NAMES = [name for name in elbos.names() if elbos.bound_of(name) != "none" and name not in OWN_PAIRS]


def make(name: str, **options: Any) -> Any:
    return elbos.make(name, **{"num_particles": 4, **OPTIONS.get(name, {}), **options})


def fit(pair: Any, x: Tensor, **options: Any) -> Any:
    return pv.fit(pair.model, pair.guide, x, batch_size=10, epochs=1, preflight=False, progress=False, **options)


def test_every_name_is_here() -> None:
    assert set(PAIRS) == set(NAMES)


@pytest.mark.parametrize(("name", "pair"), CASES)
def test_value_gradient_and_bounds(name: str, pair: Oracle) -> None:
    """The value's and the gradient's expectation, ELBO <= value <= log p(x), and `loss` as `loss_and_grads`.

    An objective with a value of its own has its gradient checked against differences of the value, on Gaussian pairs.
    """
    check = check_estimator(make(name), pair, repeats=25, seed=0)
    assert check.passed, check
    tested = {line.check for line in check.lines if line.passed is not None}
    bound = getattr(make(name), "bound", "elbo")
    if bound != "own":
        assert {"value", "value >= ELBO", MODEL, *({GUIDE} if name not in ELSEWHERE else ())} <= tested
        assert ("value <= log p(x)" in tested) == pair.is_bound
    elif pair.reparameterized:
        assert {MODEL, GUIDE} <= tested


@pytest.mark.parametrize("name", [n for n in NAMES if "linear" in PAIRS[n]])
def test_variance_at_the_posterior(name: str) -> None:
    pair = LinearGaussian(seed=3)
    check = check_estimator(make(name), pair, repeats=10, seed=0)
    spread = check["guide's gradient there, s.d."].found
    assert spread < 1e-12 if name in LANDS else spread > 1e-3


@pytest.mark.parametrize("name", ["rws", "vimco", "reinforce"])
def test_baselines_leave_a_score_function_without_variance_at_the_posterior(name: str) -> None:
    options = {"baseline": "leave_one_out"} if name == "reinforce" else {}
    spread = check_estimator(make(name, **options), Discrete(), repeats=10, seed=0)[
        "guide's gradient there, s.d."
    ].found
    plain = check_estimator(make("reinforce"), Discrete(), repeats=10, seed=0)["guide's gradient there, s.d."].found
    assert spread < 0.5 * plain


class Renamed(elbos.PIWAE):
    """Of which nothing is known but its bound."""


def test_piwae_gives_the_guide_the_gradient_of_its_groups() -> None:
    assert check_estimator(make("piwae", groups=2), LinearGaussian(seed=3), seed=0).passed
    check = check_estimator(Renamed(4, groups=2), LinearGaussian(seed=3), seed=0)
    assert {line.check for line in check.lines if line.passed is False} == {GUIDE}


def test_the_exact_bounds_are_ordered() -> None:
    """So a value equal to the exact L_K is between the ELBO and log p(x), and rises with K."""
    for pair in (*ANY.values(), BITS, CLASSES):
        x = pair.simulate(2)
        with torch.no_grad():
            bounds = torch.stack([pair.elbo(x), *(pair.iwae(x, k) for k in (2, 3, 20))])
            if pair.is_bound:
                bounds = torch.cat([bounds, pair.log_prob(x).unsqueeze(0)])
        assert bool((bounds.diff(dim=0) > 0).all()), type(pair).__name__


@pytest.mark.parametrize(("name", "pair"), CASES)
def test_the_three_losses_agree_under_one_seed(name: str, pair: Oracle) -> None:
    x = pair.simulate(3)
    elbo = make(name)
    elbo.loss(pair.model, pair.guide, x)
    losses, grads = [], []
    for method in ("loss", "loss_and_grads", "differentiable_loss"):
        pair.zero_grad()
        torch.manual_seed(1)
        loss = getattr(elbo, method)(pair.model, pair.guide, x)
        if method == "differentiable_loss":
            assert loss.shape == ()
            loss.backward()
            loss = loss.detach()
        losses.append(float(loss))
        grads.append([p.grad for p in pair.parameters()])
    pair.zero_grad()
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert losses[1] == pytest.approx(losses[2], rel=1e-9)
    assert all(g is None for g in grads[0])
    torch.testing.assert_close(grads[1], grads[2])


@pytest.mark.parametrize("svi", ["pyro", "ours", "fit"])
@pytest.mark.parametrize("name", NAMES)
def test_it_trains_by_every_road(name: str, svi: str) -> None:
    pair: Any = (
        Discrete()
        if name in ("double_cv", "enum", "ovis", "tvo", "vargrad", "vimco", "rws")
        else LinearGaussian(seed=3)
    )
    if name in ("arms", "disarm", "rebar", "gumbel"):
        pair = BitsAndClasses(bits=2, classes=0)
    x = pair.simulate(20)
    before = {n: p.detach().clone() for n, p in pair.named_parameters()}
    if svi == "pyro":
        loss = pyro.infer.SVI(pair.model, pair.guide, ClippedAdam({"lr": 0.01}), make(name)).step(x)
    elif svi == "ours":
        loss = pv.SVI(pair.model, pair.guide, loss=make(name)).step(x)
    else:
        loss = fit(pair, x, elbo=name, num_particles=4).loss[-1]
    assert torch.isfinite(torch.as_tensor(float(loss)))
    assert all(bool((p != before[n]).any()) for n, p in pair.named_parameters())


DISCRETE_REFUSED = [
    "mean_field",
    "stl",
    "dreg",
    "tail_adaptive",
    "free_bits",
    "capacity",
    "beta_tc",
    "dip",
    "gumbel",
    "disarm",
    "arms",
    "rebar",
    "denoising",
    "info_vae",
    "wae",
]


@pytest.mark.parametrize("name", DISCRETE_REFUSED)
def test_a_latent_that_it_cannot_differentiate_is_refused_by_name(name: str) -> None:
    pair = Discrete()
    with pytest.raises(ValueError, match=r"site 'c' is drawn from Categorical.*('vimco'|'trace'|OneHotCategorical)"):
        make(name).loss_and_grads(pair.model, pair.guide, pair.simulate(2))


def test_every_other_name_takes_a_discrete_latent() -> None:
    assert {name for name in NAMES if not {"categorical", "marked"} & set(PAIRS[name])} == set(DISCRETE_REFUSED)


@pytest.mark.parametrize("name", NAMES)
def test_the_least_particles_are_the_least(name: str) -> None:
    least = elbos.min_particles(name)
    assert elbos.make(name, num_particles=least).num_particles == least
    with pytest.raises(ValueError, match=f"num_particles must be at least {least}, got {least - 1}|at least 1"):
        elbos.make(name, num_particles=least - 1)


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_says_where_it_comes_from(name: str) -> None:
    made = type(elbos.make(name, num_particles=2))
    text = inspect.getdoc(made) or ""
    if made.__module__.startswith("pyro_vae"):
        assert "Reference:" in text, name
        assert ".. math::" in text or name == "piwae"  # which is put together of two others


class Own(elbos.Trace):
    """A class of the user's own."""


def test_a_class_of_ones_own_under_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    pv.elbo.register("own", Own)
    pair = LinearGaussian(seed=3)
    x = pair.simulate(20)
    assert check_estimator("own", num_particles=2, repeats=10, seed=0).estimator == "Own(num_particles=2)"
    compared = pv.compare_elbos(
        pair.model, pair.guide, x, estimators=["own", "trace"], num_particles=[2], repeats=3, seed=0
    )
    assert [row.estimator for row in compared.rows] == ["own", "trace"]
    assert compared.rows[0].value == compared.rows[1].value
    assert fit(pair, x, elbo="own", num_particles=2).elbo == "own"
