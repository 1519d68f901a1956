"""Preflight: each code has a pair that triggers exactly it, and sound pairs trigger nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, cast

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor, nn

from pyro_vae.elbo import MeanField, WeightedKL
from pyro_vae.evaluate.preflight.report import find_nonfinite, modules_of, preflight
from pyro_vae.evaluate.preflight.result import PreflightIssue, PreflightReport

N, D, Z = 6, 5, 3
Program = Callable[..., Any]
Pair = tuple[Program, Program]


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    pyro.clear_param_store()
    torch.manual_seed(0)
    yield
    pyro.clear_param_store()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(N, D).round()


def normal(h: Tensor) -> Any:
    loc, log_scale = h.chunk(2, -1)
    return dist.Normal(loc, log_scale.exp()).to_event(1)


def prior() -> Any:
    return dist.Normal(torch.zeros(Z), 1.0).to_event(1)


def bernoulli(logits: Tensor) -> Any:
    return dist.Bernoulli(logits=logits).to_event(1)


def make_pair(
    p: Callable[[], Any] = prior,
    q: Callable[[Tensor], Any] = normal,
    likelihood: Callable[[Tensor], Any] = bernoulli,
    names: tuple[str, str] = ("z", "z"),
    modules: tuple[str | None, str | None] = ("decoder", "encoder"),
    size: Callable[[Tensor], int] = len,
    decoder: nn.Module | None = None,
) -> Pair:
    """The pair of plain functions that the tests break in one place each."""
    encoder, net = nn.Linear(D, 2 * Z), decoder or nn.Linear(Z, D)

    def model(x: Tensor) -> None:
        if modules[0]:
            pyro.module(modules[0], net)
        with pyro.plate("data", size(x)):
            z = pyro.sample(names[0], p())
            pyro.sample("x", likelihood(net(z)), obs=x)

    def guide(x: Tensor) -> None:
        if modules[1]:
            pyro.module(modules[1], encoder)
        with pyro.plate("data", len(x)):
            pyro.sample(names[1], q(encoder(x)))

    return model, guide


def found(report: PreflightReport) -> list[tuple[str, str]]:
    return [(problem.level, problem.code) for problem in report.issues]


def only(pair: Pair, *args: Any, level: str = "error", code: str, **options: Any) -> str:
    """The message of the one problem that the pair has."""
    report = preflight(*pair, *args, strict=False, **options)
    assert found(report) == [(level, code)], str(report)
    assert report.ok == (level == "warning")
    return report.issues[0].message


# Sound pairs


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(D, 2 * Z), nn.Linear(Z, D)
        self.norm = nn.BatchNorm1d(D)

    def model(self, x: Tensor, label: Tensor | None = None) -> None:
        pyro.module("net", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            shift = 0.0 if label is None else label[:, None]
            pyro.sample("x", bernoulli(self.decoder(z) + shift), obs=x)

    def guide(self, x: Tensor, label: Tensor | None = None) -> None:
        pyro.module("net", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(self.encoder(self.norm(x))))


class Regression(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = PyroModule[nn.Linear](D, 1)  # type: ignore[call-arg, arg-type]
        self.plain = nn.Linear(D, 1)
        self.sigma: Any = PyroParam(torch.tensor(1.0), constraint=constraints.positive)
        self.slope = PyroSample(dist.Normal(0.0, 1.0))

    def forward(self, x: Tensor) -> None:
        loc = (self.net(x) + self.slope * self.plain(x)).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(loc, self.sigma), obs=x.sum(-1))


def nested(dims: bool) -> Pair:
    # (M, N): an inner plate to the left of the data
    a: dict[str, Any] = {"dim": -1} if dims else {}
    b: dict[str, Any] = {"dim": -2} if dims else {}

    def model(x: Tensor) -> None:
        weight = pyro.param("weight", torch.ones(4, 1))
        data, inner = pyro.plate("data", len(x), **a), pyro.plate("inner", 4, **b)
        with data:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with inner:
                w = pyro.sample("w", dist.Normal(z, 1.0))
                pyro.sample("x", dist.Normal(weight * w, 1.0), obs=x[:, :4].T)

    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
        data, inner = pyro.plate("data", len(x), **a), pyro.plate("inner", 4, **b)
        with data:
            pyro.sample("z", dist.Normal(x.mean(-1), scale))
            with inner:
                pyro.sample("w", dist.Normal(x[:, :4].T, scale))

    return model, guide


def global_and_local(x: Tensor) -> None:
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x.sum(-1))


def subsampled(indices: bool) -> Pair:
    def model(x: Tensor) -> None:
        mean = pyro.param("mean", torch.zeros(Z))
        with pyro.plate("data", 1000, subsample=torch.arange(len(x)) if indices else x):
            z = pyro.sample("z", dist.Normal(mean, 1.0).to_event(1))
            pyro.sample("x", bernoulli(z.mean(-1, keepdim=True).expand(-1, D)), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(Z))
        with pyro.plate("data", 1000, subsample=torch.arange(len(x)) if indices else x):
            if indices:
                loc = pyro.param("local", torch.zeros(1000, Z), event_dim=1) + loc
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    return model, guide


def two_latents() -> Pair:
    def model(x: Tensor) -> None:
        weight = pyro.param("weight", torch.randn(Z, D))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            y = pyro.sample("y", dist.Normal(z, 1.0).to_event(1))
            pyro.deterministic("rate", (y @ weight).exp())
            pyro.sample("x", dist.Poisson((y @ weight).exp()).to_event(1), obs=x)
            pyro.factor("penalty", -z.pow(2).sum(-1))

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(Z))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("y", dist.Delta(z + loc, event_dim=1))

    return model, guide


def frozen() -> Pair:
    decoder = nn.Linear(Z, D).requires_grad_(False)
    return make_pair(decoder=decoder)


def missing_values() -> Pair:
    encoder, decoder = nn.Linear(D, 2 * Z), nn.Linear(Z, D)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            with pyro.plate("pixels", D, dim=-2), poutine.mask(mask=cast(Any, (x < 0.6).T)):
                pyro.sample("x", dist.Bernoulli(logits=decoder(z).T), obs=x.T)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(encoder(x)))

    return model, guide


def method_pair() -> Pair:
    net = Net()
    return net.model, net.guide


def pyro_module_pair() -> Pair:
    model = Regression()
    return model, AutoDiagonalNormal(model)


def scaled_pair() -> Pair:
    model, guide = make_pair()
    return poutine.scale(model, scale=0.5), poutine.scale(guide, scale=0.5)


SOUND: dict[str, Callable[[], Pair]] = {
    "functions": make_pair,
    "methods": method_pair,
    "nested plates": lambda: nested(False),
    "explicit dims": lambda: nested(True),
    "two latents": two_latents,
    "PyroModule": pyro_module_pair,
    "autoguide": lambda: (global_and_local, AutoNormal(global_and_local)),
    "subsampled": lambda: subsampled(False),
    "subsampled parameters": lambda: subsampled(True),
    "frozen": frozen,
    "masked": missing_values,
    "scaled": scaled_pair,
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_pairs_trigger_nothing(name: str, x: Tensor) -> None:
    pair = SOUND[name]()
    if name == "masked":
        x[0, 0] = 0.7  # outside the support, but masked out
    report = preflight(*pair, x)
    assert report.ok
    assert report.issues == []
    assert str(report).startswith("preflight: the pair is sound\n\nsite")
    if name != "two latents":  # its two guide sites and prior have no common closed form
        assert preflight(*pair, x, elbo=pyro.infer.TraceMeanField_ELBO()).ok


def test_extra_arguments_and_table(x: Tensor) -> None:
    net = Net()
    report = preflight(net.model, net.guide, x, torch.ones(N), elbo="trace", num_particles=1)
    assert report.sites[0] == ("z", "Normal", "Normal", f"({N},)", f"({Z},)", "data")
    assert "x     Bernoulli  observed" in str(report)


def test_nothing_is_disturbed(x: Tensor) -> None:
    net = Net()
    model, guide = net.model, net.guide
    net.decoder.weight.grad = torch.ones_like(net.decoder.weight)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    rng = torch.get_rng_state()
    preflight(model, guide, x, num_particles=2, strict=False)
    assert torch.equal(rng, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.encoder.weight.grad is None
    assert bool((net.decoder.weight.grad == 1).all())
    assert len(pyro.get_param_store()) == 0
    assert pyro.infer.util.is_validation_enabled()
    autoguide = AutoNormal(global_and_local)
    preflight(global_and_local, autoguide, x[:2])
    autoguide(x)  # its sizes come from this batch, not from the small one
    assert autoguide.median(x)["z"].shape == (N,)


def test_particles(x: Tensor) -> None:
    class Flat(nn.Linear):
        def forward(self, z: Tensor) -> Tensor:
            return super().forward(z.reshape(-1, Z))

    pair = make_pair(decoder=Flat(Z, D))
    preflight(*pair, x)
    message = only(pair, x, level="warning", code="not_vectorized", num_particles=3)
    assert "(*, in) to (*, out)" in message
    assert preflight(*make_pair(), x, num_particles=3).issues == []


# Sites


def test_missing_sites(x: Tensor) -> None:
    report = preflight(*make_pair(names=("z", "latent")), x, strict=False)
    assert found(report) == [("error", "missing_in_guide"), ("error", "missing_in_model")]
    assert "pyro.sample('z', dist.Normal(...))" in report.issues[0].message
    assert report.issues[1].site == "latent"
    assert "is_auxiliary" in report.issues[1].message


def test_noise_and_terms_of_the_guide_alone(x: Tensor) -> None:
    model, plain = make_pair()

    def noisy(x: Tensor) -> None:
        plain(x)
        with pyro.plate("again", len(x)):
            pyro.sample("a", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})

    assert "sample 'a' in the model, too" in only((model, noisy), x, code="auxiliary_noise")

    def also_classifies(x: Tensor) -> None:
        plain(x)
        with pyro.plate("again", len(x)):
            pyro.factor("classification", -torch.ones(len(x)), has_rsample=True)

    message = only((model, also_classifies), x, level="warning", code="guide_terms")
    assert "'classification'" in message
    assert "leave it out" in message


def test_guide_that_observes(x: Tensor) -> None:
    model, plain = make_pair()

    def guide(x: Tensor) -> None:
        plain(x)
        pyro.sample("x", dist.Bernoulli(torch.tensor(0.5)), obs=torch.tensor(1.0))

    message = only((model, guide), x, level="warning", code="guide_terms")
    assert "'x'" in message
    assert "leave it out" in message


def ordered(first: str, second: str) -> Program:
    def program(x: Tensor) -> None:
        shift = pyro.param("shift", torch.zeros(()))
        with pyro.plate("data", len(x)):
            value = pyro.sample(first, dist.Normal(shift, 1.0))
            value = pyro.sample(second, dist.Normal(value, 1.0))
            if first == "a":
                pyro.sample("x", dist.Normal(value, 1.0), obs=x.sum(-1))

    return program


def test_site_order(x: Tensor) -> None:
    pair = ordered("a", "b"), ordered("b", "a")
    message = only(pair, x, level="warning", code="site_order")
    assert "['b', 'a']" in message
    assert "KL of ['b']" in message
    assert "pyro.sample('a', ...)" in message
    assert preflight(*pair, x, elbo="trace").issues == []
    message = only(pair, x, code="site_order", elbo=pyro.infer.TraceMeanField_ELBO())
    assert "elbo='mean_field'" in message
    only(pair, x, code="site_order", elbo=WeightedKL(pyro.infer.TraceMeanField_ELBO(), 0.5))


# Shapes and plates


def test_batch_outside_plate(x: Tensor) -> None:
    def q(h: Tensor) -> Any:
        return dist.Normal(h[..., :Z], h[..., Z:].exp())

    message = only(make_pair(q=q), x, code="batch_outside_plate")
    assert "guide's site 'z'" in message
    assert f"({N}, {Z})" in message
    assert f"'data' (size {N}, dim -1)" in message
    assert "`dist.Normal(...).to_event(1)`" in message
    # all three sites at once
    pair = make_pair(lambda: dist.Normal(torch.zeros(Z), 1.0), q, lambda h: dist.Bernoulli(logits=h))
    report = preflight(*pair, x, strict=False)
    assert found(report) == [("error", "batch_outside_plate")] * 3
    assert [p.site for p in report.issues] == ["z", "z", "x"]
    with pytest.raises(ValueError, match=r"3 error\(s\)"):
        preflight(*pair, x)


def test_batch_outside_plate_of_images() -> None:
    def likelihood(h: Tensor) -> Any:
        return dist.Independent(dist.Bernoulli(logits=h.unflatten(-1, (1, 1, D)).expand(-1, 2, 2, D)), 1)

    message = only(
        make_pair(likelihood=likelihood, q=lambda h: normal(h[..., 0, 0, :])),
        torch.ones(N, 2, 2, D),
        code="batch_outside_plate",
    )
    assert "`dist.Bernoulli(...).to_event(3)`" in message


def test_site_outside_the_plate(x: Tensor) -> None:
    model, _ = make_pair()
    net = nn.Linear(D, 2 * Z)

    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        loc, log_scale = net(x).chunk(2, -1)
        pyro.sample("z", dist.Normal(loc, log_scale.exp()))

    message = only((model, guide), x, code="batch_outside_plate")
    assert "`with pyro.plate('data', len(x)):`" in message
    assert ".to_event(1)" in message


def test_swapped_plates(x: Tensor) -> None:
    def model(x: Tensor) -> None:
        weight = pyro.param("weight", torch.ones(D))
        with pyro.plate("data", len(x)), pyro.plate("pixels", D):
            pyro.sample("x", dist.Bernoulli(logits=weight.expand(N, D)), obs=x)

    message = only((model, lambda x: None), x, code="batch_outside_plate")
    assert "`pyro.plate('data', ..., dim=-2)`" in message


def test_inner_dimension_without_plate(x: Tensor) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=pyro.param("w", torch.ones(D, 1)).expand(D, N)), obs=x.T)

    assert f"`with pyro.plate('inner', {D}, dim=-2):`" in only((model, lambda x: None), x, code="batch_outside_plate")


def test_plate_size(x: Tensor) -> None:
    # Pyro replays the guide's plate in the model, and scales
    message = only(make_pair(size=lambda x: 100), x, code="plate_size")
    assert "'data' has size 100 in the model and 6 in the guide" in message

    def model(x: Tensor) -> None:
        mean = pyro.param("mean", torch.zeros(()))
        with pyro.plate("data", 100):
            pyro.sample("x", dist.Normal(mean, 1.0).expand([D]).to_event(1), obs=x)

    message = only((model, lambda x: None), x, code="plate_size")
    assert "'data'" in message
    assert "size 100" in message
    assert f"{N} data" in message
    assert "pyro.plate('data', len(x))" in message
    assert "subsample_size=len(x)" in message


def test_plate_without_size_has_that_of_its_sites(x: Tensor) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data"):
            pyro.sample("x", dist.Bernoulli(logits=pyro.param("w", torch.ones(N, D))).to_event(1), obs=x)

    assert preflight(model, lambda x: None, x).issues == []


def test_rows_of_other_data(x: Tensor) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=pyro.param("w", torch.ones(20, D))).to_event(1), obs=x)

    message = only((model, lambda x: None), x, code="rows_of_other_data")
    assert "'w' of shape (20, 5), with a row for each datum of 20" in message
    assert "batch_size=20" in message


def test_plate_size_by_shape(x: Tensor) -> None:
    def model(x: Tensor) -> None:
        mean = pyro.param("mean", torch.zeros(D))
        with pyro.plate("rows", 50):
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    assert "pyro.plate('rows', len(x))" in only((model, lambda x: None), x, code="plate_size")


def test_no_data_plate(x: Tensor) -> None:
    def model(x: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(torch.ones(D), 1.0).to_event(1))
        pyro.sample("x", dist.Bernoulli(p.expand(N, D)).to_event(2), obs=x)

    message = only((model, AutoNormal(model)), x, level="warning", code="no_data_plate")
    assert "pyro.plate('data', len(x))" in message
    with pytest.warns(UserWarning, match="no_data_plate"):
        preflight(model, AutoNormal(model), x)


def test_event_shape(x: Tensor) -> None:
    pair = make_pair(p=lambda: dist.Normal(torch.zeros(Z + 1), 1.0).to_event(1))
    message = only(pair, x, code="event_shape")
    assert f"({Z + 1},) in the model and ({Z},) in the guide" in message
    assert ".to_event(k)" in message


def test_plates_differ(x: Tensor) -> None:
    model, _ = make_pair()

    def guide(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(Z)), 1.0).to_event(1))

    message = only((model, guide), x, code="plates_differ")
    assert f"({N},) in the model and () in the guide" in message


def test_obs_shape(x: Tensor) -> None:
    model, guide = make_pair()

    def images(x: Tensor) -> None:
        guide(x.flatten(1))

    message = only((model, images), x.reshape(N, 1, D), code="obs_shape")
    assert f"({N}, 1, {D})" in message
    assert f"`obs=x.reshape({N}, {D})`" in message
    # broadcasts to (N, N) without a word in Pyro
    pair = make_pair(likelihood=lambda h: dist.Normal(h.sum(-1), 1.0))
    model, guide = pair
    message = only((lambda x, y: model(y), lambda x, y: guide(x)), x, x[:, :1], code="obs_shape")
    assert f"({N}, 1)" in message


# Values


def test_support(x: Tensor) -> None:
    gray = torch.rand(N, D) * 0.8 + 0.1
    message = only(make_pair(), gray, code="support")
    assert "site 'x'" in message
    assert f"{N * D} of {N * D}" in message
    assert f"{float(gray.max()):.4g}" in message
    assert "binarize=" in message
    assert "'continuous_bernoulli'" in message
    bounded = make_pair(q=lambda h: normal(h.tanh()))
    assert "divide" in only(bounded, gray * 255, code="support")
    poisson = make_pair(likelihood=lambda h: dist.Poisson(h.exp()).to_event(1))
    assert "Poisson" in only(poisson, x + 0.5, code="support")


def test_support_of_a_latent(x: Tensor) -> None:
    def p() -> Any:
        return dist.LogNormal(torch.zeros(Z), 1.0).to_event(1)

    message = only(make_pair(p=p), x, code="support")
    assert "that the guide draws for site 'z'" in message
    assert "LogNormal" in message


def test_nan_input(x: Tensor) -> None:
    x[1, 2] = torch.nan
    message = only(make_pair(), x, code="nan_input")
    assert f"1 NaN of {N * D}" in message
    assert "nan_to_num" in message
    model, guide = make_pair()
    cleaned = (lambda x: model(x.nan_to_num()), lambda x: guide(x.nan_to_num()))
    only(cleaned, x, level="warning", code="nan_input")
    # a mask takes the NaN out of the density and of the gradient
    model, guide = make_pair(likelihood=lambda h: dist.Normal(h, 1.0).to_event(1))
    mask: Any = ~x.isnan().any(-1)

    def clean(x: Tensor) -> None:
        guide(x.nan_to_num())

    only((poutine.mask(model, mask=mask), poutine.mask(clean, mask=mask)), x, level="warning", code="nan_input")


def test_nonfinite(x: Tensor) -> None:
    message = only(make_pair(q=lambda h: normal(h * 1e6)), x, code="nonfinite")
    assert "guide's site 'z'" in message
    assert "Normal scale has" in message
    assert "largest sizes: loc" in message
    assert "clamp" in message


# Networks


def test_shared_name(x: Tensor) -> None:
    same = nn.Linear(D, D)
    encoder = nn.Linear(D, D)
    scale = torch.ones(D)

    def model(x: Tensor) -> None:
        pyro.module("net", same)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(D), scale).to_event(1))
            pyro.sample("x", bernoulli(same(z)), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("net", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), scale).to_event(1))

    message = only((model, guide), x, code="shared_name")
    assert "under the name 'net', encoder and same" in message
    assert "net$$$bias, net$$$weight" in message
    assert "pyro.module('net_2', same)" in message


def test_name_taken_by_an_earlier_network(x: Tensor) -> None:
    pyro.module("encoder", nn.Linear(D, 2 * Z))
    message = only(make_pair(), x, code="shared_name")
    assert "pyro.clear_param_store()" in message


def test_parameters_that_pyro_copies(x: Tensor) -> None:
    decoder = nn.Linear(Z, D)
    decoder.weight = nn.Parameter(torch.randn(Z, D).T)
    message = only(make_pair(decoder=decoder), x, code="unregistered")
    assert "contiguous" in message


def test_unregistered(x: Tensor) -> None:
    message = only(make_pair(modules=("decoder", None)), x, code="unregistered")
    assert "the guide uses 2 parameter(s) of encoder" in message
    assert "pyro.module('encoder', encoder)" in message
    report = preflight(*make_pair(modules=(None, None)), x, strict=False)
    assert found(report) == [("error", "unregistered")] * 2
    loc = torch.zeros(Z, requires_grad=True)
    pair = make_pair(modules=("decoder", "encoder"), q=lambda h: normal(h + torch.cat([loc, loc])))
    assert "pyro.param(name, tensor)" in only(pair, x, level="warning", code="unregistered")


def test_unregistered_attribute(x: Tensor) -> None:
    class Forgetful(Net):
        def guide(self, x: Tensor, label: Tensor | None = None) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", normal(self.encoder(x)))

        def model(self, x: Tensor, label: Tensor | None = None) -> None:
            pyro.module("decoder", self.decoder)
            with pyro.plate("data", len(x)):
                pyro.sample("x", bernoulli(self.decoder(pyro.sample("z", prior()))), obs=x)

    net = Forgetful()
    message = only((net.model, net.guide), x, code="unregistered")
    assert "pyro.module('encoder', self.encoder)" in message


def test_no_gradient(x: Tensor) -> None:
    model, guide = make_pair()
    spare = nn.Linear(2, 2)

    def with_spare(x: Tensor) -> None:
        pyro.module("spare", spare)
        model(x)

    message = only((with_spare, guide), x, level="warning", code="no_gradient")
    assert "spare$$$weight" in message

    def fixed_model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x.sum(-1))

    def fixed_guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", prior())

    assert "no parameter" in only((fixed_model, fixed_guide), x, code="no_gradient")


# Estimators


def categorical(h: Tensor) -> Any:
    return dist.OneHotCategorical(logits=h[..., :Z])


def categorical_prior() -> Any:
    return dist.OneHotCategorical(logits=torch.zeros(Z))


def test_not_reparameterized(x: Tensor) -> None:
    pair = make_pair(categorical_prior, categorical)
    message = only(pair, x, code="not_reparameterized")
    assert "'z' from OneHotCategorical" in message
    assert "elbo='trace'" in message
    only(pair, x, code="not_reparameterized", elbo=WeightedKL(MeanField()))
    message = only(pair, x, level="warning", code="not_reparameterized", elbo="trace")
    assert "variance" in message


def test_enumerated_latents_are_fine(x: Tensor) -> None:
    def mixture(x: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(2, D))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})
            pyro.sample("x", bernoulli(logits[z]), obs=x)

    assert preflight(mixture, lambda x: None, x, elbo="enum").issues == []
    assert found(preflight(mixture, lambda x: None, x, strict=False)) == [("error", "missing_in_guide")]


@pytest.mark.parametrize("straight_through", [False, True])
def test_relaxed_guide(straight_through: bool, x: Tensor) -> None:
    family = dist.RelaxedOneHotCategoricalStraightThrough if straight_through else dist.RelaxedOneHotCategorical
    pair = make_pair(categorical_prior, lambda h: family(torch.tensor(0.5), logits=h[..., :Z]))
    for elbo in ("mean_field", "trace"):
        message = only(pair, x, code="relaxed_guide", elbo=elbo)
        assert family.__name__ in message
        assert "OneHotCategorical in the model" in message
        assert "dist.OneHotCategoricalStraightThrough(logits=...)" in message
    bits = make_pair(
        lambda: dist.Bernoulli(torch.full((Z,), 0.5)).to_event(1),
        lambda h: dist.RelaxedBernoulli(torch.tensor(0.5), logits=h[..., :Z]).to_event(1),
    )
    assert "`dist.Bernoulli(logits=...)` with elbo='trace'" in only(bits, x, code="relaxed_guide")
    # what the message proposes
    assert preflight(
        *make_pair(categorical_prior, lambda h: dist.OneHotCategoricalStraightThrough(logits=h[..., :Z])), x
    ).ok
    prior = family(torch.tensor(0.5), logits=torch.zeros(Z))
    assert preflight(*make_pair(lambda: prior, lambda h: family(torch.tensor(0.5), logits=h[..., :Z])), x).ok


def test_modules_of() -> None:
    net = Net()
    assert list(modules_of(net.model, net.guide).values()) == [net]
    assert list(modules_of(poutine.scale(net.model, scale=0.5)).values()) == [net]
    nets = {"a": nn.Linear(1, 1), "b": [nn.Linear(1, 1)]}
    single = nn.Linear(1, 1)

    def program(x: Tensor) -> Tensor:
        return single(nets["a"](x))  # type: ignore[operator]

    assert modules_of(program) == {"single": single, "nets['a']": nets["a"], "nets['b'][0]": nets["b"][0]}  # type: ignore[index]
    assert list(modules_of(functools.partial(lambda n, x: n(x), single)).values()) == [single]


# Errors, and the search for NaN


def test_errors_of_the_pair_are_chained(x: Tensor) -> None:
    with pytest.raises(ValueError, match=rf"the model raised RuntimeError on \(\({N}, {D}\)\)") as info:
        preflight(*make_pair(decoder=nn.Linear(7, D)), x, strict=False)
    assert isinstance(info.value.__cause__, RuntimeError)
    with pytest.raises(ValueError, match="the guide raised"):
        preflight(*make_pair(), x[:, :2])
    # what was found before it is told too
    pair = make_pair(q=lambda h: dist.Normal(h[..., :2], 1.0))
    with pytest.raises(ValueError, match=r"(?s)the model raised.*batch_outside_plate"):
        preflight(*pair, x)


@pytest.mark.parametrize("args", [(), (3,), (torch.tensor(1.0),)])
def test_needs_data(args: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match="batch of data"):
        preflight(*make_pair(), *args)


def test_unknown_elbo(x: Tensor) -> None:
    with pytest.raises(ValueError, match="mean_field"):
        preflight(*make_pair(), x, elbo="mean_fiel")


def test_report_prints_its_problems() -> None:
    report = PreflightReport(
        [PreflightIssue("error", "support", "x", "first"), PreflightIssue("warning", "no_data_plate", None, "second")]
    )
    assert str(report).split("\n\n")[1:] == ["error [support]: first", "warning [no_data_plate]: second"]
    assert not report.ok


def test_find_nonfinite(x: Tensor) -> None:
    assert find_nonfinite(*make_pair(), x) == []

    def q(h: Tensor) -> Any:
        loc = h[..., :Z].detach().clone()
        loc[0, 0] = torch.nan
        return dist.Normal(loc, 1.0).to_event(1)

    lines = find_nonfinite(*make_pair(q=q), x)
    assert lines[0].startswith(f"guide site 'z': Normal loc has 1 NaN of {N * Z}, value has 1 NaN of {N * Z}")
    assert lines[-1].startswith(f"model site 'x': Bernoulli logits has {D} NaN of {N * D}")
    rng = torch.get_rng_state()
    lines = find_nonfinite(*make_pair(q=q, decoder=nn.Linear(7, D)), x)
    assert lines[0].startswith("guide site 'z'")
    assert lines[-1].startswith("the model raised RuntimeError")
    assert not torch.equal(rng, torch.get_rng_state())


@pytest.mark.filterwarnings("ignore:.*not_vectorized")
def test_a_flow_without_an_inverse_under_an_estimator_that_scores_again(x: Tensor) -> None:
    encoder, flow = nn.Linear(D, 2 * D), pyro.distributions.transforms.Planar(D)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        pyro.module("flow", flow)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.TransformedDistribution(dist.Normal(loc, log_scale.exp()).to_event(1), [flow]))

    report = preflight(model, guide, x, elbo="dreg", num_particles=4, strict=False)
    assert [(issue.site, "'iwae'" in issue.message) for issue in report.issues if issue.level == "error"] == [
        ("z", True)
    ]
    for elbo in ("iwae", "trace", "mean_field"):
        assert preflight(model, guide, x, elbo=elbo, num_particles=4).ok
