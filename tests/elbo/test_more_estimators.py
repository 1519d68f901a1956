"""VarGrad, OVIS and TVO against exact values and against what they are special cases of."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from pyro_vae.elbo import OVIS, TVO, VIMCO, Reinforce, VarGrad
from pyro_vae.evaluate import check_estimator
from pyro_vae.oracles import BitsAndClasses, Discrete, Interleaved, Oracle, Weighting


def gradient(estimator: Any, pair: Oracle, x: Tensor, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    loss = estimator.differentiable_loss(pair.model, pair.guide, x)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(pair.parameters()))])


def test_vargrad_is_half_the_gradient_of_the_variance_of_the_log_weights() -> None:
    """At fixed draws, for the guide: Richter et al. 2020, with the unbiased variance."""
    pair, x, k = Discrete(), Discrete().simulate(6), 5
    found = gradient(VarGrad(k), pair, x)
    assert torch.equal(found, gradient(Reinforce(k, "leave_one_out"), pair, x))
    torch.manual_seed(0)
    log_q = (x @ pair.encoder.T).log_softmax(-1)
    c = torch.distributions.Categorical(logits=log_q.detach().expand(k, *log_q.shape)).sample()
    log_w = pair.log_joint(x).detach().expand(k, -1, -1).gather(-1, c.unsqueeze(-1)).squeeze(-1)
    log_w = log_w - log_q.expand(k, -1, -1).gather(-1, c.unsqueeze(-1)).squeeze(-1)
    by_variance = torch.autograd.grad(log_w.var(0).sum() / 2, pair.encoder)[0].flatten()
    names = [name for name, _ in pair.named_parameters()]
    sizes = [p.numel() for p in pair.parameters()]
    of_guide = dict(zip(names, found.split(sizes), strict=True))["encoder"]
    torch.testing.assert_close(of_guide, by_variance)


@pytest.mark.parametrize("options", [{}, {"auxiliary": 3}, {"gamma": 0.0}, {"vectorize_particles": False}])
def test_ovis_is_unbiased(options: dict[str, Any]) -> None:
    for pair in (Discrete(), Interleaved(Weighting({("guide", "c"): 2.0}))):
        check = check_estimator(OVIS(3, **options), pair, repeats=12, seed=1)
        assert check.passed, check


def test_ovis_with_gamma_is_biased_and_its_docstring_says_so() -> None:
    check = check_estimator(OVIS(3, gamma=1.0), Discrete(), repeats=25, seed=1)
    assert [line.check for line in check.lines if line.passed is False] == ["gradient of the guide"]


def test_ovis_has_less_variance_than_vimco() -> None:
    pair = BitsAndClasses()
    x = pair.simulate(20)
    of_guide = torch.cat(
        [torch.full((p.numel(),), name in pair.guide_parameters) for name, p in pair.named_parameters()]
    )
    ovis, vimco = (
        torch.stack([gradient(estimator, pair, x, seed)[of_guide] for seed in range(60)]).var(0).sum()
        for estimator in (OVIS(16, auxiliary=8), VIMCO(16))
    )
    assert ovis < 0.9 * vimco


def exact_tvo(pair: Oracle, x: Tensor, betas: tuple[float, ...]) -> Tensor:
    log_w, log_q = pair.weights(x)
    value = torch.zeros_like(log_w[0])
    for beta, end in pairwise([*betas, 1.0]):
        value = value + (end - beta) * ((log_q + beta * log_w).softmax(0) * log_w).sum(0)
    return value


@pytest.mark.parametrize("betas", [(0.0,), (0.0, 0.3), (0.0, 0.1, 0.5)])
def test_tvo_goes_to_its_exact_value_and_gradient(betas: tuple[float, ...]) -> None:
    for pair in (Discrete(), BitsAndClasses()):
        x = pair.simulate(3)
        exact = exact_tvo(pair, x, betas)
        assert bool((exact >= pair.elbo(x) - 1e-9).all())
        assert bool((exact <= pair.log_prob(x)).all())
        wanted = torch.cat(
            [g.flatten() for g in torch.autograd.grad(-exact.sum(), list(pair.parameters()), retain_graph=True)]
        )
        many = TVO(4000, betas=betas)
        found = torch.stack([gradient(many, pair, x, seed) for seed in range(12)])
        error = found.std(0) / 12**0.5
        assert ((found.mean(0) - wanted).abs() < 6 * error + 0.01 * wanted.norm()).all()
        loss = torch.stack([many.loss(pair.model, pair.guide, x) for _ in range(5)]).mean()
        assert float(loss) == pytest.approx(-float(exact.sum().detach()), rel=0.02)


def test_tvo_of_zero_alone_is_vargrad() -> None:
    pair = Discrete()
    x = pair.simulate(6)
    torch.testing.assert_close(gradient(TVO(5, betas=(0.0,)), pair, x), gradient(VarGrad(5), pair, x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TVO(3, betas=(0.1, 0.3)), "begin with 0"),
        (lambda: TVO(3, betas=(0.0, 1.0)), "all below 1"),
        (lambda: TVO(3, betas=()), "begin with 0"),
        (lambda: TVO(1), "num_particles must be at least 2"),
        (lambda: OVIS(3, gamma=1.5), r"gamma must be in \[0, 1\]"),
        (lambda: OVIS(3, auxiliary=0), "auxiliary must be at least 1"),
        (lambda: VarGrad(1), "num_particles must be at least 2"),
    ],
)
def test_options_out_of_range_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
