"""`pyro-vae runs`: the table, its order, and two runs side by side."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest

from pyro_vae.cli import main
from pyro_vae.runs import compare_runs, list_runs, load_run, save_run
from tests.helpers.paths import STORED
from tests.helpers.run_damage import reseal, rewrite


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three runs, one of them deeper, another damaged, and other things."""
    runs = tmp_path / "runs"
    shutil.copytree(STORED / "format_2" / "vae", runs / "vae")
    shutil.copytree(STORED / "format_1" / "scattered", runs / "old" / "scattered")
    shutil.copytree(STORED / "format_2" / "vae", runs / "broken")
    (runs / "broken" / "config.yaml").write_text("[")
    (runs / "notes").mkdir()
    (runs / "notes" / "run.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    return runs


def test_rows(folder: Path) -> None:
    table = list_runs(folder)
    assert [row.name for row in table.rows] == ["vae", "broken", "old/scattered"]
    first, broken, old = table.rows
    history = load_run(folder / "vae").history
    assert (first.model, first.data, first.objective, first.epochs) == ("VAE", "digits", "mean_field", 2)
    assert (first.elbo, first.loss, first.seconds) == (history.valid_elbo[1], history.loss[1], history[1].seconds)
    assert first.log_prob == json.loads((folder / "vae" / "evaluation-test.json").read_text())["log_prob"]
    assert "broken/config.yaml is damaged" in broken.problem
    # its weights are those of epoch 1
    assert (old.model, old.started) == ("StoredPair", None)
    assert old.elbo == load_run(folder / "old" / "scattered", trust=True).history.valid_elbo[0]


def test_order(folder: Path) -> None:
    assert list_runs(folder, sort="elbo").rows[0].name == "vae"
    assert list_runs(folder, sort="loss").rows[0].name == "vae"
    assert [row.name for row in list_runs(folder, sort="log_prob").rows] == ["vae", "old/scattered", "broken"]
    assert [row.name for row in list_runs(folder, sort="name").rows] == ["broken", "old/scattered", "vae"]
    with pytest.raises(ValueError, match="cannot be sorted by 'elbos': use one of name, started, model"):
        list_runs(folder, sort="elbos")
    with pytest.raises(FileNotFoundError, match="no folder at"):
        list_runs(folder / "nowhere")


def test_a_run_with_other_evaluations(folder: Path) -> None:
    (folder / "vae" / "evaluation-test.json").unlink()
    assert list_runs(folder / "vae").rows[0].log_prob is None
    (folder / "vae" / "evaluation-test.json").write_text('{"log_prob": "a"}')
    assert "evaluation-test.json is damaged: its entry 'log_prob'" in list_runs(folder / "vae").rows[0].problem


def test_a_run_without_epochs(tmp_path: Path) -> None:
    old = load_run(STORED / "format_2" / "vae")
    old.history.epochs.clear()
    old.history.best = None
    save_run(tmp_path, old.pair, old.config, old.record["data"], old.history)
    (row,) = list_runs(tmp_path).rows
    assert (row.name, row.epochs, row.elbo, row.seconds) == (".", 0, None, None)
    assert " - " in repr(list_runs(tmp_path))


def test_the_table_says_what_was_measured(folder: Path) -> None:
    """A validation ELBO and log p(x) of test data stand beside each other, with their data and samples."""
    first = list_runs(folder).rows[0]
    tested = json.loads((folder / "vae" / "evaluation-test.json").read_text())
    assert (first.elbo_split, first.num_test_data, first.num_samples) == ("valid", 359, tested["num_samples"])
    shown = " ".join(repr(list_runs(folder)).split())
    assert all(word in shown for word in ("ELBO log p(x)", "(valid) (test)"))
    assert "-27.855 -27.316" in shown
    (folder / "vae" / "evaluation-test.json").write_text(json.dumps({**tested, "num_data": 10}))
    assert "-27.855 -27.316 (10 data)" in " ".join(repr(list_runs(folder / "vae")).split())
    (folder / "vae" / "evaluation-test.json").write_text('{"elbo": -3.0, "num_data": 359}')  # of a deterministic pair
    again = list_runs(folder / "vae").rows[0]
    assert (again.problem, again.log_prob, again.num_test_data) == ("", None, 359)


def test_unequal_protocols_are_not_subtracted(folder: Path) -> None:
    other = shutil.copytree(folder / "vae", folder / "other")
    full = json.loads((other / "evaluation-test.json").read_text())
    partial = {**full, "num_data": 10, "log_prob": -25.0}
    (other / "evaluation-test.json").write_text(json.dumps(partial))
    found = compare_runs(folder / "vae", other)
    assert found.results["log_prob"] == (full["log_prob"], -25.0)
    assert found.differences == {"elbo": 0.0, "log_prob": None, "loss": 0.0, "seconds": 0.0}
    assert "log_prob: not compared, num_data 359 and 10" in " ".join(repr(found).split())
    assert "elbo: split valid, num_data 144" in " ".join(repr(found).split())
    (other / "evaluation-test.json").write_text(json.dumps({**full, "num_samples": 1000, "log_prob": -25.0}))
    assert compare_runs(folder / "vae", other).differences["log_prob"] is None
    (other / "evaluation-test.json").write_text(json.dumps({**full, "log_prob": full["log_prob"] + 1}))
    assert compare_runs(folder / "vae", other).differences["log_prob"] == pytest.approx(1)
    rewrite(other / "run.json", lambda r: r.update(elbo="iwae"))
    reseal(other)
    assert compare_runs(folder / "vae", other).differences["loss"] is None  # of another objective


def test_saving(folder: Path, tmp_path: Path) -> None:
    table = list_runs(folder)
    assert json.loads(table.save(tmp_path / "a.json").read_text()) == {"runs": table.to_dicts()}
    rows = list(csv.DictReader(table.save(tmp_path / "a.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == [row.name for row in table.rows]
    comparison = compare_runs(folder / "vae", folder / "old" / "scattered")
    assert json.loads(comparison.save(tmp_path / "b.json").read_text())["results"]["elbo"][0] == table.rows[0].elbo
    assert len(comparison.save(tmp_path / "b.csv").read_text().splitlines()) == len(comparison.to_dicts()) + 1


def test_a_comparison(folder: Path) -> None:
    other = shutil.copytree(folder / "vae", folder / "other")
    rewrite(other / "config.yaml", lambda c: (c["model"]["init_args"].update(latent_dim=3), c.update(lr=0.5)))
    rewrite(other / "run.json", lambda r: r["versions"].update(torch="0.1"))
    reseal(other)
    found = compare_runs(folder / "vae", other)
    assert found.config == {"model.init_args.latent_dim": (2, 3), "lr": (0.001, 0.5)}
    assert found.environment == {"versions.torch": (load_run(folder / "vae").record["versions"]["torch"], "0.1")}
    assert found.results["elbo"][0] == found.results["elbo"][1]
    assert "+0.000" in repr(found)
    same = compare_runs(folder / "vae", folder / "vae")
    assert same.config == same.environment == {}
    assert "settings: no difference" in repr(same)
    with pytest.raises(ValueError, match=r"broken/config\.yaml is damaged"):
        compare_runs(folder / "vae", folder / "broken")


def test_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs"]) == 0
    out = capsys.readouterr().out
    assert [word in out for word in ("vae", "StoredPair", "-27.8", "cannot be read: runs/broken/config")] == [True] * 4
    assert main(["runs", "runs", "--compare", "runs/vae", "runs/old/scattered"]) == 0
    assert "model.init_args.latent_dim" in capsys.readouterr().out
    assert main(["runs", "runs/notes"]) == 0
    assert capsys.readouterr().out == "no runs in runs/notes\n"
    assert main(["runs", "nowhere"]) == 1
    assert "no folder at nowhere" in capsys.readouterr().err


def test_nothing_steers_the_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, change in (
        (folder / "vae" / "config.yaml", lambda c: c["model"].update(class_path="\x1b[31m.\x1b]0;owned\x07[bold]")),
        (folder / "vae" / "run.json", lambda r: r.update(elbo="\x1b[2J")),
    ):
        rewrite(path, change)
    reseal(folder / "vae")
    assert main(["runs"]) == 0
    assert main(["runs", "--compare", "runs/vae", "runs/old/scattered"]) == 0
    assert main(["evaluate", "runs/vae"]) == 1
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out + printed.err
    assert "\x07" not in printed.out + printed.err
    assert "[bold]" in printed.out


def test_the_current_folder_is_searched_for_modules_only_where_it_must(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger's run may hold a file named like a module that some library tries to import."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["runs"]) == 0
    assert main(["sample", "runs/vae", "--num", "2"]) == 0
    assert main(["train", "--resume", "runs/notes"]) == 1
    assert str(tmp_path) not in sys.path
    assert main(["sample", "runs/vae", "--num", "2", "--trust", "true"]) == 0
    assert sys.path[0] == str(tmp_path)
