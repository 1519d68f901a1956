"""The gradient of a run: what it depends on, what it does not reach, and where it is zero."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch import distributions as td

from pyro_vae.evaluate.preflight.probe import Run, base_distribution, distribution_parameters
from pyro_vae.pair.tracing import log_prob
from pyro_vae.support.random import fork_rng

__all__ = ["Densities", "check_gradients", "graph_leaves", "graph_nodes", "lost_gradients"]

CLASSES = (td.Bernoulli, td.Categorical, td.OneHotCategorical)

MOVE = 1e-3  # of the parameters, to see what depends on them


class Densities:
    """The log-densities of one run, by program, and the gradient of what they add up to.

    Attributes:
        log_probs: By "guide" and "model".
        gradients: The gradient of log p(x, z) - log q(z|x) with respect to each leaf that it depends on, by id.
        refused: Why autograd refused, None if it did not.
    """

    def __init__(self, log_probs: dict[str, list[Tensor]]) -> None:
        self.log_probs = log_probs
        self.gradients: dict[int, Tensor] = {}
        self.refused: RuntimeError | None = None

    def differentiate(self) -> None:
        """Take the gradient, once: it frees the graph, as a training step does."""
        terms = [value.sum() for value in self.log_probs["model"]] + [-value.sum() for value in self.log_probs["guide"]]
        total, leaves = sum(terms, start=torch.zeros(())), list(graph_leaves(terms).values())
        try:
            grads = torch.autograd.grad(total, leaves, allow_unused=True) if leaves else ()
        except RuntimeError as error:
            self.refused = error
            return
        self.gradients = {id(p): g for p, g in zip(leaves, grads, strict=True) if g is not None}

    @property
    def nonfinite(self) -> int:
        """The number of parameters whose gradient is not finite."""
        return sum(not bool(grad.isfinite().all()) for grad in self.gradients.values())


def check_gradients(run: Run, densities: Densities, line: Callable[[], str]) -> None:
    """Check for values that autograd needs and the pair has changed, and for networks whose gradient is exactly zero.

    Args:
        run: The run.
        densities: Its log-densities, differentiated.
        line: Looks for the line of code whose value autograd needs.
    """
    error = densities.refused
    # arguments that were changed have their values back, which is a change, too
    if error is not None and "modified by an inplace operation" in str(error) and not run.changed:
        found = line() or str(error).partition(": ")[2].partition(". Hint")[0]
        text = (
            f"the pair changes a value in place that autograd still needs, from {found}: write `h = h + 1` in place of "
        )
        run.error("inplace_value", None, f"{text}`h += 1` or `h.add_(1)`")
    zero: dict[str, list[bool]] = defaultdict(list)
    for name, p in run.params.trained.items():
        if id(p) in densities.gradients and "$$$" in name:
            zero[name.partition("$$$")[0]].append(not bool(densities.gradients[id(p)].any()))
    # probabilities of a trained classifier may be exactly one for a few data
    has_classes = any(isinstance(base_distribution(q), CLASSES) for q, _ in run.latents().values())
    for module, flags in zero.items():
        if all(flags) and not has_classes:
            text = (
                f"the gradient of all {len(flags)} parameters of the network {module!r} is exactly zero, so training "
            )
            text += (
                "cannot change it: look for `.round()`, `.sign()`, `argmax` or a comparison behind it, a `clamp` or a "
            )
            run.warn("zero_gradient", None, f"{text}ReLU that is off for all data, or a product with 0")


def graph_leaves(tensors: list[Tensor]) -> dict[int, Tensor]:
    """The leaves of the autograd graph of the tensors, by id."""
    leaves = {id(t): t for t in tensors if t.is_leaf and t.requires_grad}
    variables = (getattr(node, "variable", None) for node in graph_nodes(tensors))
    return leaves | {id(variable): variable for variable in variables if isinstance(variable, Tensor)}


def graph_nodes(tensors: list[Tensor]) -> set[Any]:
    """The nodes of the autograd graph of the tensors."""
    todo: list[Any] = [t.grad_fn for t in tensors if t.grad_fn is not None]
    seen = set(todo)
    while todo:
        new = {following for following, _ in todo.pop().next_functions if following is not None} - seen
        seen |= new
        todo += new
    return seen


def lost_gradients(run: Run, again: Callable[[], Run]) -> dict[str, str]:
    """Parameters of distributions that follow from trained weights, but carry no gradient to them: by site, in words.

    Args:
        run: The run.
        again: Runs the pair again with the same noise and the same latents.
    """
    silent = dict(without_gradient(run))
    trained = [p for p in run.params.trained.values() if p.requires_grad and p.is_leaf and p.is_floating_point()]
    if not silent or not trained:
        return {}
    silent = {key: value for key, value in silent.items() if not is_optimal(run, *key[:2], value)}
    with moved(trained):
        found = changed(silent, again())
    if found:  # running averages change from run to run by themselves
        found -= changed(silent, again())
    lost: dict[tuple[str, str], list[str]] = defaultdict(list)
    for where, name, key in sorted(found):
        lost[where, name].append(key)
    return {name: f"{' and '.join(keys)} of the {where}'s site {name!r}" for (where, name), keys in lost.items()}


def changed(before: dict[tuple[str, str, str], Tensor], run: Run) -> set[tuple[str, str, str]]:
    """Which parameters without a gradient have other values in another run."""
    after = {} if run.raised else dict(without_gradient(run))
    same = {key: after[key] for key, value in before.items() if key in after and after[key].shape == value.shape}
    return {key for key, value in same.items() if not torch.allclose(before[key], value, 1e-6, 1e-9, True)}


def without_gradient(run: Run) -> Iterator[tuple[tuple[str, str, str], Tensor]]:
    """The floating parameters of the sites' distributions that carry no gradient, by program, site and name."""
    for where, name, site in run.sites():
        for key, value in distribution_parameters(site["fn"]):
            if value.is_floating_point() and value.numel() and not value.requires_grad:
                yield (where, name, key), value


def is_optimal(run: Run, where: str, name: str, value: Tensor) -> bool:
    """Whether a parameter maximizes the density of what its site observes, so that its gradient is zero anyway."""
    site = run.sites_of(where)[name]
    if not site["is_observed"] or not value.is_leaf:
        return False
    with torch.enable_grad():
        value.requires_grad_(True)
        try:
            (grad,) = torch.autograd.grad(log_prob(name, site).sum(), value, allow_unused=True)
        except Exception:  # no density, or none that can be differentiated
            return False
        finally:
            value.requires_grad_(False)
    if grad is None:
        return False
    repeated = [d for d, stride in enumerate(value.stride()) if stride == 0]  # one number, expanded
    total = grad.sum(repeated) if repeated else grad
    return bool((total.abs().sum() <= 1e-3 * grad.abs().sum()).all())


@contextmanager
def moved(parameters: list[Tensor]) -> Iterator[None]:
    """A context in which the parameters have slightly other values."""
    before = [p.detach().clone() for p in parameters]
    with torch.no_grad(), fork_rng(0):
        for p in parameters:
            p.add_(MOVE * (p.abs() + 0.1) * torch.randn_like(p))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, before, strict=True):
                p.copy_(value)
