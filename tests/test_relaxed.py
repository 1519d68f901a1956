"""Relaxed discrete latents against enumeration and quadrature."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.elbo import WeightedKL
from pyro_vae.elbo.relaxed import Cooling, Relaxed


class BitsAndClasses(nn.Module):
    """Independent bits and a one-hot class under Bernoulli observations; everything by enumeration."""

    def __init__(self, data_dim: int = 3, bits: int = 2, classes: int = 3, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))

        self.bits, self.classes = bits, classes
        if bits:
            self.prior_bits, self.encoder_bits = normal(bits), normal(bits, data_dim)
        if classes:
            self.prior_class, self.encoder_class = normal(classes), normal(classes, data_dim)
        self.weight, self.bias = normal(bits + classes, data_dim), normal(data_dim)

    def likelihood(self, z: Tensor) -> Any:
        """p(x | bits and class), `(*, B + C)`."""
        return dist.Bernoulli(logits=2 * torch.tanh(z @ self.weight) * z.sum(-1, keepdim=True) + self.bias).to_event(1)

    def model(self, x: Tensor) -> None:
        """The generative model of binary `x`, `(N, D)`."""
        pyro.module(f"bits_{id(self)}", self)
        parts = []
        with pyro.plate("data", len(x)):
            if self.bits:
                parts.append(pyro.sample("b", dist.Bernoulli(logits=self.prior_bits).to_event(1)))
            if self.classes:
                parts.append(pyro.sample("c", dist.OneHotCategorical(logits=self.prior_class)))
            parts = [p.expand(torch.broadcast_shapes(p.shape[:-1], (len(x),)) + p.shape[-1:]) for p in parts]
            pyro.sample("x", self.likelihood(torch.cat(parts, -1)), obs=x)

    def guide(self, x: Tensor) -> None:
        """The amortised guide, in the opposite order."""
        pyro.module(f"bits_{id(self)}", self)
        with pyro.plate("data", len(x)):
            if self.bits:
                pyro.sample("b", dist.Bernoulli(logits=x @ self.encoder_bits.T).to_event(1))
            if self.classes:
                pyro.sample("c", dist.OneHotCategorical(logits=x @ self.encoder_class.T))

    def states(self) -> Tensor:
        """Every latent state, `(S, B + C)`."""
        bits = list(itertools.product((0.0, 1.0), repeat=self.bits))
        classes = torch.eye(self.classes).tolist() or [[]]
        return torch.tensor([[*b, *c] for b in bits for c in classes], dtype=torch.float64)

    def log_weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x, z) and log q(z|x) of every state, `(N, S)`."""
        z, n = self.states(), len(x)
        b, c = z.split([self.bits, self.classes], -1)
        log_p, log_q = self.likelihood(z).log_prob(x.unsqueeze(1)), x.new_zeros(n, len(z))
        if self.bits:
            log_p = log_p + dist.Bernoulli(logits=self.prior_bits).to_event(1).log_prob(b)
            logits = (x @ self.encoder_bits.T).unsqueeze(1)
            log_q = log_q + dist.Bernoulli(logits=logits).to_event(1).log_prob(b)
        if self.classes:
            log_p = log_p + dist.OneHotCategorical(logits=self.prior_class).log_prob(c)
            log_q = log_q + dist.OneHotCategorical(logits=(x @ self.encoder_class.T).unsqueeze(1)).log_prob(c)
        return log_p, log_q

    def elbo(self, x: Tensor) -> Tensor:
        """The ELBO, `(N,)`."""
        log_p, log_q = self.log_weights(x)
        return (log_q.exp() * (log_p - log_q)).sum(-1)

    def kl(self, x: Tensor) -> Tensor:
        """KL(q(z|x) || p(z)), `(N,)`."""
        log_p, log_q = self.log_weights(x)
        given = self.likelihood(self.states()).log_prob(x.unsqueeze(1))
        return (log_q.exp() * (log_q - log_p + given)).sum(-1)


SIZES = [(2, 0), (0, 3), (2, 3)]
X = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]], dtype=torch.float64)


def flat_gradient(value: Tensor, pair: nn.Module) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(pair.parameters()))])


def without_likelihood(pair: BitsAndClasses) -> Any:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("b", dist.Bernoulli(logits=pair.prior_bits).to_event(1))
            pyro.sample("c", dist.OneHotCategorical(logits=pair.prior_class))

    return model


@pytest.mark.parametrize(("bits", "classes"), SIZES)
def test_the_value_goes_to_the_discrete_elbo(bits: int, classes: int) -> None:
    pair = BitsAndClasses(bits=bits, classes=classes)
    elbo = Relaxed(temperature=0.005, num_particles=2)
    losses = torch.stack([elbo.loss(pair.model, pair.guide, X.repeat(2000, 1)) / 2000 for _ in range(10)])
    error = float(losses.std() / math.sqrt(10))
    assert abs(float(losses.mean() + pair.elbo(X).detach().sum())) < 4.5 * error + 0.02


@pytest.mark.parametrize("temperature", [0.2, 2.0])
@pytest.mark.parametrize("particles", [1, 3])
def test_the_value_of_straight_through_is_the_discrete_elbo(temperature: float, particles: int) -> None:
    pair = BitsAndClasses()
    elbo = Relaxed(temperature=temperature, straight_through=True, num_particles=particles)
    losses = torch.stack([elbo.loss(pair.model, pair.guide, X.repeat(2000, 1)) / 2000 for _ in range(20)])
    error = float(losses.std() / math.sqrt(20))
    assert abs(float(losses.mean() + pair.elbo(X).detach().sum())) < 4.5 * error


@pytest.mark.parametrize(("bits", "classes"), SIZES)
@pytest.mark.parametrize("options", [{}, {"num_particles": 2}, {"num_particles": 2, "vectorize_particles": False}])
def test_the_gradient_goes_to_the_exact_one(bits: int, classes: int, options: Any) -> None:
    pair = BitsAndClasses(bits=bits, classes=classes)
    exact = flat_gradient(-pair.elbo(X).sum(), pair)
    elbo = Relaxed(temperature=0.1, **options)
    found = flat_gradient(elbo.differentiable_loss(pair.model, pair.guide, X.repeat(20_000, 1)) / 20_000, pair)
    assert float(torch.cosine_similarity(exact, found, dim=0)) > 0.98


def test_a_high_temperature_is_biased_and_a_low_one_noisy() -> None:
    pair = BitsAndClasses()
    exact = flat_gradient(-pair.elbo(X).sum(), pair)
    variance, bias = [], []
    for temperature in (3.0, 0.05):
        elbo = Relaxed(temperature=temperature)
        draws = [
            flat_gradient(elbo.differentiable_loss(pair.model, pair.guide, X.repeat(500, 1)), pair) / 500
            for _ in range(20)
        ]
        variance.append(float(torch.stack(draws).var(0).sum()))
        bias.append(float((torch.stack(draws).mean(0) - exact).norm()))
    assert variance[0] < variance[1] / 5
    assert bias[0] > 2 * bias[1]


@pytest.mark.parametrize("options", [{}, {"num_particles": 3}, {"num_particles": 3, "vectorize_particles": False}])
def test_the_kl_term_is_exact(options: Any) -> None:
    pair = BitsAndClasses()
    loss = Relaxed(temperature=0.3, **options).differentiable_loss(without_likelihood(pair), pair.guide, X)
    torch.testing.assert_close(loss, pair.kl(X).sum())


@pytest.mark.parametrize("temperature", [0.05, 2.0])
@pytest.mark.parametrize("prior_temperature", [None, 0.3])
def test_the_relaxed_kl_is_above_the_exact_one(temperature: float, prior_temperature: float | None) -> None:
    pair = BitsAndClasses()
    elbo = Relaxed(temperature=temperature, prior="relaxed", prior_temperature=prior_temperature, num_particles=2)
    kl = float(elbo.loss(without_likelihood(pair), pair.guide, X.repeat(20_000, 1)) / 20_000)
    assert kl > 1.1 * float(pair.kl(X).detach().sum())
    if prior_temperature is None:  # then it does not depend on the temperature
        elbo.temperature = 0.5
        again = float(elbo.loss(without_likelihood(pair), pair.guide, X.repeat(20_000, 1)) / 20_000)
        assert again == pytest.approx(kl, rel=0.03)


@pytest.mark.parametrize("prior_temperature", [None, 0.7])
def test_relaxed_densities_agree_with_quadrature(prior_temperature: float | None) -> None:
    pair = BitsAndClasses(bits=1, classes=0)
    tau = 0.4
    elbo = Relaxed(temperature=tau, prior="relaxed", prior_temperature=prior_temperature)
    losses = torch.stack([elbo.loss(pair.model, pair.guide, X.repeat(4000, 1)) / 4000 for _ in range(20)])
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    y = ((u.logit()[:, None, None] + X @ pair.encoder_bits.T) / tau).sigmoid().clamp(1e-300, 1 - 1e-16)  # (U, N, 1)
    t = torch.tensor
    q = dist.RelaxedBernoulli(t(tau), logits=X @ pair.encoder_bits.T).to_event(1)
    p = dist.RelaxedBernoulli(t(prior_temperature or tau), logits=pair.prior_bits).to_event(1)
    exact = (pair.likelihood(y).log_prob(X) + p.log_prob(y) - q.log_prob(y)).mean(0).sum()
    assert abs(float(losses.mean() + exact.detach())) < 4.5 * float(losses.std()) / math.sqrt(20) + 1e-3


@pytest.mark.parametrize("straight_through", [True, False])
def test_what_the_programs_see(straight_through: bool) -> None:
    pair, seen = BitsAndClasses(), {}

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            seen["b"] = pyro.sample("b", dist.Bernoulli(logits=pair.prior_bits).to_event(1))
            seen["c"] = pyro.sample("c", dist.OneHotCategorical(logits=pair.prior_class))

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            seen["qb"] = pyro.sample("b", dist.Bernoulli(logits=x @ pair.encoder_bits.T).to_event(1))
            seen["qc"] = pyro.sample("c", dist.OneHotCategorical(logits=x @ pair.encoder_class.T))

    elbo = Relaxed(temperature=0.7, straight_through=straight_through)
    elbo.differentiable_loss(model, guide, X.repeat(100, 1))
    assert torch.equal(seen["b"], seen["qb"])
    assert torch.equal(seen["c"], seen["qc"])
    assert torch.all((seen["b"] >= 0) & (seen["b"] <= 1))
    torch.testing.assert_close(seen["c"].sum(-1), torch.ones(200, dtype=torch.float64))
    assert bool(((seen["b"] == 0) | (seen["b"] == 1)).all()) == straight_through
    assert bool(((seen["c"] == 0) | (seen["c"] == 1)).all()) == straight_through
    assert seen["b"].requires_grad
    assert seen["c"].requires_grad


def test_a_second_layer_conditions_on_the_first() -> None:
    """Guide and model draw in one order, so that every KL is known given the layer before."""
    mixing = nn.Parameter(torch.tensor([[0.8, -1.0], [0.3, 1.2]]))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(logits=torch.tensor([0.3, -0.4])).to_event(1))
            b = pyro.sample("b", dist.Bernoulli(logits=a @ mixing).to_event(1))
            pyro.sample("x", dist.Normal(a.sum(-1) - b[..., 0] * b[..., 1], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Bernoulli(logits=torch.stack([x, -x], -1)).to_event(1))
            pyro.sample("b", dist.Bernoulli(logits=a * x.unsqueeze(-1)).to_event(1))

    x = torch.tensor([0.7])
    exact = x.new_zeros(())
    states = [torch.tensor(s) for s in itertools.product((0.0, 1.0), repeat=2)]
    for a, b in itertools.product(states, states):
        log_q = dist.Bernoulli(logits=torch.stack([x, -x], -1)).to_event(1).log_prob(a)
        log_q = log_q + dist.Bernoulli(logits=a * x).to_event(1).log_prob(b)
        log_p = dist.Bernoulli(logits=torch.tensor([0.3, -0.4])).to_event(1).log_prob(a)
        log_p = log_p + dist.Bernoulli(logits=a @ mixing).to_event(1).log_prob(b)
        log_p = log_p + dist.Normal(a.sum() - b[0] * b[1], 1.0).log_prob(x)
        exact = exact + (log_q.exp() * (log_p - log_q)).sum()
    elbo = Relaxed(temperature=0.5, straight_through=True, num_particles=4)
    losses = torch.stack([elbo.loss(model, guide, x.repeat(1000)) / 1000 for _ in range(20)])
    assert abs(float(losses.mean() + exact.detach())) < 4.5 * float(losses.std()) / math.sqrt(20)

    def other_way_round(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(logits=torch.stack([x, -x], -1)).to_event(1))
            pyro.sample("a", dist.Bernoulli(logits=b * x.unsqueeze(-1)).to_event(1))

    with pytest.raises(ValueError, match=r"KL of site 'b'.*prior='relaxed'"):
        Relaxed().loss(model, other_way_round, x)
    assert torch.isfinite(Relaxed(prior="relaxed").loss(model, other_way_round, x))


def test_extra_plates_masks_and_a_gaussian_beside() -> None:
    x = torch.randn(5, dtype=torch.float64)
    mask: Any = torch.tensor([True, False, True, True, False])
    logits = torch.randn(2, 5, dtype=torch.float64)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with poutine.mask(mask=mask):
                with pyro.plate("parts", 2, dim=-2):
                    switch = pyro.sample("switch", dist.Bernoulli(logits=x.new_tensor(0.4)))
                pyro.sample("x", dist.Normal(z + switch.sum(-2, keepdim=True), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.5 * x, 0.8))
            with poutine.mask(mask=mask), pyro.plate("parts", 2, dim=-2):
                pyro.sample("switch", dist.Bernoulli(logits=logits))

    q, p = torch.sigmoid(logits), torch.sigmoid(torch.tensor(0.4, dtype=torch.float64))
    kl = (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()).sum(0) * mask
    kl = kl + 0.5 * ((0.5 * x).square() + 0.64 - math.log(0.64) - 1)
    square = (0.5 * x + q.sum(0) - x).square() + 0.64 + (q * (1 - q)).sum(0)
    exact = ((-0.5 * math.log(2 * math.pi) - 0.5 * square) * mask - kl).sum()
    elbo = Relaxed(temperature=0.5, straight_through=True, num_particles=500)
    losses = torch.stack([elbo.loss(model, guide, x) for _ in range(20)])
    assert abs(float(losses.mean() + exact)) < 4.5 * float(losses.std()) / math.sqrt(20)


@pytest.mark.parametrize("prior", ["discrete", "relaxed"])
def test_a_subsampled_plate_and_a_kl_weight(prior: Any) -> None:
    pair = BitsAndClasses()

    def scaled(program: Any) -> Any:
        return poutine.scale(program, scale=50.0)

    elbo = Relaxed(prior=prior, num_particles=2)
    torch.manual_seed(1)
    plain = elbo.differentiable_loss(pair.model, pair.guide, X)
    torch.manual_seed(1)
    torch.testing.assert_close(elbo.differentiable_loss(scaled(pair.model), scaled(pair.guide), X), 50 * plain)
    torch.manual_seed(1)
    weighted = WeightedKL(elbo, 0.0)
    likelihood = weighted.differentiable_loss(pair.model, pair.guide, X)
    weighted.weight = 2.0
    torch.manual_seed(1)
    double = weighted.differentiable_loss(pair.model, pair.guide, X)
    torch.testing.assert_close(double, 2 * plain - likelihood)


def test_finite_at_extreme_temperatures_and_logits() -> None:
    pair = BitsAndClasses().float()
    with torch.no_grad():
        pair.encoder_bits.mul_(50)
        pair.encoder_class.mul_(50)
    for tau in (1e-3, 30.0):
        elbo = Relaxed(temperature=tau, prior="relaxed", prior_temperature=0.66)
        grads = flat_gradient(elbo.differentiable_loss(pair.model, pair.guide, X.float().repeat(5000, 1)), pair)
        assert torch.isfinite(grads).all()


def test_loss_and_grads_agrees_with_loss_under_one_seed() -> None:
    pair = BitsAndClasses()
    elbo = Relaxed()
    torch.manual_seed(3)
    a = elbo.loss(pair.model, pair.guide, X)
    torch.manual_seed(3)
    b = elbo.loss_and_grads(pair.model, pair.guide, X)
    assert torch.equal(a, b)
    assert pair.weight.grad is not None


def test_the_temperature_is_annealed_over_gradients() -> None:
    pair = BitsAndClasses()
    elbo = Relaxed(temperature=Cooling(start=1.0, end=0.5, rate=0.3))
    seen = []
    for _ in range(4):
        elbo.loss(pair.model, pair.guide, X)  # takes no step
        elbo.loss_and_grads(pair.model, pair.guide, X)
        seen.append(elbo.temperature)
    assert seen == pytest.approx([1.0, math.exp(-0.3), math.exp(-0.6), 0.5])
    held = elbo._temperature
    elbo.temperature = 0.25
    elbo.loss_and_grads(pair.model, pair.guide, X)
    assert elbo.temperature == 0.25
    assert elbo._temperature is held
    loss = elbo.differentiable_loss(pair.model, pair.guide, X)
    elbo.temperature = 0.3
    loss.backward()


def draws(fn: Any) -> Any:
    def program(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", fn)

    return program


BIT, CLASS = dist.Bernoulli(torch.tensor(0.5)), dist.Categorical(torch.ones(3) / 3)


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (CLASS, CLASS, "'z' is drawn from Categorical.*OneHotCategorical"),
        (dist.Poisson(1.0), dist.Poisson(torch.tensor(2.0)), "'z' is drawn from Poisson.*'vimco'"),
        (BIT, dist.RelaxedBernoulli(torch.tensor(0.5), torch.tensor(0.5)), "RelaxedBernoulli in the guide"),
        (dist.Beta(1.0, 1.0), BIT, "'z' is Beta in the model and Bernoulli in the guide"),
    ],
)
def test_what_is_refused(model: Any, guide: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Relaxed().loss(draws(model), draws(guide), torch.zeros(2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature must be"),
        ({"temperature": math.inf}, "temperature must be"),
        ({"prior": "other"}, "'discrete' or 'relaxed'"),
        ({"prior_temperature": 0.5}, "give prior='relaxed'"),
        ({"prior": "relaxed", "prior_temperature": -1.0}, "temperature must be"),
    ],
)
def test_bad_options(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Relaxed(**options)
    with pytest.raises(ValueError, match="cooling needs"):
        Cooling(start=0.1, end=0.5)
