"""Data along another axis, in containers and in packed sequences: found by the plates of the model."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

import pyro_vae as pv
from pyro_vae.pair.forms import form_of, in_rows

X = torch.tensor([0.4, -1.2, 2.0, 0.1, -0.5, 1.3])
LOG_P = dist.Normal(0.0, math.sqrt(2)).log_prob(X)


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, 0.5**0.5))


@pytest.fixture(autouse=True)
def _no_parameters() -> None:
    pyro.clear_param_store()


def axes(program: Any, *args: Any, **kwargs: Any) -> tuple[int | None, ...] | None:
    form = form_of(program, (args, kwargs))
    return None if form is None else form.axes


def test_the_axis_is_that_along_which_the_model_takes_a_part() -> None:
    square = torch.randn(6, 6)
    assert axes(lambda x: model(x[:, 0]), square) == (0,)
    assert axes(lambda x: model(x[0]), square) == (1,)
    assert axes(lambda x: model(x[0, :, 0]), square.expand(2, 6, 6)) == (1,)
    assert axes(lambda x, w, y: model(x.T @ w + y), torch.randn(3, 6), torch.ones(3), X) == (1, None, 0)
    assert axes(lambda b: model(b["x"] * b["k"]), {"k": 2.0, "n": torch.ones(4, 4), "x": X}) == (None, None, 0)
    assert axes(lambda *, y, x: model(x + y), x=X, y=torch.ones(6).long()) == (0, 0)
    assert axes(lambda x: model(x.sum() * X), X) is None  # no part of what it observes
    assert axes(lambda: model(X)) is None


def test_latents_that_all_data_share_have_no_axis() -> None:
    def shared(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", x.shape[1]):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x[0])

    assert axes(shared, torch.randn(2, 6)) is None


def test_finding_it_changes_nothing() -> None:
    x = X.repeat(2, 1)
    before = x.clone()

    def in_place(x: Tensor) -> None:
        x -= pyro.param("shift", torch.randn(()))
        model(x[0])

    state = torch.get_rng_state()
    assert axes(in_place, x) == (1,)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not list(pyro.get_param_store())


def test_rows_that_are_rows_already_stay_as_they_are() -> None:
    data: Any = ((X, torch.ones(6)), {"shift": 1.0})
    program, _, rows, form = in_rows(lambda x, y, shift: model(x + y), None, data)
    assert form is None
    assert rows is data
    assert callable(program)


@pytest.mark.parametrize("in_order", [True, False])
def test_packed_sequences_are_rows_and_lengths(in_order: bool) -> None:
    lengths = [4, 3, 3, 2, 1, 1] if in_order else [1, 4, 2, 3, 1, 3]
    packed = pack_sequence([x.expand(n) for x, n in zip(X, lengths, strict=True)], enforce_sorted=in_order)
    seen: list[PackedSequence] = []

    def first(batch: Any) -> Tensor:
        seen.append(batch)
        return pad_packed_sequence(batch, batch_first=True)[0][:, 0]

    def packed_model(batch: Any, y: Tensor) -> None:
        model(first(batch) + 0 * y)

    def packed_guide(batch: Any, y: Tensor) -> None:
        guide(first(batch) + 0 * y)

    call: Any = packed_model, packed_guide, packed, torch.ones(6)
    assert torch.allclose(pv.log_marginal(*call, num_samples=3, memory=1).log_prob, LOG_P, atol=1e-5)
    assert min(len(batch.batch_sizes) for batch in seen) < 4  # parts of the data
    assert all((batch.sorted_indices is None) is in_order for batch in seen)
    assert len(pv.latent_report(*call, num_samples=2, seed=0).dimensions) == 1
    local = pv.fit_local(*call, max_steps=1, seed=0)
    assert torch.allclose(local.elbo, LOG_P, atol=0.01)
    found = pv.log_marginal(packed_model, local, *call[2:], num_samples=30, memory=1, seed=0).log_prob
    assert torch.allclose(found, LOG_P, atol=0.15)


def test_local_posteriors_look_up_all_that_a_datum_has() -> None:
    """Of equal x and other labels, each gets its own."""
    x, y = torch.zeros(4), torch.tensor([0.0, 3.0, -3.0, 6.0])

    def labeled(x: Tensor, y: Tensor) -> None:
        model(x + y)

    local = pv.fit_local(labeled, lambda x, y: guide(x + y), x, y, max_steps=1, seed=0)
    log_p = dist.Normal(0.0, math.sqrt(2)).log_prob(y)
    assert torch.allclose(pv.bound(labeled, local, x, y, num_samples=50, seed=0).elbo, log_p, atol=0.1)
    some = torch.tensor([3, 1])
    assert torch.allclose(
        pv.bound(labeled, local, x[some], y[some], num_samples=50, seed=0).elbo, log_p[some], atol=0.1
    )
    with pytest.raises(ValueError, match="are not among the 4"):
        pv.bound(labeled, local, x, y + 1)


def test_a_container_of_a_minibatch_keeps_its_plate() -> None:
    """A plate over 60 data that takes as many as came: weighed, and not drawn."""

    def minibatch(batch: dict[str, Tensor]) -> None:
        with pyro.plate("data", 60, subsample_size=len(batch["x"])):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=batch["x"])

    def its_guide(batch: dict[str, Tensor]) -> None:
        with pyro.plate("data", 60, subsample_size=len(batch["x"])):
            pyro.sample("z", dist.Normal(0.5 * batch["x"], 0.5**0.5))

    found = pv.log_marginal(minibatch, its_guide, {"x": X}, num_samples=2, seed=0)
    assert torch.allclose(found.log_prob, LOG_P, atol=1e-5)


def test_preflight_of_data_in_any_form() -> None:
    columns, batch = X.repeat(3, 1), {"x": X, "k": 2}
    assert pv.preflight(lambda x: model(x[0]), lambda x: guide(x[0]), columns).ok
    assert pv.preflight(lambda b: model(b["x"]), lambda b: guide(b["x"]), batch).ok
    assert pv.preflight(model, guide, {"x": X}).ok  # by keyword, as `fit` gives it
    assert pv.preflight(lambda: model(X), lambda: guide(X)).ok
    wrong: Any = lambda b: guide(b["x"][:3])  # noqa: E731
    report = pv.preflight(lambda b: model(b["x"]), wrong, batch, strict=False)
    assert "plate_size" in {issue.code for issue in report.issues}
    with pytest.raises(TypeError, match="needs a batch of data"):
        pv.preflight(lambda n: model(X), lambda n: guide(X), 3)


def test_every_question_takes_rows_out_of_containers() -> None:
    batch = {"x": X, "k": 2}
    call: Any = (lambda b: model(b["x"])), (lambda b: guide(b["x"])), batch
    plain: Any = model, guide, X
    assert torch.equal(pv.encode(call[1], batch, seed=0), pv.encode(guide, X, seed=0))
    assert torch.equal(pv.reconstruct(*call, seed=0), pv.reconstruct(*plain, seed=0))
    assert (
        pv.summarize(*call, num_samples=20, seed=0).to_dict() == pv.summarize(*plain, num_samples=20, seed=0).to_dict()
    )
    assert torch.equal(pv.bound(model, guide, {"x": X}, seed=0).elbo, pv.bound(*plain, seed=0).elbo)  # by keyword
    result = pv.log_marginal(*call, num_samples=20, seed=0)
    fitted: list[dict[str, Any]] = []

    def better(b: dict[str, Any]) -> Any:
        fitted.append(b)
        return call[1]

    mended = pv.repair(*call, result=result, how=better, rows="all", num_samples=20, seed=0)
    assert torch.allclose(mended.result.log_prob, LOG_P, atol=1e-5)
    assert fitted[0].keys() == batch.keys()
    with pytest.raises(TypeError, match="this question takes one datum from the others"):
        pv.encode(lambda: guide(X))
    with pytest.raises(TypeError, match="have all sites of the model in a plate of the part"):
        pv.posterior_samples(lambda b: model(X + 0 * b["x"].sum()), batch)
