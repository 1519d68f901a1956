"""What is asked of a random program, and what of it is wrong."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae import elbo as elbos
from pyro_vae.oracles import expected_log_mean
from tests.fuzz.programs import TEMPERATURE, Exact, Pair, Program, random_program

__all__ = ["Case", "cases", "faults_of"]

LIMIT = 5.0  # standard errors, twice with noise of their own: one false alarm in 10^12 comparisons of normal means
COPIES = 1500
TOLERANCE = 2e-3  # of the grids, relative
COMMON = ("trace", "by_site", "trace_graph", "reinforce", "iwae", "vimco", "rws", "miwae", "piwae", "ciwae", "renyi")
Target = Callable[[Exact], Tensor]


@dataclass
class Case:
    """One estimator on one program: what its value and its gradients are, for each side; None if that is not known."""

    name: str
    num_particles: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    kl_weight: float = 1.0
    value: Target | None = None
    model: Target | None = None
    guide: Target | None = None

    def __str__(self) -> str:
        options = "".join(f", {key}={value!r}" for key, value in self.options.items())
        weight = f", weight {self.kl_weight:g} on the KL" if self.kl_weight != 1 else ""
        return f"{self.name}(num_particles={self.num_particles}{options}){weight}"

    def make(self) -> Any:
        made = self.unweighted()
        return made if self.kl_weight == 1 else elbos.WeightedKL(made, self.kl_weight)

    def unweighted(self) -> Any:
        name, options = self.name, dict(self.options)
        if name == "by_site":
            name = options.pop("sites")
        return elbos.make(name, num_particles=self.num_particles, **options)


def elbo(kl_weight: float = 1.0) -> Target:
    return lambda exact: exact.elbo(kl_weight=kl_weight)


def iwae(k: int, kl_weight: float = 1.0, power: float = 1.0) -> Target:
    """The bound of `w^power`, over `power`."""

    def value(exact: Exact) -> Tensor:
        local, _, log_mass = exact.log_weights(kl_weight=kl_weight)
        log_mass = log_mass.expand_as(local)
        return exact.program.full_factor * expected_log_mean(power * local, log_mass, k).sum() / power

    return value


def mixed(beta: float, k: int, weight: float) -> Target:
    return lambda exact: beta * elbo(weight)(exact) + (1 - beta) * iwae(k, weight)(exact)


def cases(program: Program, rng: random.Random) -> list[Case]:
    """The estimators that take a program."""
    pathwise = not any(s.discrete for s in program.latents)
    weight = rng.choice([1.0, 1.0, 0.4, 0.0])
    if program.guide_only:
        weight = 1.0  # of which the weight says nothing
    layout: dict[str, Any] = {"vectorize_particles": rng.choice([None, True, False])}
    k = rng.choice([2, 3])

    def of(name: str, k: int, target: Target, options: dict[str, Any] | None = None, **gradients: Any) -> Case:
        return Case(name, k, options or {}, weight, **{"value": target, "model": target, "guide": target, **gradients})

    one = elbo(weight)
    result = [of("trace", 1, one), of("trace", k, one, layout)]
    result += [of("trace_graph", 1, one)]
    if pathwise:
        result += [of("mean_field", 1, one), of("mean_field", k, one, layout)]
    if _enumerable(program):
        dims = 1 + max([{"a": 1, "b": 2}[p] for p in program.sizes], default=1 if program.is_global else 0)
        result += [of("enum", 1, one, {"max_plate_nesting": dims})]
    if program.is_global:
        return result
    result += [_by_site(program, rng, of, one, layout, k)]
    result += [of("reinforce", 1, one)]
    result += [of("reinforce", k, one, {"baseline": "leave_one_out", **layout})]
    result += [of("reinforce", 1, one, {"every_site": True, "baseline": "running"})]
    result += [of("double_cv", k, one, layout)]
    result += [of("iwae", k, iwae(k, weight), layout), of("vimco", k, iwae(k, weight), layout)]
    result += [of("rws", k, iwae(k, weight), layout, guide=None)]
    result += [of("miwae", 4, iwae(2, weight), {"groups": 2, **layout})]
    result += [of("piwae", 4, iwae(4, weight), {"groups": 2, **layout}, guide=iwae(2, weight))]
    result += [of("ciwae", k, mixed(0.3, k, weight), {"beta": 0.3, **layout})]
    result += [of("renyi", k, iwae(k, weight, 0.6), {"alpha": 0.4, **layout})]
    if pathwise:
        result += [of("stl", k, one, layout), of("dreg", k, iwae(k, weight), layout)]
        result += [of("tail_adaptive", k, one, layout, model=None, guide=None)]
    if _relaxable(program):
        options = {"prior": "relaxed", "temperature": TEMPERATURE, **layout}
        result += [of("gumbel", k, lambda exact: exact.elbo(kl_weight=weight, relaxed=True), options)]
    if _independent(program):
        if not any(s.kind != "bernoulli" for s in program.latents if s.discrete):
            result += [of("disarm", k, one, layout), of("arms", k, one)]
        if not any(s.kind == "categorical" for s in program.latents):
            result += [of("rebar", 1, one), of("rebar", k, one, layout)]
    return result


def _by_site(program: Program, rng: random.Random, of: Any, target: Target, layout: dict[str, Any], k: int) -> Case:
    """Any estimators for the sites; no more than 50 branches of each."""
    sites: dict[str, Any] = {}
    branches = k
    for site in program.latents:
        options = ["reinforce", "trace"]
        options += [] if site.discrete else ["stl", "stl", "mean_field", "mean_field"]
        options += ["disarm"] * (site.kind == "bernoulli")
        options += ["enum"] * 2 * (site.discrete and site.classes ** program.elements(site) * branches <= 50)
        sites[site.name] = rng.choice(options)
        if sites[site.name] in ("enum", "disarm"):
            branches *= site.classes ** program.elements(site) if sites[site.name] == "enum" else 2
        if sites[site.name] == "reinforce" and rng.random() < 0.5:
            sites[site.name] = elbos.Reinforce(k, "leave_one_out")
    return of("by_site", k, target, {"sites": sites, **layout})


def _enumerable(program: Program) -> bool:
    """Whether a site is marked, and none is read from outside of its plates, which Pyro's enumeration does not know."""
    sites, upstream = program.sites, dict[str, set[str]]()
    for site in program.order("guide"):  # values of latents come from the guide, in the model, too
        upstream[site.name] = {site.name} & {s.name for s in program.latents if s.discrete}
        upstream[site.name].update(*(upstream[parent] for parent in site.parents["guide"]))
    inside = all(
        set(sites[source].plates) <= set(site.plates)
        for site in sites.values()
        for side in site.parents
        for parent in site.parents[side]
        for source in upstream[parent]
    )
    return inside and any(s.enumerated for s in program.latents)


def _relaxable(program: Program) -> bool:
    """Whether there are discrete latents, all of them binary, and a grid for their relaxations beside the others."""
    discrete = [s for s in program.latents if s.discrete]
    dims = program.grid_dims() + sum(program.elements(s) for s in discrete)
    return bool(discrete) and all(s.kind == "bernoulli" for s in discrete) and dims <= 2


def _independent(program: Program) -> bool:
    """Whether the guide has discrete sites, and nothing in it reads one."""
    sites = program.sites
    reads = {parent for s in [*program.latents, *program.guide_only] for parent in s.parents["guide"]}
    return any(s.discrete for s in program.latents) and not any(sites[name].discrete for name in reads)


def faults_of(seed: int, number: int | None = None, copies: int = COPIES) -> list[str]:
    """What is wrong with the program of a seed: of so many cases, chosen by the seed, or of all."""
    program, rng = random_program(seed), random.Random(seed)
    exact = Exact(program)
    chosen = cases(program, rng)
    if number is not None and number < len(chosen):
        rng.shuffle(chosen)
        chosen.sort(key=lambda case: case.name in COMMON)  # those that take few programs first
        chosen = [*chosen[: number - 1], rng.choice(chosen[number - 1 :])]
    found: list[str] = []
    for case in chosen:
        found += _guarded(case, partial(_estimator_faults, case, exact, seed, copies))
    if program.noise:
        found += _guarded("bound", partial(_refusal_faults, exact, seed))
    elif not program.is_global:
        found += _guarded("bound", partial(_bound_faults, exact, seed, copies))
        if number is None or rng.random() < 0.5:
            found += _guarded("log_marginal", partial(_marginal_faults, exact, seed))
    return found


def _guarded(what: Any, check: Callable[[], list[str]]) -> list[str]:
    try:
        return [f"{what}: {fault}" for fault in check()]
    except Exception as error:
        return [f"{what} raises {type(error).__name__}: {str(error).partition(chr(10))[0]}"]


def _estimator_faults(case: Case, exact: Exact, seed: int, copies: int) -> list[str]:
    values, objective = _exact_values(case, exact), case.make()
    first = dict(_scores(case, objective, exact.program, values, seed, copies))
    suspect = {name: z for name, z in first.items() if abs(z[0]) > LIMIT or math.isnan(z[0])}
    if not suspect:
        return []
    again = dict(_scores(case, objective, exact.program, values, seed + 1, 6 * copies))
    return [
        f"{name}: {again[name][1]}"
        for name, (z, _) in suspect.items()
        if not abs(again[name][0]) < LIMIT and not again[name][0] * z < 0
    ]


def _exact_values(case: Case, exact: Exact) -> dict[str, Tensor]:
    """The value, its error for one copy, and the gradients that are known, by parameter."""
    program, result = exact.program, dict[str, Tensor]()
    targets = [t for t in (case.value, case.model, case.guide) if t is not None]
    computed = {id(target): target(exact) for target in targets}
    if case.value is not None:
        result["value"] = computed[id(case.value)].detach()
        with torch.no_grad():
            deviation = exact.spread(kl_weight=case.kl_weight, relaxed=case.name == "gumbel").clamp_min(0).sqrt()
        total = deviation.sum() if program.is_global else deviation.norm()
        bound = "elbo" if case.name == "gumbel" else getattr(case.unweighted(), "bound", "elbo")
        averaged = case.value is case.model and bound == "elbo"
        result["error"] = program.full_factor * total / math.sqrt(case.num_particles if averaged else 1)
    for side, target in (("model", case.model), ("guide", case.guide)):
        names = [name for name in exact.leaves if name.startswith(side)]
        if target is None or not names:
            continue
        leaves = [exact.leaves[name] for name in names]
        value = computed[id(target)]
        if not value.requires_grad:
            grads = [torch.zeros_like(leaf) for leaf in leaves]
        else:
            grads = list(
                torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True, retain_graph=True)
            )
        result |= dict(zip(names, grads, strict=True))
    return result


def _scores(
    case: Case, objective: Any, program: Program, exact: dict[str, Tensor], seed: int, copies: int
) -> Iterator[tuple[str, tuple[float, str]]]:
    """Deviations in standard errors, with words for them: of the value, and of each element of a gradient."""
    pair = Pair(program, copies, case.name == "enum")
    torch.manual_seed(seed)
    if case.options.get("baseline") == "running":  # which begins at zero
        objective.loss(pair.model, pair.guide, pair.x)
    loss = objective.differentiable_loss(pair.model, pair.guide, pair.x)
    names = [name for name in pair.leaves if name in exact]
    grads: list[Tensor] = []
    if names and loss.requires_grad:
        leaves = [pair.leaves[name] for name in names]
        grads = list(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))
    if "value" in exact:
        losses = [loss.detach(), *(objective.loss(pair.model, pair.guide, pair.x) for _ in range(2))]
        found = -float(torch.stack([torch.as_tensor(x) for x in losses]).mean()) / copies
        yield "value", _deviation(found, float(exact["value"]), float(exact["error"]) / math.sqrt(3 * copies))
    for name, grad in zip(names, grads, strict=bool(grads)):
        mean, error = -grad.mean(0), grad.std(0) / math.sqrt(copies)
        for i in range(len(mean)):
            yield (
                f"gradient of {name}[{i}]",
                _deviation(float(mean[i]), float(exact[name][i]), float(error[i])),
            )


def _deviation(found: float, exact: float, error: float) -> tuple[float, str]:
    away = found - exact
    away = math.copysign(max(0.0, abs(away) - TOLERANCE * max(0.1, abs(exact))), away)
    z = away / error if error > 1e-12 else 0.0 if away == 0 else math.copysign(math.inf, away)
    return z, f"{found:.4f} ± {error:.4f}, exact {exact:.4f} ({z:+.1f})"


def _refusal_faults(exact: Exact, seed: int) -> list[str]:
    """Noise of the guide's own has a density that nothing in the model balances: `pv.bound` refuses."""
    pair = Pair(exact.program, 2)
    try:
        pv.bound(pair.model, pair.guide, pair.x, seed=seed)
    except ValueError as error:
        return [] if "nothing in the model balances its density" in str(error) else [str(error)]
    return ["noise that nothing balances is not refused"]


def _bound_faults(exact: Exact, seed: int, copies: int) -> list[str]:
    """`pv.bound` is the ELBO without scales, and with the model's masks on both sides."""
    with torch.no_grad():
        values = exact.per_datum(scales=False, own_masks=False)
    for attempt, more in ((0, 1), (1, 6)):
        pair = Pair(exact.program, copies * more)
        result = pv.bound(pair.model, pair.guide, pair.x, seed=seed + attempt)
        found = result.elbo.detach().reshape(len(values), -1)
        errors = found.std(1) / math.sqrt(found.shape[1])
        scores = [
            _deviation(float(f.mean()), float(v), float(e)) for f, v, e in zip(found, values, errors, strict=True)
        ]
        if all(abs(z) < LIMIT for z, _ in scores):
            return []
    return [text for z, text in scores if not abs(z) < LIMIT]


def _marginal_faults(exact: Exact, seed: int) -> list[str]:
    """`pv.log_marginal` has weights of mean p(x)."""
    if any(site.weighing["model"].mask for site in exact.program.latents):
        return []  # of which there is no p(x)
    with torch.no_grad():
        log_p = exact.log_marginal()
    pair = Pair(exact.program, 30)
    for attempt in (0, 1):
        result = pv.log_marginal(  # with bounded weights, whatever the guide
            pair.model,
            pair.guide,
            pair.x,
            method=pv.Importance(defensive=0.3),
            num_samples=100 * 6**attempt,
            seed=seed + attempt,
        )
        ratio = (result.log_prob.detach().reshape(len(log_p), -1) - log_p.unsqueeze(1)).exp()
        errors = ratio.std(1) / math.sqrt(ratio.shape[1])
        scores = [_deviation(float(r.mean()), 1.0, float(e)) for r, e in zip(ratio, errors, strict=True)]
        if all(abs(z) < LIMIT + 1 for z, _ in scores):  # Student's, with 29 degrees of freedom
            return []
    return [f"E[p^(x)] / p(x) {text}" for z, text in scores if not abs(z) < LIMIT + 1]
