"""Hundreds of changed run directories: a clear error or exactly the stored weights, and never foreign code."""

from __future__ import annotations

import copy
import json
import random
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load, load_file

from pyro_vae.cli import main
from pyro_vae.runs import list_runs, load_run
from tests.helpers.paths import STORED
from tests.helpers.run_damage import reseal

NAMES = ("config.yaml", "run.json", "weights.safetensors", "metrics.csv")
MUTATIONS = 600

# What a careless or hostile hand writes where something else was.
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 10**30, 2**40, 1e308, "", "x" * 5000, "\x1b[2J", "é\ud7ff", "nan", ".inf", "1.5", "../../x"),
    *([], {}, [[]], [1, "a"], {"a": {"b": 1}}, "torch.nn.Linear", "pyro_vae.nets.MLP", "Linear", "tanh"),
)
HOSTILE: tuple[Any, ...] = (
    *("canary", "canary.Song", "canary.sing", "os.system", "pyro_vae.runs.building", ["canary.sing"]),
    "{class_path: canary.Song}",
    {"class_path": "canary.Song"},
    {"class_path": "pyro_vae.nets.MLP", "init_args": {"in_shape": "canary.sing"}},
    {"class_path": "torch.nn.Identity", "init_args": {}, "dict_kwargs": {"x": "canary.sing"}},
    {"class_path": "pyro_vae.VAE", "init_args": {"hidden": [2**31], "encoder": "canary.sing"}},
)
SNIPPETS = (
    b"\x00",
    b"\xff\xfe",
    b"{",
    b"}",
    b"[" * 100,
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!python/name:os.system ",
    b'"',
    b"\n",
)


def _flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def _drop(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    return content[:start] + content[start + rng.randint(1, 64) :]


def _insert(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    return content[:start] + rng.choice((rng.choice(SNIPPETS), rng.randbytes(rng.randint(1, 64)))) + content[start:]


def _swap(content: bytes, rng: random.Random) -> bytes:
    a, b, c = sorted(rng.randrange(len(content)) for _ in range(3))
    return content[:a] + content[b:c] + content[a:b] + content[c:]


def _lines(content: bytes, rng: random.Random) -> bytes:
    lines = content.splitlines(keepends=True)
    line = rng.choice(lines)
    rng.choice((lines.remove, lambda x: lines.insert(rng.randrange(len(lines)), x)))(line)
    return b"".join(lines)


BYTES = (_flip, _cut, _drop, _insert, _swap, _lines)


def _edit(value: Any, rng: random.Random) -> Any:
    """Change one value somewhere inside, or remove or add an entry."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        chance = rng.random()
        if chance < 0.15:
            del value[key]
        elif chance < 0.3:
            value[rng.choice(("more", "canary.sing", "class_path", "init_args", "dict_kwargs", "<<"))] = _new(rng)
        else:
            value[key] = _edit(value[key], rng)
        return value
    if isinstance(value, list) and value and rng.random() < 0.7:
        index = rng.randrange(len(value))
        value[index] = _edit(value[index], rng)
        return value
    return _new(rng)


def _new(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(HOSTILE if rng.random() < 0.5 else VALUES))


def _header(content: bytes, rng: random.Random) -> bytes:
    """Change the JSON at the head of a safetensors file."""
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(_edit(json.loads(content[8 : 8 + size]), rng)).encode()
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def _structure(name: str, content: bytes, rng: random.Random) -> bytes:
    if name == "config.yaml":
        config = yaml.safe_load(content)
        if rng.random() < 0.7:  # most settings are never used; those of the model are
            config["model"] = _edit(config["model"], rng)
        else:
            config = _edit(config, rng)
        return yaml.safe_dump(config, allow_unicode=True).encode("utf-8", "surrogatepass")
    if name == "run.json":
        return json.dumps(_edit(json.loads(content), rng)).encode()
    return _header(content, rng) if name == "weights.safetensors" else _lines(content, rng)


def _mutate(run: Path, original: dict[str, bytes], rng: random.Random) -> str:
    """Change a run; returns what was done."""
    for path in run.iterdir():
        path.unlink()
    for name, content in original.items():
        (run / name).write_bytes(content)
    name = rng.choice(NAMES)
    file, content = run / name, original[name]
    chance = rng.random()
    if chance < 0.03:
        what = "deleted"
        file.unlink()
    elif chance < 0.06:
        what = "emptied"
        file.write_bytes(b"")
    elif chance < 0.09:
        other = rng.choice(NAMES)
        what = f"replaced by {other}"
        file.write_bytes(original[other])
    elif chance < 0.5:
        how: Callable[[bytes, random.Random], bytes] = rng.choice(BYTES)
        what = how.__name__
        file.write_bytes(how(content, rng))
    else:
        what = "structure"
        file.write_bytes(_structure(name, content, rng))
    if rng.random() < 0.6:
        what += ", resealed"
        reseal(run)
    return f"{name} {what}"


def _canary(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module that can be imported; returns the file that is there once it was."""
    (folder / "canary.py").write_text(
        "import pathlib\npathlib.Path(__file__).with_name('sang').write_text('')\n"
        "class Song:\n    pass\n\ndef sing(*args):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(folder)
    return folder / "sang"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["format_1", "format_2"])
def test_changed_run_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    sang = _canary(tmp_path, monkeypatch)
    run = tmp_path / "runs" / "mutant"
    run.mkdir(parents=True)
    original = {name: (STORED / form / "vae" / name).read_bytes() for name in NAMES}
    rng = random.Random(form)
    loaded = refused = untouched = 0
    for number in range(MUTATIONS // 2):
        what = _mutate(run, original, rng)
        place = f"mutation {number} of {form}: {what}"
        state = torch.get_rng_state()
        try:
            pair = load_run(run).pair
        except (ValueError, OSError) as error:  # FileNotFoundError among them
            message = str(error)
            assert str(run) in message, f"{place}: {message}"
            assert len(message) < 2000, place
            refused += 1
        except BaseException as error:
            raise AssertionError(f"{place}: {type(error).__name__}: {error}") from error
        else:
            stored = load_file(run / "weights.safetensors")
            assert pair.state_dict().keys() == stored.keys(), place
            assert all(torch.equal(v, stored[k]) for k, v in pair.state_dict().items()), place
            assert not any(bool(v.isnan().any()) for v in stored.values()), place
            if form == "format_2" and "resealed" not in what:  # the checksums then let nothing through
                intact = load(original["weights.safetensors"])
                assert all(torch.equal(v, intact[k]) for k, v in stored.items()), place
                changed = [n for n in NAMES if (run / n).read_bytes() != original[n]]
                # JSON written otherwise can say the same
                assert changed in ([], ["run.json"]), place
            loaded += 1
            untouched += all((run / n).read_bytes() == c for n, c in original.items())
        assert torch.equal(torch.get_rng_state(), state), place
        assert not sang.exists(), place
        assert "canary" not in sys.modules, place
        if number % 5 == 0:  # a table never fails, whatever lies in the folder
            rows = list_runs("runs").rows
            assert len(rows) <= 1, place
            if number % 50 == 0:
                assert main(["runs"]) == 0, place
                assert "\x1b" not in capsys.readouterr().out, place
    assert loaded + refused == MUTATIONS // 2
    assert refused > 150
    assert loaded - untouched > 5  # settings that are allowed to change come through


def test_the_unchanged_runs_are_loaded(tmp_path: Path) -> None:
    for form in ("format_1", "format_2"):
        assert load_run(shutil.copytree(STORED / form / "vae", tmp_path / form)).pair.latent_dim == 2


@pytest.mark.slow
def test_the_changes_would_find_a_hole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the look at the names, some of them have the canary imported."""
    monkeypatch.setattr("pyro_vae.runs.run.check_names", lambda *_: None)
    sang = _canary(tmp_path, monkeypatch)
    run = tmp_path / "mutant"
    run.mkdir()
    original = {name: (STORED / "format_1" / "vae" / name).read_bytes() for name in NAMES}
    rng = random.Random(0)
    for _ in range(MUTATIONS // 2):
        _mutate(run, original, rng)
        with suppress(ValueError, OSError):
            load_run(run)
        if sang.exists():
            break
    sys.modules.pop("canary", None)
    assert sang.exists()
