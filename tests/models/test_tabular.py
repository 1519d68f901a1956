"""TabularVAE: log p of the known values against closed forms and quadrature, units, imputation, runs of a CSV file."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.cli import main
from pyro_vae.conditionals import CELL_LIKELIHOODS, ColumnLikelihood
from pyro_vae.data import Column
from pyro_vae.runs.reading import LIMITS
from pyro_vae.runs.record import seal

MIXED = [
    Column("a", "real", loc=50.0, scale=4.0),
    Column("b", "categorical", levels=("x", "y", "z"), shares=(0.5, 0.2, 0.3)),
    Column("c", "count", loc=1.5, scale=0.7, mean=4.0),
    Column("d", "binary", levels=(False, True), shares=(0.8, 0.2)),
    Column("e", "positive", loc=2.0, scale=1.5),
    Column("f", "ordinal", levels=("lo", "mid", "hi", "top"), shares=(0.1, 0.4, 0.3, 0.2)),
    Column("g", "categorical", levels=("u", "v"), shares=(0.5, 0.5)),
    Column("h", "ordinal", levels=(1, 2), shares=(0.7, 0.3)),
]


def made(columns: list[Column], latent_dim: int, **options: Any) -> Any:
    """A TabularVAE away from where it begins."""
    torch.manual_seed(3)
    vae = pv.TabularVAE(columns, latent_dim, **{"hidden": (), **options}).double()
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    return vae


def wide(vae: Any) -> Any:
    """The pair with a guide as wide as the prior, for which importance sampling needs no trained encoder."""
    with torch.no_grad():
        vae.encoder.final.weight.zero_()
        vae.encoder.final.bias.zero_()
    return vae


def rows_of(vae: Any, n: int) -> tuple[Tensor, Tensor]:
    x = pv.sample(vae.model, n, seed=1)
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(2)) < 0.6
    return x.masked_fill(~mask, torch.nan), mask


def test_linear_gaussian_columns_against_factor_analysis() -> None:
    """Of the known values of each row, in the units of the table, and the conditional means of the others."""
    columns = [Column(f"c{j}", "real", loc=10.0 * j, scale=2.0**j) for j in range(5)]
    vae = wide(made(columns, 2))
    x, mask = rows_of(vae, 8)
    mask[0], mask[1] = True, False
    x[0] = torch.tensor([0.5, 11.0, 18.0, 33.0, 50.0])
    found = pv.log_marginal(vae.model, vae.guide, x, mask, num_samples=10_000, seed=0)
    filled = pv.impute(vae.model, vae.guide, x, mask, num_samples=10_000, seed=0)
    unit = torch.tensor([c.scale for c in columns]).double()
    final, noise = vae.decoder.final, vae.likelihood.groups["normal"].log_scale.detach().exp()
    mean = torch.tensor([c.loc for c in columns]).double() + unit * final.bias.detach()
    weight = unit.unsqueeze(1) * final.weight.detach()
    covariance = weight @ weight.T + torch.diag((unit * noise).square())
    for i in range(len(x)):
        o, m = mask[i].nonzero().squeeze(1), (~mask[i]).nonzero().squeeze(1)
        exact = torch.zeros(()).double()
        center = mean[m]
        spread = covariance[m][:, m]
        if len(o):
            known: Any = torch.distributions.MultivariateNormal(mean[o], covariance[o][:, o])
            exact = known.log_prob(x[i, o])
            gain = covariance[m][:, o] @ covariance[o][:, o].inverse()
            center, spread = mean[m] + gain @ (x[i, o] - mean[o]), spread - gain @ covariance[o][:, m]
        assert abs(found.log_prob[i] - exact) < 5 * found.std_error[i] + 1e-9
        assert filled.mean is not None
        error = spread.diagonal().sqrt() * 5 / filled.ess[i].sqrt()
        assert ((filled.mean[i, m] - center).abs() < error).all()
        assert torch.equal(filled.mean[i, o], x[i, o])
    assert found.std_error.max() < 0.1


@pytest.mark.parametrize("likelihoods", [{}, {"a": "student_t", "c": "zero_inflated_poisson"}])
def test_mixed_columns_against_quadrature(likelihoods: dict[str, str]) -> None:
    """log p of the known values and the probability of each missing level, over a latent of one dimension."""
    vae = wide(made(MIXED, 1, likelihoods=likelihoods))
    x, mask = rows_of(vae, 10)
    z = torch.linspace(-9, 9, 1001).double().reshape(-1, 1, 1)
    with torch.no_grad():
        typical = torch.where(mask, x, vae.typical)
        cells = vae.likelihood.elements(vae.decoder(z)).log_prob(typical)  # (grid, N, C)
        prior = vae.prior_distribution().log_prob(z)
        joint = prior + torch.where(mask, cells, 0).sum(-1)
    exact = joint.logsumexp(0) + torch.log(z[1] - z[0]).squeeze()
    found = pv.log_marginal(vae.model, vae.guide, x, mask, num_samples=1000, seed=0)
    assert ((found.log_prob - exact).abs() < 5 * found.std_error + 1e-9).all()
    assert found.std_error.max() < 0.2
    filled = pv.impute(vae.model, vae.guide, x, mask=mask, num_samples=1000, num_imputations=50, seed=0)
    weight = joint.softmax(0)
    assert filled.mean is not None
    for j, column in enumerate(MIXED):
        if not column.num_levels:
            continue
        masses = []
        for level in range(column.num_levels):
            values = typical.clone()
            values[:, j] = level
            with torch.no_grad():
                mass = vae.likelihood.elements(vae.decoder(z)).log_prob(values)[..., j].exp()
            masses.append((weight * mass).sum(0))
        probs = torch.stack(masses, -1)
        torch.testing.assert_close(probs.sum(-1), torch.ones(10).double())
        missing = ~mask[:, j]
        top = probs[missing].sort(-1, descending=True).values
        clear = top[:, 0] - top[:, 1] > 0.2
        assert torch.equal(filled.mean[missing, j][clear], probs[missing].argmax(-1).double()[clear])
        torch.testing.assert_close(filled.scale[missing, j], 1 - top[:, 0], rtol=0, atol=0.1)  # type: ignore[index]
        assert set(filled.draws[..., j].unique().tolist()) <= set(map(float, range(column.num_levels)))


def test_units_of_the_table_are_units_of_the_density() -> None:
    """In meters in place of kilometers log p is lower by log 1000 for each known value, exactly."""
    x = torch.randn(20).double() * 3 + 7
    fine = [Column("a", "real", loc=7.0, scale=3.0), Column("b", "positive", loc=7.0, scale=3.0)]
    factor = torch.tensor(1000.0).double()
    coarse = [
        Column("a", "real", loc=7000.0, scale=3000.0),
        Column("b", "positive", loc=7.0 + factor.log().item(), scale=3.0),
    ]
    rows = torch.stack([x, x.exp()], 1)
    mask = torch.rand(rows.shape) < 0.7
    one, other = (made(columns, 2, hidden=(8,)) for columns in (fine, coarse))
    first = pv.log_marginal(one.model, one.guide, rows, mask, num_samples=20, seed=0).log_prob
    second = pv.log_marginal(other.model, other.guide, factor * rows, mask, num_samples=20, seed=0).log_prob
    torch.testing.assert_close(first - second, mask.sum(1) * factor.log(), rtol=0, atol=1e-4)


def test_missing_values_and_their_number_do_not_matter() -> None:
    vae = made(MIXED, 2, hidden=(8,))
    x, mask = rows_of(vae, 6)
    other = torch.where(mask, x, 1e6)
    values = [pv.bound(vae.model, vae.guide, rows, mask, seed=0).elbo for rows in (x, other)]
    torch.testing.assert_close(*values, rtol=0, atol=0)
    pv.elbo.make("iwae", num_particles=3).loss_and_grads(vae.model, vae.guide, x, mask)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in vae.parameters())
    complete = rows_of(vae, 6)[0].nan_to_num(1.0)
    same = [pv.bound(vae.model, vae.guide, complete, *rest, seed=0).mean for rest in ((), (complete == complete,))]
    assert same[0] == same[1]


def test_each_likelihood_begins_at_the_column_and_sums_to_one() -> None:
    for column in MIXED:
        for name, scale in itertools.product(CELL_LIKELIHOODS[column.type], ("column", "cell")):
            p = ColumnLikelihood([column], {column.name: name}, scale).double()  # type: ignore[arg-type]
            d = p.elements(torch.zeros(p.param_shape).double())
            if column.num_levels:
                mass = d.log_prob(torch.arange(column.num_levels).double().unsqueeze(-1)).exp().squeeze(-1)
                torch.testing.assert_close(mass, torch.tensor(column.shares).double(), rtol=1e-5, atol=1e-6)
                assert p.support.check(torch.tensor([float(column.num_levels - 1)])).all()
                assert not p.support.check(torch.tensor([float(column.num_levels)])).any()
            elif column.type == "count":
                mass = d.log_prob(torch.arange(3000).double().unsqueeze(-1)).logsumexp(0)
                assert mass.item() == pytest.approx(0, abs=1e-6)
            elif column.type == "real":
                assert d.mean.item() == pytest.approx(column.loc)
            else:
                assert d.sample((20_000,)).log().mean().item() == pytest.approx(column.loc, abs=0.1)


def test_it_learns_and_its_imputation_beats_the_mean() -> None:
    torch.manual_seed(0)
    z = torch.randn(300)
    source = {
        "a": 3 * z + torch.randn(300),
        "b": torch.poisson((1 + 0.8 * z).exp()),
        "c": torch.where(z + 0.3 * torch.randn(300) > 0, 1, 0),
        "d": -z + 0.5 * torch.randn(300),
    }
    known = {name: torch.rand(300) < 0.7 for name in source}
    table = pv.data.table(source, mask=known, types={"b": "count"}, valid=0, test=0)
    vae = pv.TabularVAE(table.columns, latent_dim=2, hidden=(16,))
    pv.fit(vae.model, vae.guide, table, epochs=15, batch_size=50, lr=0.02, compile=False, seed=0)
    x, mask = table.train.args()
    truth = torch.stack([values.float() for values in source.values()], 1)
    filled = pv.impute(vae.model, vae.guide, x, mask, num_samples=100, seed=0).mean
    assert filled is not None
    ours = pv.evaluate.imputation_scores(truth, filled, mask, table.columns)
    mean = pv.evaluate.impute_without_model(x, mask, table.columns, method="mean")
    theirs = pv.evaluate.imputation_scores(truth, mean, mask, table.columns)
    assert ours.nrmse < 0.85 * theirs.nrmse
    assert ours.accuracy > theirs.accuracy + 0.1
    assert pv.sample(vae.model, 3).shape == (3, 4)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="columns is missing: pass those of a table"):
        pv.TabularVAE()
    with pytest.raises(ValueError, match=r"likelihoods\['a'\] is 'poisson', but the column is real: expected normal"):
        pv.TabularVAE(MIXED, likelihoods={"a": "poisson"})
    with pytest.raises(ValueError, match="likelihoods names 'q', but the columns are a, b"):
        pv.TabularVAE(MIXED, likelihoods={"q": "normal"})
    vae = pv.TabularVAE(MIXED)
    with pytest.raises(ValueError, match=r"expected a mask of booleans of the shape of x, \(2, 8\)"):
        vae.model(torch.ones(2, 8), torch.ones(2, 8))
    with pytest.raises(TypeError, match="got a Table: of data that pv"):
        pv.bound(vae.model, vae.guide, pv.data.table({"a": [1.5, 2.0]}, valid=0, test=0))
    with pytest.raises(ValueError, match="column 'x' of type 'binary' has 3 levels"):
        Column("x", "binary", levels=(1, 2, 3), shares=(0.2, 0.3, 0.5))
    with pytest.raises(ValueError, match=r"shares that sum to 1.8: expected each level once, and shares that sum to 1"):
        Column("x", "binary", levels=(1, 2), shares=(0.9, 0.9))
    with pytest.raises(ValueError, match="expected each level once"):
        Column("x", "ordinal", levels=("a", "b", "a"), shares=(0.25, 0.5, 0.25))
    with pytest.raises(TypeError, match="the entries of a column are not of their types"):
        pv.TabularVAE([{"name": "a", "type": "real", "loc": "0"}])


def test_a_csv_file_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Train, load, evaluate, sample, report; the run keeps types and scaling."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    z = torch.randn(60).tolist()
    with open("rows.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["height", "size", "visits", "score"])
        for i, v in enumerate(z):
            writer.writerow(["" if i % 7 == 0 else round(170 + 8 * v, 2), "SML"[i % 3], int(abs(3 * v)), v])
    options = ["--model.latent_dim", "2", "--model.hidden", "[8]", "--epochs", "1", "--num_samples", "5"]
    train = ["train", "--model", "TabularVAE", "--data", "rows.csv", "--types.size", "[S, M, L]", "--out", "run"]
    assert main([*train, *options, "--compile", "false"]) == 0
    assert "size     ordinal" in capsys.readouterr().out
    run = pv.load_run("run")
    assert [column.levels for column in run.pair.columns] == [(), ("S", "M", "L"), (), ()]
    table: Any = run.data()
    assert tuple(table.columns) == run.pair.columns
    assert main(["evaluate", "run", "--num_samples", "5"]) == 0
    assert main(["sample", "run", "--num", "4"]) == 0
    with open("run/samples.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert set(rows[0]) == {"height", "size", "visits", "score"}
    assert {row["size"] for row in rows} <= set("SML")
    assert not list(Path("run").glob("samples*.png"))  # four columns are no image of 2 x 2
    assert main(["quality", "run"]) == 1
    assert "the data are a table, not images" in capsys.readouterr().err
    facts = pv.report("run", num_data=12, num_samples=5, num_simulations=10, seed=0)
    assert "height" in facts.page
    assert main(["train", "--model", "TabularVAE", "--out", "other", "--data", "digits"]) == 1
    assert "columns is missing" in capsys.readouterr().err


def test_a_record_has_room_for_many_columns_and_levels() -> None:
    """What `pv.data.table` accepts can be read back from a run."""
    levels = tuple(f"{i:0100}" for i in range(10_000))
    column = Column("names", "categorical", levels=levels, shares=(1 / 10_000,) * 10_000)
    assert 10 * len(seal({"data": {"columns": [column.to_dict()]}})) < LIMITS["run.json"]
