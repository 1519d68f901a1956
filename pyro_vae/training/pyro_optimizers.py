"""Optimizers of Pyro, which have a torch optimizer for each parameter, with updates that take a few calls in all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any
from weakref import WeakKeyDictionary

import pyro
import torch
from pyro.optim import PyroOptim
from pyro.optim.clipped_adam import ClippedAdam
from pyro.optim.lr_scheduler import PyroLRScheduler
from pyro.optim.optim import _load_state_dict
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adam import adam

__all__ = ["MergedOptimizer", "step_scheduler"]

FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad)
_OTHERS = ("Adadelta", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop")
MERGED = (*FUSED, *(getattr(torch.optim, name) for name in _OTHERS))  # each parameter is updated by itself
_IGNORED = ("params", "initial_lr")  # options that no update depends on

# parameters that have had a gradient: Pyro's later steps update them along zero, for example with their momentum
_trained: WeakKeyDictionary[PyroOptim, set[Tensor]] = WeakKeyDictionary()


class MergedOptimizer(Optimizer):
    """The torch optimizers that a `PyroOptim` has for its parameters, as one optimizer with parameter groups.

    The `PyroOptim` holds the state: its optimizers are made by its own rules, and are what `get_state`, `set_state`,
    `save`, `load` and the steps of a scheduler see. They share their groups and their state with this object, which
    updates all parameters with equal options in one call. Several SVIs may use the same `PyroOptim`.

    The updates are those of Pyro up to rounding, for the optimizers of `torch.optim` and `ClippedAdam`. Other
    optimizers update each parameter by themselves, as in Pyro.
    """

    def __init__(self, optim: PyroOptim) -> None:
        super().__init__([{"params": []}], {})
        self.pyro: Any = optim
        self.param_groups: list[dict[str, Any]] = []
        self.state: Any = _States(self)
        self.optimizers: dict[Tensor, Optimizer] = {}
        self._params: list[Tensor] = []  # of the next step
        self._kinds: dict[type, Optimizer] = {}
        self._layout: Any = None  # what the groups of `_kinds` were made for

    def add(self, params: Iterable[Tensor]) -> None:
        """Find or make the optimizers of parameters, with the state that waits for them."""
        self.optimizers.update((param, self._optimizer_of(param)) for param in params)
        self.param_groups = [optimizer.param_groups[0] for optimizer in self.optimizers.values()]

    def update(self, registered: list[Tensor]) -> None:
        """Update those of the registered parameters that have a gradient, or have had one."""
        trained = _trained.setdefault(self.pyro, set())
        for param in registered:
            if param.grad is None and param in trained:
                param.grad = torch.zeros_like(param)
        self._params = [param for param in registered if param.grad is not None]
        trained.update(self._params)
        self.step()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the parameters of the last `update`."""
        if type(self.pyro).__call__ not in (PyroOptim.__call__, PyroLRScheduler.__call__):
            self.pyro(self._params)  # a class of the user's own
            return
        self.add(self._params)
        together: dict[type, list[Tensor]] = {}
        for param in self._params:
            if (clip := self.pyro.grad_clip[param]) is not None:
                clip(param)
            optimizer: Any = self.optimizers[param]
            kind = type(optimizer) if _can_merge(optimizer, param) else object
            together.setdefault(kind, []).append(param)
            optimizer._opt_called = True  # which a scheduler looks at
        for kind, params in together.items():
            self._step(kind, params)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refused, as the state is that of the `PyroOptim`."""
        raise TypeError("the state of an optimizer of Pyro is loaded with its own set_state() or load()")

    def scheduler_states(self, keys: dict[int, str]) -> dict[str, Any]:
        """The numbers in the schedulers' states, by the keys of the parameters' ids, ready for JSON."""
        found = {keys[id(p)]: self.pyro.optim_objs.get(p) for p in self.optimizers}
        states = {key: s.state_dict() for key, s in found.items() if hasattr(s, "optimizer")}
        return {key: {k: v for k, v in state.items() if _is_plain(v)} for key, state in states.items()}

    def load_scheduler_states(self, states: dict[str, Any], params: Mapping[str, Tensor]) -> None:
        """Restore `scheduler_states`."""
        for key, state in states.items():
            scheduler = self.pyro.optim_objs[params[key]]
            scheduler.load_state_dict({**scheduler.state_dict(), **state})

    def _optimizer_of(self, param: Tensor) -> Optimizer:
        owner = self.pyro
        if param not in owner.optim_objs:
            made = owner.optim_objs[param] = owner._get_optim(param)
            owner.grad_clip[param] = owner._get_grad_clip(param)
            waiting = owner._state_waiting_to_be_consumed.pop(_name(param), None)
            if waiting is not None:
                _load_state_dict(made, waiting)
        found = owner.optim_objs[param]
        optimizer: Optimizer = getattr(found, "optimizer", found)
        return optimizer

    def _step(self, kind: type, params: list[Tensor]) -> None:
        if kind is object:
            for param in params:
                self.optimizers[param].step()
        elif kind is ClippedAdam:
            _clipped_adam([self.optimizers[param] for param in params], params)
        else:
            self._merged(kind, params).step()

    def _merged(self, kind: type, params: list[Tensor]) -> Optimizer:
        """One optimizer of a kind for parameters, which shares the state of their own."""
        merged: Any = self._kinds.get(kind)
        if merged is None:
            merged = self._kinds[kind] = kind([{"params": []}])
        layout = [(param, *_options(self.optimizers[param], param)) for param in params]
        if layout != self._layout:
            groups: dict[Any, dict[str, Any]] = {}
            for param, *options in layout:
                group = self.optimizers[param].param_groups[0]
                fused = {"fused": True, "foreach": None} if _can_fuse(kind, group, param) else {}
                groups.setdefault(tuple(options), {**group, **fused, "params": []})["params"].append(param)
            merged.param_groups, self._layout = list(groups.values()), layout
        for param in params:
            merged.state[param] = self.optimizers[param].state[param]
        return merged


class _States(MutableMapping[Tensor, Any]):
    """The state of all parameters, each of which its own optimizer holds."""

    def __init__(self, merged: MergedOptimizer) -> None:
        self._merged = merged

    def __getitem__(self, param: Tensor) -> Any:
        return self._merged.optimizers[param].state[param]

    def __setitem__(self, param: Tensor, state: Any) -> None:
        self._merged.optimizers[param].state[param] = state
        if state:
            _trained.setdefault(self._merged.pyro, set()).add(param)

    def __delitem__(self, param: Tensor) -> None:
        del self._merged.optimizers[param].state[param]

    def __iter__(self) -> Iterator[Tensor]:
        return (p for p, optimizer in self._merged.optimizers.items() if p in optimizer.state)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def step_scheduler(optim: PyroOptim | None, loss: float) -> None:
    """Step a scheduler of Pyro; `loss` is what `ReduceLROnPlateau` looks at."""
    if isinstance(optim, PyroLRScheduler):
        plateau = optim.pt_scheduler_constructor is torch.optim.lr_scheduler.ReduceLROnPlateau
        optim.step(loss) if plateau else optim.step()


def _name(param: Tensor) -> str | None:
    return pyro.get_param_store().param_name(param)


def _is_plain(value: Any) -> bool:
    items = value if isinstance(value, list | tuple) else [value]
    return all(v is None or isinstance(v, bool | int | float | str) for v in items)


def _can_merge(optimizer: Any, param: Tensor) -> bool:
    """Whether the update of a parameter by its optimizer is known here, and nobody watches it."""
    hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    if hooks or len(optimizer.param_groups) != 1 or param.is_complex() or param.layout != torch.strided:
        return False
    if type(optimizer) is ClippedAdam:
        return param.is_floating_point() and not optimizer.param_groups[0]["centered_variance"]
    return type(optimizer) in MERGED


def _can_fuse(kind: type, group: dict[str, Any], param: Tensor) -> bool:
    excluded = group.get("foreach") or group.get("differentiable") or group.get("fused") is False
    return kind in FUSED and not excluded and param.is_floating_point() and param.device.type in ("cpu", "cuda")


def _options(optimizer: Optimizer, param: Tensor) -> Iterator[Any]:
    """What parameters with a common group must have in common."""
    yield param.dtype
    yield param.device
    for name, value in optimizer.param_groups[0].items():
        if name not in _IGNORED:
            yield id(value) if isinstance(value, Tensor) else tuple(value) if isinstance(value, list) else value


def _clipped_adam(optimizers: list[Any], params: list[Tensor]) -> None:
    """The steps of Pyro's `ClippedAdam`: its decay and clipping, then fused Adam.

    It adds epsilon to the root of the second moment before the correction for the bias, Adam does after it; so Adam's
    epsilon is larger by that correction.
    """
    groups: dict[Any, list[Tensor]] = {}
    states: dict[Tensor, Any] = {}
    for optimizer, param in zip(optimizers, params, strict=True):
        group, state = optimizer.param_groups[0], optimizer.state[param]
        group["lr"] *= group["lrd"]
        assert param.grad is not None
        param.grad.clamp_(-group["clip_norm"], group["clip_norm"])
        if not state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(param.grad), "exp_avg_sq": torch.zeros_like(param.grad)}
        options = group["lr"], *group["betas"], group["eps"], group["weight_decay"], state["step"]
        state["step"] += 1
        states[param] = state
        groups.setdefault((*options, param.dtype, param.device), []).append(param)
    for (lr, beta1, beta2, eps, weight_decay, step, _, device), members in groups.items():
        adam(
            members,
            [p.grad for p in members if p.grad is not None],
            [states[p]["exp_avg"] for p in members],
            [states[p]["exp_avg_sq"] for p in members],
            [],
            list(torch.full((len(members),), float(step), device=device).unbind()),
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=lr,
            weight_decay=weight_decay,
            eps=eps / math.sqrt(1 - beta2 ** (step + 1)),
            maximize=False,
        )
