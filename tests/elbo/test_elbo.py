"""The ELBO estimators against closed forms, and against Pyro's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from pyro_vae import elbo as elbos
from pyro_vae.elbo import MeanField, TensorELBO, Trace, registry
from pyro_vae.elbo.estimators.terms import kl_sites
from pyro_vae.oracles import Discrete, LinearGaussian, TopDownChain
from pyro_vae.pair.tracing import trace_pair
from tests.helpers.linear_gaussian import LAYOUTS, check_mean, exact_gradient, gradient

Program = Callable[..., Any]


# Against closed forms


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("estimator", [Trace, MeanField])
def test_value_and_gradient_are_unbiased(estimator: type[TensorELBO], layout: str) -> None:
    pair = LinearGaussian()
    x = pair.simulate(3)
    elbo = estimator(**LAYOUTS[layout])
    draws = torch.stack([gradient(elbo, pair, x) for _ in range(300)])
    check_mean(draws, exact_gradient(-pair.elbo(x).sum(), pair))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_score_function_gradient_of_a_discrete_latent_is_unbiased(layout: str) -> None:
    pair = Discrete()
    x = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    elbo = Trace(**LAYOUTS[layout])
    draws = torch.stack([gradient(elbo, pair, x) for _ in range(500)])
    check_mean(draws, exact_gradient(-pair.elbo(x).sum(), pair))


def test_score_function_sums_plates_inside_the_latents() -> None:
    pair = Discrete()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            c = pyro.sample("c", dist.Categorical(logits=pair.prior_logits))
            with pyro.plate("features", x.shape[1], dim=-1):
                pyro.sample("x", dist.Bernoulli(logits=pair.logits[c.squeeze(-1)]), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("c", dist.Categorical(logits=(x @ pair.encoder.T).unsqueeze(1)))

    x = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)

    def draw() -> Tensor:
        loss = Trace().differentiable_loss(model, guide, x)
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(pair.parameters()))])

    check_mean(torch.stack([draw() for _ in range(500)]), exact_gradient(-pair.elbo(x).sum(), pair)[1:])


MANY = torch.tensor([1.5, -0.5], dtype=torch.float64).repeat(100)


def test_a_guide_ordered_unlike_the_model_is_unbiased() -> None:
    chain = TopDownChain()
    losses = torch.stack([MeanField().loss(chain.model, chain.guide, MANY) for _ in range(200)])
    check_mean(losses, -chain.elbo(MANY).detach().sum())


def test_pyro_is_biased_there() -> None:
    chain, theirs = TopDownChain(), pyro.infer.TraceMeanField_ELBO()
    with pyro.validation_enabled(False):  # else it warns
        losses = torch.tensor([theirs.loss(chain.model, chain.guide, MANY) for _ in range(50)])
    error = float(losses.std()) / math.sqrt(len(losses))
    assert abs(float(losses.mean() + chain.elbo(MANY).detach().sum())) > 10 * error


def test_a_site_is_integrated_out_only_given_what_it_depends_on() -> None:
    chain = TopDownChain()
    traces = trace_pair(chain.model, chain.guide, (MANY,))
    z1 = traces.guide.nodes["z1"]["value"]
    exact = 0.5 * ((chain.u * z1).square() + chain.t2**2 - 1) - math.log(chain.t2)
    torch.testing.assert_close(kl_sites(traces), {"z2": exact})  # z1 comes before z2 in the guide


def gamma_poisson(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Gamma(torch.full_like(x, 2.0), 1.0))
        pyro.sample("x", dist.Poisson(z), obs=x)


@pytest.mark.parametrize("estimator", [Trace, MeanField])
def test_an_autoguide_with_a_transform_is_unbiased(estimator: type[TensorELBO]) -> None:
    x = torch.tensor([0.0, 3.0], dtype=torch.float64)
    guide = AutoNormal(gamma_poisson)
    guide(x)
    loc, scale = torch.tensor([1.0, 0.3]).double(), torch.tensor([0.5, 0.8]).double()
    guide.locs.z, guide.scales.z = nn.Parameter(loc.clone()), scale.clone()
    mean = (loc + scale**2 / 2).exp()  # of the log-normal q
    log_joint = loc - mean + x * loc - mean - torch.lgamma(x + 1)
    exact = (log_joint + loc + 0.5 * (2 * math.pi * math.e * scale**2).log()).sum()
    losses = torch.stack([estimator().loss(gamma_poisson, guide, x) for _ in range(1000)])
    check_mean(losses, -exact)


# Variance


def test_mean_field_varies_less_far_from_the_posterior() -> None:
    pair = LinearGaussian()
    x = pair.simulate(3)
    values = {e: torch.stack([e().loss(pair.model, pair.guide, x) for _ in range(300)]) for e in (Trace, MeanField)}
    assert float(values[MeanField].var()) < float(values[Trace].var())


def test_trace_does_not_vary_at_the_posterior() -> None:
    pair = LinearGaussian()
    x = pair.simulate(3)
    values = torch.stack([Trace().loss(pair.model, pair.exact_guide, x) for _ in range(10)])
    torch.testing.assert_close(values, -pair.log_prob(x).sum().expand(10))


# Against Pyro under one seed


@pytest.mark.parametrize("particles", [1, 4])
@pytest.mark.parametrize(
    ("ours", "theirs"), [(Trace, pyro.infer.Trace_ELBO), (MeanField, pyro.infer.TraceMeanField_ELBO)]
)
def test_the_same_noise_gives_what_pyro_gives(ours: type[TensorELBO], theirs: type, particles: int) -> None:
    pair = LinearGaussian()
    x = pair.simulate(3)
    torch.manual_seed(1)
    mine = gradient(ours(num_particles=particles), pair, x)
    torch.manual_seed(1)
    reference = theirs(num_particles=particles, vectorize_particles=True, max_plate_nesting=1)
    torch.testing.assert_close(mine, gradient(reference, pair, x))


def test_the_score_function_is_pyros() -> None:
    pair, x = Discrete(), torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    torch.manual_seed(1)
    mine = gradient(Trace(num_particles=3, vectorize_particles=False), pair, x)
    torch.manual_seed(1)
    torch.testing.assert_close(mine, gradient(pyro.infer.Trace_ELBO(num_particles=3), pair, x))


def subsampled(pair: LinearGaussian) -> tuple[Program, Program]:
    def model(x: Tensor) -> None:
        with pyro.plate("data", 60, subsample=x):
            z = pyro.sample("z", pair.prior())
            pyro.sample("x", dist.Normal(z @ pair.weight.T + pair.bias, pair.scale).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 60, subsample=x):
            pyro.sample("z", pair.q(x))

    return model, guide


def masked(pair: LinearGaussian) -> tuple[Program, Program]:
    mask: Any = torch.tensor([True, False, True])
    return poutine.mask(pair.model, mask=mask), poutine.mask(pair.guide, mask=mask)


def scaled(pair: LinearGaussian) -> tuple[Program, Program]:
    return poutine.scale(pair.model, scale=0.3), poutine.scale(pair.guide, scale=0.3)


@pytest.mark.parametrize("change", [subsampled, masked, scaled])
@pytest.mark.parametrize("ours", [Trace, MeanField])
def test_scales_and_masks_count_as_in_pyro(ours: type[TensorELBO], change: Program) -> None:
    pair = LinearGaussian()
    x = pair.simulate(3)
    programs = change(pair)
    theirs = {Trace: pyro.infer.Trace_ELBO, MeanField: pyro.infer.TraceMeanField_ELBO}[ours]()
    torch.manual_seed(1)
    mine = ours().loss(*programs, x)
    torch.manual_seed(1)
    assert float(mine) == pytest.approx(theirs.loss(*programs, x))


def test_a_scale_on_the_model_alone_forbids_the_closed_form() -> None:
    pair = LinearGaussian()
    x = pair.simulate(3)
    model = poutine.scale(pair.model, scale=0.3)
    expected = 0.3 * (pair.log_likelihood(x) - pair.kl(x)) + 0.7 * pair.q(x).entropy()
    losses = torch.stack([MeanField().loss(model, pair.guide, x) for _ in range(1000)])
    check_mean(losses, -expected.detach().sum())


# One number, three ways


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("estimator", [Trace, MeanField])
def test_the_three_losses_agree(estimator: type[TensorELBO], layout: str) -> None:
    pair = LinearGaussian()
    x = pair.simulate(3)
    elbo = estimator(**LAYOUTS[layout])
    elbo.loss(pair.model, pair.guide, x)
    losses, grads = [], []
    for method in (elbo.loss, elbo.loss_and_grads, elbo.differentiable_loss):
        torch.manual_seed(1)
        loss = method(pair.model, pair.guide, x)
        if method == elbo.differentiable_loss:
            loss.backward()
        losses.append(float(loss.detach()))
        grads.append([p.grad for p in pair.parameters()])
        pair.zero_grad()
    assert losses[0] == losses[1] == losses[2]
    assert all(g is None for g in grads[0])
    torch.testing.assert_close(grads[1], grads[2], rtol=0, atol=0)


def test_loss_stays_a_tensor_without_a_graph() -> None:
    pair = LinearGaussian()
    loss = MeanField().loss(pair.model, pair.guide, pair.simulate(3))
    assert isinstance(loss, Tensor)
    assert not loss.requires_grad


def test_finding_out_the_layout_draws_no_noise() -> None:
    pair = LinearGaussian()
    x = pair.simulate(3)
    elbo = Trace(num_particles=4)
    losses = []
    for _ in range(2):  # the first call tries whether particles vectorize
        torch.manual_seed(1)
        losses.append(float(elbo.loss(pair.model, pair.guide, x)))
    assert losses[0] == losses[1]


def test_particles_run_one_at_a_time_where_networks_need_it() -> None:
    pair = LinearGaussian()
    x = pair.simulate(3)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", pair.prior())
            loc = z.reshape(len(x), 2) @ pair.weight.T + pair.bias
            pyro.sample("x", dist.Normal(loc, pair.scale).to_event(1), obs=x)

    with pytest.warns(UserWarning, match="particles run one at a time"):
        loss = Trace(num_particles=3).loss(model, pair.exact_guide, x)
    torch.testing.assert_close(loss, -pair.log_prob(x).detach().sum())


def test_modules_can_be_called_as_in_pyro() -> None:
    class Half(nn.Module):
        def __init__(self, pair: LinearGaussian, which: str) -> None:
            super().__init__()
            self.pair, self.which = pair, which

        def forward(self, x: Tensor) -> None:
            getattr(self.pair, self.which)(x)

    pair = LinearGaussian()
    loss = MeanField()(Half(pair, "model"), Half(pair, "guide"))(pair.simulate(3))
    loss.backward()
    assert pair.weight.grad is not None


# Errors and names


def test_mean_field_refuses_a_discrete_latent() -> None:
    pair = Discrete()
    with pytest.raises(ValueError, match=r"site 'c' is drawn from Categorical.*use elbo='trace'"):
        MeanField().loss(pair.model, pair.guide, torch.ones(2, 3, dtype=torch.float64))


def test_no_particles() -> None:
    with pytest.raises(ValueError, match="num_particles must be at least 1, got 0"):
        Trace(num_particles=0)


def test_names_make_what_they_say() -> None:
    assert {type(elbos.make("trace")), type(elbos.make("mean_field"))} == {Trace, MeanField}


def test_an_object_passes_through() -> None:
    elbo = pyro.infer.Trace_ELBO()
    assert elbos.make(elbo) is elbo


def test_an_object_takes_no_options() -> None:
    with pytest.raises(ValueError, match="give num_particles and options to its constructor"):
        elbos.make(Trace(), num_particles=5)


def test_unknown_name_suggests_a_known_one() -> None:
    with pytest.raises(ValueError, match=r"unknown ELBO 'mean_fild', did you mean 'mean_field'\? Known: "):
        elbos.make("mean_fild")


def test_elbo_of_another_type() -> None:
    with pytest.raises(
        TypeError,
        match=r"a pyro.infer.ELBO object or a loss function, got int",
    ):
        elbos.make(3)  # type: ignore[arg-type]


def test_registered_names_cannot_be_taken() -> None:
    with pytest.raises(ValueError, match="an ELBO named 'trace' is registered already"):
        elbos.register("trace", Trace)


def test_a_registered_factory_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    elbos.register("mine", pyro.infer.Trace_ELBO)
    assert elbos.make("mine", num_particles=3).num_particles == 3
