"""The VAE of several modalities: exact values of a linear-Gaussian pair, and of its posteriors by other code."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal

import pyro_vae as pv
from pyro_vae.models import MultimodalVAE
from pyro_vae.models.experts import NormalMixture

SIGMA, SIZES = 0.7, (3, 4)
Exact = tuple[MultimodalVAE, MultivariateNormal]


def linear(combine: Any = "poe", latent_dim: int = 2) -> Exact:
    """A linear-Gaussian pair of two modalities whose experts are p(x_m|z) as densities of z, and p(x_1, x_2)."""
    torch.manual_seed(0)
    likelihood = [pv.conditionals.Normal(size, scale=SIGMA) for size in SIZES]
    vae = MultimodalVAE(SIZES[0], [[SIZES[1]]], latent_dim, (), likelihood=likelihood, combine=combine).double().eval()
    weights, biases = [], []
    for encoder, decoder, size in zip(vae.encoders, vae.decoders, SIZES, strict=True):
        orthogonal = torch.linalg.qr(torch.randn(size, latent_dim).double())[0]
        weight, bias = orthogonal * (0.5 + torch.rand(latent_dim).double()), torch.randn(size).double()
        precision = weight.square().sum(0) / SIGMA**2
        to_mean = weight.T / SIGMA**2 / precision.unsqueeze(-1)
        (into,), (out,) = ([m for m in net.modules() if isinstance(m, torch.nn.Linear)] for net in (encoder, decoder))
        with torch.no_grad():
            out.weight.copy_(weight)
            out.bias.copy_(bias)
            into.weight.copy_(torch.cat([to_mean, torch.zeros_like(to_mean)]))
            into.bias.copy_(torch.cat([-to_mean @ bias, -precision.log() / 2]))
        weights.append(weight)
        biases.append(bias)
    weight, bias = torch.cat(weights), torch.cat(biases)
    return vae, MultivariateNormal(bias, weight @ weight.T + SIGMA**2 * torch.eye(len(bias)).double())


def marginal(joint: MultivariateNormal, keep: slice) -> MultivariateNormal:
    return MultivariateNormal(joint.mean[keep], joint.covariance_matrix[keep, keep])


def data(joint: MultivariateNormal, n: int = 5) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Draws, and the exact log p of all, of each modality, and of nothing."""
    x = joint.sample((n,))
    first, second = slice(0, SIZES[0]), slice(SIZES[0], None)
    exact = {"11": joint.log_prob(x), "00": torch.zeros(n).double()}
    exact["10"] = marginal(joint, first).log_prob(x[:, first])
    exact["01"] = marginal(joint, second).log_prob(x[:, second])
    return x[:, first], x[:, second], exact


def test_a_product_of_exact_experts_is_the_posterior_for_every_subset() -> None:
    """Then each weight is log p of what a datum has, and the conditional is the difference, without error."""
    vae, joint = linear()
    x1, x2, exact = data(joint, 4)
    observed = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    expected = torch.stack([exact[key][i] for i, key in enumerate(["11", "10", "01", "00"])])
    x1 = torch.where(observed[:, :1], x1, torch.nan)  # the value of what is missing does not matter
    found = pv.log_marginal(vae.model, vae.guide, x1, x2, observed, num_samples=30)
    torch.testing.assert_close(found.log_prob, expected)
    assert float(found.std_error.max()) < 1e-7
    q, p = vae.encode(x1, x2, observed), vae.prior()
    torch.testing.assert_close(q.mean[3], p.mean.double())
    torch.testing.assert_close(q.stddev[3], p.stddev.double())

    x1, x2, exact = data(joint)
    conditional = pv.log_conditional(vae.model, vae.guide, x1, x2, given=vae.arguments(x1, None), num_samples=30)
    torch.testing.assert_close(conditional.log_prob, exact["11"] - exact["10"])
    torch.testing.assert_close(pv.log_marginal(vae.model, vae.guide, x1, num_samples=30).log_prob, exact["10"])


@pytest.mark.parametrize("combine", ["moe", "mopoe"])
def test_estimates_with_a_mixture_agree_with_the_closed_forms(combine: str) -> None:
    vae, joint = linear(combine)
    x1, x2, exact = data(joint)
    elbo = pv.bound(vae.model, vae.guide, x1, x2, num_samples=200, seed=0).elbo
    joined = pv.log_marginal(vae.model, vae.guide, x1, x2, num_samples=2000, seed=0)
    assert elbo.mean() < exact["11"].mean()
    assert ((joined.log_prob - exact["11"]).abs() < 4 * joined.std_error).all()
    found = pv.log_conditional(vae.model, vae.guide, x1, x2, given=(x1,), num_samples=2000, seed=0)
    assert ((found.log_prob - exact["11"] + exact["10"]).abs() < 4 * found.std_error + 1e-9).all()


def by_hand(vae: MultimodalVAE, x: tuple[Tensor, ...], row: int, has: list[int], values: Tensor) -> Tensor:
    """log q at `values`, `(K, L)`, for the modalities that a datum has: each product by multiplying densities."""
    experts = {}
    for m in has:
        h = vae.encoders[m](x[m][row])
        experts[m] = Normal(h[: h.shape[-1] // 2], h[h.shape[-1] // 2 :].exp())  # these log-scales are within [-3, 3]
    if vae.combine == "moe":
        chosen: list[tuple[int, ...]] = [(m,) for m in has]
    else:
        chosen = [a for k in range(1, len(has) + 1) for a in itertools.combinations(has, k)]
    locs, scales = [], []
    for subset in chosen or [()]:
        loc, variance = torch.zeros(2).double(), torch.ones(2).double()  # the prior, times one expert after the other
        for i, m in enumerate(subset):
            if vae.combine == "moe" and i == 0:
                loc, variance = experts[m].loc, experts[m].variance
                continue
            gain = variance / (variance + experts[m].variance)
            loc, variance = loc + gain * (experts[m].loc - loc), (1 - gain) * variance
        locs.append(loc)
        scales.append(variance.sqrt())
    components = Independent(Normal(torch.stack(locs), torch.stack(scales)), 1)
    return MixtureSameFamily(Categorical(torch.ones(len(locs)).double()), components).log_prob(values)


@pytest.mark.parametrize("combine", ["poe", "moe", "mopoe"])
def test_the_density_is_that_of_an_independent_mixture(combine: Any) -> None:
    torch.manual_seed(0)
    vae = MultimodalVAE(3, [[2], 4], latent_dim=2, hidden=(5,), likelihood="normal", combine=combine).double().eval()
    patterns = torch.tensor(list(itertools.product([True, False], repeat=3)))
    n = len(patterns)
    x = torch.randn(n, 3).double(), torch.randn(n, 2).double(), torch.arange(n) % 4
    q, values = vae.encode(*x, patterns), torch.randn(6, n, 2).double()
    found = q.log_prob(values)
    encoded = (*x[:2], torch.nn.functional.one_hot(x[2], 4).double())
    for row, pattern in enumerate(patterns):
        has = [m for m in range(3) if pattern[m]]
        if combine == "poe":
            vae.combine = "mopoe"  # its product of all, without the mixture
            loc, variance = torch.zeros(2).double(), torch.ones(2).double()
            for m in has:
                loc_m, log_scale = vae.encoders[m](encoded[m][row]).chunk(2)
                total = 1 / variance + (-2 * log_scale).exp()
                loc, variance = (loc / variance + loc_m * (-2 * log_scale).exp()) / total, 1 / total
            expected = MultivariateNormal(loc, variance.diag()).log_prob(values[:, row])
        else:
            expected = by_hand(vae, encoded, row, has, values[:, row])
        torch.testing.assert_close(found[:, row], expected)


def test_elbo_and_gradient_of_a_mixture_equal_quadrature() -> None:
    torch.manual_seed(0)
    vae = MultimodalVAE(3, [[2], 4], 1, (5,), "tanh", "normal", "mopoe").double().eval()
    x = torch.randn(2, 3).double() * 2, torch.randn(2, 2).double(), torch.tensor([3, -1])
    z = torch.linspace(-12, 12, 3001).double().reshape(-1, 1, 1)
    q = vae.encode(*x)
    log_q = q.log_prob(z)
    decoded = [vae.decode(z, m + 1).log_prob(x[m].clamp_min(0) if m == 2 else x[m]) for m in range(3)]
    log_p = vae.prior().log_prob(z) + decoded[0] + decoded[1] + torch.where(x[2] >= 0, decoded[2], 0.0)
    exact = (log_q.exp() * (log_p - log_q)).sum(0) * 24 / 3000
    parameters = list(vae.parameters())
    gradient = torch.autograd.grad(exact.sum(), parameters)
    estimate = pv.log_marginal(vae.model, vae.guide, *x, num_samples=20_000, seed=0).bounds
    assert estimate is not None
    torch.testing.assert_close(estimate[0], exact.detach(), atol=0.05, rtol=0)
    vae.train()  # stratified: less noise, the same mean
    for name in ("trace", "stl"):  # the latter leaves out the score of q, as DReG does
        loss = pv.elbo.make(name, num_particles=40_000).differentiable_loss(vae.model, vae.guide, *x)
        for found, expected in zip(torch.autograd.grad(loss, parameters), gradient, strict=True):
            torch.testing.assert_close(-found, expected, atol=0.06, rtol=0.03)


def test_draws_of_a_mixture() -> None:
    """Each draw follows the mixture; stratified ones take the components in equal shares."""
    torch.manual_seed(0)
    weight = torch.tensor([0.5, 0.0, 0.25, 0.25]).clamp_min(1e-30).log()
    loc, scale = torch.tensor([[-100.0], [0.0], [100.0], [200.0]]), torch.ones(4, 1)
    q = NormalMixture(weight, loc, scale, stratified=True).expand((3,)).expand((8, 3))
    component = (q.rsample() / 100).round().squeeze(-1)
    assert [(component == value).sum(0).tolist() for value in (-1, 0, 1, 2)] == [[4] * 3, [0] * 3, [2] * 3, [2] * 3]
    first = torch.stack([(q.rsample()[0] / 100).round() for _ in range(2000)]).flatten()
    shares = [float((first == value).double().mean()) for value in (-1, 0, 1, 2)]
    assert shares == pytest.approx([0.5, 0.0, 0.25, 0.25], abs=0.03)
    assert float(q.mean[0, 0]) == pytest.approx(25.0)
    assert float(q.variance[0, 0]) == pytest.approx(1 + 0.5 * 125**2 + 0.25 * 75**2 + 0.25 * 175**2)


def test_the_subsampled_objective_is_the_sum_over_subsets() -> None:
    vae, joint = linear()
    x1, x2, exact = data(joint)
    expected = -(exact["11"] + exact["10"] + exact["01"]).sum()
    elbo = pv.elbo.SubsampledModalities(elbo=pv.elbo.Trace())
    torch.testing.assert_close(elbo.differentiable_loss(vae.model, vae.guide, x1, x2).detach(), expected)
    torch.testing.assert_close(elbo.loss(vae.model, vae.guide, x1, x2), expected)
    observed = torch.tensor([[True, False]]).expand(5, 2)
    loss = elbo.loss(vae.model, vae.guide, x1, x2, observed)
    torch.testing.assert_close(loss, -2 * exact["10"].sum())
    torch.manual_seed(0)
    loss = pv.elbo.SubsampledModalities(elbo=pv.elbo.Trace(), random=2).loss(vae.model, vae.guide, x1, x2)
    torch.manual_seed(0)
    chosen = [(torch.rand(5, 2) < 0.5).int().tolist() for _ in range(2)]  # drawn before any z
    torch.testing.assert_close(loss, expected - sum(exact[f"{a}{b}"][i] for k in chosen for i, (a, b) in enumerate(k)))
    with pytest.raises(ValueError, match="at least two tensors"):
        elbo.loss(vae.model, vae.guide, x1)


def test_generation_keeps_what_is_given_and_its_coherence_is_counted() -> None:
    torch.manual_seed(0)
    vae = MultimodalVAE(2, others=[2], latent_dim=1, hidden=(), likelihood="normal").eval()
    with torch.no_grad():  # x is about (z, z), its label the sign of z, and both experts know z well
        for p in vae.parameters():
            p.zero_()
        image, label = (net.get_submodule("0") if hasattr(net, "0") else net for net in vae.decoders)
        next(p for p in image.parameters() if p.dim() == 2)[:2] = 1.0
        next(p for p in label.parameters() if p.dim() == 2).copy_(torch.tensor([[-300.0], [300.0]]))
        next(p for p in vae.encoders[0].parameters() if p.dim() == 2)[0] = 0.5
        next(p for p in vae.encoders[0].parameters() if p.dim() == 1)[1] = -3.0
    x = torch.tensor([[3.0, 3.0], [-3.0, -3.0]]).repeat(50, 1)
    y = (x[:, 0] > 0).long()
    kept, drawn = vae.generate(x, None)
    assert torch.equal(kept, x)
    assert torch.equal(drawn, y)
    classify = {"x2": lambda drawn: drawn}
    given = vae.arguments(x, None)
    assert pv.coherence(vae.model, vae.guide, *given, classify=classify, labels=y).agreement["x2"].mean() == 1
    assert pv.coherence(vae.model, vae.guide, *given, classify=classify, labels=1 - y).agreement["x2"].mean() == 0
    both = {**classify, "x1": lambda x: (x.mean(1) > 0).long()}
    sure = pv.coherence(vae.model, vae.guide, *vae.arguments(n=400), classify=both, num_samples=5, seed=0).together
    # the mean of the two noises has a scale of 1/sqrt(2): P(sign(z + noise) = sign(z)) by the angle between the two
    exact = 1 - torch.tensor(0.5**0.5).atan() / torch.pi
    assert sure == pytest.approx(float(exact), abs=0.03)
    assert [part.shape for part in vae.sample(3)] == [(3, 2), (3,)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"combine": "sum"}, "combine must be 'poe', 'moe' or 'mopoe', got 'sum'"),
        ({"others": []}, "at least one modality beside the first"),
        ({"others": [[2], 3], "likelihood": ["normal"]}, "likelihood has 1 entries, but 2 modalities"),
        ({"encoders": [None]}, "encoders has 1 entries, but there are 2"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultimodalVAE(4, **arguments)


def test_bad_data() -> None:
    vae = MultimodalVAE(4, others=[3], latent_dim=2, hidden=(5,))
    x, y = torch.ones(2, 4), torch.tensor([0, 1])
    cases: list[tuple[tuple[Any, ...], str]] = [
        ((x[:, :3], y), r"modality 1: expected numbers of shape \(N, 4\), N = 2, got \(2, 3\)"),
        ((x.bool(), y), "of type torch.bool"),
        ((x, y.float()), "modality 2: expected integer labels"),
        ((x, y + 2), "labels from 0 to 2, and -1 where one is missing, got 2 to 3"),
        ((x, y, x), "at most 2 modalities"),
        ((x, y, torch.ones(2, 2)), r"booleans of shape \(N, 2\), got 3 tensors.* \(2, 2\) and type torch.float32"),
        ((x, y, torch.ones(1, 2).bool()), "`observed` has 1 rows, but there are 2 data"),
    ]
    for args, message in cases:
        with pytest.raises(ValueError, match=message):
            vae.guide(*args)
    for modality in (0, 3):
        with pytest.raises(ValueError, match="modality must be from 1 to 2"):
            vae.decode(torch.zeros(2, 2), modality)
    with pytest.raises(ValueError, match="number of data must be at least 1, got 0"):
        vae.generate(n=0)
    unusual: Any = [1.0, 2.0]
    with pytest.raises(TypeError, match="modality 1 must be a tensor"):
        vae.generate(unusual)
    classify = {"x2": lambda y: y}
    for options, message in (
        ({}, "classify has 0 sites"),
        ({"classify": classify}, "classify has 1 sites"),
        ({"classify": classify, "labels": y[:1]}, r"labels must be classes of shape \(2,\)"),
        ({"classify": {"x3": len}, "labels": y}, "'x3', but the model observes x1, x2"),
        ({"classify": {"x2": len}, "labels": y}, "must return classes"),
        ({"classify": {"x2": lambda y: y + 0.5}, "labels": y}, "returned numbers that are not whole"),
        ({"classify": classify, "labels": y / 3}, "labels are numbers that are not whole"),
    ):
        with pytest.raises(ValueError, match=message):
            pv.coherence(vae.model, vae.guide, x, y, **options)
    given: Any = x
    with pytest.raises(TypeError, match="given is a tensor"):
        pv.log_conditional(vae.model, vae.guide, x, y, given=given)
    bdmc: Any = "bdmc"
    with pytest.raises(ValueError, match="bdmc simulates data of its own"):
        pv.log_conditional(vae.model, vae.guide, x, y, given=(x,), method=bdmc)
    with pytest.raises(ValueError, match="given is empty"):
        pv.log_conditional(vae.model, vae.guide, x, y)
    with pytest.raises(ValueError, match="given has 1 data, but there are 2"):
        pv.log_conditional(vae.model, vae.guide, x, y, given=(x[:1],), num_samples=3)


def test_a_log_probability_of_a_label_above_zero_is_said_to_be_impossible() -> None:
    torch.manual_seed(0)
    x, y = torch.rand(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    vae = MultimodalVAE(3, others=[3], latent_dim=2, hidden=(), likelihood="normal").eval()
    narrow = [torch.tensor([loc, loc, -3.0, -3.0]) for loc in (4.0, 0.0)]
    with torch.no_grad():  # the expert of x is narrow at a wrong place, and that of the label pulls it back
        for encoder, bias in zip(vae.encoders, narrow, strict=True):
            list(encoder.parameters())[1].copy_(bias)
    ask: Any = {"num_samples": 200, "seed": 0}
    label = pv.log_conditional(vae.model, vae.guide, x, y, given=vae.arguments(x, None), **ask)
    wrong = label.log_prob > label.std_error + 1e-3
    assert label.is_discrete
    assert bool(wrong.any())
    assert label.impossible.tolist() == wrong.nonzero().squeeze(-1).tolist()
    said = f"{int(wrong.sum())} of 6 estimates are above 0 by more than their error"
    assert said in label.caveats[0]
    assert said in " ".join(repr(label).split())
    assert label.to_dict()["num_impossible"] == int(wrong.sum())

    # a density may be above 0, whatever is given
    image = pv.log_conditional(vae.model, vae.guide, x, y, given=vae.arguments(None, y), **ask)
    assert not image.is_discrete
    assert not len(image.impossible)
    for given in ((x.flip(0),), (x, y.flip(0))):
        with pytest.raises(ValueError, match=r"given has other values at the observed site 'x[12]'"):
            pv.log_conditional(vae.model, vae.guide, x, y, given=given, **ask)
    with pytest.raises(ValueError, match="values that the data lack"):
        pv.log_conditional(vae.model, vae.guide, *vae.arguments(x, None), given=(x, y), **ask)
