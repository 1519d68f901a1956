"""Files of every kind that is read, changed in a structured way: each is refused with its name, or read as it says.

`python -m tests.helpers.fuzzing 10000` tries that many. Each is read in a process of its own, with a limit of memory
and of time, in which every write, every foreign program, module and connection is noticed.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
import yaml
from PIL import Image
from safetensors.torch import load, load_file
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.evaluate.quality.features import train_features
from pyro_vae.runs import list_runs, load_run
from pyro_vae.runs.run import check_resumable
from pyro_vae.support.files import checksum
from tests.helpers.paths import STORED
from tests.helpers.run_damage import reseal

__all__ = ["KINDS", "Kind", "fuzz"]

MEMORY, SECONDS = 2**29, 20
WORDS: tuple[Any, ...] = (
    *(None, True, -1, 0, 10**30, 2**40, 2**62, 1e308, "", "x" * 5000, "\x1b[2J", "\u202e", "nan", ".inf", "1:1:1:1"),
    *([], {}, [[]], [1, "a"], {"a": {"b": 1}}, "torch.nn.Linear", "pyro_vae.nets.MLP", "Linear", "tanh", "canary.sing"),
    *("canary.Song", "os.system", {"class_path": "canary.Song"}, "/etc/passwd", "../../x", "!!python/name:os.system"),
    {"class_path": "torch.nn.BatchNorm1d", "init_args": {"num_features": 2**33}},
    {"class_path": "torch.nn.Linear", "init_args": {"in_features": 2**20, "out_features": 2**20}},
    {"class_path": "pyro_vae.nets.MLP", "init_args": {"in_shape": 2**30, "hidden": [2**10], "out_shape": 4}},
)
NAMES = ("canary.Song", "canary.sing", "os.system", "torch.nn.BatchNorm1d", "pyro_vae.nets.MLP")
KEYS = ("more", "canary.sing", "class_path", "init_args", "dict_kwargs", "<<", "model.class_path", "config", "__path__")
SNIPPETS = (b"\x00", b"\xff\xfe", b"{", b"}", b"[" * 1000, b"&a ", b"*a", b"<<: ", b'"', b"\n", b"1" + b":1" * 9000)


def bend(content: bytes, rng: random.Random) -> bytes:
    """Change bytes anywhere."""
    if not content:
        return content
    a, b, c = sorted(rng.randrange(len(content)) for _ in range(3))
    how = rng.randrange(6)
    if how == 0:
        changed = bytearray(content)
        for _ in range(rng.randint(1, 8)):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if how == 1:
        return content[:a]
    if how == 2:
        return content[:a] + content[b:]
    if how == 3:
        return content[:a] + rng.choice((rng.choice(SNIPPETS), rng.randbytes(rng.randint(1, 64)))) + content[a:]
    if how == 4:
        return content[:a] + content[b:c] + content[a:b] + content[c:]
    return content[:a] + content[a:b] * rng.randint(2, 50) + content[b:]


def edit(value: Any, rng: random.Random) -> Any:
    """Change one value somewhere inside, or remove or add an entry."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        chance = rng.random()
        if chance < 0.15:
            del value[key]
        elif chance < 0.3:
            value[rng.choice(KEYS)] = rng.choice(WORDS)
        elif key == "class_path" and chance < 0.8:  # what is imported, if anything is
            value[key] = rng.choice(NAMES)
        else:
            value[key] = edit(value[key], rng)
        return value
    if isinstance(value, list) and value and rng.random() < 0.7:
        index = rng.randrange(len(value))
        value[index] = edit(value[index], rng)
        return value
    return rng.choice(WORDS)


def edit_json(content: bytes, rng: random.Random) -> bytes:
    """Change an entry of JSON."""
    return json.dumps(edit(json.loads(content), rng)).encode()


def edit_yaml(content: bytes, rng: random.Random) -> bytes:
    """Change an entry of YAML."""
    config = yaml.safe_load(content)
    if rng.random() < 0.6:
        config["model"] = edit(config["model"], rng)
    else:
        config = edit(config, rng)
    return yaml.safe_dump(json.loads(json.dumps(config)), allow_unicode=True).encode("utf-8", "surrogatepass")


def edit_tensors(content: bytes, rng: random.Random) -> bytes:
    """Change the JSON at the head of a safetensors file, or the length that it declares."""
    size = int.from_bytes(content[:8], "little")
    if rng.random() < 0.1:
        return rng.choice((0, 1, size - 1, size + 1, 2**40, 2**64 - 1)).to_bytes(8, "little") + content[8:]
    header = edit_json(content[8 : 8 + size], rng)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def edit_table(content: bytes, rng: random.Random) -> bytes:
    """Change a cell or a line of CSV."""
    lines = [line.split(b",") for line in content.split(b"\r\n")]
    line = rng.choice(lines)
    line[rng.randrange(len(line))] = rng.choice(
        (b"", b"nan", b"1e999", b"x", b'"', b"9" * 5000, b"-1", b"0x1", b"\xff")
    )
    if rng.random() < 0.3:
        lines.insert(rng.randrange(len(lines)), line * rng.randint(1, 3))
    return b"\r\n".join(b",".join(cells) for cells in lines)


def edit_archive(content: bytes, rng: random.Random) -> bytes:
    """Write an archive anew, in which a member has another name, header, method or content."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    index = rng.randrange(len(members))
    name, data = members[index]
    how = rng.randrange(5)
    if how == 0:
        name = rng.choice(("x", "../x.npy", "/tmp/x.npy", "x_test.npy", " ", "y.npy", "x.npy"))
    elif how == 1:
        end = 10 + int.from_bytes(data[8:10], "little")
        shape = rng.choice(
            ("(80, 1, 8, 8)", "(2**40,)", "(-1,)", "()", "(1099511627776, 8)", "(0, 8)", "__import__('os')")
        )
        kind = rng.choice(("<f4", ">f8", "|O", "|V99999", "<U8", "<c8", "|u1", "<i8", "[('a', '<f4')]"))
        header = f"{{'descr': '{kind}', 'fortran_order': {rng.choice(('True', 'False', '1'))}, 'shape': {shape}, }}"
        data = data[:8] + len(header).to_bytes(2, "little") + header.encode() + data[end:]
    elif how == 2:
        data = bend(data, rng)
    elif how == 3:
        members.append((rng.choice((name, "x", "x.npy")), bend(data, rng)))
    else:
        data = data + bytes(rng.choice((1, 2**22)))
    members[index] = (name, data)
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of two members of one name
        with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))) as new:
            for member in members:
                new.writestr(*member)
    return out.getvalue()


def other_image(content: bytes, rng: random.Random) -> bytes:
    """An image of another format, size or mode, whatever its name says, or a program for a printer."""
    if rng.random() < 0.15:
        return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) (w) file\n%%EOF\n"
    mode = rng.choice(("L", "RGB", "RGBA", "1", "P", "CMYK", "I", "F", "LA"))
    size = rng.choice(((8, 8), (1, 1), (8, 9), (3000, 3000)))
    out = io.BytesIO()
    with contextlib.suppress(OSError, KeyError, ValueError):
        Image.new(mode, size).save(out, rng.choice(("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM", "GIF", "ICO", "PCX")))
    return out.getvalue()


@dataclass(frozen=True)
class Kind:
    """A kind of file that is read.

    Attributes:
        file: Its name in the folder.
        edits: Ways to change it, besides those of its bytes.
        read: Reads it, given the folder; it raises, or checks that what was read is what the file says.
    """

    file: str
    edits: tuple[Callable[[bytes, random.Random], bytes], ...]
    read: Callable[[Path], Any]


def _read_run(folder: Path) -> None:
    run = folder / "runs" / "a"
    loaded = load_run(run)
    stored = load_file(run / "weights.safetensors")
    state = loaded.pair.state_dict()
    assert state.keys() == stored.keys(), "other tensors than those of the file"
    assert all(torch.equal(state[name], stored[name]) for name in stored), "other values than those of the file"
    assert all(bool(value.isfinite().all()) or not value.isnan().any() for value in stored.values()), "NaN"


def _read_config(folder: Path) -> None:
    """What `train --resume` reads before it runs anything, and the table of all runs, which never fails."""
    table = list_runs(folder / "runs")
    assert len(table.rows) <= 1
    assert "\x1b" not in repr(table), "a control character"
    check_resumable(folder / "runs" / "a")


def _read_data(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        data = pv.data.load(folder / name, valid=0, test=0)
        assert bool(data.train.x.isfinite().all()), "not finite"

    return read


class _Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2)

    def model(self, x: Tensor) -> None:
        pyro.module("net", self.net)

    def guide(self, x: Tensor) -> None:
        pass


def _read_pair(folder: Path) -> None:
    pair = _Pair()
    before = {name: value.clone() for name, value in pair.net.state_dict().items()}
    try:
        pv.load_pair(folder / "pair", pair.model, pair.guide)
    except ValueError:
        assert all(torch.equal(before[name], value) for name, value in pair.net.state_dict().items()), "changed"
        raise
    stored = list(load((folder / "pair.safetensors").read_bytes()).values())
    assert all(any(torch.equal(v, s) for s in stored) for v in pair.net.state_dict().values()), "other values"


def _features(folder: Path) -> Any:
    x = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return train_features(x, torch.arange(20) % 2, steps=1, batch_size=5, seed=0, path=folder / "features.safetensors")


def _read_features(folder: Path) -> None:
    net = _features(folder)
    assert all(bool(value.isfinite().all()) for value in net.state_dict().values()), "not finite"


def _train(folder: Path, **options: Any) -> pv.VAE:
    """A pair that has trained for as many epochs, with a checkpoint of each."""
    pyro.clear_param_store()
    x = (torch.rand(20, 4, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    torch.manual_seed(0)
    vae = pv.VAE(4, 2, hidden=(3,))
    settings: dict[str, Any] = {"batch_size": 10, "seed": 0, "progress": False, "compile": False, "preflight": False}
    pv.fit(vae.model, vae.guide, x, checkpoints=folder / "checkpoints", **settings, **options)
    return vae


def _read_checkpoint(folder: Path) -> None:
    """What `fit(resume=True)` reads; the length of the run is that of the checkpoint, so that no step is taken."""
    vae = _train(folder, epochs=1, resume=True)
    stored = load((folder / f"{CHECKPOINT}.safetensors").read_bytes())
    assert all(any(torch.equal(v, s) for s in stored.values()) for v in vae.state_dict().values()), "other values"


def _seal_checkpoint(folder: Path) -> None:
    """As `reseal`, of a checkpoint."""
    file = folder / f"{CHECKPOINT}.json"
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
        content = json.loads(file.read_bytes())
        del content["checksum"]
        content["sha256"] = checksum((folder / f"{CHECKPOINT}.safetensors").read_bytes())
        content["checksum"] = checksum(json.dumps(content, sort_keys=True).encode())
        file.write_text(json.dumps(content))


RUN, CHECKPOINT = "runs/a", "checkpoints/checkpoint-000000002"
KINDS = {
    "run: weights": Kind(f"{RUN}/weights.safetensors", (edit_tensors,), _read_run),
    "run: configuration": Kind(f"{RUN}/config.yaml", (edit_yaml,), _read_run),
    "run: record": Kind(f"{RUN}/run.json", (edit_json,), _read_run),
    "run: metrics": Kind(f"{RUN}/metrics.csv", (edit_table,), _read_run),
    "resume: configuration": Kind(f"{RUN}/config.yaml", (edit_yaml,), _read_config),
    "resume: record": Kind(f"{RUN}/run.json", (edit_json,), _read_config),
    "table: evaluation": Kind(f"{RUN}/evaluation-test.json", (edit_json,), _read_config),
    "table: metrics": Kind(f"{RUN}/metrics.csv", (edit_table,), _read_config),
    "checkpoint: values": Kind(f"{CHECKPOINT}.json", (edit_json,), _read_checkpoint),
    "checkpoint: tensors": Kind(f"{CHECKPOINT}.safetensors", (edit_tensors,), _read_checkpoint),
    "pair": Kind("pair.safetensors", (edit_tensors,), _read_pair),
    "features": Kind("features.safetensors", (edit_tensors,), _read_features),
    "data: npz": Kind("data.npz", (edit_archive,), _read_data("data.npz")),
    **{
        f"data: {ending}": Kind(f"images/2.{ending}", (other_image,), _read_data("images"))
        for ending in ("png", "jpg", "bmp", "tiff", "webp", "ppm")
    },
}


def _originals(folder: Path) -> None:
    """One valid file of each kind."""
    shutil.copytree(STORED / "format_2" / "vae", folder / RUN)
    (folder / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype="uint8")
    for i in range(2):
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
    for kind in KINDS.values():
        if kind.file.startswith("images/"):
            Image.fromarray(pixels).save(folder / kind.file)
    y = np.arange(80) % 2
    np.savez(folder / "data.npz", x=np.random.default_rng(0).random((80, 1, 8, 8)).astype("float32"), y=y)
    pair = _Pair()
    pv.save_pair(folder / "pair", pair.model, pair.guide)
    _features(folder)
    _train(folder, epochs=1)


def _watched(work: Path, outside: Path, read: Callable[[], Any], answer: int) -> None:
    """Read in this process, a child, and write what happened to a pipe. It never returns."""
    escapes: list[str] = []
    # a cache, which is written anew, and the checkpoints of a run that goes on
    own = (str(work / "features.safetensors"), ".partial-features", str(work / "checkpoints"))
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT

    def hook(event: str, args: tuple[Any, ...]) -> None:
        is_change = event in ("os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink")
        is_change |= event == "os.mkdir" and not os.path.isdir(args[0])
        if (
            event == "open"
            and isinstance(args[2], int)
            and args[2] & writing
            and isinstance(args[0], str | bytes | Path)
        ):
            is_change = os.fsdecode(args[0]) != os.devnull
        if is_change and not any(name in str(args[:2]) for name in own):
            escapes.append(f"{event} {args[:2]}"[:200])
        if event in (
            "subprocess.Popen",
            "os.system",
            "os.exec",
            "os.posix_spawn",
            "socket.connect",
            "pickle.find_class",
        ):
            escapes.append(f"{event} {args}"[:200])

    try:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(SECONDS)
        sys.addaudithook(hook)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read()
            said = "read"
        except AssertionError as error:
            said = f"silent: {error}"
        except (ValueError, TypeError, OSError) as error:
            text = str(error)
            is_named = str(work) in text and len(text) < 2000 and text.replace("\n", " ").isprintable()
            said = "refused" if is_named else f"obscure: {type(error).__name__}: {text[:300]!r}"
        except BaseException as error:
            said = f"obscure: {type(error).__name__}: {str(error)[:300]!r}"
        if escapes:
            said = f"outside: {escapes[:3]}"
        if (outside / "sang").exists() or "canary" in sys.modules:
            said = "outside: the canary was imported"
        os.write(answer, said.encode("utf-8", "replace")[:4000])
    finally:
        os._exit(0)


def _outcome(work: Path, outside: Path, read: Callable[[], Any]) -> str:
    receiving, answer = os.pipe()
    child = os.fork()
    if not child:
        _watched(work, outside, read, answer)
    os.close(answer)
    with os.fdopen(receiving, "rb") as pipe:
        said = pipe.read().decode()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == -signal.SIGALRM:
        return f"hang: more than {SECONDS} s"
    return said or f"died: exit status {status}"


def fuzz(total: int, folder: Path, *, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """Read `total` changed files, of all kinds in turn.

    Returns:
        tuple: The number of files of each kind by what came of them, and what was wrong with those that were neither
        read as they are nor refused by name.
    """
    rng = random.Random(seed)
    base, work = folder / "base", folder / "parent" / "work"
    base.mkdir()
    _originals(base)
    work.parent.mkdir()
    (folder / "canary.py").write_text(
        "import pathlib\npathlib.Path(__file__).with_name('sang').write_text('')\n"
        "class Song:\n    pass\n\ndef sing(*args):\n    return 1.0\n"
    )
    sys.path.insert(0, str(folder))
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    try:
        shutil.copytree(base, work)
        work.parent.chmod(0o555)
        for number in range(total):
            name = list(KINDS)[number % len(KINDS)]
            kind = KINDS[name]
            file = work / kind.file
            if number >= len(KINDS):  # the first of each kind is not changed
                ways = (bend, *kind.edits, *kind.edits)
                way = rng.choice(ways)
                file.write_bytes(way(file.read_bytes(), rng))
                if rng.random() < 0.7:
                    (_seal_checkpoint(work) if CHECKPOINT in kind.file else reseal(work / RUN))
            said = _outcome(work, folder, lambda kind=kind: kind.read(work))  # type: ignore[misc]
            for changed in (kind.file, f"{RUN}/run.json", "features.safetensors", f"{CHECKPOINT}.json"):
                (work / changed).write_bytes((base / changed).read_bytes())
            verdict = said.split(":")[0]
            counts[f"{name}: {verdict}"] += 1
            if verdict not in ("read", "refused") or (number < len(KINDS) and verdict != "read"):
                wrong.append(f"input {number}, {name}: {said}".replace(str(work), "FOLDER"))
            made = {path.name for path in (*folder.iterdir(), *work.parent.iterdir())}
            if made != {"base", "canary.py", "parent", "work"}:
                wrong.append(f"input {number}, {name}: outside: {sorted(made)}")
                break
    finally:
        work.parent.chmod(0o755)
        sys.path.remove(str(folder))
    return counts, wrong


def main(total: int, seed: int = 0) -> int:
    """Fuzz in rounds of 500, print what is wrong at once and a table at the end; returns the number of faults."""
    torch.set_num_threads(1)
    began, found, faults = time.monotonic(), Counter[str](), 0
    for start in range(0, total, 500):
        with tempfile.TemporaryDirectory() as place:
            counts, wrong = fuzz(min(500, total - start), Path(place), seed=seed + start)
        found += counts
        faults += len(wrong)
        print(*wrong, f"{sum(found.values())} files in {time.monotonic() - began:.0f} s, {faults} faults", sep="\n")
        sys.stdout.flush()
    for line, count in sorted(found.items()):
        print(f"{count:6d} {line}")
    return faults


if __name__ == "__main__":
    sys.exit(bool(main(*map(int, sys.argv[1:]))))
