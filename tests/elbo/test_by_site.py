"""Estimators by site, on pairs whose sites depend on each other in both directions, against exact values."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.optim import ClippedAdam
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.elbo import BySite, Reinforce, Relaxed
from pyro_vae.evaluate import check_estimator
from pyro_vae.oracles import BitsAndClasses, Grid, Interleaved, LinearGaussian, Oracle, TopDownChain, Weighting

HALF = torch.tensor(0.5, dtype=torch.float64)
ONE_SIDE = Weighting({("model", "z"): HALF, ("guide", "c"): 2.0, ("guide", "y"): HALF, ("model", "b"): 3.0})
MASKED = Weighting(masks=[("model", "c"), ("guide", "c"), ("guide", "b"), ("model", "y"), ("guide", "z")])
PAIRS: dict[str, Oracle] = {
    "interleaved": Interleaved(),
    "subsampled": Interleaved(parts=2, all_parts=4, full_size=1000),
    "scaled": Interleaved(ONE_SIDE, parts=2),
    "masked": Interleaved(MASKED, parts=2),
}


class Network(nn.Module):
    """A baseline."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.reshape(len(x), -1).sum(-1)


# the guide draws z, c, y, b; the model b, z, c, y
SITES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "one sum": {"c": "enum", "default": "stl", "b": "reinforce"},
    "both sums": {"b": "enum", "c": "enum", "z": "stl", "y": "trace"},
    "last sum": {"b": "enum", "c": Reinforce(baseline="running"), "y": "mean_field"},
    "antithetic": {"b": "disarm", "c": "enum", "z": "stl", "y": "stl"},
    "network": {"b": Reinforce(baseline=Network()), "c": "reinforce", "z": "stl", "y": "reinforce"},
    "others": {"b": Reinforce(2, "leave_one_out"), "c": "enum", "y": "mean_field", "z": "mean_field"},
    "all scored": {"default": "reinforce"},
}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("sites", SITES)
def test_gradients_are_exact_whatever_treats_a_site(sites: str, pair: str) -> None:
    estimator = BySite(**SITES[sites], num_particles=2)
    result = check_estimator(estimator, PAIRS[pair], repeats=20, seed=1)
    assert result.passed, result


def test_particles_and_branches_one_by_one() -> None:
    estimator = BySite(**SITES["antithetic"], num_particles=2, vectorize_particles=False)
    result = check_estimator(estimator, PAIRS["subsampled"], repeats=12, seed=2)
    assert result.passed, result


@pytest.mark.parametrize(
    ("pair", "sites"),
    [
        (BitsAndClasses(), {"b": "disarm", "c": "enum"}),
        (BitsAndClasses(), {"b": "enum", "c": "reinforce"}),
        (BitsAndClasses(bits=3, classes=0), {"b": "disarm"}),
        (Grid(), {"bits": "enum", "z": "stl"}),
        (Grid(), {"bits": "disarm", "z": "mean_field"}),
        (LinearGaussian(seed=3), {"default": "stl"}),
        (TopDownChain(), {"z1": "mean_field", "z2": "stl"}),
        (TopDownChain(), {"z1": "reinforce"}),
    ],
)
def test_other_pairs(pair: Oracle, sites: dict[str, Any]) -> None:
    result = check_estimator(BySite(**sites, num_particles=2), pair, repeats=20, seed=3)
    assert result.passed, result


def gradient(estimator: Any, pair: Oracle, x: Tensor, seed: int = 0) -> Tensor:
    pair.zero_grad()
    torch.manual_seed(seed)
    estimator.loss_and_grads(pair.model, pair.guide, x)
    return torch.cat([p.grad.flatten() for p in pair.parameters() if p.grad is not None])


def test_sums_over_all_sites_have_no_noise() -> None:
    pair = BitsAndClasses()
    x = pair.simulate(5)
    estimator = BySite({"b": "enum", "c": "enum"})
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(-pair.elbo(x).sum(), list(pair.parameters()))])
    assert torch.allclose(gradient(estimator, pair, x), exact)
    assert torch.allclose(estimator.loss(pair.model, pair.guide, x), -pair.elbo(x).sum())


def test_sticking_to_the_landing_by_site() -> None:
    posterior: Any = TopDownChain().at_posterior() or LinearGaussian().at_posterior()
    x = posterior.simulate(7)
    grads = torch.stack([gradient(BySite(default="stl"), posterior, x, seed) for seed in range(5)])
    guide = torch.cat(
        [torch.full((p.numel(),), name in posterior.guide_parameters) for name, p in posterior.named_parameters()]
    )
    assert grads[:, guide].std(0).max() < 1e-9


def test_one_particle_on_one_branch_is_the_estimator_of_the_pair() -> None:
    pair = LinearGaussian(seed=3)
    x = pair.simulate(6)
    for name in ("stl", "trace"):
        assert torch.allclose(gradient(BySite(default=name), pair, x), gradient(pv.elbo.make(name), pair, x))
    one = BitsAndClasses(bits=0)
    x = one.simulate(6)
    assert torch.allclose(gradient(BySite(c="reinforce"), one, x), gradient(Reinforce(), one, x))


def test_sites_have_less_variance_by_sums_than_by_scores() -> None:
    pair, spreads = Interleaved(), list[float]()
    x = pair.simulate(20)
    every: list[dict[str, Any]] = [
        {"c": "enum", "b": "enum", "default": "stl"},
        {"c": "enum", "b": "disarm"},
        {},
    ]
    for sites in every:
        grads = torch.stack([gradient(BySite(**sites), pair, x, seed) for seed in range(16)])
        spreads.append(float(grads.var(0).sum()))
    assert spreads == sorted(spreads)


def test_relaxed_sites_have_the_gradient_of_their_value() -> None:
    pair = BitsAndClasses()
    every: list[dict[str, Any]] = [{}, {"prior": "relaxed"}]
    for options in every:
        estimator = BySite(b=Relaxed(temperature=0.7, **options), c="gumbel")
        assert estimator.bound == "own"
        torch.manual_seed(1)
        x = pair.simulate(4)
        found = gradient(estimator, pair, x)
        params = list(pair.parameters())
        vector = nn.utils.parameters_to_vector(params).detach()
        direction = torch.randn_like(vector)
        values = []
        for sign in (1, -1):
            nn.utils.vector_to_parameters(vector + sign * 1e-5 * direction, params)
            torch.manual_seed(0)
            values.append(float(estimator.loss(pair.model, pair.guide, x)))
        nn.utils.vector_to_parameters(vector, params)
        assert (found @ direction).item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4)


def test_a_relaxed_site_beside_a_sum() -> None:
    """The sum over c has no noise, so with b relaxed alike the mean is that of `Relaxed` with exact c."""
    pair = BitsAndClasses(bits=1)
    x = pair.simulate(3).repeat(3000, 1)
    torch.manual_seed(0)
    drawn = BySite(b="gumbel", c="reinforce")
    summed = BySite(b="gumbel", c="enum")
    a, b = gradient(drawn, pair, x), gradient(summed, pair, x)
    spread = torch.stack([gradient(drawn, pair, x, seed) for seed in range(2, 12)]).std(0)
    assert ((a - b).abs() < 6 * spread + 1e-6).all()
    assert torch.stack([gradient(summed, pair, x, seed) for seed in range(2, 12)]).std(0).sum() < spread.sum()


def test_states_that_cannot_be() -> None:
    logits = torch.tensor([0.3, -0.2, -torch.inf], dtype=torch.float64)
    shift = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=logits))
            pyro.sample("x", dist.Normal(c.double(), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(logits=(logits + pyro.param("shift", shift)).expand(len(x), 3)))

    pyro.clear_param_store()
    x = torch.tensor([0.4, 1.3], dtype=torch.float64)
    loss = BySite(c="enum").differentiable_loss(model, guide, x)
    q, c = (logits + shift).log_softmax(-1), torch.arange(2.0, dtype=torch.float64)
    log_p = logits.log_softmax(-1)[:2] + dist.Normal(c, 1.0).log_prob(x.unsqueeze(-1))
    exact = -(q[:2].exp() * (log_p - q[:2])).sum()
    assert torch.allclose(loss, exact)
    slopes = [torch.autograd.grad(value, shift)[0] for value in (loss, exact)]
    assert torch.allclose(slopes[0], slopes[1])


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ({"u": "enum"}, "the guide has no latent site 'u'"),
        ({"z": "enum"}, "site 'z' is drawn from Normal, whose values cannot be listed"),
        ({"c": "stl"}, "site 'c' is drawn from Categorical, which cannot be reparameterized"),
        ({"c": "disarm"}, "'disarm' draws Bernoulli sites"),
        ({"c": "gumbel"}, "'gumbel' relaxes sites that are Bernoulli or OneHotCategorical"),
        ({"c": "iwae"}, "c: 'iwae' is no estimator of one site"),
        ({"c": pv.elbo.VIMCO(2)}, "c: VIMCO treats a pair as a whole"),
        ({"c": Reinforce(5)}, "BySite the number"),
    ],
)
def test_refusals_name_the_site(sites: dict[str, Any], message: str) -> None:
    pair = Interleaved()
    with pytest.raises(ValueError, match=message):
        BySite(sites, num_particles=2).loss(pair.model, pair.guide, pair.simulate(3))


def test_too_many_states_are_refused() -> None:
    pair = Interleaved(parts=14)
    with pytest.raises(ValueError, match="the branches of one datum are 16384"):
        BySite(b="enum").loss(pair.model, pair.guide, pair.simulate(3))


def test_a_dictionary_is_an_estimator() -> None:
    assert isinstance(pv.elbo.make({"c": "enum"}, num_particles=3), BySite)
    with pytest.raises(TypeError, match="must be a name or an ELBO object"):
        BySite(c=3)
    with pytest.raises(ValueError, match="given twice"):
        BySite({"c": "enum"}, c="enum")


@pytest.mark.usefixtures("recorded")
def test_it_trains_compiled_and_not() -> None:
    found = []
    for compiled in (False, True):
        pyro.clear_param_store()
        pair = BitsAndClasses()
        torch.manual_seed(0)
        x = pair.simulate(20)
        estimator = BySite(c="enum", b="disarm")
        svi = pv.SVI(pair.model, pair.guide, ClippedAdam({"lr": 0.01}), estimator, compile=compiled)
        torch.manual_seed(1)
        found.append([float(svi.step(x)) for _ in range(3)])
    assert found[0] == pytest.approx(found[1])


def test_fit_takes_a_dictionary() -> None:
    pair = Interleaved()
    x = pair.simulate(20)
    history = pv.fit(pair.model, pair.guide, x, elbo={"c": "enum", "z": "stl"}, epochs=2, seed=0, preflight=False)
    assert history.elbo == "c=enum, z=stl"
