"""Random small programs, written from a seed, and their exact values by enumeration and quadrature.

A program is data: sites with their families, plates, parents, scales and masks. `Pair` runs it as a model and a guide,
and `Exact` sums over all states of its discrete latents and over a Gauss-Hermite grid of its continuous ones. The two
share the functions from parents to parameters of a distribution, and nothing else.
"""

from __future__ import annotations

import itertools
import math
import random
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

__all__ = ["TEMPERATURE", "Exact", "Pair", "Program", "Site", "random_program"]

SIDES = ("model", "guide")
DIMS = {"data": -1, "a": -2, "b": -3}  # of the plates; the last two stand inside the data's
EMBEDDING = (-0.8, 0.5, 1.1)  # what a class counts for in what reads it
TRIL = torch.tensor([[0.8, 0.0], [0.4, 0.6]], dtype=torch.float64)
TEMPERATURE = 0.5  # of relaxations: a draw is a rational function of the uniform variable that it is made of
POINTS = {0: 1, 1: 28, 2: 16, 3: 10}  # of the grid, by its dimensions


@dataclass
class Weighing:
    """The scale of a site on one side, and its mask: which data, how it is written."""

    scale: float = 1.0
    tensor: bool = False
    mask: str = ""  # "x > 0", "x < 0", "first" element of its inner plates, "nothing"
    how: str = "handler"  # or "distribution"

    def __str__(self) -> str:
        said = f" scale {self.scale:g}{' (tensor)' if self.tensor else ''}" if self.scale != 1 or self.tensor else ""
        return said + (f" mask({self.mask}) of the {self.how}" if self.mask else "")


@dataclass
class Site:
    """One site: its family, its plates inside that of the data, and what it reads on either side."""

    name: str
    kind: str  # bernoulli, categorical, onehot, normal, mvn; factor for a term of the model or of the guide
    plates: tuple[str, ...] = ()
    is_global: bool = False
    parents: dict[str, list[str]] = field(default_factory=dict)
    weighing: dict[str, Weighing] = field(default_factory=dict)
    learn_scale: bool = False
    enumerated: bool = False

    @property
    def discrete(self) -> bool:
        return self.kind in ("bernoulli", "categorical", "onehot")

    @property
    def classes(self) -> int:
        return {"bernoulli": 2, "categorical": 3, "onehot": 3}[self.kind]

    @property
    def width(self) -> int:
        """How many numbers each coefficient has."""
        return {"categorical": 3, "onehot": 3, "mvn": 2}.get(self.kind, 1)


@dataclass
class Program:
    """A model and a guide over the same latents, as data."""

    seed: int
    latents: list[Site]  # in the model's order
    guide_order: list[str]
    observed: list[Site]
    sizes: dict[str, tuple[int, int]]  # of inner plates, and of how many elements these are a part
    full_factor: int  # how many times more data the plate over them says that there are
    parameters: dict[str, Tensor]
    x: Tensor  # (N, 2) distinct data
    guide_only: list[Site] = field(default_factory=list)  # noise of its own, and a factor

    @property
    def sites(self) -> dict[str, Site]:
        return {site.name: site for site in [*self.latents, *self.observed, *self.guide_only]}

    @property
    def noise(self) -> list[Site]:
        """What the guide draws beside the latents."""
        return [site for site in self.guide_only if site.kind != "factor"]

    @property
    def guide_terms(self) -> list[Site]:
        """The factors of the guide."""
        return [site for site in self.guide_only if site.kind == "factor"]

    def drawn(self, side: str) -> list[Site]:
        """The sites that one side draws, in its order."""
        return [site for site in self.order(side) if site in self.latents or site in self.noise]

    @property
    def is_global(self) -> bool:
        return any(site.is_global for site in self.latents)

    def elements(self, site: Site) -> int:
        return math.prod(self.sizes[plate][0] for plate in site.plates)

    def grid_dims(self, side: str = "guide") -> int:
        return sum(self.elements(s) * s.width for s in self.drawn(side) if not s.discrete)

    @property
    def states(self) -> int:
        return math.prod(s.classes ** self.elements(s) for s in self.latents if s.discrete)

    def order(self, side: str) -> list[Site]:
        """The sites of one side, in its order."""
        if side == "model":
            return [*self.latents, *self.observed]
        return [self.sites[name] for name in self.guide_order]

    def __str__(self) -> str:
        lines = [f"program {self.seed}: data {[[round(v, 2) for v in row] for row in self.x.tolist()]}"]
        lines[0] += f", plate of {self.full_factor} times as many" * (self.full_factor > 1)
        for plate, (size, full) in self.sizes.items():
            lines.append(f"  plate {plate!r} of {size}" + f" out of {full}" * (full > size))
        for side in SIDES:
            lines.append(f"  {side}:")
            for site in self.order(side):
                reads = [*(["x"] if side == "guide" else []), *site.parents.get(side, [])]
                values = {
                    key.split(".", 2)[2]: [round(v, 2) for v in value.flatten().tolist()]
                    for key, value in self.parameters.items()
                    if key.startswith(f"{side}.{site.name}.")
                }
                where = "".join(f"[{plate}]" for plate in site.plates) + " (global)" * site.is_global
                seen = " observed" * (site in self.observed) + " auxiliary" * (site in self.noise)
                marked = " enumerated" * (side == "guide" and site.enumerated)
                weighing = site.weighing.get(side, Weighing())
                lines.append(
                    f"    {site.name}{where} ~ {site.kind}({', '.join(reads)}) {values}{weighing}{marked}{seen}"
                )
        return "\n".join(lines)


class Reader:
    """The distribution of each site given values of what it reads, for parameters in any layout."""

    def __init__(self, program: Program, parameters: dict[str, Tensor]) -> None:
        self.program, self.parameters = program, parameters

    def feature(self, name: str, at: dict[str, Tensor], reader: Site) -> Tensor:
        """One number that stands for a value; over plates that the reader is not in, their mean."""
        site, value = self.program.sites[name], at[name]
        embedding = torch.tensor(EMBEDDING, dtype=torch.float64)
        match site.kind:
            case "categorical":
                result = embedding[value.long()]
            case "onehot":
                result = (value * embedding).sum(-1)
            case "mvn":
                result = value.sum(-1) / 2
            case _:
                result = value
        for plate in site.plates:
            if plate not in reader.plates:
                result = result.mean(DIMS[plate], keepdim=True)
        return result

    def predictor(self, side: str, site: Site, at: dict[str, Tensor]) -> Tensor:
        """The linear predictor, with the numbers of its width as the last dimension."""
        prefix = f"{side}.{site.name}."
        result = self.parameters[prefix + "0"]
        reads = {name: self.feature(name, at, site) for name in site.parents.get(side, [])}
        if side == "guide" and not site.is_global:
            reads["x"] = at["x0"]
        for name, value in reads.items():
            result = result + self.parameters[prefix + name] * value.unsqueeze(-1)
        for plate in site.plates:  # elements of a plate differ
            index = torch.arange(self.program.sizes[plate][0], dtype=torch.float64)
            result = result + 0.4 * index.reshape(-1, *[1] * -DIMS[plate])
        return result

    def distribution(self, side: str, site: Site, at: dict[str, Tensor]) -> Any:
        """p or q of a site."""
        h = self.predictor(side, site, at)
        match site.kind:
            case "bernoulli":
                return dist.Bernoulli(logits=h.squeeze(-1))
            case "categorical":
                return dist.Categorical(logits=h)
            case "onehot":
                return dist.OneHotCategorical(logits=h)
            case "mvn":
                return dist.MultivariateNormal(h, scale_tril=TRIL)
        scale: Any = 0.9 if side == "guide" else 1.1
        if site.learn_scale:
            scale = self.parameters[f"{side}.{site.name}.scale"].squeeze(-1).exp()
        return dist.Normal(h.squeeze(-1), scale)

    def mask(self, site: Site, weighing: Weighing, x: Tensor) -> Any:
        """Which elements count, in the layout of the batch."""
        match weighing.mask:
            case "x > 0":
                return x > 0
            case "x < 0":
                return x < 0
            case "nothing":
                return torch.tensor(False)
        plate = site.plates[0]
        return (torch.arange(self.program.sizes[plate][0]) == 0).reshape(-1, *[1] * (-DIMS[plate] - 1))


class Pair(Reader):
    """The program as a model and a guide of many copies of its data, each with parameters of its own.

    So one gradient has as many independent draws of the gradient as there are copies. The data of a program with global
    latents are one row each, `(copies, N)`: the global latents are drawn for each copy.
    """

    def __init__(self, program: Program, copies: int, enumerate: bool = False) -> None:
        self.leaves = {
            name: value.expand(copies, *value.shape).clone().requires_grad_()
            for name, value in program.parameters.items()
        }
        n = len(program.x)
        if program.is_global:
            laid_out = {name: leaf.unsqueeze(1) for name, leaf in self.leaves.items()}
            self.x = program.x.expand(copies, n, 2)
        else:
            laid_out = {name: leaf.repeat(n, 1) for name, leaf in self.leaves.items()}
            self.x = program.x.repeat_interleave(copies, 0)
        super().__init__(program, laid_out)
        self.copies, self.enumerate = copies, enumerate

    @property
    def num_data(self) -> int:
        """How many data the loss is summed over."""
        return self.program.full_factor * len(self.program.x) * self.copies

    def plate(self, name: str, x: Tensor) -> Any:
        if name == "copies":
            return pyro.plate("copies", self.copies, dim=-2)
        size = x.shape[-2] if name == "data" else self.program.sizes[name][0]
        full = size * self.program.full_factor if name == "data" else self.program.sizes[name][1]
        if full == size:
            return pyro.plate(name, size, dim=DIMS[name])
        return pyro.plate(name, full, subsample=torch.arange(size), dim=DIMS[name])

    def run(self, side: str, x: Tensor) -> None:
        at: dict[str, Tensor] = {"x0": x[..., 0]}
        with self.plate("copies", x) if self.program.is_global else nullcontext():
            plates = {name: self.plate(name, x) for name in ("data", *self.program.sizes)}
            for site in self.program.order(side):
                with ExitStack() as stack:
                    if not site.is_global:
                        stack.enter_context(plates["data"])
                    for plate in site.plates:
                        stack.enter_context(plates[plate])
                    self.sample(side, site, at, x, stack)

    def sample(self, side: str, site: Site, at: dict[str, Tensor], x: Tensor, stack: ExitStack) -> None:
        weighing = site.weighing.get(side, Weighing())
        if weighing.scale != 1 or weighing.tensor:
            scale: Any = torch.tensor(weighing.scale, dtype=torch.float64) if weighing.tensor else weighing.scale
            stack.enter_context(poutine.scale(scale=scale))
        if weighing.mask and weighing.how == "handler":
            stack.enter_context(handler(self.mask(site, weighing, x[..., 0])))
        if site.kind == "factor":
            of_guide: Any = {"has_rsample": True} if side == "guide" else {}
            pyro.factor(site.name, self.predictor(side, site, at).squeeze(-1).tanh(), **of_guide)
            return
        fn = self.distribution(side, site, at)
        if weighing.mask and weighing.how == "distribution":
            fn = fn.expand(torch.broadcast_shapes(fn.batch_shape, self.mask(site, weighing, x[..., 0]).shape))
            fn = fn.mask(self.mask(site, weighing, x[..., 0]))
        infer: Any = {"enumerate": "parallel"} if self.enumerate and site.enumerated and side == "guide" else {}
        if site in self.program.noise:
            infer["is_auxiliary"] = True
        seen = {"x": 0, "y": 1}.get(site.name)
        obs = None if seen is None else x[..., seen]
        if obs is not None and site.plates:
            sizes = [self.program.sizes[p][0] if p in site.plates else 1 for p in "ba"]
            obs = obs.expand(*sizes[0 if "b" in site.plates else 1 :], len(x))
        at[site.name] = pyro.sample(site.name, fn, obs=obs, infer=infer)

    def model(self, x: Tensor) -> None:
        self.run("model", x)

    def guide(self, x: Tensor) -> None:
        self.run("guide", x)


def handler(mask: Any) -> AbstractContextManager[Any]:
    result: AbstractContextManager[Any] = poutine.mask(mask=mask)
    return result


class Exact(Reader):
    """The program's sums over all states and a grid: tensors `(M, B, A, N)` of M points."""

    def __init__(self, program: Program) -> None:
        self.leaves = {name: value.clone().requires_grad_() for name, value in program.parameters.items()}
        super().__init__(program, self.leaves)
        self.x0 = program.x[:, 0]
        self._known: dict[Any, tuple[Tensor, ...]] = {}

    def shape(self, site: Site) -> tuple[int, int]:
        b, a = (self.program.sizes[plate][0] if plate in site.plates else 1 for plate in "ba")
        return b, a

    def points(self, side: str, relaxed: bool = False) -> tuple[dict[str, Tensor], Tensor]:
        """Values of all latents that represent one side, and their log-masses `(M, N)`."""
        program = self.program
        drawn = program.drawn(side)
        discrete = [s for s in drawn if s.discrete and not relaxed]
        every = [torch.arange(s.classes) for s in discrete for _ in range(program.elements(s))]
        states = torch.tensor(list(itertools.product(*every))) if every else torch.zeros(1, 0)
        on_grid = [s for s in drawn if s not in discrete]
        noise, log_mass = _grid([s.discrete for s in on_grid for _ in range(program.elements(s) * s.width)])
        states, noise = states.repeat_interleave(len(noise), 0), noise.repeat(len(states), 1)
        log_mass = log_mass.repeat(len(states) // len(log_mass)).reshape(-1, 1)
        at: dict[str, Tensor] = {"x0": self.x0}
        first = 0
        for site in discrete:
            count, (b, a) = program.elements(site), self.shape(site)
            value = states[:, first : first + count].reshape(-1, b, a, 1)
            at[site.name] = torch.nn.functional.one_hot(value, 3) if site.kind == "onehot" else value.double()
            first += count
        first = 0
        total: Any = log_mass
        for site in drawn:
            fn = self.distribution(side, site, at)
            if site in discrete:
                total = total + self.log_prob(fn, at[site.name]).sum((-3, -2))
                continue
            count, (b, a) = program.elements(site) * site.width, self.shape(site)
            e = noise[:, first : first + count].reshape(-1, b, a, 1, site.width)
            first += count
            if site.discrete:  # relaxed: what its sigmoid is taken of
                at[f"{site.name} before"] = (fn.logits + e.squeeze(-1)) / TEMPERATURE
                at[site.name] = at[f"{site.name} before"].sigmoid()
            else:
                at[site.name] = fn.mean + (e @ TRIL.T if site.kind == "mvn" else fn.stddev * e.squeeze(-1))
        return at, total

    def log_prob(self, fn: Any, value: Tensor) -> Tensor:
        result: Tensor = fn.log_prob(value)
        return result

    def factor(self, side: str, site: Site, scales: bool, masks: bool) -> Any:
        """By what the log-density of a site is multiplied."""
        weighing, result = site.weighing.get(side, Weighing()), torch.ones(())
        if scales:
            result = result * weighing.scale
            for plate in site.plates:
                result = result * self.program.sizes[plate][1] / self.program.sizes[plate][0]
        if masks and weighing.mask:
            result = result * self.mask(site, weighing, self.x0)
        return result

    def term(self, side: str, site: Site, at: dict[str, Tensor], factor: Any) -> Tensor:
        """`factor * log p` or `log q` of a site, summed over its inner plates, `(M, N)`."""
        if site.kind == "factor":
            value = self.predictor(side, site, at).squeeze(-1).tanh()
        else:
            seen = {"x": 0, "y": 1}.get(site.name)
            fn = self.distribution(side, site, at)
            before = at.get(f"{site.name} before")
            if before is not None:
                value = self.log_prob(dist.Logistic(fn.logits / TEMPERATURE, 1 / TEMPERATURE), before)
            else:
                value = self.log_prob(fn, at[site.name] if seen is None else self.program.x[:, seen])
        value = value * factor
        return value.reshape(*[1] * (4 - value.dim()), *value.shape).sum((-3, -2))

    def log_weights(
        self, scales: bool = True, kl_weight: float = 1.0, own_masks: bool = True, relaxed: bool = False
    ) -> tuple[Tensor, ...]:
        """Local and global terms of the log-weight of each point under q, `(M, N)`, and the log-masses.

        Without `own_masks`, the model's masks hold for both sides. `relaxed` takes every Bernoulli latent for its
        Concrete relaxation, in both.
        """
        key = scales, kl_weight, own_masks, relaxed
        if key not in self._known:
            self._known[key] = self._log_weights(*key)
        return self._known[key]

    def _log_weights(self, scales: bool, kl_weight: float, own_masks: bool, relaxed: bool) -> tuple[Tensor, ...]:
        at, log_mass = self.points("guide", relaxed)
        n = len(self.x0)
        parts = {True: torch.zeros(1, n), False: torch.zeros(1, n)}
        for side, sign in (("model", 1.0), ("guide", -1.0)):
            for site in self.program.order(side):
                if side == "guide" and not own_masks and site in self.program.guide_terms:
                    continue  # no part of q(z|x)
                by = side if own_masks or site not in self.program.latents else "model"
                factor = self.factor(side, site, scales, False) * self.factor(by, site, False, True)
                weight = kl_weight if site in self.program.latents else 1.0
                parts[site.is_global] = parts[site.is_global] + sign * weight * self.term(side, site, at, factor)
        return parts[False], parts[True], log_mass

    def elbo(self, **options: Any) -> Tensor:
        """The objective of one copy: of the data that its plate says, with the global terms once."""
        local, of_all, log_mass = self.log_weights(**options)
        mass = log_mass.exp()
        return self.program.full_factor * (mass * local).sum() + (mass * of_all).sum(0)[0]

    def per_datum(self, **options: Any) -> Tensor:
        """The ELBO of each datum, `(N,)`."""
        local, _, log_mass = self.log_weights(**options)
        return (log_mass.exp() * local).sum(0)

    def spread(self, **options: Any) -> Tensor:
        """The variance of one draw of each datum's log-weight, `(N,)`."""
        local, of_all, log_mass = self.log_weights(**options)
        value, mass = local + of_all, log_mass.exp()
        return (mass * value.square()).sum(0) - (mass * value).sum(0).square()

    def log_marginal(self) -> Tensor:
        """log p(x) without scales, `(N,)`."""
        at, log_mass = self.points("model")
        for site in self.program.observed:
            log_mass = log_mass + self.term("model", site, at, self.factor("model", site, False, True))
        return log_mass.logsumexp(0)


def _grid(logistic: list[bool]) -> tuple[Tensor, Tensor]:
    """Points of standard normal and standard logistic variables, `(M, D)`, and their log-masses, `(M,)`."""
    count = POINTS[min(len(logistic), 3)]
    nodes, mass = (torch.as_tensor(v) for v in np.polynomial.hermite_e.hermegauss(count))
    normal = nodes.tolist(), (mass / mass.sum()).log().tolist()
    nodes, mass = (torch.as_tensor(v) for v in np.polynomial.legendre.leggauss(count))
    uniform = ((nodes + 1) / 2).logit().tolist(), (mass / 2).log().tolist()
    axes = [uniform if which else normal for which in logistic]
    points = torch.tensor(list(itertools.product(*(axis[0] for axis in axes))), dtype=torch.float64)
    masses = torch.tensor(list(itertools.product(*(axis[1] for axis in axes))), dtype=torch.float64)
    return points, masses.sum(-1)


def random_program(seed: int, most_points: int = 3000) -> Program:
    """The program of a seed, with at most so many points."""
    rng = random.Random(seed)
    while True:
        program = _draw(rng, seed)
        dims = program.grid_dims()
        if dims <= 3 and program.states * POINTS[dims] ** dims <= most_points:
            return program


def _draw(rng: random.Random, seed: int) -> Program:
    is_global = rng.random() < 0.12
    sizes: dict[str, tuple[int, int]] = {}
    if not is_global:
        for plate, chance in (("a", 0.5), ("b", 0.25)):
            if rng.random() < chance:
                sizes[plate] = (2, rng.choice([2, 2, 6]))
    kinds = ["bernoulli", "bernoulli", "categorical", "onehot", "normal", "normal", "mvn"]
    if rng.random() < 0.3:
        kinds = ["normal", "normal", "normal", "mvn"]
    latents = []
    for i in range(rng.choice([1, 2, 2, 3, 3])):
        plates = tuple(plate for plate in sizes if rng.random() < 0.5)
        kind = rng.choice(kinds) if len(plates) < 2 else "bernoulli"  # with four elements
        latents.append(Site(f"{kind[0]}{i}", kind, plates, learn_scale=kind == "normal" and rng.random() < 0.4))
    if is_global:
        for site in latents[: rng.choice([1, 1, 2])]:
            site.is_global = True
    observed = [Site("x", "normal", tuple(p for p in sizes if rng.random() < 0.25), learn_scale=rng.random() < 0.3)]
    if rng.random() < 0.3:
        observed.append(Site("y", rng.choice(["bernoulli", "normal"])))
    if rng.random() < 0.2:
        observed.append(Site("f", "factor", tuple(p for p in sizes if rng.random() < 0.3)))
    guide_order = [s.name for s in latents]
    if is_global:  # what is local reads what is global, not the other way round
        first, rest = ([s.name for s in latents if s.is_global is which] for which in (True, False))
        rng.shuffle(first)
        rng.shuffle(rest)
        guide_order = first + rest
    else:
        rng.shuffle(guide_order)
    program = Program(seed, latents, guide_order, observed, sizes, 1, {}, torch.zeros(0))
    if not is_global:
        _add_to_guide(program, rng)
    program.full_factor = rng.choice([1, 1, 1, 3])
    _connect(program, rng)
    _weigh(program, rng)
    _fill(program, rng)
    return program


def _add_to_guide(program: Program, rng: random.Random) -> None:
    """Noise of the guide's own, which what is drawn later may read, and a factor at its end."""
    if rng.random() < 0.12:
        plates = tuple(plate for plate in program.sizes if rng.random() < 0.3)
        program.guide_only.append(Site("u", "normal", plates))
        program.guide_order.insert(rng.randrange(len(program.guide_order)), "u")
    if rng.random() < 0.12:
        plates = tuple(plate for plate in program.sizes if rng.random() < 0.3)
        program.guide_only.append(Site("g", "factor", plates))
        program.guide_order.append("g")


def _connect(program: Program, rng: random.Random) -> None:
    for side in SIDES:
        before: list[str] = []
        for site in program.order(side):
            may = [name for name in before if program.sites[name].is_global or not site.is_global]
            must = site.name == "x" or site.kind == "factor"
            site.parents[side] = [name for name in may if rng.random() < (0.8 if must else 0.6)]
            if must and may and not site.parents[side]:
                site.parents[side] = [rng.choice(may)]
            if site in program.drawn(side):
                before.append(site.name)
    for site in program.latents:
        site.enumerated = site.discrete and rng.random() < 0.7


def _weigh(program: Program, rng: random.Random) -> None:
    scaled, masked = rng.random() < 0.3, rng.random() < 0.3
    for site in [*program.latents, *program.observed]:
        masks = ["x > 0", "x < 0", "nothing"] if not site.is_global else ["nothing"]
        masks += ["first"] * 3 * bool(site.plates)
        same = Weighing()
        for side in SIDES:
            if side == "guide" and site not in program.latents:
                continue
            weighing = Weighing()
            if scaled and rng.random() < 0.4:
                weighing.scale, weighing.tensor = rng.choice([0.5, 2.0, 3.0]), rng.random() < 0.5
            if masked and rng.random() < 0.4:
                weighing.mask = rng.choice(masks)
                weighing.how = "handler" if site.kind == "factor" else rng.choice(["handler", "distribution"])
            if side == "guide" and rng.random() < 0.3:
                weighing = same
            same = weighing
            site.weighing[side] = weighing


def _fill(program: Program, rng: random.Random) -> None:
    """Draw parameters and data."""
    for side in SIDES:
        for site in program.order(side):
            reads = ["0", *site.parents[side], *(["x"] if side == "guide" and not site.is_global else [])]
            for name in reads:
                values = [rng.gauss(0, 0.5 if name == "0" else 0.7) for _ in range(site.width)]
                program.parameters[f"{side}.{site.name}.{name}"] = torch.tensor(values, dtype=torch.float64)
            if site.learn_scale:
                scale = [rng.uniform(-0.3, 0.2)]
                program.parameters[f"{side}.{site.name}.scale"] = torch.tensor(scale, dtype=torch.float64)
    rows = [[sign * rng.uniform(0.2, 1.6), float(rng.random() < 0.5)] for sign in (1, -1)]
    program.x = torch.tensor(rows, dtype=torch.float64)
