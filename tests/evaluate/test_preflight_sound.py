"""Preflight on right programs of many kinds: no false alarm."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.transforms import affine_autoregressive
from pyro.infer import TraceEnum_ELBO, TraceGraph_ELBO, config_enumerate
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGuideList,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoStructured,
)
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

from pyro_vae.evaluate.preflight.report import preflight

N, D, Z = 9, 6, 2
Program = Callable[..., Any]
Made = tuple[Program, Program, tuple[Any, ...], dict[str, Any]]  # model, guide, arguments, options

MADE: dict[str, Callable[[], Made]] = {}


def program(make: Callable[[], Made]) -> Callable[[], Made]:
    MADE[make.__name__] = make
    return make


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    pyro.clear_param_store()
    torch.manual_seed(0)
    yield
    pyro.clear_param_store()


@pytest.mark.parametrize("name", MADE)
def test_no_false_alarm(name: str) -> None:
    model, guide, args, options = MADE[name]()
    expected = options.pop("expected", [])
    report = preflight(model, guide, *args, strict=False, **options)
    assert [issue.code for issue in report.issues] == expected, str(report)


def mlp(i: int, o: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(i, 8), nn.ReLU(), nn.Linear(8, o))


def encoder_guide(encoder: nn.Module, latent: str = "z") -> Program:
    def guide(x: Tensor, *args: Any) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample(latent, dist.Normal(loc, log_scale.exp()).to_event(1))

    return guide


def decoder_model(decoder: nn.Module, likelihood: Callable[[Tensor], Any]) -> Program:
    def model(x: Tensor, *args: Any) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", likelihood(decoder(z)), obs=x)

    return model


def bernoulli(logits: Tensor) -> Any:
    return dist.Bernoulli(logits=logits).to_event(1)


def binary() -> Tensor:
    return torch.rand(N, D).round()


@program
def vae() -> Made:
    return decoder_model(mlp(Z, D), bernoulli), encoder_guide(mlp(D, 2 * Z)), (binary(),), {}


@program
def vae_of_probabilities() -> Made:
    decoder = nn.Sequential(mlp(Z, D), nn.Sigmoid())
    likelihood = lambda p: dist.Bernoulli(probs=p).to_event(1)  # noqa: E731
    return decoder_model(decoder, likelihood), encoder_guide(mlp(D, 2 * Z)), (binary(),), {}


@program
def convolutions() -> Made:
    encoder = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2 * Z))
    decoder = nn.Sequential(
        nn.Linear(Z, 48), nn.ReLU(), nn.Unflatten(-1, (3, 4, 4)), nn.ConvTranspose2d(3, 1, 3, padding=1)
    )
    likelihood = lambda h: dist.Bernoulli(logits=h).to_event(3)  # noqa: E731
    return decoder_model(decoder, likelihood), encoder_guide(encoder), (torch.rand(N, 1, 4, 4).round(),), {}


@program
def images_scaled_to_one() -> Made:
    x = torch.randint(0, 256, (N, 30)).float() / 255
    likelihood = lambda h: dist.Normal(h, 0.1).to_event(1)  # noqa: E731
    return decoder_model(mlp(Z, 30), likelihood), encoder_guide(mlp(30, 2 * Z)), (x,), {}


@program
def counts_under_poisson() -> Made:
    x = torch.poisson(torch.full((N, D), 5.0))
    likelihood = lambda h: dist.Poisson(h.exp()).to_event(1)  # noqa: E731
    return decoder_model(mlp(Z, D), likelihood), encoder_guide(mlp(D, 2 * Z)), (x,), {}


@program
def semi_supervised_with_enumeration() -> Made:
    decoder, encoder_y, encoder_z = mlp(Z + 3, D), mlp(D, 3), mlp(D + 3, 2 * Z)

    def model(x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(torch.ones(3) / 3), obs=y)
            joint = torch.cat([z.expand(*y.shape[:-1], Z), y], -1)
            pyro.sample("x", dist.Bernoulli(logits=decoder(joint)).to_event(1), obs=x)

    def guide(x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("encoder_y", encoder_y)
        pyro.module("encoder_z", encoder_z)
        with pyro.plate("data", len(x)):
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=encoder_y(x)), infer={"enumerate": "parallel"})
            loc, log_scale = encoder_z(torch.cat([x.expand(*y.shape[:-1], D), y], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide, (binary(),), {"elbo": TraceEnum_ELBO(max_plate_nesting=1)}


@program
def deep_markov_model_with_masks() -> Made:
    transition, emission, combiner = mlp(Z, 2 * Z), mlp(Z, D), mlp(Z + 4, 2 * Z)
    rnn = nn.GRU(D, 4, batch_first=True)
    x = torch.rand(N, 5, D).round()
    mask = (torch.arange(5) < torch.randint(2, 6, (N, 1))).float()

    def model(x: Tensor, mask: Tensor) -> None:
        pyro.module("transition", transition)
        pyro.module("emission", emission)
        start = pyro.param("z_0", torch.zeros(Z))
        with pyro.plate("data", len(x)):
            z = start.expand(len(x), Z)
            for t in pyro.markov(range(1, 6)):
                loc, log_scale = transition(z).chunk(2, -1)
                fn = dist.Normal(loc, log_scale.exp()).mask(mask[:, t - 1 : t].bool()).to_event(1)
                z = pyro.sample(f"z_{t}", fn)
                fn = dist.Bernoulli(logits=emission(z)).mask(mask[:, t - 1 : t].bool()).to_event(1)
                pyro.sample(f"x_{t}", fn, obs=x[:, t - 1])

    def guide(x: Tensor, mask: Tensor) -> None:
        pyro.module("rnn", rnn)
        pyro.module("combiner", combiner)
        start = pyro.param("z_q_0", torch.zeros(Z))
        hidden, _ = rnn(x.flip(1))
        with pyro.plate("data", len(x)):
            z = start.expand(len(x), Z)
            for t in pyro.markov(range(1, 6)):
                loc, log_scale = combiner(torch.cat([z, hidden[:, -t]], -1)).chunk(2, -1)
                fn = dist.Normal(loc, log_scale.exp()).mask(mask[:, t - 1 : t].bool()).to_event(1)
                z = pyro.sample(f"z_{t}", fn)

    return model, guide, (x, mask), {}


@program
def topics() -> Made:
    words, vocabulary, topics = 7, 12, 3
    x = torch.randint(0, vocabulary, (N, words))
    predictor = mlp(vocabulary, topics)

    @config_enumerate
    def model(x: Tensor) -> None:
        with pyro.plate("topics", topics):
            weights = pyro.sample("topic_weights", dist.Gamma(1.0 / topics, 1.0))
            table = pyro.sample("topic_words", dist.Dirichlet(torch.ones(vocabulary) / vocabulary))
        with pyro.plate("documents", len(x)):
            shares = pyro.sample("doc_topics", dist.Dirichlet(weights))
            with pyro.plate("words", words):
                topic = pyro.sample("word_topics", dist.Categorical(shares))
                pyro.sample("doc_words", dist.Categorical(table[topic]), obs=x.T)

    def guide(x: Tensor) -> None:
        pyro.module("predictor", predictor)
        weights = pyro.param("weights", torch.ones(topics), constraint=constraints.positive)
        table = pyro.param("table", torch.ones(topics, vocabulary), constraint=constraints.greater_than(0.5))
        with pyro.plate("topics", topics):
            pyro.sample("topic_weights", dist.Gamma(weights, 1.0))
            pyro.sample("topic_words", dist.Dirichlet(table))
        with pyro.plate("documents", len(x)):
            counts = F.one_hot(x, vocabulary).float().sum(1)
            pyro.sample("doc_topics", dist.Delta(F.softmax(predictor(counts), -1), event_dim=1))

    return model, guide, (x,), {"elbo": TraceEnum_ELBO(max_plate_nesting=2)}


@program
def mixture_with_delta_guide() -> Made:
    x = torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0])

    @config_enumerate
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            assignment = pyro.sample("assignment", dist.Categorical(weights))
            pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=x)

    guide = AutoDelta(poutine.block(model, expose=["weights", "locs", "scale"]))
    return model, guide, (x,), {"elbo": TraceEnum_ELBO(max_plate_nesting=1)}


@program
def eight_schools() -> Made:
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model(y: Tensor, sigma: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        tau = pyro.sample("tau", dist.HalfCauchy(25.0))
        with pyro.plate("schools", len(y)):
            eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)

    return model, AutoNormal(model), (y, sigma), {"elbo": "trace"}


def regression(x: Tensor, y: Tensor) -> None:
    weight = pyro.sample("weight", dist.Normal(torch.zeros(D), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ weight, scale), obs=y)


AUTOGUIDES = [
    AutoDelta,
    AutoDiagonalNormal,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoStructured,
]


@pytest.mark.parametrize("family", AUTOGUIDES)
def test_autoguides(family: Any) -> None:
    report = preflight(regression, family(regression), torch.randn(N, D), torch.randn(N), elbo="trace", strict=False)
    assert report.issues == [], str(report)


@program
def autoguide_list() -> Made:
    guide = AutoGuideList(regression)
    guide.append(AutoDiagonalNormal(poutine.block(regression, expose=["weight"])))
    guide.append(AutoDelta(poutine.block(regression, expose=["scale"])))
    return regression, guide, (torch.randn(N, D), torch.randn(N)), {"elbo": "trace"}


@program
def autoguide_with_local_latents() -> Made:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return model, AutoNormal(model), (torch.randn(N),), {}


class Network(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.first = PyroModule[nn.Linear](D, 4)  # type: ignore[call-arg, arg-type]
        self.first.weight = PyroSample(dist.Normal(0.0, 1.0).expand([4, D]).to_event(2))
        self.first.bias = PyroSample(dist.Normal(0.0, 1.0).expand([4]).to_event(1))
        self.last = PyroModule[nn.Linear](4, 1)  # type: ignore[call-arg, arg-type]

    def forward(self, x: Tensor, y: Tensor) -> None:
        sigma = pyro.sample("sigma", dist.Uniform(0.1, 10.0))
        mean = self.last(self.first(x).tanh()).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=y)


@program
def bayesian_network() -> Made:
    model = Network()
    return model, AutoDiagonalNormal(model), (torch.randn(N, D), torch.randn(N)), {"elbo": "trace"}


@program
def factors_of_the_model() -> Made:
    decoder, encoder = mlp(Z, D), mlp(D, 2 * Z)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        pyro.factor("ridge", -0.1 * nn.utils.parameters_to_vector(decoder.parameters()).square().sum())
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.factor("likelihood", bernoulli(decoder(z)).log_prob(x))

    return model, encoder_guide(encoder), (binary(),), {}


@program
def classifier_in_the_guide() -> Made:
    """As scANVI: a loss for the labels stands in the guide, which no number but the training has."""
    classifier, encoder = mlp(D, 3), mlp(D, 2 * Z)
    plain = encoder_guide(encoder)

    def guide(x: Tensor, y: Tensor) -> None:
        pyro.module("classifier", classifier)
        plain(x)
        with pyro.plate("labels", len(x)):
            pyro.factor("classification", -F.cross_entropy(classifier(x), y, reduction="none"), has_rsample=True)

    args = (binary(), torch.randint(0, 3, (N,)))
    return decoder_model(mlp(Z, D), bernoulli), guide, args, {"expected": ["guide_terms"]}


@program
def treatment_in_the_guide() -> Made:
    """As CEVAE: the guide has distributions of what the model observes, and observes them, too."""
    outcome, treatment, encoder = mlp(Z, 1), mlp(D, 1), mlp(D, 2 * Z)

    def model(x: Tensor, t: Tensor) -> None:
        pyro.module("outcome", outcome)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("t", dist.Bernoulli(logits=outcome(z).squeeze(-1)), obs=t)

    plain = encoder_guide(encoder)

    def guide(x: Tensor, t: Tensor) -> None:
        pyro.module("treatment", treatment)
        with pyro.plate("people", len(x)):
            pyro.sample("t", dist.Bernoulli(logits=treatment(x).squeeze(-1)), obs=t)
        plain(x)

    return model, guide, (torch.randn(N, D), torch.rand(N).round()), {"expected": ["guide_terms"]}


@program
def partly_observed() -> Made:
    seen: Any = torch.rand(N) < 0.5

    def model(x: Tensor, seen: Any) -> None:
        loc = pyro.param("loc", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x, obs_mask=seen)

    def guide(x: Tensor, seen: Any) -> None:
        loc = pyro.param("guess", torch.tensor(0.0))
        with pyro.plate("data", len(x)), poutine.mask(mask=~seen):
            pyro.sample("x_unobserved", dist.Normal(loc, 1.0), infer={"is_auxiliary": True})

    return model, guide, (torch.randn(N), seen), {"elbo": "trace"}


@program
def nested_plates() -> Made:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(pyro.param("mean", torch.tensor(0.1)), 1.0))
            with pyro.plate("repeats", 4, dim=-2):
                w = pyro.sample("w", dist.Normal(z, 1.0))
                pyro.sample("x", dist.Normal(w, 1.0), obs=x.T)

    def guide(x: Tensor) -> None:
        a = pyro.param("a", torch.tensor(0.5))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(a * x.mean(-1), 1.0))
            with pyro.plate("repeats", 4, dim=-2):
                pyro.sample("w", dist.Normal(a * x.T + z, 1.0))

    return model, guide, (torch.randn(N, 4),), {}


@program
def subsampled_by_indices() -> Made:
    def model(x: Tensor, index: Tensor) -> None:
        loc = pyro.param("prior", torch.tensor(0.1))
        with pyro.plate("data", 100, subsample=index):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor, index: Tensor) -> None:
        locs = pyro.param("locs", torch.zeros(100))
        with pyro.plate("data", 100, subsample=index):
            pyro.sample("z", dist.Normal(locs[index], 1.0))

    return model, guide, (torch.randn(N), torch.randperm(100)[:N]), {}


@program
def subsamples_by_itself() -> Made:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=4) as index:
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[index])

    def guide(x: Tensor) -> None:
        pyro.sample("loc", dist.Normal(pyro.param("mean", torch.tensor(0.1)), 1.0))

    return model, guide, (torch.randn(N),), {}


@program
def dropout_and_batch_normalization() -> Made:
    encoder = nn.Sequential(nn.Linear(D, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2 * Z))
    return decoder_model(mlp(Z, D), bernoulli), encoder_guide(encoder), (binary(),), {}


class LastState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(D, 5, batch_first=True), nn.Linear(5, 2 * Z)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


@program
def recurrent_encoder() -> Made:
    decoder = nn.Sequential(nn.Linear(Z, 4 * D), nn.Unflatten(-1, (4, D)))
    likelihood = lambda h: dist.Bernoulli(logits=h).to_event(2)  # noqa: E731
    return decoder_model(decoder, likelihood), encoder_guide(LastState()), (torch.rand(N, 4, D).round(),), {}


@program
def coin() -> Made:
    """A loop over the data."""

    def model(x: Tensor) -> None:
        f = pyro.sample("fairness", dist.Beta(10.0, 10.0))
        for i in range(len(x)):
            pyro.sample(f"toss_{i}", dist.Bernoulli(f), obs=x[i])

    def guide(x: Tensor) -> None:
        alpha = pyro.param("alpha", torch.tensor(15.0), constraint=constraints.positive)
        beta = pyro.param("beta", torch.tensor(15.0), constraint=constraints.positive)
        pyro.sample("fairness", dist.Beta(alpha, beta))

    return model, guide, (torch.ones(N),), {"elbo": "trace", "expected": ["no_data_plate"]}


@program
def hidden_markov_model() -> Made:
    x = torch.rand(N, 4).round()

    @config_enumerate
    def model(x: Tensor) -> None:
        jump = pyro.param("jump", torch.ones(3, 3) / 3, constraint=constraints.simplex)
        emit = pyro.param("emit", torch.tensor([0.2, 0.5, 0.8]), constraint=constraints.unit_interval)
        with pyro.plate("data", len(x)):
            state: Any = 0
            for t in pyro.markov(range(4)):
                state = pyro.sample(f"s_{t}", dist.Categorical(jump[state]))
                pyro.sample(f"x_{t}", dist.Bernoulli(emit[state]), obs=x[:, t])

    return model, lambda x: None, (x,), {"elbo": TraceEnum_ELBO(max_plate_nesting=1)}


@program
def flow_prior() -> Made:
    flow, decoder = affine_autoregressive(Z, [8]), mlp(Z, D)

    def model(x: Tensor) -> None:
        pyro.module("flow", flow)
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            base = dist.Normal(torch.zeros(len(x), Z), 1.0).to_event(1)
            z = pyro.sample("z", dist.TransformedDistribution(base, [flow]))
            pyro.sample("x", bernoulli(decoder(z)), obs=x)

    return model, encoder_guide(mlp(D, 2 * Z)), (binary(),), {"elbo": "trace"}


@program
def prior_held_outside() -> Made:
    prior, decoder = dist.Normal(0.0, 1.0).expand([Z]).to_event(1), mlp(Z, D)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            pyro.sample("x", bernoulli(decoder(pyro.sample("z", prior))), obs=x)

    return model, encoder_guide(mlp(D, 2 * Z)), (binary(),), {}


@program
def frozen_features() -> Made:
    """A trained network without gradients below a new one."""
    features, head = mlp(D, 4).requires_grad_(False), nn.Linear(4, 2 * Z)

    def guide(x: Tensor) -> None:
        pyro.module("head", head)
        with torch.no_grad():
            h = features(x)
        with pyro.plate("data", len(x)):
            loc, log_scale = head(h).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return decoder_model(mlp(Z, D), bernoulli), guide, (binary(),), {}


@program
def straight_through() -> Made:
    decoder, encoder = mlp(3, D), mlp(D, 3)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.OneHotCategorical(torch.ones(3) / 3))
            pyro.sample("x", bernoulli(decoder(y)), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.OneHotCategoricalStraightThrough(logits=encoder(x)))

    return model, guide, (binary(),), {}


@program
def quantized_code() -> Made:
    """Gradients that pass by a rounding, as they are meant to."""
    encoder, decoder = mlp(D, Z), mlp(Z, D)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", bernoulli(decoder(z + (z.round() - z).detach())), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 0.1).to_event(1))

    return model, guide, (binary(),), {}


@program
def weighted_kl() -> Made:
    model, guide, args, _ = vae()

    def latents_scaled(x: Tensor) -> None:
        with poutine.scale(scale=0.3):
            guide(x)

    return model, latents_scaled, args, {}


@program
def baseline_network() -> Made:
    encoder, baseline = mlp(D, 2), mlp(D, 1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(2)).to_event(1))
            pyro.sample(
                "x", dist.Normal(z.sum(-1, keepdim=True) * pyro.param("s", torch.ones(D)), 1.0).to_event(1), obs=x
            )

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        pyro.module("baseline", baseline)
        infer: Any = {"baseline": {"baseline_value": baseline(x).squeeze(-1)}}
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=encoder(x)).to_event(1), infer=infer)

    return model, guide, (torch.randn(N, D),), {"elbo": TraceGraph_ELBO(), "expected": ["not_reparameterized"]}


@program
def sparse_gamma_model() -> Made:
    def model(x: Tensor) -> None:
        with pyro.plate("w_top", 3):
            w = pyro.sample("w", dist.Gamma(0.1, 0.3))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(torch.full((3,), 0.1), 0.1).to_event(1))
            pyro.sample("x", dist.Poisson((z * w).sum(-1, keepdim=True).expand(len(x), D) + 1e-3).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        rate = F.softplus(pyro.param("rate", torch.zeros(3)))
        with pyro.plate("w_top", 3):
            pyro.sample("w", dist.Gamma(rate, rate))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(rate.expand(len(x), 3), 1.0).to_event(1))

    return model, guide, (torch.poisson(torch.ones(N, D)),), {"elbo": "trace"}


@program
def gaussian_process() -> Made:
    """One event of all data: no numbers per datum, and no plate."""
    x = torch.linspace(0, 1, N)

    def model(x: Tensor, y: Tensor) -> None:
        size = pyro.sample("size", dist.LogNormal(0.0, 1.0))
        kernel = (-((x[:, None] - x) ** 2) / 0.1).exp() * size + 0.1 * torch.eye(len(x))
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), kernel), obs=y)

    return model, AutoNormal(model), (x, torch.randn(N)), {"elbo": "trace", "expected": ["no_data_plate"]}


@program
def double_precision() -> Made:
    encoder, decoder = mlp(D, 2 * Z).double(), mlp(Z, D).double()

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(Z), 1.0).to_event(1))
            pyro.sample("x", bernoulli(decoder(z)), obs=x)

    return model, encoder_guide(encoder), (binary().double(),), {}


@program
def parameters_for_each_datum() -> Made:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(pyro.param("mean", torch.tensor(0.1)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(N))
        scale = pyro.param("scale", torch.ones(N), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale))

    return model, guide, (torch.randn(N),), {}


@program
def conditional_on_labels() -> Made:
    decoder, encoder = mlp(Z + 3, D), mlp(D + 3, 2 * Z)

    def model(x: Tensor, *, label: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", bernoulli(decoder(torch.cat([z, F.one_hot(label, 3)], -1))), obs=x)

    def guide(x: Tensor, *, label: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(torch.cat([x, F.one_hot(label, 3)], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide, (binary(),), {"label": torch.randint(0, 3, (N,))}


@program
def logits_of_parameters() -> Made:
    """Logits that happen to lie in [0, 1]: a parameter may begin anywhere."""

    def model(x: Tensor) -> None:
        logits = pyro.param("logits", torch.rand(80))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    return model, lambda x: None, (torch.rand(N, 80).round(),), {}


@program
def logits_that_begin_alike() -> Made:
    """A network whose outputs are nearly its biases, all above 0."""
    decoder = nn.Linear(Z, 80)
    nn.init.uniform_(decoder.bias, 0.3, 0.6)
    nn.init.normal_(decoder.weight, std=0.01)
    return decoder_model(decoder, bernoulli), encoder_guide(mlp(80, 2 * Z)), (torch.rand(N, 80).round(),), {}


@program
def bounded_logits() -> Made:
    likelihood = lambda h: bernoulli(10 * h.sigmoid() - 5)  # noqa: E731
    return decoder_model(mlp(Z, D), likelihood), encoder_guide(mlp(D, 2 * Z)), (binary(),), {}


@program
def log_of_probabilities() -> Made:
    decoder = nn.Sequential(mlp(Z, D), nn.Softmax(-1))
    x = torch.randint(0, D, (N,))
    likelihood = lambda p: dist.Categorical(logits=p.log())  # noqa: E731
    encoder = nn.Sequential(nn.Embedding(D, 5), nn.Linear(5, 2 * Z))
    return decoder_model(decoder, likelihood), encoder_guide(encoder), (x,), {}


@program
def counts_of_one_total() -> Made:
    x = dist.Multinomial(20, torch.ones(D)).sample((N,))
    likelihood = lambda h: dist.Multinomial(20, logits=h)  # noqa: E731
    return decoder_model(mlp(Z, D), likelihood), encoder_guide(mlp(D, 2 * Z)), (x,), {}


@program
def whole_numbers_on_a_wide_scale() -> Made:
    x = (100 * torch.rand(N, D + 2)).round()
    likelihood = lambda h: dist.Normal(h, 20.0).to_event(1)  # noqa: E731
    encoder = nn.Sequential(nn.BatchNorm1d(D + 2), nn.Linear(D + 2, 2 * Z))
    return decoder_model(mlp(Z, D + 2), likelihood), encoder_guide(encoder), (x,), {}


@program
def best_scale() -> Made:
    """The scale that maximizes the likelihood needs no gradient."""
    decoder = nn.Linear(Z, D)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            loc = decoder(pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1)))
            scale = (x - loc).detach().square().mean().sqrt()
            pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    return model, encoder_guide(mlp(D, 2 * Z)), (torch.randn(N, D),), {}


@program
def packed_sequences() -> Made:
    """Rows of a packed sequence cannot be left out with those of the other arguments."""
    rnn, decoder = nn.GRU(D, 2 * Z, batch_first=True), mlp(Z, D)
    lengths = torch.tensor([4, 4, 3, 3, 2, 2, 2, 1, 1])
    packed = nn.utils.rnn.pack_padded_sequence(torch.rand(N, 4, D), lengths, batch_first=True)

    def model(x: Tensor, packed: Any) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", bernoulli(decoder(z)), obs=x)

    def guide(x: Tensor, packed: Any) -> None:
        pyro.module("rnn", rnn)
        with pyro.plate("data", len(x)):
            loc, log_scale = rnn(packed)[1].squeeze(0).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide, (binary(), packed), {}


@program
def groups_with_effects_of_their_own() -> Made:
    """A plate that is no plate over the data, of as many groups as there are data."""

    def model(x: Tensor, group: Tensor) -> None:
        with pyro.plate("groups", N):
            effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(effect[group], 1.0), obs=x)

    return model, AutoNormal(model), (torch.randn(N), torch.randint(0, N, (N,))), {}


@program
def a_scale_from_the_data() -> Made:
    """A parameter without a gradient, of no network."""
    decoder, encoder = mlp(Z, D), mlp(D, 2 * Z)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        scale = x.std(0)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), scale).to_event(1), obs=x)

    return model, encoder_guide(encoder), (torch.randn(N, D),), {}


@program
def bits_drawn_in_the_guide() -> Made:
    """A discrete latent, whose draw has no gradient by itself, read by a distribution without parameters."""
    encoder = mlp(D, 1)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("x", dist.Normal(k.unsqueeze(-1).expand(-1, D), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(logits=encoder(x).squeeze(-1)))

    return model, guide, (torch.randn(N, D),), {"elbo": "reinforce"}
