"""Guides made from models, against exact posteriors."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.conditionals import FullNormal

Model = Callable[..., Any]


def sites(program: Model, *args: Any) -> dict[str, Any]:
    """The sites of one run of a program."""
    with torch.no_grad():
        return dict(pyro.poutine.trace(program).get_trace(*args).nodes)


def distribution_at(program: Model, site: str, *args: Any) -> Any:
    """The distribution of a site in one run of a program."""
    return sites(program, *args)[site]["fn"]


def gap(model: Model, x: Any, exact: Tensor, epochs: int = 40, **options: Any) -> float:
    """Exact log p(x) minus the ELBO of a trained guide, nats per datum: the KL from the guide to the posterior."""
    args = x if isinstance(x, tuple) else (x,)
    training = {"elbo": "stl", "num_particles": 2, "lr": 5e-3, **options.pop("training", {})}
    guide = pv.AmortizedGuide(model, *args, seed=0, **options)
    data = x if isinstance(x, tuple) else (x,)
    pv.fit(
        model,
        guide,
        data,
        epochs=epochs,
        batch_size=200,
        lr_schedule="cosine",
        seed=0,
        compile=False,
        preflight=False,
        progress=False,
        **training,
    )
    guide.eval()
    gaps = exact.double() - pv.bound(model, guide, *args, num_samples=100, seed=0).elbo
    result, error = float(gaps.mean()), float(gaps.std()) / math.sqrt(len(gaps))
    assert result > -4 * error, "the ELBO lies above log p(x)"
    return result


def one_site(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ WEIGHTS, 0.5).to_event(1), obs=x)


WEIGHTS = torch.tensor([[1.0, 0.5, -0.5], [0.0, 1.0, 1.0]])


def chain(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(10.0, 3.0))
        b = pyro.sample("b", dist.Normal(a, 2.0))
        c = pyro.sample("c", dist.Normal(0.5 * b, 2.0))
        pyro.sample("x", dist.Normal(torch.stack([c, b - c], -1), 1.0).to_event(1), obs=x)


def plate_in_plate(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-2):
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        with pyro.plate("t", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(u, torch.tensor([1.0, 0.5, 2.0])))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def linear_gaussian(name: str) -> tuple[Model, Tensor, Tensor]:
    """A model, data from it, and their exact log-density."""
    if name == "one site":
        loc, cov, model = torch.zeros(3), WEIGHTS.T @ WEIGHTS + 0.25 * torch.eye(3), one_site
    elif name == "chain":
        root = torch.tensor([[3.0, 0.0, 0.0], [3.0, 2.0, 0.0], [1.5, 1.0, 2.0]])
        out = torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, -1.0]])
        loc, cov, model = out @ torch.tensor([10.0, 10.0, 5.0]), out @ root @ root.T @ out.T + torch.eye(2), chain
    else:
        loc, model = torch.zeros(3), plate_in_plate
        cov = torch.ones(3, 3) + torch.diag(torch.tensor([1.25, 0.5, 4.25]))
    exact = dist.MultivariateNormal(loc, cov)
    torch.manual_seed(0)
    x = exact.sample((2000,))
    return model, x, exact.log_prob(x)


@pytest.mark.parametrize("name", ["one site", "chain", "plate in the plate"])
def test_the_gap_closes_on_linear_gaussian_models(name: str) -> None:
    assert gap(*linear_gaussian(name), family="full_normal") < 0.01


TREE = [[0], [0], [1], [1], [2], [2]]  # the parents among z0 (root), z1, z2 of z1, z2, x0 ... x3
LINE = [[0], [1], [2], [3]]


def tree(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z0 = pyro.sample("z0", dist.Normal(0.0, 1.0))
        z1 = pyro.sample("z1", dist.Normal(z0, 0.5))
        z2 = pyro.sample("z2", dist.Normal(z0, 0.5))
        z3 = pyro.sample("z3", dist.Normal(z1, 0.5))
        z4 = pyro.sample("z4", dist.Normal(z1, 0.5))
        pyro.sample("x", dist.Normal(torch.stack([z2, z3, z4], -1), 1.0).to_event(1), obs=x)


def line(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z0", dist.Normal(0.0, 1.0))
        for i in range(1, 5):
            z = pyro.sample(f"z{i}", dist.Normal(z, 0.7))
        pyro.sample("x", dist.Normal(z, 0.7), obs=x)


@pytest.mark.parametrize("model", [tree, line])
def test_the_faithful_structure_closes_the_gap_of_mean_field(model: Model) -> None:
    torch.manual_seed(1)
    if model is tree:
        shared = torch.ones(3, 3)  # z0
        shared[1:, 1:] += 0.25  # z1
        exact = dist.MultivariateNormal(torch.zeros(3), shared + 1.25 * torch.eye(3))
        x = exact.sample((2000,))
        log_p = exact.log_prob(x)
    else:
        variance = 1 + 4 * 0.49 + 0.49
        x = math.sqrt(variance) * torch.randn(2000)
        log_p = dist.Normal(0.0, math.sqrt(variance)).log_prob(x)
    mean_field = gap(model, x, log_p, structure="mean_field", epochs=15)
    faithful = gap(model, x, log_p)
    assert mean_field > 0.2
    assert faithful < 0.05 * mean_field


def beta_bernoulli(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        p = pyro.sample("p", dist.Beta(2.0, 3.0))
        pyro.sample("x", dist.Bernoulli(p.unsqueeze(-1).expand(*p.shape, 5)).to_event(1), obs=x)


def gamma_poisson(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(2.0, 0.5))
        pyro.sample("x", dist.Poisson(rate), obs=x)


def dirichlet_multinomial(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        p = pyro.sample("p", dist.Dirichlet(2 * torch.ones(3)))
        pyro.sample("x", dist.Multinomial(10, p), obs=x)


def conjugate(model: Model) -> tuple[Tensor, Tensor]:
    """Data of a conjugate model, and their exact log-probability."""
    torch.manual_seed(2)
    if model is gamma_poisson:
        x = dist.Poisson(dist.Gamma(2.0, 0.5).sample((2000,))).sample()
        return x, dist.GammaPoisson(2.0, 0.5).log_prob(x)
    if model is dirichlet_multinomial:
        exact = dist.DirichletMultinomial(2 * torch.ones(3), 10)
        x = exact.expand((2000,)).sample()
        return x, exact.log_prob(x)
    x = torch.bernoulli(dist.Beta(2.0, 3.0).sample((2000, 1)).expand(-1, 5))
    k = x.sum(-1)

    def log_beta(a: Tensor, b: Tensor) -> Tensor:
        return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)

    return x, log_beta(2 + k, 8 - k) - log_beta(torch.tensor(2.0), torch.tensor(3.0))


@pytest.mark.parametrize("model", [beta_bernoulli, gamma_poisson, dirichlet_multinomial])
def test_conjugate_posteriors_are_found(model: Model) -> None:
    assert gap(model, *conjugate(model), family="spline") < 0.01


LOCS, WEIGHTS_OF = torch.tensor([-2.0, 0.0, 3.0]), torch.tensor([0.2, 0.3, 0.5])


def mixture(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(WEIGHTS_OF))
        pyro.sample("x", dist.Normal(LOCS[y], 1.0), obs=x)


def test_responsibilities_of_a_mixture_are_found() -> None:
    torch.manual_seed(3)
    x = LOCS[torch.multinomial(WEIGHTS_OF, 2000, replacement=True)] + torch.randn(2000)
    guide = pv.AmortizedGuide(mixture, x, seed=0)
    pv.fit(
        mixture,
        guide,
        x,
        elbo="enum",
        epochs=40,
        batch_size=200,
        lr=5e-3,
        lr_schedule="cosine",
        seed=0,
        progress=False,
        compile=False,
    )
    with torch.no_grad():
        found = distribution_at(guide, "y", x).probs
    exact = (WEIGHTS_OF.log() + dist.Normal(LOCS, 1.0).log_prob(x.unsqueeze(-1))).softmax(-1)
    assert (found - exact).abs().mean() < 0.01


def test_a_description_says_given_what_which_family_which_support() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), dim=-2):
            y = pyro.sample("y", dist.Bernoulli(0.5))
            with pyro.plate("t", 3):
                b = pyro.sample("b", dist.Gamma(2.0, 1.0))
                pyro.sample("x", dist.Normal(loc + y, b), obs=x)

    text = repr(pv.AmortizedGuide(model, torch.randn(50, 3), structure="forward"))
    assert text.splitlines() == [
        "AmortizedGuide, structure 'forward', data plate 'data'",
        "  loc                   DiagonalNormal(1)  real      free",
        "  y    given loc, x     classifier         boolean   amortized",
        "  b    given loc, y, x  DiagonalNormal(1)  positive  amortized, in t",
    ]


def with_global(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
    with pyro.plate("data", 1000, subsample_size=len(x)):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_minibatches_scale_the_local_latents_and_not_the_global_one() -> None:
    """The log-density of all data is the mean over the minibatches, at equal values of the latents."""
    x = torch.randn(1000)
    guide = pv.AmortizedGuide(with_global, x, seed=0)

    def log_density(program: Model, values: dict[str, Tensor], data: Tensor) -> float:
        with torch.no_grad():
            return float(pyro.poutine.trace(pyro.poutine.condition(program, values)).get_trace(data).log_prob_sum())

    values = {name: value.detach() for name, value in guide(x).items()}
    parts = [{"loc": values["loc"], "z": z} for z in values["z"].split(100)]
    for program in (with_global, guide):
        whole = log_density(program, values, x)
        split = [log_density(program, part, rows) for part, rows in zip(parts, x.split(100), strict=True)]
        assert sum(split) / len(split) == pytest.approx(whole, rel=1e-5)


def test_a_global_latent_gets_the_posterior_of_all_data() -> None:
    """Its width, too, which is a hundredth of the prior's: what the ELBO loses is a thousandth of a nat per datum."""
    torch.manual_seed(4)
    x = 3 + math.sqrt(2.0) * torch.randn(1000)
    exact = dist.MultivariateNormal(torch.zeros(1000).double(), 25 + 2 * torch.eye(1000).double()).log_prob(x.double())
    guide = pv.AmortizedGuide(with_global, x, seed=0)
    pv.fit(
        with_global,
        guide,
        x,
        elbo="trace",
        epochs=30,
        batch_size=100,
        lr=2e-2,
        lr_schedule="cosine",
        seed=0,
        progress=False,
        compile=False,
    )
    q = distribution_at(guide, "loc", x)
    precision = 1 / 25 + len(x) / 2.0
    assert float(q.mean) == pytest.approx(float(x.sum()) / 2.0 / precision, abs=0.02)
    assert float(q.stddev) == pytest.approx(precision**-0.5, rel=0.3)
    gap = float(exact) - pv.bound(with_global, guide, x, num_samples=200, seed=0).mean  # of all data together
    assert 0 < gap / len(x) < 0.002


def test_a_model_that_subsamples_by_itself() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=10) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])

    x = torch.randn(100)
    guide = pv.AmortizedGuide(model, x, seed=0)
    with torch.no_grad():
        trace: Any = pyro.poutine.trace(guide).get_trace(x)
        rows = trace.nodes["data"]["value"]
        assert rows.shape == trace.nodes["z"]["fn"].batch_shape == (10,)
        changed = torch.zeros(100)
        changed[rows] = x[rows]  # only the chosen rows are read
        again: Any = pyro.poutine.trace(pyro.poutine.replay(guide, trace=trace)).get_trace(changed)
    assert torch.equal(again.nodes["z"]["fn"].mean, trace.nodes["z"]["fn"].mean)
    replayed: Any = pyro.poutine.trace(pyro.poutine.replay(model, trace=trace)).get_trace(x)
    assert torch.equal(replayed.nodes["x"]["value"], x[rows])


def masked_chain(x: Tensor, lengths: Tensor) -> None:
    """A random walk of three steps at most, seen with noise; what is beyond the length of a datum is masked."""
    with pyro.plate("data", len(x)):
        z: Any = 0.0
        for t in range(3):
            seen: Any = lengths > t
            with pyro.poutine.mask(mask=seen):
                z = pyro.sample(f"z{t}", dist.Normal(z, 1.0))
                pyro.sample(f"x{t}", dist.Normal(z, 0.5), obs=x[:, t])


def test_a_mask_that_is_an_argument_is_taken_from_there() -> None:
    def model(x: Tensor, seen: Any) -> None:
        with pyro.plate("data", len(x)):
            for t in range(2):
                with pyro.poutine.mask(mask=seen[:, t]):
                    z = pyro.sample(f"z{t}", dist.Normal(0.0, 1.0))
                    pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=x[:, t])

    x, seen = torch.randn(50, 2), torch.rand(50, 2) < 0.7
    guide = pv.AmortizedGuide(model, x, seen, seed=0)
    assert [mask.column for mask in guide.masks.values()] == [0, 1]
    for t in range(2):
        assert torch.equal(sites(guide, x[:20], seen[:20])[f"z{t}"]["mask"], seen[:20, t])


def test_a_mask_that_the_model_computes_is_read_off_a_run_of_it() -> None:
    x, lengths = torch.randn(50, 3), torch.randint(1, 4, (50,))
    guide = pv.AmortizedGuide(masked_chain, x, lengths, seed=0)
    found = sites(guide, x[:20], lengths[:20])
    assert [name for name, site in found.items() if site["type"] == "sample" and name != "data"] == ["z0", "z1", "z2"]
    for t in range(3):
        assert torch.equal(found[f"z{t}"]["mask"], lengths[:20] > t)


def test_ragged_sequences_have_their_exact_posterior() -> None:
    torch.manual_seed(7)
    x = torch.randn(2000, 3).cumsum(-1) + 0.5 * torch.randn(2000, 3)
    lengths = torch.randint(1, 4, (2000,))
    walk = torch.minimum(torch.arange(1.0, 4.0), torch.arange(1.0, 4.0).unsqueeze(1)) + 0.25 * torch.eye(3)
    log_p = torch.zeros(2000)
    for n in range(1, 4):
        rows = lengths == n
        log_p[rows] = dist.MultivariateNormal(torch.zeros(n), walk[:n, :n]).log_prob(x[rows, :n])
    x = torch.where(torch.arange(3) < lengths.unsqueeze(-1), x, 5.0)
    assert gap(masked_chain, (x, lengths), log_p) < 0.03


def test_a_scaled_latent_is_scaled_in_the_guide() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with pyro.poutine.scale(scale=0.25):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.randn(50)
    guide = pv.AmortizedGuide(model, x, seed=0)
    assert sites(guide, x)["z"]["scale"] == 0.25


def missing_columns(x: Tensor, seen: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ WEIGHTS, 0.5).mask(seen).to_event(1), obs=x)


def test_missing_values_need_no_imputation() -> None:
    torch.manual_seed(6)
    cov = WEIGHTS.T @ WEIGHTS + 0.25 * torch.eye(3)
    x = dist.MultivariateNormal(torch.zeros(3), cov).sample((3000,))
    seen = torch.rand(3000, 3) < 0.7
    log_p = torch.zeros(len(x))
    for i, row in enumerate(x):
        kept = seen[i].nonzero().flatten()
        if len(kept):
            log_p[i] = dist.MultivariateNormal(torch.zeros(len(kept)), cov[kept][:, kept]).log_prob(row[kept])
    x = torch.where(seen, x, 99.0)
    assert gap(missing_columns, (x, seen), log_p, epochs=40, family="full_normal") < 0.03


def test_images_get_a_convolutional_network_and_any_batch_size() -> None:
    decoder = torch.nn.Linear(2, 64)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            logits = decoder(z).reshape(*z.shape[:-1], 1, 8, 8)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(3), obs=x)

    x = torch.bernoulli(torch.full((40, 1, 8, 8), 0.5))
    guide = pv.AmortizedGuide(model, x, seed=0)
    assert any(isinstance(module, torch.nn.Conv2d) for module in guide.modules())
    for n in (1, 7):
        assert guide(x[:n])["z"].shape == (n, 2)
        assert pv.bound(model, guide, x[:n], num_samples=3).mean < 0


def test_an_encoder_and_features_of_ones_own() -> None:
    first = torch.nn.Linear(3, 8)
    encoder = torch.nn.Sequential(first, torch.nn.Tanh())
    x = torch.randn(30, 3)
    guide = pv.AmortizedGuide(one_site, x, encoder=encoder, seed=0)
    assert any(p is first.weight for p in guide.parameters())
    with torch.no_grad():
        first.weight.zero_()
    locs = distribution_at(guide, "z", x).mean
    assert torch.equal(locs, locs[:1].expand_as(locs))  # nothing but the encoder reads the data
    made = pv.AmortizedGuide(one_site, x, features=lambda x: x[:, :1], seed=0)
    changed = torch.cat([x[:, :1], torch.randn(30, 2)], -1)
    one, other = (distribution_at(made, "z", each).mean for each in (x, changed))
    assert torch.equal(one, other)
    with pytest.raises(ValueError, match=r"encoder must return features \(N, F\).*got \(30, 3, 1\)"):
        pv.AmortizedGuide(one_site, x, encoder=torch.nn.Unflatten(-1, (3, 1)))


def test_every_family_and_a_family_by_site() -> None:
    x = torch.randn(30, 2)
    for name in pv.conditionals.POSTERIORS:
        guide = pv.AmortizedGuide(one_site, torch.randn(30, 3), family=name, seed=0)
        assert guide(torch.randn(5, 3))["z"].shape == (5, 2)
    guide = pv.AmortizedGuide(chain, x, family={"a": "spline", "b": FullNormal}, seed=0)
    assert [site.family_name for site in guide.sites] == ["DiagonalNormal(1)", "FullNormal(1)", "SplineFlow(1)"]


REFUSED = {
    "sphere": (
        lambda: dist.ProjectedNormal(torch.tensor([1.0, 0.0])),
        "support sphere of the latent site 'z' .*: write this site's guide by",
    ),
    "count": (lambda: dist.Poisson(3.0), "'z' is a Poisson, a discrete distribution for which there is no classifier"),
    "bounds": (
        lambda: dist.Uniform(0.0, torch.rand(())),
        "support of the latent site 'z' .* depends on the data or on",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_site_that_no_family_covers_is_refused(name: str) -> None:
    made, message = REFUSED[name]

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", made())
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    with pytest.raises(ValueError, match=message):
        pv.AmortizedGuide(model, torch.randn(50))


def test_models_that_no_guide_can_be_made_for() -> None:
    def nothing_hidden(x: Tensor) -> None:
        pyro.sample("x", dist.Normal(0.0, 1.0).expand(x.shape).to_event(1), obs=x)

    def nothing_seen(x: Tensor) -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    def varying(x: Tensor) -> None:
        nothing_seen(x)
        if torch.rand(()) < 0.5:
            pyro.sample("sometimes", dist.Normal(0.0, 1.0))
        nothing_hidden(x)

    def partly_observed(x: Any) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x, obs_mask=x > 0)

    def partly_masked(x: Any) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).mask(torch.rand(2) < 0.5).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def masked(x: Any) -> None:
        with pyro.plate("data", len(x)):
            switch: Any = pyro.sample("switch", dist.Bernoulli(0.5)).bool()
            with pyro.poutine.mask(mask=switch):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.randn(20)
    for model, message in {
        nothing_hidden: "the model has no latent site.*: use an empty guide",
        nothing_seen: r"the model observes nothing \(latents: \['z'\]\): give the data to a site, obs=x",
        varying: "'sometimes' is in some runs of the model and not in others.*sample it always, and mask it",
        partly_observed: r"write pyro.sample\('x', d.mask\(mask\), obs=x\) instead",
        masked: "mask of the latent site 'z' depends on other latents",
        partly_masked: "latent site 'z' has a mask in its distribution",
    }.items():
        with pytest.raises(ValueError, match=message):
            pv.AmortizedGuide(model, x)
    with pytest.raises(TypeError, match=r"a tensor \(N, ...\); got str"):
        pv.AmortizedGuide(masked, "data")
    with pytest.raises(TypeError, match="did you mean 'family'"):
        pv.AmortizedGuide(masked, x, famly="spline")
    with pytest.raises(ValueError, match=r"got a family for \['w'\], which the guide does not sample"):
        pv.AmortizedGuide(one_site, torch.randn(20, 3), family={"w": "spline"})


def test_data_without_a_row_for_each_datum_are_refused() -> None:
    """A packed sequence, and data along the second dimension, whose latents would be free in silence."""

    def columns(x: Tensor) -> None:
        with pyro.plate("data", x.shape[1]):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand([20, 3]).to_event(1), obs=x.T)

    with pytest.raises(TypeError, match=r"a PackedSequence came: give the model padded data and a tensor of lengths"):
        pv.AmortizedGuide(columns, torch.nn.utils.rnn.pack_sequence([torch.randn(2, 3)]))
    with pytest.raises(ValueError, match=r"plate 'data' of the site 'z' has 20 elements.*\[0\].*\(3, 20\), has 3 rows"):
        pv.AmortizedGuide(columns, torch.randn(3, 20))


def test_data_of_another_shape_than_the_example_are_refused() -> None:
    guide = pv.AmortizedGuide(one_site, torch.randn(20, 3))
    with pytest.raises(ValueError, match=r"made for data of shape \(N, 3\) at \[0\], got \(20, 4\): make a guide from"):
        guide(torch.randn(20, 4))


def test_the_graphs_are_drawn() -> None:
    figure = pv.AmortizedGuide(chain, torch.randn(20, 2)).plot()
    assert [ax.get_title() for ax in figure.axes] == ["model", "guide"]
    assert [text.get_text() for text in figure.axes[0].texts if text.get_text()] == ["a", "b", "c", "x"]
    free = pv.AmortizedGuide(with_global, torch.randn(1000)).plot().axes[1]
    arrows = [text for text in free.texts if not text.get_text()]
    assert len(arrows) == 2  # from loc and from x to z; the distribution of loc does not read x
