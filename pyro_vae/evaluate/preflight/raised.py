"""Why a pair raised: the line of its code, the network, and what would mend it."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn
from torch import distributions as td

from pyro_vae.evaluate.preflight.inputs import named_arrays, named_inputs
from pyro_vae.evaluate.preflight.probe import Run, shape
from pyro_vae.evaluate.preflight.values import PYROS, describe_violation, no_distribution, violations
from pyro_vae.pair.device import networks_without_values
from pyro_vae.pair.networks import modules_of
from pyro_vae.pair.protocol import Program

__all__ = ["Raised", "check_devices", "line_of", "line_of_text"]

LIBRARIES = (str(Path(__file__).parents[2]), *(str(Path(str(p.__file__)).parent) for p in (torch, pyro, np)))
LONGEST = 600  # characters of an error that has no explanation: some print whole tensors


class Raised:
    """An error of a pair, explained.

    Args:
        where: What raised, in words.
        error: What it raised.
        model, guide: The pair.
        args, kwargs: Its arguments.
    """

    def __init__(
        self,
        where: str,
        error: Exception,
        model: Program,
        guide: Program,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> None:
        self.where, self.error = where, error
        self.program = guide if where == "the guide" else model
        self.nets = {id(part): name for name, part in named_parts(model, guide)}
        self.args, self.kwargs = args, kwargs
        self.arrays = list(named_arrays(named_inputs(args, kwargs)))

    def message(self, run: Run, *, chained: bool = True) -> str:
        """What raised, on what, where, and why; `chained`: it will be raised again, with the traceback."""
        shapes = ", ".join([shape(a) for a in self.args] + [f"{k}={shape(a)}" for k, a in self.kwargs.items()])
        sites, at = run.sites_of(self.where.removeprefix("the ")), self.statement()
        place = f", after its site {list(sites)[-1]!r}" if sites else ""
        place = f", at its site {at['name']!r}" if at else place
        head, reason = f"{self.where} raised {type(self.error).__name__} on ({shapes}){place}", self.reason(run)
        # an error that is raised with its own words comes with its traceback
        line = line_of(self.error.__traceback__) if reason or not chained else ""
        return f"{head}{line and f', in {line}'}: {reason or shortened(str(self.error))}"

    def reason(self, run: Run) -> str:
        """The explanation, empty if there is none."""
        explanations = (self.of_signature, self.of_sample, self.of_distribution, self.of_network, self.of_arrays)
        return self.of_value(run) or next((text for explain in explanations if (text := explain())), "")

    def statement(self) -> dict[str, Any] | None:
        """The `pyro.sample` statement that raised, as Pyro's message; None if it was none."""
        messages = (frame.f_locals.get("msg") for frame in self.frames())
        return next((m for m in messages if isinstance(m, dict) and m.get("type") == "sample" and "fn" in m), None)

    def of_value(self, run: Run) -> str:
        """Of a value that has no density because of its type."""
        for where, name, site in run.sites():
            value = site["value"]
            if self.where != f"the log-density of the {where}'s site {name!r}":
                continue
            if not isinstance(value, Tensor):
                return f"it observes a {type(value).__name__}, not a tensor: `obs=torch.as_tensor(x)`"
            if not value.is_floating_point():
                return f"it observes values of {value.dtype}: `obs=x.float()`"
            if "dtype" in str(self.error) or "int64" in str(self.error):
                return f"it observes values of {value.dtype}: `obs=x.long()` for indices of classes"
        return ""

    def of_sample(self) -> str:
        """Of a `pyro.sample` statement without a distribution of Pyro, or with a name that is taken."""
        at = self.statement()
        if at and (text := no_distribution(at["fn"])):
            return text
        found = re.search("'(.+)' object has no attribute 'to_event'", str(self.error))
        if found:
            return PYROS.format(found[1])
        taken = re.search("Multiple sample sites named '(.+)'", str(self.error))
        if taken:
            return f"two statements have the name {taken[1]!r}, plates included: give each a name of its own"
        return ""

    def of_signature(self) -> str:
        """Of a program that does not take the arguments."""
        if not isinstance(self.error, TypeError) or self.where not in ("the guide", "the model"):
            return ""
        try:
            signature = inspect.signature(self.program)
        except (TypeError, ValueError):
            return ""
        try:
            signature.bind(*self.args, **self.kwargs)
        except TypeError:
            given = [f"{len(self.args)} argument(s)", *(f"{key}=" for key in self.kwargs)]
            return (
                f"it takes {signature}, and both programs are called alike, with {' and '.join(given)}: let the "
                "model and the guide take the same arguments, `def guide(x, *args, **kwargs):`"
            )
        return ""

    def of_distribution(self) -> str:
        """Of a distribution that refuses its parameters."""
        if isinstance(self.error, torch.linalg.LinAlgError):
            fix = "give a `scale_tril=` with a positive diagonal, or add to the diagonal, `+ 1e-3 * torch.eye(D)`"
            return f"a covariance is not positive definite: {fix}"
        for frame in self.frames():
            fn, value = frame.f_locals.get("self"), frame.f_locals.get("value")
            if not isinstance(fn, td.Distribution) or not isinstance(value, Tensor):
                continue
            key, constraint = frame.f_locals.get("param"), frame.f_locals.get("constraint")
            if frame.f_code.co_name == "__init__" and isinstance(key, str) and constraint is not None:
                bad = violations(constraint, value)
                if bad is not None and bool(bad.any()):
                    return describe_violation(type(fn).__name__, key, value, bad, constraint)
        return ""

    def of_network(self) -> str:
        """Of a network that does not take its input."""
        called = [f for f in self.frames() if f.f_code.co_name == "_call_impl" and "args" in f.f_locals]
        if not called:
            return ""
        net, inputs = called[0].f_locals["self"], called[0].f_locals["args"]
        if not isinstance(net, nn.Module):
            return ""
        kind = type(net).__name__ if list(net.children()) else str(net)
        name = f"`{self.nets.get(id(net), type(net).__name__)}`, {kind},"
        for value in inputs:
            text = self.of_input(net, value)
            if text:
                return f"the network {name} {text}"
        return ""

    def of_input(self, net: nn.Module, value: Any) -> str:
        """Why a network would not take an input; empty if nothing is known against it."""
        weight = next(net.parameters(recurse=False), None)
        if isinstance(value, np.ndarray):
            return f"got a NumPy array{self.origin(value)}: `torch.as_tensor(x, dtype=torch.float32)`"
        if isinstance(value, list | tuple | dict):
            return (
                f"got a {type(value).__name__}, not a tensor: take the tensor out of it, or stack it, `torch.stack(x)`"
            )
        if not isinstance(value, Tensor) or weight is None:
            return ""
        if value.device != weight.device:
            return (
                f"is on {weight.device}, and its input of shape {shape(value)} on {value.device}"
                f"{self.origin(value)}: move both to one device, `x = x.to({str(weight.device)!r})`"
            )
        if isinstance(net, nn.Embedding):
            if value.is_floating_point():
                return f"needs whole numbers, and got {value.dtype}{self.origin(value)}: `x.long()`"
            return (
                f"has rows 0 to {net.num_embeddings - 1}, and got indices from {int(value.min())} to "
                f"{int(value.max())}{self.origin(value)}: give it more rows, or renumber them"
            )
        if value.dtype != weight.dtype:
            return (
                f"has weights of {weight.dtype}, and got {value.dtype}{self.origin(value)}: {dtype_fix(value, weight)}"
            )
        return of_features(net, value)

    def origin(self, value: Any) -> str:
        """The argument that a value is, or has its type from; empty if there is none."""
        for test in (lambda a: a is value, lambda a: a.dtype == value.dtype and a.shape[:1] == value.shape[:1]):
            found = next((name for name, a in self.arrays if test(a)), None)
            if found:
                return f", {found}"
        return ""

    def of_arrays(self) -> str:
        """Of arguments of another kind or type than the networks'."""
        others = [name for name, a in self.arrays if isinstance(a, np.ndarray)]
        others += [name for name, a in named_inputs(self.args, self.kwargs).items() if hasattr(a, "iloc")]
        raw = shortened(str(self.error))
        if others:
            how = (
                f"{others[0]} is no tensor: `torch.as_tensor(x, dtype=torch.float32)` (a DataFrame: of `x.to_numpy()`)"
            )
            return f"{raw}; {how}"
        if "dtype" in raw or "scalar type" in raw:
            types = ", ".join(f"{name} is {a.dtype}" for name, a in self.arrays)
            return f"{raw}; {types}: networks take `x.float()`, indices and classes `x.long()`"
        return ""

    def frames(self) -> Iterator[Any]:
        """The frames of the error, the innermost first."""
        return (frame for frame, _ in reversed(list(traceback.walk_tb(self.error.__traceback__))))


def of_features(net: nn.Module, value: Tensor) -> str:
    """Why a layer would not take a floating tensor of some shape."""
    came, rest = shape(value), value.shape[1:].numel() if value.dim() else 0
    if isinstance(net, nn.Linear) and (value.dim() == 0 or value.shape[-1] != net.in_features):
        if rest == net.in_features:
            return (
                f"takes {net.in_features} features, and got shape {came}: flatten each datum, `x.flatten(1)`, or load "
                "the data with `pv.data.load(..., flatten=True)`"
            )
        last = value.shape[-1] if value.dim() else 0
        sizes = f"make it `nn.Linear({last}, ...)`, or give it what it takes"
        return f"takes {net.in_features} features, and got {last}, shape {came}: {sizes}"
    if isinstance(net, nn.modules.conv._ConvNd):
        dims = len(net.kernel_size)
        if value.dim() not in (dims + 1, dims + 2) or value.shape[-dims - 1] != net.in_channels:
            sizes = "(N, C, H, W)" if dims == 2 else f"(N, C) and {dims} more dimensions"
            return (
                f"takes images of {net.in_channels} channel(s), {sizes}, and got shape {came}: `x.unsqueeze(1)` adds a "
                "channel, `x.unflatten(1, (C, H, W))` makes images of vectors"
            )
    features = getattr(net, "num_features", None)
    if isinstance(net, nn.modules.batchnorm._BatchNorm) and net.training and value.shape[:1] == (1,):
        return (
            f"normalizes over the batch, shape {came}, which a single datum does not allow: give it two or more (in "
            "training a batch_size that leaves no single datum for the last batch, or drop_last=True in a loader), or "
            "normalize each datum, `nn.LayerNorm`"
        )
    if features is not None and value.dim() > 1 and value.shape[1] != features:
        return f"normalizes {features} features, and got {value.shape[1]}, shape {came}"
    return ""


def dtype_fix(value: Tensor, weight: Tensor) -> str:
    """The code that gives an input the type of a weight."""
    if value.dtype == torch.uint8:
        return "`x.float() / 255` for images, else `x.float()`"
    convert = {torch.float32: "`x.float()`", torch.float64: "`x.double()`"}.get(weight.dtype, f"`x.to({weight.dtype})`")
    if value.is_floating_point():
        return f"convert the data, {convert}, or the network, `net.to({value.dtype})`"
    return f"convert the data, {convert}"


def line_of(trace: Any) -> str:
    """The innermost line of the pair's own code in a traceback, as "`code` (file, line)"; empty if there is none."""
    return innermost((f.filename, f.lineno or 0, f.line or "") for f in traceback.extract_tb(trace))


def line_of_text(trace: str) -> str:
    """The same for a traceback that was printed."""
    own = trace.rpartition(str(Path("preflight", "probe.py")))[2]
    found = re.findall(r'File "(.+?)", line (\d+), in .+\n +(.+)', own)
    return innermost((file, int(number), code) for file, number, code in found)


def innermost(lines: Iterable[tuple[str, int, str]]) -> str:
    """The last of some lines (file, number, code) that stands in no library."""
    own = [line for line in lines if not line[0].startswith(LIBRARIES)]
    if not own:
        return ""
    file, number, code = own[-1]
    return (
        f"`{shortened(code, 100)}` ({Path(file).name}, line {number})"
        if code
        else f"({Path(file).name}, line {number})"
    )


def named_parts(model: Program, guide: Program) -> Iterator[tuple[str, nn.Module]]:
    """The networks of a pair and their parts, as the code may call them."""
    for name, net in modules_of(model, guide).items():
        for key, part in net.named_modules():
            yield f"{name}.{key}" if key else name, part


def check_devices(model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse data or networks on the meta device, which has no values.

    Raises:
        ValueError: If there are any.
    """
    found = [name for name, a in named_arrays(named_inputs(args, kwargs)) if getattr(a, "is_meta", False)]
    found += [f"the network `{name}`" for name in networks_without_values(model, guide)]
    if found:
        device = next((str(a.device) for a in args if isinstance(a, Tensor) and not a.is_meta), "cpu")
        raise ValueError(
            f"{' and '.join(found)} is on the device 'meta', which has shapes and no values: make the data anew on "
            f"{device!r}, or `net.to_empty(device={device!r})` and initialize it"
        )


def shortened(text: str | None, longest: int = LONGEST) -> str:
    text = text or ""
    return text if len(text) <= longest else f"{text[:longest]} ..."
