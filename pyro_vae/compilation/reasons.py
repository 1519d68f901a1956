"""Why something could not be compiled, and what is to blame."""

from __future__ import annotations

import linecache
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pyro
import torch
from torch import nn
from torch.distributions import Distribution

__all__ = ["why_not_compiled"]

OURS = Path(__file__).parents[1]
TORCH, PYRO = Path(torch.__file__).parent, Path(pyro.__file__).parent
LIBRARIES = (OURS, TORCH, PYRO, Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("stdlib")))


def why_not_compiled(error: Exception) -> str:
    """One line: what the recorder, the compiler or the compiled code raised, and the line or object that led there."""
    text, name = str(error), type(error).__name__
    if "CxxCompiler" in name or "CppCompile" in name:
        return f"no working C++ compiler was found on this machine ({name})"
    blamed, where = _blamed(error)
    if "value out of a tracing tensor" in text or "data-dependent" in text.lower() or "DataDependent" in name:
        if blamed:
            return f"{blamed} looks at the values of tensors{where}"
        return f"the pair's control flow depends on the values of tensors (an if, .item() or float() of one){where}"
    if "DynamicOutputShape" in name:
        op = text.strip().partition("\n")[0]
        return f"the size of a tensor depends on the values of another, as in indexing with a mask ({op}){where}"
    first = next(iter(text.strip().splitlines()), "")
    return f"{blamed}: " * bool(blamed) + f"{name}: {first[:300]}{where}"


def _blamed(error: Exception) -> tuple[str, str]:
    """The innermost object of a library that the pair called, "" for its own code; and the pair's last line."""
    frames = list(_frames(error))
    own = [i for i, (frame, _) in enumerate(frames) if not _is_library(frame)]
    after = frames[own[-1] + 1 :] if own else frames
    where = ""
    if own:
        frame, line = frames[own[-1]]
        code = linecache.getline(frame.f_code.co_filename, line).strip()
        where = f", at line {line} of {Path(frame.f_code.co_filename).name}" + f": `{code}`" * bool(code)
    for frame, _ in reversed(after):
        owner = frame.f_locals.get("self")
        if isinstance(owner, Distribution):
            return f"the distribution {type(owner).__name__}", where
        if isinstance(owner, nn.Module) and not isinstance(owner, torch.fx.GraphModule):
            return f"the network {type(owner).__name__}", where
    for frame, _ in reversed(after):
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(PYRO):
            return f"Pyro's {frame.f_code.co_name} ({file.relative_to(PYRO.parent)})", where
    return "", where


def _frames(error: Exception) -> Iterator[tuple[FrameType, int]]:
    traceback: Any = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame, traceback.tb_lineno
        traceback = traceback.tb_next


def _is_library(frame: FrameType) -> bool:
    file = Path(frame.f_code.co_filename)
    return not file.is_absolute() or any(file.is_relative_to(folder) for folder in LIBRARIES)
