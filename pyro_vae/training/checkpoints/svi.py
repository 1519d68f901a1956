"""The state of a training: parameters, buffers, optimizers, objective, and what has been compiled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import pyro
import pyro.infer
import torch
from torch import Tensor, nn

from pyro_vae.elbo import PhasedELBO
from pyro_vae.pair.names import without_count
from pyro_vae.pair.networks import modules_of
from pyro_vae.support.snapshots import Snapshot, prefixed, stripped
from pyro_vae.training.pyro_optimizers import MergedOptimizer
from pyro_vae.training.svi import SVI

__all__ = ["load_svi_state", "objective_values", "svi_state"]


def svi_state(svi: SVI) -> Snapshot:
    """Everything that the next step of `svi` depends on, except its arguments and the random generators."""
    params = _by_key(svi.params.items())
    tensors = prefixed("param", params) | prefixed("buffer", _buffers(svi))
    keys = {id(p): key for key, p in params.items()}
    optimizers = []
    for i, optimizer in enumerate(svi.optimizers):
        numbers: dict[str, dict[str, Any]] = {}
        for param, state in optimizer.state.items():
            key = keys[id(param)]
            tensors |= prefixed(f"optimizer{i}/{key}", {name: v for name, v in state.items() if isinstance(v, Tensor)})
            numbers[key] = {name: v for name, v in state.items() if not isinstance(v, Tensor)}
        groups = [
            {
                "params": [keys[id(p)] for p in group["params"]],
                **{k: group[k] for k in ("lr", "initial_lr") if k in group},
            }
            for group in optimizer.param_groups
        ]
        optimizers.append({"state": numbers, "groups": groups, **_schedulers(optimizer, keys)})
    tensors |= prefixed("objective", _objective_tensors(svi.objective))
    if isinstance(svi.objective, PhasedELBO):
        tensors |= prefixed("phases", svi.objective.state_dict())
    values = {
        "params": list(params),
        "optimizers": optimizers,
        "objective": objective_values(svi.objective),
        "scaler": svi.scaler.state_dict(),
        "compiled": svi.compiled_state(),
    }
    return Snapshot(tensors, values)


def load_svi_state(svi: SVI, state: Snapshot, args: tuple[Any, ...], *, another_process: bool = True) -> None:
    """Restore an `svi_state`; the pair is run on `args` to find its parameters.

    `another_process`: the state may be that of another process, so also restore which steps are compiled. Otherwise it
    is an earlier one of this `svi`: the present graphs stay, and so do parameters that have been found since.

    Raises:
        ValueError: If the pair, the optimizer or the objective are not those of the state. The parameters of the pair
            are unchanged then.
    """
    found = svi.prepare(*args)
    named = {**found, **_unused_params(svi, found)}
    known = _by_key(named.items())
    saved = stripped("param", state.tensors)
    for key, value in saved.items():
        if key not in known or known[key].shape != value.shape:
            present = f"one of shape {tuple(known[key].shape)}" if key in known else "none of that name"
            raise ValueError(
                f"the checkpoint has a parameter {key!r} of shape {tuple(value.shape)}, the pair has {present}: build "
                "the pair as it was when training began"
            )
    new = [key for key in _by_key(found.items()) if key not in saved]
    if new and another_process:
        raise ValueError(
            f"the pair has a parameter {new[0]!r} that the checkpoint does not have: build the pair as it was when "
            "training began"
        )
    buffers = _buffers(svi)
    saved_buffers = stripped("buffer", state.tensors)
    if {k: v.shape for k, v in buffers.items()} != {k: v.shape for k, v in saved_buffers.items()}:
        raise ValueError(
            "the buffers of the networks have other names or shapes than those in the checkpoint: build the pair as it "
            "was when training began"
        )
    # in the order of the state, since the norm of the gradient is summed in that order
    names = {id(param): name for name, param in named.items()}
    svi.adopt({names[id(known[key])]: known[key] for key in state.values["params"]})
    with torch.no_grad():
        for key, value in saved.items():
            known[key].copy_(value)
        for key, value in saved_buffers.items():
            buffers[key].copy_(value)
    _load_optimizers(svi, state, known)
    _load_objective(svi.objective, stripped("objective", state.tensors), state.values["objective"])
    if isinstance(svi.objective, PhasedELBO):
        svi.objective.load_state_dict(stripped("phases", state.tensors))
    svi.scaler.load_state_dict(state.values["scaler"], list(svi.params.values()))
    if another_process:
        svi.load_compiled(_by_phase(state.values["compiled"]))


_PHASES = {"regularise": "regularize"}  # names of phases in earlier checkpoints


def _by_phase(compiled: dict[str, Any] | None) -> dict[str, Any] | None:
    """The compiled state of each phase by name; early checkpoints store that of a single phase without its name."""
    if compiled is None:
        return None
    if "calls" in compiled:
        return {"loss": compiled}
    return {_PHASES.get(name, name): state for name, state in compiled.items()}


def _load_optimizers(svi: SVI, state: Snapshot, params: Mapping[str, Tensor]) -> None:
    for i, (optimizer, saved) in enumerate(zip(svi.optimizers, state.values["optimizers"], strict=True)):
        tensors = stripped(f"optimizer{i}", state.tensors)
        optimizer.state.clear()
        for key, numbers in saved["state"].items():
            param = params[key]
            moved = {name: value.to(_device_for(name, param)) for name, value in stripped(key, tensors).items()}
            optimizer.state[param] = {**numbers, **moved}
        groups = {key: group for group in saved["groups"] for key in group["params"]}
        keys = {id(param): key for key, param in params.items()}
        for group in optimizer.param_groups:
            stored = groups.get(keys[id(group["params"][0])], {})
            group |= {k: v for k, v in stored.items() if k != "params"}
        if isinstance(optimizer, MergedOptimizer):
            optimizer.load_scheduler_states(saved.get("schedulers", {}), params)


def _schedulers(optimizer: torch.optim.Optimizer, keys: dict[int, str]) -> dict[str, Any]:
    found = optimizer.scheduler_states(keys) if isinstance(optimizer, MergedOptimizer) else {}
    return {"schedulers": found} if found else {}


def _device_for(name: str, param: Tensor) -> Any:
    # a step count may stay on the CPU; a fused optimizer moves it at its first step
    return "cpu" if name == "step" and param.device.type == "cpu" else param.device


def objective_values(objective: Any) -> dict[str, Any]:
    """Numbers and strings that an objective, or one that it wraps, has as attributes."""
    attributes = _attributes(objective)
    return {name: v for name, v in attributes.items() if v is None or isinstance(v, bool | int | float | str)}


def _objective_tensors(objective: Any) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, value in _attributes(objective).items():
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, nn.Module):
            tensors |= prefixed(name, value.state_dict())
    return tensors


def _load_objective(objective: Any, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    for name, owner, attribute in _owned_attributes(objective):
        current = owner.__dict__[attribute]
        if isinstance(current, nn.Module):
            current.load_state_dict(stripped(name, tensors))
        elif isinstance(current, Tensor) and current.shape == tensors[name].shape:
            with torch.no_grad():
                current.copy_(tensors[name])
        elif isinstance(current, Tensor):
            owner.__dict__[attribute] = tensors[name].to(current.device)
        elif name in values:
            owner.__dict__[attribute] = values[name]


def _owned_attributes(objective: Any, prefix: str = "") -> list[tuple[str, Any, str]]:
    """Every attribute of an objective and of those it wraps, as `(dotted name, owner, name in the owner)`."""
    found = []
    for attribute, value in getattr(objective, "__dict__", {}).items():
        if isinstance(value, pyro.infer.ELBO):
            found += _owned_attributes(value, f"{prefix}{attribute}.")
        else:
            found.append((prefix + attribute, objective, attribute))
    return found


def _attributes(objective: Any) -> dict[str, Any]:
    return {name: owner.__dict__[attribute] for name, owner, attribute in _owned_attributes(objective)}


def _buffers(svi: SVI) -> dict[str, Tensor]:
    nets = modules_of(svi.model, svi.guide)
    return _by_key((f"{name}$$${b}", value) for name, net in nets.items() for b, value in net.named_buffers())


def _unused_params(svi: SVI, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters in Pyro's store of branches of the pair that did not run."""
    own = {id(p) for net in modules_of(svi.model, svi.guide).values() for p in net.parameters()}
    store = pyro.get_param_store().named_parameters()
    return {name: p for name, p in store if name not in found and (id(p) in own or "$$$" not in name)}


def _by_key(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors by names that are the same in every process: without the counters of `unique_name`."""
    counts: Counter[str] = Counter()
    tensors = {}
    for name, tensor in named:
        key = without_count(name)
        counts[key] += 1
        tensors[key if counts[key] == 1 else f"{key}#{counts[key]}"] = tensor
    return tensors
