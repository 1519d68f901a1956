"""The checks of preflight on densities, gradients and registered networks."""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from typing import Any

import torch
from pyro.poutine.messenger import unwrap
from torch import Tensor, nn
from torch import distributions as td

from pyro_vae.elbo import TensorELBO
from pyro_vae.evaluate.preflight.gradients import Densities, graph_leaves
from pyro_vae.evaluate.preflight.inputs import named_arrays, named_inputs
from pyro_vae.evaluate.preflight.probe import (
    Program,
    Run,
    count_nonfinite,
    distribution_parameters,
    nonfinite_parts,
    shape,
    shorten,
)
from pyro_vae.evaluate.preflight.result import Level, PreflightIssue
from pyro_vae.evaluate.preflight.values import looks_like_bytes
from pyro_vae.pair.networks import modules_of
from pyro_vae.pair.particles import particles_agree
from pyro_vae.pair.tracing import NoInverse, log_prob

__all__ = ["check_finite", "check_frozen", "check_inverse", "check_networks", "check_vectorized", "parameter_names"]

ZEROS = "it observes zeros, where its density is 0 or infinite: shift or drop them, or use a likelihood that has them"
CUT = "remove the `.detach()`, `.item()`, `torch.no_grad()` or NumPy between them and the networks' outputs"


def check_finite(run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Densities:
    """Check for NaN and infinities in inputs, sites and gradients; returns the log-densities of guide and model."""
    log_probs: dict[str, list[Tensor]] = {"guide": [], "model": []}
    found: tuple[str | None, str] | None = None
    for where, name, site in run.sites():
        if name in run.faulty:
            continue
        try:
            density = log_prob(name, site)
        except Exception as error:
            run.raised = run.raised or (f"the log-density of the {where}'s site {name!r}", error)
            continue
        log_probs[where].append(density)
        # an observed NaN may be masked
        if found is None and not (density.isfinite().all() and (site["is_observed"] or site["value"].isfinite().all())):
            parts = ", ".join([*nonfinite_parts(site), *count_nonfinite("log-probability", density)])
            values = {key: value for key, value in distribution_parameters(site["fn"]) if value.numel()}
            sizes = [f"{key} {float(value.detach().abs().max()):.3g}" for key, value in values.items()]
            found = name, f"the {where}'s site {name!r}: {parts} (largest sizes: {', '.join(sizes) or 'none'})"
    densities = Densities(log_probs)
    if found is None and not run.raised:
        densities.differentiate()
        if densities.nonfinite:
            text = f"the gradient of {densities.nonfinite} parameter(s), though all densities are finite (a masked "
            found = None, f"{text}NaN can do that)"
    tensors = {key: a for key, a in named_arrays(named_inputs(args, kwargs)) if isinstance(a, Tensor)}
    unclean = [part for key, a in tensors.items() for part in count_nonfinite(f"{key}, shape {shape(a)},", a)]
    if unclean:
        # only a warning if all else is finite: a pair may replace missing values itself
        level: Level = "error" if found or run.raised else "warning"
        fix = "replace them, `x = x.nan_to_num(0.0)`, and mask them out if they are missing, `poutine.mask(mask=...)`"
        run.problems.insert(0, PreflightIssue(level, "nan_input", None, f"{' and '.join(unclean)}: {fix}"))
    elif found and not any(problem.code == "invalid_parameter" for problem in run.problems):
        fix = "bound the outputs of the networks, `scale = log_scale.clamp(-10, 10).exp()`, or rescale the data"
        large = [f"{key} goes up to {float(a.max()):.4g}" for key, a in tensors.items() if looks_like_bytes(a)]
        fix = f"{' and '.join(large)}, as the bytes of images do: divide it, `x / 255`; or {fix}" if large else fix
        fix = ZEROS if has_zeros(run, found[0]) else fix
        run.error("nonfinite", found[0], f"not finite at the start, first {found[1]}: {fix}")
    return densities


def has_zeros(run: Run, name: str | None) -> bool:
    """Whether a site observes zeros under a distribution of positive values."""
    site = run.sites_of("model").get(name or "")
    if site is None or not site["is_observed"]:
        return False
    value = torch.as_tensor(site["value"])
    return value.is_floating_point() and float(value.min()) == 0 and not bool(log_prob("x", site).isfinite().all())


def check_networks(
    run: Run,
    log_probs: dict[str, list[Tensor]],
    nets: dict[int, tuple[str, str]],
    inputs: list[Any],
    lost: dict[str, str],
    baselines: list[Tensor],
) -> None:
    """Check for weights that are used but not trained, and for registered ones without a gradient.

    Args:
        run: The run.
        log_probs: Its log-densities.
        nets: The names of the networks' parameters.
        inputs: The arguments.
        lost: What `lost_gradients` found.
        baselines: What the estimator trains beside the densities.
    """
    for where, name, site in run.sites():
        if name in run.faulty:  # its density is unknown, but not what it depends on
            log_probs[where] += [value for _, value in distribution_parameters(site["fn"])]
    by_guide = graph_leaves([*log_probs["guide"], *baselines])
    used = by_guide | graph_leaves(log_probs["model"])
    trained = {id(p): name for name, p in run.params.trained.items()}
    refused: dict[str, dict[int, str]] = defaultdict(dict)
    for name, tensor in run.params.offered:
        if id(tensor) in used and id(tensor) not in trained:
            prefix = name.partition("$$$")[0] if "$$$" in name else name.rpartition(".")[0] or name
            refused[prefix][id(tensor)] = name
    for prefix, names in refused.items():
        report_refused(run, prefix, names, used, nets)
    known = trained.keys() | {id(a) for a in inputs} | {key for names in refused.values() for key in names}
    unregistered: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
    for key in used.keys() - known:
        unregistered[nets.get(key, ("", ""))[0], "guide" if key in by_guide else "model"].append(used[key])
    for (net, where), leaves in sorted(unregistered.items(), key=lambda item: item[0]):
        which = sorted(nets[id(p)][1] if id(p) in nets else f"of shape {shape(p)}" for p in leaves)
        local = net.rpartition(".")[2]
        register = "pyro.param" if which == [local] else "pyro.module"
        fix = f"add `{register}({local!r}, {net})` to the {where}, or freeze it, `{net}.requires_grad_(False)`"
        if not net:
            fix = f"add `pyro.module(name, net)`, or `pyro.param(name, tensor)` for a tensor, to the {where}"
        text = f"the {where} uses {len(leaves)} parameter(s) of {net or 'a network'} ({shorten(which)}) that are not "
        # a plain tensor that requires a gradient may serve another purpose
        add = run.error if any(isinstance(leaf, nn.Parameter) for leaf in leaves) else run.warn
        add("unregistered", None, f"{text}registered with Pyro, so training never changes them: {fix}")
    if run.faulty:
        return  # unknown: what the missing densities depend on
    taken = {name for names in refused.values() for name in names.values()}
    idle = [n for n, p in run.params.trained.items() if p.requires_grad and id(p) not in used and n not in taken]
    cut = f"{'; '.join(lost.values())}: {CUT}" if lost else ""
    where_lost = next(iter(lost), None)
    if not used.keys() & trained.keys() and not refused and not unregistered:
        text = f"the loss depends on no parameter (registered: {shorten(idle) or 'none'}): "
        register = (
            "register the networks with `pyro.module(name, net)`, and look for `.detach()` and `torch.no_grad()` "
        )
        run.error("no_gradient", where_lost, text + (cut or f"{register}in the pair"))
    elif idle:
        text = (
            f"{len(idle)} registered parameter(s) get no gradient, the loss does not depend on them: {shorten(idle)}. "
        )
        use = "Use them, remove a `.detach()`, or freeze them, `p.requires_grad_(False)`"
        run.warn(
            "no_gradient", where_lost, text + (f"{cut}. Or freeze them, `p.requires_grad_(False)`" if cut else use)
        )
    elif cut:
        run.warn("no_gradient", where_lost, f"no gradient passes through {cut}")


def report_refused(
    run: Run, prefix: str, names: dict[int, str], used: dict[int, Tensor], nets: dict[int, tuple[str, str]]
) -> None:
    """Report tensors passed to the parameter store under a name that it already uses for others."""
    stored = [run.params.trained[name] for name in names.values()]
    offered = {id(tensor) for _, tensor in run.params.offered}
    mine = next((nets[key][0] for key in names if key in nets), "a network")
    other = next((nets[id(tensor)][0] for tensor in stored if id(tensor) in nets), "another")
    code = "shared_name"
    if any(id(tensor) in offered for tensor in stored):
        text = f"two networks are registered under the name {prefix!r}, {other} and {mine}: Pyro keeps the first"
        fix = f"give each its own name, `pyro.module('{prefix}_2', {mine})` (PyroModules: `super().__init__(name=...)`)"
    elif any(not used[key].is_contiguous() for key in names):
        code = "unregistered"
        text = f"Pyro trains copies of those parameters of {mine} that are not contiguous in memory"
        fix = "`net.weight = nn.Parameter(net.weight.detach().contiguous())` before the first run"
    else:
        text = f"Pyro's parameter store holds an earlier network under the name {prefix!r}, not {mine}"
        fix = "call `pyro.clear_param_store()` before building the pair, or use a new name in `pyro.module`"
    run.error(code, None, f"{text}, so training never changes {shorten(sorted(names.values()))} of {mine}: {fix}")


def parameter_names(*programs: Program) -> dict[int, tuple[str, str]]:
    """Each parameter of the pair's networks, by id: (the network as the code may call it, the parameter's name)."""
    owners = [getattr(unwrap(program), "__self__", None) for program in programs]
    names = {}
    for key, net in modules_of(*programs).items():
        for name, parameter in net.named_parameters():
            head = name.partition(".")[0]
            if any(net is owner for owner in owners):
                names[id(parameter)] = f"self.{head}", name
            elif any(net is program for program in programs):
                names[id(parameter)] = f"{key}.{head}", name
            else:
                names[id(parameter)] = key, f"{key}.{name}"
    return names


def check_inverse(
    run: Run, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any], estimator: Any
) -> None:
    """Check for flows without an inverse under an estimator that scores other values than their latest draw."""
    flows = [name for name, (q, _) in run.latents().items() if isinstance(q["fn"], td.TransformedDistribution)]
    if not flows or not isinstance(estimator, TensorELBO):
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other checks have them
            copy.deepcopy(estimator).differentiable_loss(model, guide, *args, **kwargs)  # its baseline may move
    except NoInverse as error:
        run.error("no_inverse", flows[0], str(error))
    except Exception:  # other checks say what is wrong
        return


def check_frozen(run: Run, model: Program, guide: Program) -> None:
    """Check for frozen normalizations in training mode, whose running averages training moves all the same."""
    found = [
        f"{name}.{key}" if key else name
        for name, net in modules_of(model, guide).items()
        for key, part in net.named_modules()
        if isinstance(part, nn.modules.batchnorm._NormBase)
        and part.training
        and part.track_running_stats
        and part.affine
        and not any(p.requires_grad for p in part.parameters())
    ]
    if found:
        text = f"the weights of {shorten(found)} are frozen, but in training mode: running averages go on, and outputs "
        run.warn("frozen_averages", None, f"{text}depend on the batch; freeze these, too, `{found[0]}.eval()`")


def check_vectorized(run: Run, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Check that the pair accepts a leading particle dimension."""
    if not particles_agree(model, guide, args, **kwargs):
        text = "the pair does not give the same densities with a leading particle dimension, so particles run one at a "
        text += "time, which is slower: let networks map (*, in) to (*, out), a convolutional one with "
        run.warn("not_vectorized", None, f"{text}`net(x.flatten(0, -4)).unflatten(0, x.shape[:-3])`")
