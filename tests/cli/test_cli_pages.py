"""`pyro-vae report`, `train --report` and `explore`: what they write and print, and one line for each mistake."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest

from pyro_vae.cli import main
from pyro_vae.reports.serving import Server

QUICK = ["--model.hidden", "[8]", "--epochs", "1", "--num_samples", "5"]
FEW = ["--num_data", "20", "--num_samples", "5", "--num_simulations", "5"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a report, not to be changed."""
    path = tmp_path_factory.mktemp("runs") / "trained"
    assert main(["train", *QUICK, "--report", "true", "--out", str(path)]) == 0
    return path


def test_train_writes_a_report(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "<h1>trained</h1>" in page
    assert "report" not in (run / "config.yaml").read_text()


def test_report(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "both.html"
    assert main(["report", str(run), str(run), "--out", str(out), *FEW]) == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    assert printed.splitlines()[-1] == str(out)
    assert "report of 2 runs" in printed
    assert "2 runs compared" in out.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["report", "none"], "pyro-vae report: no run directory at none\n"),
        (["report", "none", "--out", "page.pdf"], "must end in .html, got 'page.pdf'\n"),
        (["report"], 'Key "runs" is required'),
        (["explore", "none"], "pyro-vae explore: no run directory at none\n"),
        (["explore", "{run}", "--port", "70000"], "port must be at most 65535, got 70000\n"),
    ],
)
def test_mistakes(run: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main([word.format(run=run) for word in words]) in (1, 2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    if "required" not in message:
        assert message in error


def test_explore_serves_until_it_is_interrupted(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(server: Server) -> None:
        with urllib.request.urlopen(server.url, timeout=20) as reply:
            assert b"pyro_vae explore" in reply.read()
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "wait", interrupted)
    assert main(["explore", str(run), "--browser", "false", "--num_data", "30"]) == 0
    assert capsys.readouterr().out.startswith("http://127.0.0.1:")
