"""Calibration of Pyro programs of many kinds: right, or refused with the reason."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

import pyro_vae as pv
from pyro_vae.evaluate import Calibration

X = torch.linspace(-2, 2, 30)


def ask(model: Any, guide: Any, x: Tensor, *args: Any, **options: Any) -> Calibration:
    defaults = {"num_simulations": 400, "num_samples": 30, "tests": ("ranks", "tarp", "reliability"), "seed": 0}
    return pv.calibration(model, guide, x, *args, **{**defaults, **options})


def simple(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def exact(x: Tensor, scale: float = 1.0) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, scale * 0.5**0.5))


@pytest.mark.parametrize("scale", [1.0, 0.6])
def test_a_plate_in_the_plate(scale: float) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            m = pyro.sample("m", dist.Normal(0.0, 1.0))
            with pyro.plate("inner", 3, dim=-1):
                z = pyro.sample("z", dist.Normal(m, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            m = pyro.sample("m", dist.Normal(x.mean(-1, keepdim=True) * 3 / 5, 0.4**0.5))
            with pyro.plate("inner", 3, dim=-1):
                pyro.sample("z", dist.Normal((m + x) / 2, scale * 0.5**0.5))

    result = ask(model, guide, torch.zeros(10, 3), quantities={"greatest": lambda z: z["z"].max(-1).values})
    assert {row.quantity for row in result.rows} == {
        *("m", "z[0]", "z[1]", "z[2]", "greatest", "log p(x|z)", "all latents")
    }
    assert result.calibrated == (scale == 1.0)
    assert result["m"].verdict == "fine"
    if scale < 1:
        assert "too narrow" in result["z[1]"].verdict


def test_a_plate_outside_the_plate_over_the_data() -> None:
    """Inner plates may stand to the left of the data."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", x.shape[1], dim=-1):
            m = pyro.sample("m", dist.Normal(0.0, 1.0))
            with pyro.plate("inner", 3, dim=-2):
                pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", x.shape[1], dim=-1):
            pyro.sample("m", dist.Normal(x.sum(0) / 4, 0.5))

    # one datum a column: the data do not come first, so that the rows are one whole
    result = ask(model, guide, torch.zeros(3, 3))
    assert result.calibrated
    assert result.num_simulations == 400


@pytest.mark.parametrize("within", [True, False])
def test_masked_observations_keep_their_values(within: bool) -> None:
    def model(x: Tensor, mask: Any) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            d = dist.Normal(z.unsqueeze(-1).expand(*z.shape, 3), 1.0)
            if within:
                pyro.sample("x", d.mask(mask).to_event(1), obs=x)
            else:
                for i in range(3):
                    with poutine.mask(mask=mask[:, i]):
                        pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[:, i])

    def guide(x: Tensor, mask: Any) -> None:
        assert bool((x[~mask] == 7).all())
        count = mask.sum(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.where(mask, x, 0.0).sum(-1) / (count + 1), (1 + count) ** -0.5))

    mask = torch.rand(40, 3) < 0.5
    x = torch.where(mask, torch.randn(40, 3), 7.0)
    assert ask(model, guide, x, mask).calibrated
    assert ask(model, guide, x, mask=mask).calibrated


def test_masked_latents_are_ranked_where_they_count() -> None:
    def model(x: Tensor, mask: Any) -> None:
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=mask):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(torch.where(mask, z, 0.0), 1.0), obs=x)

    def guide(x: Tensor, mask: Any) -> None:
        with pyro.plate("data", len(x)), poutine.mask(mask=mask):
            pyro.sample("z", dist.Normal(torch.where(mask, x / 2, 50.0), 0.5**0.5))

    mask = torch.arange(30) % 3 > 0
    result = ask(model, guide, X, mask, num_simulations=300)
    assert result["z"].num == 200
    assert result.calibrated


def test_missing_entries_as_latents() -> None:
    """`obs_mask` makes latents of the entries that are missing: their posterior is the prior given z."""

    def model(x: Tensor, mask: Any) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=mask)

    def guide(x: Tensor, mask: Any) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.where(mask, x / 2, 0.0), torch.where(mask, 0.5**0.5, 1.0)))
            with poutine.mask(mask=~mask):
                pyro.sample("x_unobserved", dist.Normal(z, 1.0))

    mask = torch.arange(30) % 2 > 0
    result = ask(model, guide, X, mask)
    assert result.calibrated
    assert result["x_unobserved"].num == 200


def test_columns_and_integers_are_found_where_they_stand() -> None:
    def model(x: Tensor, *, count: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(2.0, 1.0))
            pyro.sample("x_0", dist.Exponential(z), obs=x[:, 1])
            pyro.sample("x_1", dist.Exponential(z), obs=x[:, 0])
            pyro.sample("count", dist.Poisson(z), obs=count)

    def guide(x: Tensor, *, count: Tensor) -> None:
        assert count.dtype == torch.long
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(4.0 + count, 2 + x.sum(-1)))

    x, count = torch.rand(40, 2) + 0.1, torch.randint(0, 3, (40,))
    assert ask(model, guide, x, count=count).calibrated
    wrong = ask(model, lambda x, count: guide(x.square(), count=count), x, count=count)
    assert not wrong.calibrated


def test_global_latents_that_the_guide_reads_off_the_data() -> None:
    def model(x: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    def guide(x: Tensor, scale: float = 1.0) -> None:
        pyro.sample("m", dist.Normal(x.sum() / (len(x) + 1), scale * (len(x) + 1) ** -0.5))

    result = ask(model, guide, torch.zeros(6), num_simulations=100, num_samples=19)
    assert result.unit == "data set"
    assert result.calibrated
    narrow = ask(model, lambda x: guide(x, 0.5), torch.zeros(6), num_simulations=100, num_samples=19)
    assert narrow["m"].verdict == "too narrow"
    assert ask(
        model, lambda x: guide(x, 1.5), torch.zeros(6), num_simulations=50, num_samples=9, reweight=True
    ).calibrated


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_global_latents_of_one_fit_are_given(scale: float) -> None:
    def model(x: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(m, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(pyro.param("loc", torch.tensor(3.0)), 0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((m + x) / 2, scale * 0.5**0.5))

    result = ask(model, guide, X)
    assert result.unit == "datum"
    assert "m: the guide draws them without reading the data" in result.notes[0]
    assert {row.quantity for row in result.rows} == {"z", "log p(x|z)"}
    assert result["z"].verdict == ("fine" if scale == 1 else "too narrow")


def test_auxiliary_latents_that_read_the_data() -> None:
    """p(a|x, z) = N(x, 1) leaves p(x) as it is, and a guide that draws it so is exact."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("a", dist.Normal(x + z, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
            pyro.sample("a", dist.Normal(x + z, 1.0))

    assert ask(model, guide, X).calibrated
    assert "a" in ask(model, guide, X).ranks


def test_a_minibatch_of_a_larger_plate() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", 1000, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor, scale: float) -> None:
        with pyro.plate("data", 1000, subsample_size=len(x)):
            pyro.sample("z", dist.Normal(x / 2, scale * 0.5**0.5))

    assert ask(model, lambda x: guide(x, 1.0), X).calibrated
    assert ask(model, lambda x: guide(x, 1.5), X, reweight=True).calibrated


def test_networks_without_leading_dimensions_run_one_draw_at_a_time() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
            assert z.dim() == 1

    with pytest.warns(UserWarning, match="particles run one at a time"):
        assert ask(simple, guide, X, num_simulations=60, num_samples=9).calibrated


def test_a_factor_and_noise_of_the_guide_do_not_matter_to_ranks() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            e = pyro.sample("e", dist.Normal(0.0, 0.5), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(x / 2 + e, 0.5))
            pyro.factor("penalty", -(e**2))

    assert ask(simple, guide, X).calibrated
    with pytest.raises(ValueError, match="'e' is drawn from Normal"):
        ask(simple, guide, X, reweight=True)


def test_a_guide_made_from_the_model() -> None:
    torch.manual_seed(0)
    x = 2**0.5 * torch.randn(200)
    guide = pv.AmortizedGuide(simple, x, hidden=(8,), seed=0)
    assert not ask(simple, guide, x).calibrated
    pv.fit(simple, guide, x, epochs=120, lr=1e-2, lr_schedule="cosine", batch_size=100, seed=0)
    assert ask(simple, guide, x).calibrated


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_latents_that_the_model_enumerates_are_left_out(scale: float) -> None:
    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            c = pyro.sample("c", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample("y", dist.Normal(c, 1.0), obs=y)

    result = ask(model, lambda x, y: exact(x, scale), X, X + 1)
    assert {row.quantity for row in result.rows} == {"z"}
    assert result["z"].verdict == ("fine" if scale == 1 else "too narrow")
    assert "c: enumerated by the model" in result.notes[0]


def test_covariates_stay_as_they_are_given() -> None:
    """A regression with a coefficient for each datum, whose inputs are no observations."""

    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(b * x, 1.0), obs=y)

    def guide(x: Tensor, y: Tensor, wrong: float = 0.0) -> None:
        precision = 1 + x.square()
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Normal(x * y / precision + wrong * x, precision**-0.5))

    x = torch.linspace(-2, 2, 25)
    options: dict[str, Any] = {"tests": ["ranks", "classifier"], "num_simulations": 600}
    assert ask(model, guide, x, torch.zeros(25), **options).calibrated
    # the shift has both signs, so that ranks of b alone see less of it than whoever sees x
    faults = ask(model, lambda x, y: guide(x, y, 0.5), x, torch.zeros(25), **options).faults
    assert "classifier" in {row.test for row in faults}


def with_log(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=x.exp())


def reads_itself(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + x / 2, 1.0), obs=x)


def prior_reads(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x / 2, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def factored(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.factor("penalty", -z.square())


def picking(x: Tensor) -> None:
    with pyro.plate("data", len(x), subsample_size=8) as rows:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])


def observes_nothing(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (with_log, "value of the observed site 'y', of shape .30,., is none of the arguments .* transform the data"),
        (reads_itself, "distribution of the site 'x' changes with the data"),
        (prior_reads, "distribution of the site 'z' changes with the data"),
        (factored, "factor 'penalty'.* draws from the model know nothing of it"),
        (picking, r"plate 'data' picks rows .* write pyro.plate\('data', 30, subsample_size=len\(x\)\)"),
        (observes_nothing, "observes no site"),
    ],
)
def test_models_that_are_no_generators_of_their_arguments(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ask(model, exact, X)


def per_datum(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(30))
    with pyro.plate("data", 30):
        pyro.sample("z", dist.Normal(loc, 1.0))


def test_guides_of_one_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'z'.* without reading the data: its parameters belong to these 30 data"):
        ask(simple, per_datum, X)

    def only_global(x: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    guide = AutoNormal(only_global)
    guide(X)
    with pytest.raises(ValueError, match=r"all latents \('m'\) without reading the data: its parameters are those of"):
        ask(only_global, guide, X)

    def both(x: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(m, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = AutoNormal(both)
    guide(X)
    with pytest.raises(ValueError, match=r"\('z'\) without reading the data: its parameters belong to these 30 data"):
        ask(both, guide, X)
    with pytest.raises(ValueError, match="samples no latent"):
        ask(lambda x: pyro.sample("x", dist.Normal(torch.zeros(30), 1.0).to_event(1), obs=x), lambda x: None, X)


def test_weights_of_a_point_mass_are_refused() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(x / 2))

    assert ask(simple, guide, X)["z"].verdict == "too narrow"
    with pytest.raises(ValueError, match="reweight=True needs importance weights, and the guide has a point mass"):
        ask(simple, guide, X, reweight=True)


def test_data_that_are_masked_away_and_plates_of_another_size_are_refused_by_name() -> None:
    def masked(x: Tensor) -> None:
        with poutine.mask(mask=False):
            simple(x)

    def fixed(x: Tensor) -> None:
        with pyro.plate("all", 40):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"leaves out all elements of what the model observes \('x'\)"):
        ask(masked, exact, X, tests=("predictive",), num_simulations=20)
    for x in (X, X[:1]):
        with pytest.raises(ValueError, match=r"'x' draws values of shape \(40,\).*'all' of size 40: write the sizes"):
            ask(fixed, exact, x, num_simulations=20)
