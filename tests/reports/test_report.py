"""Reports: what stands on the page, for systems and pairs of one's own, and that a stranger cannot write in it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae.cli import main
from pyro_vae.reports.charts import bars, histograms, scatter
from pyro_vae.reports.differences import difference
from pyro_vae.reports.findings import findings_of
from pyro_vae.reports.gathering import Options, RunFacts, gather
from pyro_vae.reports.likeness import Observation, columns_of, kind_of_data
from pyro_vae.reports.markup import Markup, page, table, tag, text
from pyro_vae.reports.pictures import are_images, sheet
from pyro_vae.reports.reporting import Report
from pyro_vae.reports.training_curves import charts_of
from pyro_vae.runs import LoadedRun
from pyro_vae.training.history import Epoch, History

DIGITS = {"flatten": True, "binarize": "dynamic"}
FEW: dict[str, Any] = {"num_data": 40, "num_samples": 30, "num_simulations": 30, "seed": 0}


class Parsed(HTMLParser):
    """Tags, attributes and text of a page, and that each element ends where it should."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((name, dict(attributes)))
        if name not in ("meta", "link", "img", "br", "input"):
            self.open.append(name)

    def handle_startendtag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((name, dict(attributes)))

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    out = tmp_path_factory.mktemp("runs") / "vae"
    pyro.clear_param_store()
    sizes = {"latent_dim": 3, "hidden": (16,)}
    return pv.train(
        pv.VAE,
        "digits",
        init_args=sizes,
        data_args=DIGITS,
        out=out,
        epochs=3,
        lr=0.01,
        seed=0,
    )


@pytest.fixture(scope="module")
def made(run: LoadedRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    out = tmp_path_factory.mktemp("page") / "report.html"
    return pv.report(run, out, **FEW), out


class TestPage:
    def test_has_every_section_of_an_image_pair(self, made: tuple[Report, Path]) -> None:
        report, out = made
        parsed = Parsed(report.page)
        ids = {attributes["id"] for name, attributes in parsed.tags if name == "section"}
        assert ids == {
            *("findings", "numbers", "training", "likelihood", "reconstructions", "samples", "traversals", "codes"),
            *("latent", "calibration", "quality", "sites", "protocol"),
        }
        assert report.refusals == {"vae": {}}
        assert out.read_text() == report.page
        assert sum(name == "img" for name, _ in parsed.tags) == 3

    def test_has_the_protocol(self, made: tuple[Report, Path], run: LoadedRun) -> None:
        words = Parsed(made[0].page).text
        for word in ("dynamic", "359 test", torch.__version__, "mean_field", "seed of the run", "latent_dim 3"):
            assert word in words
        assert run.record["data"]["fingerprint"] in words

    def test_the_numbers_are_those_of_the_questions(self, made: tuple[Report, Path], run: LoadedRun) -> None:
        (row,) = made[0].to_dicts()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            x = run.data().test.head(40)
        elbo = pv.bound(run.model, run.guide, x, num_samples=4, seed=0)
        estimate = pv.log_marginal(run.model, run.guide, x, num_samples=30, seed=0)
        assert row["elbo"] == pytest.approx(elbo.mean)
        assert row["log_prob"] == pytest.approx(estimate.mean)
        assert row["log_prob_error"] == pytest.approx(estimate.mean_error)
        assert f"{elbo.mean:.2f}" in Parsed(made[0].page).text

    def test_loads_nothing_and_runs_only_its_own_script(self, made: tuple[Report, Path]) -> None:
        source = made[0].page
        outside = re.sub(r"<(script|style).*?</\1>", "", source, flags=re.DOTALL)
        assert not re.search(r"https?:|[\"'(]//|url\(|@import", outside)
        parsed = Parsed(source)
        policy = next(a["content"] for n, a in parsed.tags if n == "meta" and "http-equiv" in a)
        assert policy is not None
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert len(re.findall("sha256-", policy)) == 2
        handlers = [name for _, attributes in parsed.tags for name in attributes if name.startswith(("on", "style"))]
        assert not handlers

    def test_curves_are_the_history(self, run: LoadedRun) -> None:
        charts = charts_of([RunFacts("a", run)])
        assert [c["title"] for c in charts] == ["ELBO", "reconstruction E[log p(x|z)]", "KL(q(z|x) ‖ p(z))", "loss"]
        assert charts[0]["x"] == [1, 2, 3]
        for series, values in zip(charts[0]["series"], (run.history.train_elbo, run.history.valid_elbo), strict=True):
            assert series["values"] == pytest.approx(values, rel=1e-4)

    def test_a_result_prints_draws_and_saves(self, made: tuple[Report, Path], tmp_path: Path) -> None:
        report = made[0]
        assert "vae" in repr(report)
        assert report.plot().axes
        assert json.loads(report.save(tmp_path / "r.json").read_text())["runs"][0]["name"] == "vae"


class TestSeveral:
    def test_differences_are_paired(self, run: LoadedRun, tmp_path: Path) -> None:
        other = pv.train(
            pv.VAE,
            "digits",
            init_args={"latent_dim": 2, "hidden": (8,)},
            data_args=DIGITS,
            out=tmp_path / "other",
            epochs=1,
            seed=0,
        )
        options = Options(num_data=40, num_samples=30, num_simulations=10)
        one, two = (gather(r, n, options, trust=False, device="cpu") for r, n in ((run, "a"), (other, "b")))
        change = two["bound"].elbo.double() - one["bound"].elbo.double()
        found = difference(one, two, [one["bound"].elbo, two["bound"].elbo])
        assert found.mean == pytest.approx(float(change.mean()))
        assert found.error == pytest.approx(float(change.std()) / math.sqrt(40))
        words = Parsed(pv.report([run, other], num_data=20, num_samples=5, num_simulations=5).page).text
        assert "ELBO, paired difference" in words
        assert "not compared" not in words

    def test_other_data_and_other_measures_are_not_compared(self) -> None:
        x = torch.zeros(4, 2)

        def facts(data: Tensor, is_density: bool) -> RunFacts:
            made = RunFacts("a", None, args=(data,))  # type: ignore[arg-type]
            made.answers["observation"] = Observation(is_density, 2)
            return made

        values = [torch.zeros(4), torch.ones(4)]
        assert difference(facts(x, False), facts(x, False), values).mean == 1
        assert "other data" in difference(facts(x, False), facts(x + 1, False), values).reason
        assert "log-density" in difference(facts(x, False), facts(x, True), values).reason
        assert "each datum" in difference(facts(x, False), facts(x, False), [torch.zeros(1), torch.ones(1)]).reason


def _counts_pair() -> tuple[Any, Any]:
    decoder, encoder = torch.nn.Linear(2, 6), torch.nn.Linear(6, 4)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Poisson(decoder(z).clamp(-3, 3).exp()).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x.log1p()).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.clamp(-3, 3).exp()).to_event(1))

    return model, guide


class TestPairsOfOnesOwn:
    def test_counts(self, tmp_path: Path) -> None:
        x = torch.poisson(torch.full((80, 6), 3.0), generator=torch.Generator().manual_seed(0))
        run = pv.train(_counts_pair(), x, data_args={"test": 0.5}, out=tmp_path / "run", epochs=2, seed=0)
        report = pv.report(run, **FEW)
        words = Parsed(report.page).text
        assert "equal (Poisson)" in words
        assert "Kolmogorov" in words
        assert "Quality" not in words
        assert report.refusals["run"].keys() == {"quality"}

    def test_a_directory_of_functions_shows_what_is_recorded(self, tmp_path: Path) -> None:
        x = torch.poisson(torch.full((60, 6), 3.0), generator=torch.Generator().manual_seed(0))
        pv.train(_counts_pair(), x, out=tmp_path / "run", epochs=2, seed=0)
        report = pv.report(tmp_path / "run", **FEW)
        words = Parsed(report.page).text
        assert "could not be rebuilt" in words
        assert "Protocol" in words
        assert report.to_dicts()[0]["elbo"] is None

    def test_global_latents(self, tmp_path: Path) -> None:
        def model(x: Tensor) -> None:
            weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
                pyro.sample("x", dist.Normal(weight * z, 1.0), obs=x[:, 0])

        x = torch.randn(60, 1, generator=torch.Generator().manual_seed(0))
        run = pv.train(
            (model, pv.AmortizedGuide(model, x[:8])), x, data_args={"test": 0.5}, out=tmp_path / "run", epochs=1, seed=0
        )
        report = pv.report([run, run], **FEW)
        assert report.to_dicts()[0]["is_joint"]
        for words in (Parsed(report.page).text, Parsed(pv.report(run, **FEW).page).text):
            assert "nats for all data together" in words
            assert "log p(x), nats per datum" not in words

    def test_text(self, tmp_path: Path) -> None:
        vocabulary = pv.data.Vocabulary.from_sentences(["the <b>cat</b> sat .", "the dog ran ."])
        rows = vocabulary.encode(["the cat sat .", "the dog ran ."] * 20, length=9)
        numpy.savez(tmp_path / "verses.npz", x=rows.numpy())
        sizes = [f"--model.{name}={n}" for name, n in (("vocab_size", len(vocabulary)), ("length", 9), ("hidden", 8))]
        of_data = ["--data", str(tmp_path / "verses.npz"), "--tokens", "true", "--binarize", "none", "--test", "0.5"]
        out = ["--out", str(tmp_path / "run"), "--epochs", "1", "--num_samples", "5", "--elbo", "trace"]
        assert main(["train", "--model", "TextVAE", *sizes, *of_data, *out]) == 0
        report = pv.report(tmp_path / "run", text=vocabulary.decode, **FEW)
        assert "the cat sat ." in Parsed(report.page).text
        words = vocabulary.save(tmp_path / "words.txt")
        few = [f"--{name}={value}" for name, value in FEW.items()]
        page = tmp_path / "page.html"
        assert main(["report", str(tmp_path / "run"), "--vocabulary", str(words), "--out", str(page), *few]) == 0
        assert "the cat sat ." in Parsed(page.read_text()).text


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'\x1b[31m"


class TestStrangers:
    def test_every_text_is_escaped(self) -> None:
        for made in (text(EVIL), tag("p", EVIL), tag("p", title=EVIL), table([EVIL], [[EVIL, EVIL]])):
            parsed = Parsed(made)
            assert not {name for name, _ in parsed.tags} & {"script", "img"}
            assert "\x1b" not in made
        assert tag("p", Markup("<b>x</b>")) == "<p><b>x</b></p>"
        shown = page(EVIL, tag("p", EVIL), styles="p {}", script="1;", data={"x": EVIL})
        assert shown.count("<script") == 2
        assert "<img" not in shown

    def test_names_and_settings_of_a_run(self, run: LoadedRun) -> None:
        evil = LoadedRun(
            run.path.parent / EVIL.replace("/", "|"),
            run.pair,
            {**run.config, "lr_schedule": EVIL, "model": {**run.config["model"], "init_args": {EVIL: EVIL}}},
            {**run.record, "command": EVIL, "started": EVIL, "versions": {EVIL: EVIL}, "hardware": {"cpu": EVIL}},
            run.history,
            source=run.data(),
        )
        shown = pv.report([evil, run], num_data=10, num_samples=5, num_simulations=5).page
        parsed = Parsed(shown)
        assert shown.count("<script") == 2
        assert all(a["src"].startswith("data:") for n, a in parsed.tags if n == "img" and a["src"])
        assert "alert(1)" in parsed.text


class TestFindings:
    def facts(self, epochs: list[Epoch], **changes: Any) -> RunFacts:
        history = History(epochs, best=1, stopped=changes.pop("stopped", "finished"))
        files: Any = type("Files", (), {"history": history, "config": {"lr_schedule": "constant"}, "record": {}})
        return RunFacts("a", files)

    def epoch(self, i: int, train: float, valid: float, lr: float = 1e-3) -> Epoch:
        return Epoch(i, i, -train, train, valid, 0.0, 0.0, 1.0, lr, 1.0)

    def test_overfitting(self) -> None:
        found = findings_of(self.facts([self.epoch(1, -100, -100), self.epoch(2, -80, -110)]))
        assert [f.level for f in found] == ["warning"]
        assert "fell by 10.00 nats" in found[0].text
        assert "ended 30.00 nats above" in found[0].text

    def test_rollback(self) -> None:
        found = findings_of(self.facts([self.epoch(1, -100, -100), self.epoch(2, -99, -99.9, 5e-4)]))
        assert "rollback" in found[0].text

    def test_nothing(self) -> None:
        assert findings_of(self.facts([self.epoch(1, -100, -100), self.epoch(2, -99.9, -99.9)])) == []

    def test_non_finite_loss_comes_first(self) -> None:
        epochs = [self.epoch(1, -100, -100), self.epoch(2, -80, -110)]
        assert findings_of(self.facts(epochs, stopped="non-finite loss"))[0].level == "error"

    def test_collapse_is_named(self, run: LoadedRun) -> None:
        facts = gather(run, "a", Options(num_data=40, num_samples=10, num_simulations=5), trust=False, device="cpu")
        facts.answers["latent"] = replace(facts["latent"], kl=0.0)
        assert any("posterior collapse" in finding.text for finding in findings_of(facts))


class TestCharts:
    def test_kinds_of_data(self) -> None:
        assert kind_of_data(torch.rand(5, 64)) == "images"
        assert kind_of_data(torch.rand(5, 3, 8, 8)) == "images"
        assert kind_of_data(torch.tensor([[0.0, 3.0]])) == "counts"
        assert kind_of_data(torch.randn(5, 64)) == "columns"
        assert kind_of_data(torch.rand(5, 4)) == "columns"
        assert not are_images(torch.zeros(3, 64, dtype=torch.long))

    def test_the_distance_of_columns_is_that_of_scipy(self) -> None:
        from scipy.stats import ks_2samp

        a, b = torch.randn(50, 2), torch.randn(40, 2) * 2
        for column in columns_of(a, b):
            i = int(column.name.split()[1])
            assert column.distance == pytest.approx(ks_2samp(a[:, i], b[:, i]).statistic)

    def test_bars_have_lengths_in_proportion(self) -> None:
        found = Parsed(bars([("a", 2.0, 0.0, "b0"), ("b", 1.0, 0.1, "b0"), ("c", math.nan, 0.0, "b0")], "x", "y"))
        widths = [float(str(a["width"])) for n, a in found.tags if n == "rect"]
        assert widths[0] == pytest.approx(2 * widths[1], rel=0.01)
        assert len(widths) == 2

    def test_histograms_and_points_leave_out_what_is_not_finite(self) -> None:
        assert "NaN" not in histograms([torch.tensor([1.0, math.nan, math.inf, 2.0])], "x", "y").replace("nan", "NaN")
        points = torch.tensor([[1.0, 1.0], [math.nan, 1.0], [-1.0, 3.0]])
        assert scatter(points, [0, 0, 0], ["a"], ("x", "y"), "what", log=True).count("h0") == 1
        assert "no finite value" in histograms([torch.tensor([math.nan])], "x", "y")

    def test_a_sheet_is_a_picture_of_all_images(self) -> None:
        import base64
        import io

        from PIL import Image

        x = torch.rand(5, 1, 8, 6)
        image = Image.open(io.BytesIO(base64.b64decode(sheet(x, 3).partition(",")[2])))
        assert image.size == (3 * 7 - 1, 2 * 9 - 1)
        assert image.getpixel((7 + 2, 3)) == round(float(x[1, 0, 3, 2]) * 255)


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run directory"):
        pv.report(tmp_path / "none")
    with pytest.raises(ValueError, match="no run to report on"):
        pv.report([])
    with pytest.raises(ValueError, match=r"end in \.html"):
        pv.report(tmp_path, tmp_path / "x.pdf")
