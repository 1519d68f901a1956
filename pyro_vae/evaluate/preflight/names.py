"""What the names in a pair's code give away: a variance given as a standard deviation, and the other way round."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

from torch import nn

from pyro_vae.evaluate.preflight.probe import Run
from pyro_vae.pair.arguments import unwrapped
from pyro_vae.pair.forms import innermost
from pyro_vae.pair.protocol import Program

__all__ = ["check_names"]

# families by the argument that is a standard deviation (its position and name), or a covariance
DEVIATIONS = dict.fromkeys(("Normal", "LogNormal", "HalfNormal"), "scale")
COVARIANCES = {"MultivariateNormal": "covariance_matrix"}
VARIANCE = re.compile(r"(^|_)(log_?)?(var|vars|variance|variances|cov|covar|covariance|sigma2|sigma_sq)$|logvar", re.I)
DEVIATION = re.compile(r"(^|_)(log_?)?(std|stds|stddev|sd|scale|scales|sigma|sigmas)$|logstd|logsd", re.I)
ROOTS = {"sqrt", "rsqrt", "cholesky"}


def check_names(run: Run, model: Program, guide: Program) -> None:
    """Warn where a variable with the name of a variance is a scale, or one of a scale is a covariance matrix."""
    for where, program in (("model", model), ("guide", guide)):
        for family, key, name, line in _suspects(program):
            what, other, fix = (
                ("a standard deviation", "a variance", "its square root, `(0.5 * log_var).exp()` or `var.sqrt()`")
                if family in DEVIATIONS
                else ("a covariance matrix", "a standard deviation", "`scale_tril=torch.diag_embed(scale)`")
            )
            text = f"the {where} gives `{name}`, by its name {other}, to {family} as its {key}, {what}, in "
            run.warn("variance_as_scale", None, f"{text}`{line}`: give it {fix}, if it is what its name says")


def _suspects(program: Program) -> Iterator[tuple[str, str, str, str]]:
    """Family, argument, variable and code of each such statement."""
    for call in (node for node in ast.walk(_tree(program)) if isinstance(node, ast.Call)):
        family = getattr(call.func, "attr", getattr(call.func, "id", ""))
        key = DEVIATIONS.get(family) or COVARIANCES.get(family)
        if key is None:
            continue
        position = 0 if family == "HalfNormal" else 1
        given = [keyword.value for keyword in call.keywords if keyword.arg == key] or call.args[position : position + 1]
        pattern = VARIANCE if family in DEVIATIONS else DEVIATION
        for value in given:
            if not _takes_a_power(value) and (name := next(_names(value, pattern), "")):
                yield family, key, name, ast.unparse(call)[:100]


def _names(value: ast.AST, pattern: re.Pattern[str]) -> Iterator[str]:
    for node in ast.walk(value):
        name = getattr(node, "id", getattr(node, "attr", ""))
        if isinstance(node, ast.Name | ast.Attribute) and pattern.search(name):
            yield name


def _takes_a_power(value: ast.AST) -> bool:
    """Whether an expression takes a root, a square or a half, or a product of two."""
    for node in ast.walk(value):
        if getattr(node, "attr", getattr(node, "id", "")) in {*ROOTS, "square", "pow", "softplus"}:
            return True
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.Mult | ast.Div | ast.MatMult):
            return True
    return False


def _tree(program: Any) -> ast.AST:
    """The code of a program of the user's; nothing where that is not to be had."""
    program = unwrapped(innermost(program))
    if isinstance(program, nn.Module):
        program = type(program).forward
    if (getattr(program, "__module__", "") or "").partition(".")[0] in ("pyro", "pyro_vae", "torch"):
        return ast.Module([], [])
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(program)))
    except (OSError, TypeError, SyntaxError, ValueError):  # a lambda in the middle of a line, a partial, no file
        return ast.Module([], [])
