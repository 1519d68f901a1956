"""Calls in the form of version 0.1 before all questions had one form: accepted with a warning, removed in 0.2."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

from pyro_vae.evaluate.marginal.methods import resolve_method
from pyro_vae.evaluate.marginal.result import LogMarginal

__all__ = ["accepts_earlier_form"]

Function = TypeVar("Function", bound=Callable[..., Any])
Call = tuple[list[Any], dict[str, Any]]  # positional arguments and keywords, which are changed in place


def accepts_earlier_form(question: Function) -> Function:
    """Let a question accept the earlier form of its calls; each use issues a `FutureWarning` with the new form."""
    translate = _TRANSLATIONS[question.__name__]

    @functools.wraps(question)
    def call(*args: Any, **keywords: Any) -> Any:
        positional = list(args)
        for change in translate((positional, keywords)):
            warnings.warn(
                f"{question.__name__}: {change}; the earlier form is removed in version 0.2",
                FutureWarning,
                stacklevel=2,
            )
        return question(*positional, **keywords)

    return cast(Function, call)


def _renamed(**names: str) -> Callable[[Call], Iterable[str]]:
    def translate(call: Call) -> Iterable[str]:
        _, keywords = call
        for old, new in names.items():
            if old in keywords:
                keywords[new] = keywords.pop(old)
                yield f"{old}= is now {new}="

    return translate


def _compare_elbos(call: Call) -> Iterable[str]:
    positional, keywords = call
    yield from _renamed(reference_samples="num_samples")(call)
    if len(positional) == 4 and isinstance(positional[3], list | tuple | Mapping) and "estimators" not in keywords:
        keywords["estimators"] = positional.pop()
        yield "estimators are now a keyword, estimators=[...]"
    if isinstance(keywords.get("args"), tuple):
        positional += keywords.pop("args")
        yield "args=(...) now follow x, as in all questions"


def _fit_local(call: Call) -> Iterable[str]:
    positional, keywords = call
    second = positional[1] if len(positional) > 1 else None
    if isinstance(second, str | Mapping) and "family" not in keywords:
        keywords["family"], start = second, keywords.pop("start", "prior")
        positional[1] = None if start == "prior" else start
        yield "the form is now fit_local(model, guide or None to start from, x, family=...)"


def _repair(call: Call) -> Iterable[str]:
    positional, keywords = call
    if len(positional) > 2 and isinstance(positional[2], LogMarginal):
        keywords["result"] = positional.pop(2)
        yield "the form is now repair(model, guide, x, result=...)"


def _inference_gaps(call: Call) -> Iterable[str]:
    _, keywords = call
    if isinstance(keywords.get("ais"), bool):
        keywords.setdefault("method", "ais" if keywords.pop("ais") else None)
        yield "ais=True is now method='ais'"


def _log_marginal(call: Call) -> Iterable[str]:
    """Move options of the method from the call to the method; others stay in the call, which refuses them."""
    _, keywords = call
    chosen = keywords.get("method", "importance")
    if not isinstance(chosen, str):
        return
    method = resolve_method(chosen)
    given = {name: keywords.pop(name) for name in vars(method) if name != "proposal" and name in keywords}
    if given:
        kind = type(method)
        keywords["method"] = kind(**{**vars(method), **given})
        written = ", ".join(f"{name}={value!r}" for name, value in given.items())
        yield f"options of a method are now passed to it, method=pv.{kind.__name__}({written})"


_TRANSLATIONS: dict[str, Callable[[Call], Iterable[str]]] = {
    "bound": _renamed(num_particles="num_samples"),
    "compare_elbos": _compare_elbos,
    "fit_local": _fit_local,
    "impute": _renamed(num_draws="num_imputations"),
    "inference_gaps": _inference_gaps,
    "log_marginal": _log_marginal,
    "repair": _repair,
    "sample_quality": _renamed(neighbours="neighbors"),
    "summarize": _renamed(num_particles="num_elbo_samples"),
}
