"""Preflight on mistakes that are often made: each message names the site or the network, and the fix."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.evaluate.preflight.report import preflight
from pyro_vae.evaluate.preflight.result import PreflightReport

N, D, Z = 7, 12, 3
Program = Callable[..., Any]
Pair = tuple[Program, Program]
Words = tuple[str, ...]


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    pyro.clear_param_store()
    torch.manual_seed(0)
    yield
    pyro.clear_param_store()


def binary() -> Tensor:
    return torch.rand(N, D).round()


def standard() -> Any:
    return dist.Normal(torch.zeros(Z), 1.0).to_event(1)


def pair(
    likelihood: Callable[[Tensor], Any] = lambda h: dist.Bernoulli(logits=h).to_event(1),
    posterior: Callable[[Tensor], Any] = lambda h: dist.Normal(h[..., :Z], h[..., Z:].exp()).to_event(1),
    prepare: Callable[[Tensor], Tensor] = lambda x: x,
    encoder: nn.Module | None = None,
    decoder: nn.Module | None = None,
) -> Pair:
    """A pair of functions, of which a test breaks one part."""
    encode, decode = encoder or nn.Linear(D, 2 * Z), decoder or nn.Linear(Z, D)

    def model(x: Tensor) -> None:
        pyro.module("decode", decode)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard())
            pyro.sample("x", likelihood(decode(z)), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encode", encode)
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(encode(prepare(x))))

    return model, guide


def normal(h: Tensor) -> Any:
    return dist.Normal(h, 1.0).to_event(1)


def issues(made: Pair, *args: Any, **options: Any) -> PreflightReport:
    return preflight(*made, *args, strict=False, **options)


# What a distribution does not allow

PARAMETERS: dict[str, tuple[Callable[[], Pair], str, Words]] = {
    "negative scale": (
        lambda: pair(posterior=lambda h: dist.Normal(h[..., :Z], h[..., Z:]).to_event(1)),
        "z",
        ("guide's site 'z'", "scale of its Normal is negative in", f"of {N * Z}", "log_scale.exp()", "softplus"),
    ),
    "logits as probs": (
        lambda: pair(lambda h: dist.Bernoulli(h).to_event(1)),
        "x",
        ("model's site 'x'", "probs of its Bernoulli lie outside [0, 1] in", "`dist.Bernoulli(logits=...)`"),
    ),
    "logits as probs of classes": (
        lambda: pair(
            posterior=lambda h: dist.Normal(h[..., :Z], 1.0).to_event(1),
            likelihood=lambda h: dist.Independent(
                dist.Categorical(h.unflatten(-1, (D, 1)) * torch.tensor([1.0, -2.0, 3.0])), 1
            ),
        ),
        "x",
        ("probs of its Categorical", "logits=..."),
    ),
    "a rate of zero": (
        lambda: pair(lambda h: dist.Poisson(h.relu() - 0.1).to_event(1)),
        "x",
        ("rate of its Poisson is negative in", "softplus"),
    ),
    "a scale that underflows": (
        lambda: pair(posterior=lambda h: dist.Normal(h[..., :Z], (h[..., Z:] - 300).exp()).to_event(1)),
        "z",
        ("scale of its Normal is exactly 0", "clamp(min=-10)"),
    ),
    "a covariance that is none": (
        lambda: pair(
            posterior=lambda h: dist.MultivariateNormal(h[..., :Z], scale_tril=h[..., Z:, None].expand(-1, Z, Z))
        ),
        "z",
        ("scale_tril of its MultivariateNormal", "transform_to"),
    ),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_that_a_distribution_does_not_allow(name: str) -> None:
    make, site, words = PARAMETERS[name]
    report = issues(make(), binary())
    assert [(i.level, i.code, i.site) for i in report.issues] == [("error", "invalid_parameter", site)], str(report)
    for word in words:
        assert word in report.issues[0].message


def test_what_is_masked_and_not_validated_may_have_any_parameter() -> None:
    def posterior(h: Tensor) -> Any:
        scale = torch.where(torch.arange(len(h))[:, None] < 3, torch.tensor(-1.0), h[..., Z:].exp())
        mask = torch.arange(len(h)) >= 3
        return dist.Normal(h[..., :Z], scale, validate_args=False).to_event(1).mask(mask)

    codes = [i.code for i in issues(pair(posterior=posterior), binary()).issues]
    assert "invalid_parameter" not in codes


# Data on another scale than the likelihood's

SCALES: dict[str, tuple[Callable[[], Pair], Callable[[], Tensor], str, Words]] = {
    "bytes under a Normal": (
        lambda: pair(normal, encoder=nn.Sequential(nn.BatchNorm1d(D), nn.Linear(D, 2 * Z))),
        lambda: torch.randint(0, 256, (N, D)).float(),
        "bytes_as_real",
        ("model's site 'x'", "Normal", "`x / 255`"),
    ),
    "counts under a Normal": (
        lambda: pair(normal),
        lambda: torch.poisson(torch.full((N, D), 3.0)),
        "whole_numbers",
        ("model's site 'x'", "whole numbers from 0", "dist.Poisson(...)"),
    ),
    "probabilities as logits": (
        lambda: pair(lambda h: dist.Bernoulli(logits=h.sigmoid()).to_event(1)),
        binary,
        "probs_as_logits",
        ("model's site 'x'", "[0, 1]", "`dist.Bernoulli(probs=...)`"),
    ),
    "probabilities of classes as logits": (
        lambda: pair(lambda h: dist.OneHotCategorical(logits=h.softmax(-1))),
        lambda: nn.functional.one_hot(torch.randint(0, D, (N,)), D).float(),
        "probs_as_logits",
        ("model's site 'x'", "`dist.OneHotCategorical(probs=...)`"),
    ),
    "clamped": (
        lambda: pair(lambda h: dist.Bernoulli(logits=(h + 0.5).clamp(0, 1)).to_event(1)),
        binary,
        "probs_as_logits",
        ("model's site 'x'",),
    ),
    "squashed in another way": (
        lambda: pair(lambda h: dist.Bernoulli(logits=(h.tanh() + 1) / 2).to_event(1)),
        binary,
        "probs_as_logits",
        ("model's site 'x'",),
    ),
}


@pytest.mark.parametrize("name", SCALES)
def test_values_on_another_scale(name: str) -> None:
    make, data, code, words = SCALES[name]
    report = issues(make(), data())
    assert [(i.level, i.code, i.site) for i in report.issues] == [("warning", code, "x")], str(report)
    for word in words:
        assert word in report.issues[0].message


def test_bytes_that_make_an_encoder_explode() -> None:
    report = issues(pair(normal), torch.randint(128, 256, (N, D)).float() * 2 - 255)  # no bytes: one issue
    assert [i.code for i in report.issues if i.level == "error"] in ([], ["nonfinite"])
    report = issues(pair(normal, prepare=lambda x: 10 * x), torch.randint(0, 256, (N, D)).float())
    assert [i.code for i in report.issues] == ["bytes_as_real", "nonfinite"]
    assert "argument 0 goes up to" in report.issues[1].message
    assert "`x / 255`" in report.issues[1].message


# Gradients

GRADIENTS: dict[str, tuple[Callable[[], Pair], str, str | None, Words]] = {
    "a detached encoder": (
        lambda: pair(posterior=lambda h: dist.Normal(h.detach()[..., :Z], h.detach()[..., Z:].exp()).to_event(1)),
        "no_gradient",
        "z",
        ("encode$$$weight", "loc and scale of the guide's site 'z'", ".detach()", "requires_grad_(False)"),
    ),
    "a number in place of a tensor": (
        lambda: pair(posterior=lambda h: dist.Normal(h[..., :Z], h[..., Z:].exp().mean().item()).to_event(1)),
        "no_gradient",
        "z",
        ("scale of the guide's site 'z'", ".item()"),
    ),
    "through NumPy": (
        lambda: pair(lambda h: dist.Bernoulli(logits=torch.as_tensor(h.detach().numpy())).to_event(1)),
        "no_gradient",
        "x",
        ("decode$$$weight", "logits of the model's site 'x'", "NumPy"),
    ),
    "a scale of the decoder, detached": (
        lambda: pair(lambda h: dist.Normal(h, (0.1 * h).exp().detach()).to_event(1)),
        "no_gradient",
        "x",
        ("scale of the model's site 'x'",),
    ),
    "a dead rectifier": (
        lambda: pair(
            encoder=nn.Sequential(nn.Linear(D, 4), nn.Hardtanh(8, 9), nn.Linear(4, 2 * Z)),
            posterior=lambda h: dist.Normal(0 * h[..., :Z], 1 + 0 * h[..., Z:]).to_event(1),
        ),
        "zero_gradient",
        None,
        ("'encode'", "exactly zero", "ReLU"),
    ),
    "rounded": (
        lambda: pair(posterior=lambda h: dist.Normal(h[..., :Z].round(), 1.0).to_event(1)),
        "zero_gradient",
        None,
        ("'encode'", ".round()"),
    ),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_that_do_not_arrive(name: str) -> None:
    make, code, site, words = GRADIENTS[name]
    report = issues(make(), binary())
    assert [(i.level, i.code, i.site) for i in report.issues] == [("warning", code, site)], str(report)
    for word in words:
        assert word in report.issues[0].message


def test_a_value_that_is_changed_before_its_gradient() -> None:
    def posterior(h: Tensor) -> Any:
        scale = torch.sigmoid(h[..., Z:])
        scale += 0.1
        return dist.Normal(h[..., :Z], scale).to_event(1)

    report = issues(pair(posterior=posterior), binary())
    assert [(i.level, i.code) for i in report.issues] == [("error", "inplace_value")], str(report)
    assert "`scale = torch.sigmoid(h[..., Z:])` (test_preflight_mistakes.py, line" in report.issues[0].message
    assert "`h = h + 1` in place of `h += 1`" in report.issues[0].message


def test_a_graph_that_is_kept() -> None:
    state = {"mean": torch.zeros(())}

    def posterior(h: Tensor) -> Any:
        state["mean"] = 0.9 * state["mean"] + 0.1 * h.mean()
        return dist.Normal(h[..., :Z] - state["mean"], 1.0).to_event(1)

    report = issues(pair(posterior=posterior), binary())
    assert [(i.level, i.code) for i in report.issues] == [("error", "kept_graph")], str(report)
    assert "`value.detach()`" in report.issues[0].message
    state["mean"] = torch.zeros(())

    def detached(h: Tensor) -> Any:
        state["mean"] = (0.9 * state["mean"] + 0.1 * h.mean()).detach()
        return dist.Normal(h[..., :Z] - state["mean"], 1.0).to_event(1)

    assert issues(pair(posterior=detached), binary()).issues == []


def test_a_frozen_normalization_that_goes_on() -> None:
    body = nn.Sequential(nn.Linear(D, D), nn.BatchNorm1d(D)).requires_grad_(False)
    made = pair(encoder=nn.Sequential(body, nn.Linear(D, 2 * Z)))
    report = issues(made, binary())
    assert [(i.level, i.code) for i in report.issues] == [("warning", "frozen_averages")], str(report)
    assert "`encode.0.1.eval()`" in report.issues[0].message
    body.eval()
    assert issues(made, binary()).issues == []


# Arguments


def test_an_argument_that_is_changed_in_place() -> None:
    def center(x: Tensor) -> Tensor:
        x -= 0.5
        return x

    x = binary()
    before = x.clone()
    report = issues(pair(prepare=center), x)
    assert [(i.level, i.code) for i in report.issues] == [("error", "inplace_input")], str(report)
    assert f"the guide changes argument 0 ({N * D} of {N * D} values) in place" in report.issues[0].message
    assert "`x = x - 0.5`" in report.issues[0].message
    assert torch.equal(x, before)
    with pytest.raises(ValueError, match="inplace_input"):
        pv.fit(*pair(prepare=center), x, epochs=1, progress=False)
    assert torch.equal(x, before)


def test_arguments_in_containers_come_back() -> None:
    model, plain = pair()
    batch: dict[str, Any] = {"x": binary(), "rows": [torch.ones(2)]}
    before = batch["x"].clone()

    def guide(x: Tensor, batch: dict[str, Any]) -> None:
        batch["rows"].append(batch.pop("x").mul_(2))
        plain(x)

    report = issues((lambda x, batch: model(x), guide), binary(), batch)
    assert "argument 1['x']" in report.issues[0].message
    assert list(batch) == ["x", "rows"]
    assert len(batch["rows"]) == 1
    assert torch.equal(batch["x"], before)


def numpy_state() -> Any:
    state: Any = np.random.get_state()  # noqa: NPY002
    return state[1].tolist(), state[2]


def test_nothing_else_changes() -> None:
    """Generators of all kinds, parameters, their values and running averages."""
    model, plain = pair(encoder=nn.Sequential(nn.BatchNorm1d(D), nn.Linear(D, 2 * Z)))
    mean = pyro.param("mean", torch.zeros(Z))

    def guide(x: Tensor) -> None:
        with torch.no_grad():
            pyro.param("mean").add_(1.0)
        random.random()
        np.random.rand()  # noqa: NPY002
        plain(x)

    x = binary()
    generators = torch.get_rng_state(), random.getstate(), numpy_state()
    preflight(model, guide, x, strict=False)
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    assert numpy_state() == generators[2]
    assert list(pyro.get_param_store().keys()) == ["mean"]
    assert pyro.param("mean") is mean
    assert not bool(mean.any())


# Errors of the pair: no text of torch where the cause is known


def raised(made: Pair, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(ValueError) as info:  # noqa: PT011 - the caller looks at the words
        preflight(*made, *args, strict=False, **kwargs)
    return str(info.value)


CONVOLUTION = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2 * Z))
RAISED: dict[str, tuple[Callable[[], Pair], Callable[[], Any], Words]] = {
    "bytes": (pair, lambda: (255 * binary()).to(torch.uint8), ("`encode`", "torch.uint8", "`x.float() / 255`")),
    "whole numbers": (pair, lambda: binary().long(), ("`encode`", "torch.int64", "argument 0", "`x.float()`")),
    "double precision": (pair, lambda: binary().double(), ("`encode`", "torch.float64", "`x.float()`")),
    "NumPy": (pair, lambda: binary().numpy(), ("NumPy array", "argument 0", "torch.as_tensor")),
    "a list": (pair, lambda: [binary()], ("got a list", "torch.stack")),
    "unflattened": (pair, lambda: binary().view(N, 3, 4), ("takes 12 features", "`x.flatten(1)`", "flatten=True")),
    "vectors into convolutions": (
        lambda: pair(encoder=CONVOLUTION),
        lambda: torch.rand(N, 3, 4, 4),
        ("images of 1 channel", "(7, 3, 4, 4)", "unsqueeze(1)"),
    ),
    "another width": (
        lambda: pair(decoder=nn.Linear(Z + 1, D)),
        binary,
        ("the model raised", "after its site 'z'", "`decode`", "takes 4 features, and got 3", "nn.Linear(3, ...)"),
    ),
    "classes without rows": (
        lambda: pair(encoder=nn.Sequential(nn.Embedding(2, 4), nn.Flatten(), nn.Linear(4 * D, 2 * Z))),
        lambda: torch.full((N, D), 5),
        ("`encode.0`", "rows 0 to 1", "indices from 5 to 5"),
    ),
    "whole numbers under a Bernoulli": (
        lambda: pair(prepare=lambda x: x.float()),
        lambda: binary().long(),
        ("the log-density of the model's site 'x'", "torch.int64", "`obs=x.float()`"),
    ),
    "a distribution of torch": (
        lambda: pair(posterior=lambda h: torch.distributions.Normal(h[..., :Z], 1.0)),
        binary,
        ("at its site 'z'", "`pyro.distributions.Normal(...)`"),
    ),
    "an event of torch": (
        lambda: pair(lambda h: torch.distributions.Bernoulli(logits=h).to_event(1)),  # type: ignore[attr-defined]
        binary,
        ("after its site 'z'", "`pyro.distributions.Bernoulli(...)`"),
    ),
    "a class": (lambda: pair(posterior=lambda h: dist.Normal), binary, ("at its site 'z'", "the class Normal")),
    "no distribution": (lambda: pair(posterior=lambda h: (h, h)), binary, ("at its site 'z'", "got a tuple")),
    "a name for two": (
        lambda: pair(lambda h: dist.Normal(pyro.sample("z", dist.Normal(h, 1.0)), 1.0)),
        binary,
        ("'z'", "a name of its own"),
    ),
    "no covariance": (
        lambda: pair(posterior=lambda h: dist.MultivariateNormal(h[..., :Z], -torch.eye(Z).expand(len(h), Z, Z))),
        binary,
        ("not positive definite", "scale_tril="),
    ),
    "validated probabilities": (
        lambda: pair(lambda h: dist.Bernoulli(h, validate_args=True).to_event(1)),
        binary,
        ("the model raised", "probs of its Bernoulli lie outside [0, 1]", "logits=...", "dist.Bernoulli(h"),
    ),
}


@pytest.mark.parametrize("name", RAISED)
def test_errors_are_explained(name: str) -> None:
    make, data, words = RAISED[name]
    text = raised(make(), data())
    for word in (*words, "raised"):
        assert word in text
    for torch_says in ("mat1 and mat2", "must be Tensor", "Expected parameter", "tensor(["):
        assert torch_says not in text


@pytest.mark.parametrize(
    ("likelihood", "words"),
    [
        (lambda h: dist.Bernoulli, "the class Bernoulli"),
        (lambda h: (h, h), "got a tuple"),
        (lambda h: torch.distributions.Bernoulli(logits=h), "`pyro.distributions.Bernoulli(...)`"),
    ],
)
def test_observed_without_a_distribution(likelihood: Any, words: str) -> None:
    """Pyro draws nothing there, and says nothing before the first step."""
    report = issues(pair(likelihood), binary())
    assert ("error", "no_distribution", "x") in [(i.level, i.code, i.site) for i in report.issues], str(report)
    assert words in str(report)


def test_a_guide_with_other_arguments() -> None:
    model, _ = pair()
    text = raised((model, lambda: None), binary())
    assert "the guide raised TypeError" in text
    assert "it takes ()" in text
    assert "the same arguments" in text


def test_devices_without_values() -> None:
    assert "argument 0 is on the device 'meta'" in raised(pair(), binary().to("meta"))
    text = raised(pair(decoder=nn.Linear(Z, D, device="meta")), binary())
    assert "the network `decode` is on the device 'meta'" in text
    assert "to_empty(device='cpu')" in text
    with pytest.raises(ValueError, match="the network `decode` is on the device 'meta'"):
        pv.fit(*pair(decoder=nn.Linear(Z, D, device="meta")), binary(), epochs=1, progress=False)


def test_no_data() -> None:
    assert "at least one datum" in raised(pair(), binary()[:0])


# Sites


def test_model_and_guide_swapped() -> None:
    model, guide = pair()
    report = issues((guide, model), binary())
    assert [(i.level, i.code, i.site) for i in report.issues] == [("error", "swapped", "x")], str(report)
    assert "(model, guide, x)" in report.issues[0].message


def test_a_model_that_observes_nothing() -> None:
    _, guide = pair()
    decode = nn.Linear(Z, D)

    def forgets(x: Tensor) -> None:
        pyro.module("decode", decode)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard())
            pyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1))

    report = issues((forgets, guide), binary())
    assert [(i.code, i.site) for i in report.issues] == [("missing_in_guide", "x")]
    assert "`pyro.sample('x', ..., obs=x)`" in report.issues[0].message


def test_a_latent_drawn_by_other_means() -> None:
    _, guide = pair()
    decode = nn.Linear(Z, D)

    def model(x: Tensor) -> None:
        pyro.module("decode", decode)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=decode(torch.randn(len(x), Z))).to_event(1), obs=x)

    message = issues((model, guide), binary()).issues[0].message
    assert "`z = pyro.sample('z', dist.Normal(...))` (not with torch or NumPy)" in message
    message = issues((lambda x: None, guide), binary()).issues[0].message
    assert "it returned before its first site" in message


def test_the_plate_in_another_dimension() -> None:
    _, guide = pair()
    decode = nn.Linear(Z, D)

    def model(x: Tensor) -> None:
        pyro.module("decode", decode)
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", standard())
            pyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    report = issues((model, guide), binary())
    assert [(i.code, i.site) for i in report.issues] == [("batch_outside_plate", "x"), ("plates_differ", "z")]
    assert "leave out `dim=-2`" in report.issues[0].message
    assert "inner" not in report.issues[0].message


def test_factors() -> None:
    """Outside the plate; and in the guide, as the KL that the ELBO has already."""
    model, plain = pair()

    def penalized(x: Tensor) -> None:
        model(x)
        pyro.factor("penalty", -x.sum(-1))

    report = issues((penalized, plain), binary())
    assert [(i.level, i.code, i.site) for i in report.issues] == [("error", "batch_outside_plate", "penalty")]
    assert "`with pyro.plate('data', len(x)):`" in report.issues[0].message
    assert "Unit" not in report.issues[0].message.partition("fit its plates")[2]

    def regularized(x: Tensor) -> None:
        plain(x)
        with pyro.plate("again", len(x)):
            pyro.factor("kl", -x.sum(-1))

    report = issues((model, regularized), binary())
    assert [(i.level, i.code, i.site) for i in report.issues] == [("warning", "guide_terms", "kl")]
    assert "If it is the KL or the entropy, remove it" in report.issues[0].message
    assert "has_rsample=True" in report.issues[0].message


def test_a_factor_that_a_plate_repeats() -> None:
    model, guide = pair()

    def penalized(x: Tensor) -> None:
        model(x)
        with pyro.plate("again", len(x)):
            pyro.factor("penalty", -x.square().sum())

    report = issues((penalized, guide), binary())
    assert [(i.level, i.code, i.site) for i in report.issues] == [("warning", "repeated_factor", "penalty")]
    assert f"count {N} times" in report.issues[0].message


def test_advice_for_counts() -> None:
    counts = torch.poisson(torch.full((N, D), 3.0))
    report = issues(pair(lambda h: dist.Multinomial(5, logits=h)), counts)
    assert [(i.code, i.site) for i in report.issues] == [("support", "x")]
    assert "add up to total_count" in report.issues[0].message
    assert "dist.Normal" not in report.issues[0].message
    report = issues(pair(lambda h: dist.Binomial(2, logits=h).to_event(1)), counts)
    assert "from 0 to total_count" in report.issues[0].message
    report = issues(pair(lambda h: dist.LogNormal(h, 1.0).to_event(1)), counts)
    assert "leaves out 0" in report.issues[0].message
    report = issues(pair(lambda h: dist.Gamma(h.exp(), 1.0).to_event(1)), counts)
    assert [(i.code, i.site) for i in report.issues] == [("nonfinite", "x")]
    assert "it observes zeros" in report.issues[0].message


# Two batch sizes


def eight_rows() -> Pair:
    return pair(decoder=nn.Sequential(nn.Unflatten(0, (N, 1)), nn.Flatten(1), nn.Linear(Z, D)))


def constant_plate() -> Pair:
    encode, decode = nn.Linear(D, 2 * Z), nn.Linear(Z, D)

    def model(x: Tensor) -> None:
        pyro.module("decode", decode)
        with pyro.plate("data", N):
            pyro.sample("x", dist.Bernoulli(logits=decode(pyro.sample("z", standard()))).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encode", encode)
        with pyro.plate("data", N):
            pyro.sample("z", dist.Normal(encode(x)[..., :Z], 1.0).to_event(1))

    return model, guide


@pytest.mark.parametrize("make", [eight_rows, constant_plate])
def test_a_pair_made_for_one_number_of_data(make: Callable[[], Pair]) -> None:
    x = binary()
    for full_batch, found in ((None, [("warning", "fixed_size")]), (False, [("error", "fixed_size")]), (True, [])):
        report = issues(make(), x, full_batch=full_batch)
        assert [(i.level, i.code) for i in report.issues] == found, str(report)
    message = issues(make(), x).issues[0].message
    assert f"runs on {N} data, but not on {N - 1} of them" in message
    assert "`len(x)`" in message
    assert len(pv.fit(*make(), x, batch_size=N, epochs=1, progress=False)) == 1  # all data make one batch
    pyro.clear_param_store()


def test_a_pair_made_for_the_eight_data_of_fit() -> None:
    net = nn.Linear(Z, D)
    encode = nn.Linear(D, 2 * Z)

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", standard())
            pyro.sample("x", dist.Bernoulli(logits=net(z.view(8, Z))).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encode", encode)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encode(x)[..., :Z], 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"fixed_size(.|\n)*z\.view\(8, Z\)"):
        pv.fit(model, guide, torch.rand(40, D).round(), batch_size=20, epochs=1, progress=False)


def test_a_network_made_in_each_run() -> None:
    _, guide = pair()

    def model(x: Tensor) -> None:
        decode = nn.Linear(Z, D)
        pyro.module("decode", decode)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=decode(pyro.sample("z", standard()))).to_event(1), obs=x)

    report = issues((model, guide), binary())
    assert [(i.level, i.code) for i in report.issues] == [("error", "made_anew")], str(report)
    assert "'decode'" in report.issues[0].message
    assert "make it once, outside" in report.issues[0].message


def test_batch_normalization_of_a_single_datum() -> None:
    net = nn.Sequential(nn.Linear(12, 4), nn.BatchNorm1d(4), nn.Linear(4, 12))

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(12), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x), 1.0).to_event(1))

    message = r"`net.1`, BatchNorm1d\(.*normalizes over the batch, shape \(1, 4\), which a single datum does not allow"
    with pytest.raises(ValueError, match=message):
        pv.preflight(model, guide, torch.randn(1, 12))
    assert pv.preflight(model, guide, torch.randn(3, 12)).ok
