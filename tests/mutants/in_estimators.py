"""Faults in right estimators: what is changed, and the pair with exact values on which it shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae import elbo as elbos
from pyro_vae.elbo import BySite, Reinforce, WeightedKL, registry
from pyro_vae.oracles import (
    BitsAndClasses,
    Discrete,
    Grid,
    Interleaved,
    LinearGaussian,
    Oracle,
    TopDownChain,
    Weighting,
)
from tests.mutants.masked import Masked
from tests.mutants.planting import Change
from tests.mutants.pooled import Pooled

__all__ = ["ESTIMATOR_MUTANTS", "EstimatorMutant", "oracle"]

HALF = torch.tensor(0.5, dtype=torch.float64)
ONE_SIDE = Weighting({("model", "z"): HALF, ("guide", "c"): 2.0, ("guide", "y"): HALF, ("model", "b"): 3.0})
SCALED_CHAIN = Weighting({("model", "z2"): HALF, ("guide", "z1"): 2.0, ("model", "x"): 1.5})


class PartOfGrid(Grid):
    """Whose data are a part of 1000."""

    def __init__(self) -> None:
        super().__init__(full_size=1000)

    def num_data(self, x: Tensor) -> int:
        return 1000


ORACLES: dict[str, Callable[[], Oracle]] = {
    "linear": lambda: LinearGaussian(seed=3),
    "chain": TopDownChain,
    "scaled chain": lambda: TopDownChain(SCALED_CHAIN),
    "masked chain": lambda: TopDownChain(Weighting(masks=[("guide", "z2"), ("model", "z1")])),
    "classes": Discrete,
    "bit": lambda: BitsAndClasses(bits=1, classes=0),
    "bits": lambda: BitsAndClasses(bits=3, classes=0),
    "bits and classes": BitsAndClasses,
    "grid": Grid,
    "part of a grid": PartOfGrid,
    "interleaved": Interleaved,
    "part": lambda: Interleaved(parts=2, all_parts=4, full_size=1000),
    "interleaved scaled": lambda: Interleaved(ONE_SIDE),
    "pooled": Pooled,
    "masked": Masked,
    "masked and scaled": lambda: Masked(scale=2.0),
}


@cache
def oracle(name: str) -> Oracle:
    """The pair of a name, made once."""
    return ORACLES[name]()


class Network(nn.Module):
    """A baseline."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.reshape(len(x), -1).sum(-1)


@dataclass(frozen=True)
class EstimatorMutant:
    """One fault, an estimator that has it, the pair on which that is checked, and tests of what is changed."""

    name: str
    change: Change
    make: Callable[[], Any]
    on: str
    tests: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)  # of the check

    @property
    def keyword(self) -> str:
        """The name of the estimator in the names of tests; none where its tests have a file of their own."""
        kind = type(self.make())
        found = [name for name, factory in registry._REGISTRY.items() if factory is kind]
        return found[0] if found and self.tests in (BOUNDS, SCORES, TRACES, MIXED, LAYOUT) else ""


IN = "elbo.estimators."
BOUNDS = ("elbo/test_estimators.py", "elbo/test_scales_and_masks.py")
SCORES = ("elbo/test_scales_and_masks.py", "elbo/test_more_estimators.py", "elbo/test_estimators.py")
TRACES = ("elbo/test_plates.py", "elbo/test_elbo.py", "elbo/test_scales_and_masks.py")
MIXED = ("elbo/test_by_site.py", "elbo/test_scales_and_masks.py")
LAYOUT = ("elbo/test_estimators.py", "elbo/test_scales_and_masks.py", "elbo/test_plates.py")
DISARM, REBAR, RELAXED = ("elbo/test_antithetic.py",), ("elbo/test_control.py",), ("elbo/test_relaxed.py",)
SITES = ("elbo/test_by_site.py",)
OBJECTIVES = ("elbo/test_weights.py", "elbo/test_free_bits.py")


def of(
    name: str, where: str, old: str, new: str, make: Callable[[], Any], on: str, *tests: str, **options: Any
) -> EstimatorMutant:
    place = where if where.startswith("elbo.") else IN + where
    return EstimatorMutant(name, Change(place, old, new), make, on, tests, options)


def named(name: str, k: int = 1, **options: Any) -> Callable[[], Any]:
    return lambda: elbos.make(name, num_particles=k, **options)


def sites(k: int = 2, **each: Any) -> Callable[[], Any]:
    return lambda: BySite(**each, num_particles=k)


MULTI_SAMPLE = [
    of(
        "log-mean without its log K",
        "importance:log_mean",
        "return log_w.logsumexp(0) - math.log(len(log_w))",
        "return log_w.logsumexp(0)",
        named("iwae", 4),
        "linear",
        *BOUNDS,
    ),
    of(
        "no score term of the moving draws in IWAE",
        "importance:IWAE.coefficients",
        "path=w, guide=-w,",
        "path=w,",
        named("iwae", 4),
        "interleaved",
        *BOUNDS,
    ),
    of(
        "no score term of the bound in IWAE",
        "importance:IWAE.coefficients",
        "score=value, ",
        "",
        named("iwae", 4),
        "classes",
        *BOUNDS,
    ),
    of(
        "the sign of IWAE's score term",
        "importance:IWAE.coefficients",
        "score=value",
        "score=-value",
        named("iwae", 4),
        "classes",
        *BOUNDS,
    ),
    of(
        "no density of the other sites in IWAE's weight",
        "importance:IWAE.coefficients",
        ", guide_s=-w",
        "",
        named("iwae", 4),
        "classes",
        *BOUNDS,
    ),
    of(
        "a missing square in DReG",
        "importance:DReG.coefficients",
        "path=w.square()",
        "path=w",
        named("dreg", 4),
        "linear",
        *BOUNDS,
    ),
    of(
        "DReG without what a scale leaves of log q",
        "importance:DReG.coefficients",
        ", guide=-w, score_r=w",
        "",
        named("dreg", 4),
        "scaled chain",
        *BOUNDS,
    ),
    of(
        "the sum of the particles in place of their mean, for the gradient of STL",
        "importance:StickingTheLanding.coefficients",
        "1 / len(log_w)",
        "1.0",
        named("stl", 3),
        "linear",
        *BOUNDS,
    ),
    of(
        "the largest weight for the value of STL",
        "importance:StickingTheLanding.coefficients",
        "log_w.mean(0)",
        "log_w.amax(0)",
        named("stl", 3),
        "linear",
        *BOUNDS,
    ),
    of(
        "the score of a group not divided by the groups",
        "importance:MIWAE.coefficients",
        "score=bound / self.groups",
        "score=bound",
        named("miwae", 4, groups=2),
        "classes",
        *BOUNDS,
    ),
    of(
        "the weights of a group normalized over all particles",
        "importance:MIWAE.grouped",
        "split.softmax(1).flatten(0, 1) / self.groups",
        "log_w.softmax(0)",
        named("miwae", 4, groups=2),
        "classes",
        *BOUNDS,
    ),
    of(
        "PIWAE's model with the gradient of the groups",
        "importance:PIWAE.coefficients",
        "model=log_w.softmax(0)",
        "model=miwae.model",
        named("piwae", 4, groups=4),
        "linear",
        *BOUNDS,
    ),
    of(
        "the two bounds of CIWAE exchanged",
        "importance:CIWAE.coefficients",
        "value = b * log_w.mean(0) + (1 - b) * bound",
        "value = (1 - b) * log_w.mean(0) + b * bound",
        named("ciwae", 4, beta=0.3),
        "linear",
        *BOUNDS,
    ),
    of(
        "the score of CIWAE's ELBO not divided by K",
        "importance:CIWAE.coefficients",
        "score = b * log_w / k",
        "score = b * log_w",
        named("ciwae", 4, beta=0.3),
        "classes",
        *BOUNDS,
    ),
    of(
        "the Renyi bound not divided by 1 - alpha",
        "importance:Renyi.coefficients",
        "log_mean(power) / (1 - self.alpha)",
        "log_mean(power)",
        named("renyi", 3, alpha=0.4),
        "linear",
        *BOUNDS,
    ),
    of(
        "the order of the Renyi bound in the place of its power",
        "importance:Renyi.coefficients",
        "(1 - self.alpha) * log_w",
        "self.alpha * log_w",
        named("renyi", 3, alpha=0.4),
        "linear",
        *BOUNDS,
    ),
    of(
        "even weights in the wake phase",
        "importance:RWS.coefficients",
        "score=w, score_r=w",
        "score=torch.full_like(w, 1 / len(w)), score_r=w",
        named("rws", 4),
        "classes",
        *BOUNDS,
    ),
    of(
        "ranks in the other direction",
        "importance:TailAdaptive.coefficients",
        ">=",
        "<=",
        named("tail_adaptive", 4),
        "linear",
        *BOUNDS,
    ),
    of(
        "ranks over the data",
        "importance:TailAdaptive.coefficients",
        "(log_w.unsqueeze(0) >= log_w.unsqueeze(1)).to(log_w.dtype).mean(1)",
        "(log_w.unsqueeze(1) >= log_w.unsqueeze(2)).to(log_w.dtype).mean(1)",
        named("tail_adaptive", 4),
        "linear",
        *BOUNDS,
    ),
]
SCORE_FUNCTIONS = [
    of(
        "a baseline that sees its own sample",
        "score:Reinforce.baseline_of",
        "(log_w.sum(0) - log_w) / (len(log_w) - 1)",
        "log_w.mean(0)",
        named("vargrad", 3),
        "classes",
        *SCORES,
    ),
    of(
        "a running baseline that sees its own step",
        "score:Reinforce.baseline_of",
        "return before",
        "return self._average",
        lambda: Reinforce(baseline="running", decay=0.0),
        "classes",
        *SCORES,
        copies=1,  # the bias of one datum in a mean over few
        repeats=1000,
    ),
    of(
        "a score term not divided by K",
        "score:Reinforce.coefficients",
        "signal = (log_w - self.baseline_of(log_w, *args)) / k",
        "signal = log_w - self.baseline_of(log_w, *args)",
        named("reinforce", 2),
        "classes",
        *SCORES,
    ),
    of(
        "a dropped score term",
        "score:Reinforce.coefficients",
        ", score=signal)",
        ")",
        named("reinforce", 2),
        "classes",
        *SCORES,
    ),
    of(
        "every site scored, but those that move",
        "score:Reinforce.coefficients",
        ", score_r=signal)",
        ")",
        named("reinforce", 2, every_site=True),
        "linear",
        *SCORES,
    ),
    of(
        "the loss of the baseline in the value",
        "score:Reinforce.extra_loss",
        "error - error.detach()",
        "error",
        lambda: Reinforce(baseline=Network()),
        "classes",
        *SCORES,
    ),
    of(
        "the sign of VIMCO's score term",
        "score:VIMCO.coefficients",
        "score=value - without",
        "score=without - value",
        named("vimco", 3),
        "classes",
        *SCORES,
    ),
    of(
        "a VIMCO baseline that sees its own sample",
        "score:VIMCO.coefficients",
        "(log_w.sum(0) - log_w) / (k - 1)",
        "log_w.mean(0)",
        named("vimco", 2),
        "classes",
        *SCORES,
    ),
    of(
        "no density of the draws in VIMCO's weight",
        "score:VIMCO.coefficients",
        ", guide_s=-w",
        "",
        named("vimco", 3),
        "classes",
        *SCORES,
    ),
    of(
        "an OVIS baseline that sees its own sample",
        "score:OVIS._baseline",
        ".masked_fill(itself, -math.inf)",
        "",
        named("ovis", 3),
        "classes",
        *SCORES,
    ),
    of(
        "TVO without K / (K - 1)",
        "thermodynamic:TVO.coefficients",
        " * k / (k - 1)",
        "",
        named("tvo", 3, betas=(0.0,)),
        "classes",
        *SCORES,
    ),
]
TRACE_BOUNDS = [
    of(
        "no score term in trace",
        "bounds:Trace.particle_loss",
        "elbo + (weight * (log_q - log_q.detach())).sum()",
        "elbo",
        named("trace", 2),
        "classes",
        *TRACES,
    ),
    of(
        "the KL's scale inside the score",
        "bounds:Trace.particle_loss",
        "draw_log_prob(name, site)",
        'scale_and_mask(log_prob(name, site), site["scale"])',
        named("trace", 2),
        "interleaved scaled",
        *TRACES,
    ),
    of(
        "pooled plates in trace",
        "bounds:Trace.particle_loss",
        "terms.sum_to(plates[name])",
        'terms.sum_to(site["cond_indep_stack"])',
        named("trace", 2),
        "pooled",
        *TRACES,
    ),
    of(
        "log q counted in place of taken off",
        "bounds:Trace.particle_loss",
        "value = sign * scale_and_mask",
        "value = abs(sign) * scale_and_mask",
        named("trace"),
        "linear",
        *TRACES,
    ),
    of(
        "a sum over particles that is not divided",
        "bounds:TensorELBO.differentiable_loss",
        "else sum(losses[1:], losses[0]) / self.num_particles",
        "else sum(losses[1:], losses[0])",
        named("trace", 2),
        "linear",
        *TRACES,
    ),
    of(
        "closed-form KL in any order",
        "terms:kl_sites",
        "            and before_in_guide.issuperset(order[: order.index(name)])\n",
        "",
        named("mean_field"),
        "chain",
        *TRACES,
    ),
    of(
        "the mask of a closed-form KL ignored",
        "terms:kl_sites",
        'scale_and_mask(value, 1.0, q["mask"])',
        "value",
        named("mean_field"),
        "masked",
        *TRACES,
    ),
    of(
        "no subsample scale on a closed-form KL",
        "bounds:scaled_kl",
        'value = scale_and_mask(analytic, q["scale"])',
        "value = analytic",
        named("mean_field"),
        "masked",
        *TRACES,
    ),
    of(
        "the scale of one side for both sides of the KL",
        "bounds:scaled_kl",
        'return value if scaled_alike(q, p) else value + scale_and_mask(log_prob(name, p), q["scale"] - p["scale"])',
        "return value",
        named("mean_field"),
        "scaled chain",
        *TRACES,
    ),
    of(
        "the sign of log p in a drawn KL",
        "bounds:scaled_kl",
        '- scale_and_mask(log_prob(name, p), p["scale"])',
        '+ scale_and_mask(log_prob(name, p), p["scale"])',
        named("mean_field"),
        "chain",
        *TRACES,
    ),
    of(
        "no scale on the observations",
        "bounds:observed_log_prob",
        'scale_and_mask(log_prob(name, site), site["scale"])',
        "log_prob(name, site)",
        named("mean_field"),
        "masked",
        *TRACES,
    ),
    of(
        "pooled plates in trace_graph",
        "trace_graph:_within",
        'return {**site, "cond_indep_stack": plates, "log_prob": log_prob}',
        "return site",
        named("trace_graph", 4),
        "pooled",
        *TRACES,
        repeats=200,
    ),
]
MECHANISM = [
    of(
        "a minibatch that is not scaled up",
        "surrogate:SurrogateELBO.differentiable_loss",
        "return runs[0].plate.subsampling * (",
        "return (",
        named("iwae", 3),
        "part",
        *LAYOUT,
    ),
    of(
        "the subsample scale twice",
        "surrogate:SurrogateELBO.differentiable_loss",
        "runs[0].plate.subsampling *",
        "runs[0].plate.subsampling**2 *",
        named("reinforce", 2),
        "part",
        *LAYOUT,
    ),
    of(
        "the subsample scale inside the logarithm",
        "densities:Densities.scale",
        'return site["scale"] if subsampling == 1.0 else site["scale"] / subsampling',
        'return site["scale"]',
        named("iwae", 3),
        "part",
        *LAYOUT,
    ),
    of(
        "the slope of the draws not divided by the model's factor",
        "surrogate:_surrogate",
        "by_path / by_model, run.plate",
        "by_path, run.plate",
        named("dreg", 4),
        "linear",
        *BOUNDS,
    ),
    of(
        "no path through a scored density",
        "surrogate:_surrogate",
        ".sum() - followed",
        ".sum()",
        named("reinforce", 2),
        "interleaved",
        *MIXED,
    ),
    of(
        "the sign of the guide's own slope in a draw",
        "surrogate:_surrogate",
        "loss = loss + (slope.detach() * draw.draw).sum()",
        "loss = loss - (slope.detach() * draw.draw).sum()",
        named("stl", 2),
        "linear",
        *BOUNDS,
    ),
    of(
        "a detach in the wrong place: the guide's density at draws that are not held",
        "surrogate:DetachedDraw.__init__",
        "self.for_guide = self.draw.detach().clone().requires_grad_()",
        "self.for_guide = self.draw.clone() if self.draw.requires_grad else self.draw.clone().requires_grad_()",
        named("iwae", 4),
        "interleaved",
        *BOUNDS,
    ),
    of(
        "a detach too many: the model's slope in the draws is lost",
        "surrogate:DetachedDraw.__init__",
        "self.for_model = self.draw.view_as(self.draw)",
        "self.for_model = self.draw.detach().clone().requires_grad_()",
        named("stl", 2),
        "linear",
        *BOUNDS,
    ),
    of(
        "the first particle's factors for all that run one by one",
        "surrogate:_surrogate",
        "return x[i : i + 1] if",
        "return x[:1] if",
        named("iwae", 3, vectorize_particles=False),
        "classes",
        *BOUNDS,
    ),
    of(
        "a mask ignored in the weight",
        "densities:Densities.counted",
        "log_prob(name, site), self.scale(site)",
        "draw_log_prob(name, site), self.scale(site)",
        named("stl", 2),
        "masked chain",
        *MIXED,
    ),
    of(
        "a scale ignored in the weight",
        "densities:Densities.counted",
        "scale_and_mask(log_prob(name, site), self.scale(site))",
        "log_prob(name, site)",
        named("stl", 2),
        "scaled chain",
        *MIXED,
    ),
    of(
        "the weight's scale inside the score",
        "densities:Densities.drawn",
        "return in_weight if found is None else found",
        "return in_weight",
        named("reinforce", 2),
        "interleaved scaled",
        *MIXED,
    ),
]
BITS = [
    of(
        "the sign of DisARM",
        "antithetic:DisARM._pair_loss",
        "sign = (1 - 2 * other)",
        "sign = (2 * other - 1)",
        named("disarm"),
        "bits",
        *DISARM,
    ),
    of(
        "DisARM's factor without its absolute value",
        "antithetic:DisARM._pair_loss",
        "logits.detach().abs().sigmoid()",
        "logits.detach().sigmoid()",
        named("disarm"),
        "bits",
        *DISARM,
    ),
    of(
        "DisARM's difference not halved",
        "antithetic:DisARM._pair_loss",
        "(first.log_w - second.log_w).detach() / 2",
        "(first.log_w - second.log_w).detach()",
        named("disarm"),
        "bits",
        *DISARM,
    ),
    of(
        "two draws that are independent in place of antithetic",
        "antithetic:_Antithetic._pyro_sample",
        "(u < probs).to(probs.dtype)",
        "(torch.rand_like(probs) < probs).to(probs.dtype)",
        named("disarm"),
        "bits",
        *DISARM,
    ),
    of(
        "no subsample scale in DisARM",
        "antithetic:DisARM._pair_loss",
        "return -plate.subsampling * (",
        "return -(",
        named("disarm"),
        "part of a grid",
        *DISARM,
    ),
    of(
        "the sign of REBAR's score",
        "control:REBAR._factors",
        "* (b - probs)",
        "* (probs - b)",
        named("rebar"),
        "bits",
        *REBAR,
    ),
    of(
        "a control variate that is not given back",
        "control:REBAR._factors",
        " + eta * slope * rest",
        "",
        named("rebar"),
        "bits",
        *REBAR,
    ),
    of(
        "the conditional noise of REBAR for the other draw",
        "control:REBAR._factors",
        "((2 * b - 1) * logits).sigmoid()",
        "logits.sigmoid()",
        named("rebar"),
        "bits",
        *REBAR,
    ),
    of(
        "a wrong temperature of the relaxed draw",
        "relaxed:relax",
        "fn.logits / temperature, torch.ones_like(fn.logits) / temperature",
        "fn.logits, torch.ones_like(fn.logits) / temperature",
        named("gumbel"),
        "bit",
        *RELAXED,
    ),
    of(
        "the guide's temperature twice",
        "relaxed:_Relax._pyro_sample",
        "self.temperature.clone()",
        "self.temperature.clone().square()",
        named("gumbel", prior="relaxed"),
        "bit",
        *RELAXED,
    ),
    of(
        "a relaxed draw without its gradient",
        "relaxed:_Relax._pyro_post_sample",
        'soft = msg["value"].sigmoid()',
        'soft = msg["value"].detach().sigmoid()',
        named("gumbel"),
        "bits",
        *RELAXED,
    ),
]
BY_SITE = [
    of(
        "enumeration without the weights",
        "by_site:_factors",
        "rows(lambda w: w.log_mass.expand_as(w.log_w)).exp()",
        "rows(lambda w: torch.zeros_like(w.log_w)).exp()",
        sites(c="enum"),
        "interleaved",
        *SITES,
    ),
    of(
        "enumeration without the gradient of the weights",
        "by_site:_factors",
        'elif treatment.name == "enum":\n            score[name] = mass * log_w',
        'elif treatment.name == "enum":\n            score[name] = 0.0',
        sites(c="enum", b="enum"),
        "interleaved",
        *SITES,
    ),
    of(
        "a sum over half of the elements' states",
        "branches:Branches._state",
        "index.unsqueeze(-1) // digits % len(support)",
        "index.unsqueeze(-1) % len(support) + 0 * digits",
        sites(b="enum"),
        "part",
        *SITES,
    ),
    of(
        "both antithetic branches with one sign",
        "branches:signs",
        "(1 - 2 * branch)",
        "(1 + 0 * branch)",
        sites(b="disarm"),
        "interleaved",
        *SITES,
    ),
    of(
        "the baseline of another particle",
        "by_site:_factors",
        "baseline.repeat_interleave(plan.branches, 0)",
        "baseline.repeat(plan.branches, 1)",
        lambda: BySite(b="enum", c=Reinforce(2, "leave_one_out"), num_particles=2),
        "interleaved",
        *SITES,
    ),
    of(
        "no minibatch scale by site",
        "by_site:BySite.differentiable_loss",
        "return runs[0].plate.subsampling *",
        "return",
        sites(c="enum"),
        "part",
        *SITES,
    ),
    of(
        "the subsample scale twice on a site's closed-form KL",
        "by_site:_weights",
        "densities.per_datum(kl) / plate.subsampling",
        "densities.per_datum(kl)",
        sites(z="mean_field"),
        "masked",
        *SITES,
    ),
    of(
        "a closed form beside the density whose place it takes",
        "by_site:_weights",
        " if name not in known])",
        "])",
        sites(z="mean_field"),
        "masked",
        *SITES,
    ),
    of(
        "a draw that moves what reads it, though it is scored",
        "branches:Branches._pyro_sample",
        "with nullcontext() if self.plan.treatments[name].moves else torch.no_grad():",
        "with nullcontext():",
        sites(z="reinforce"),
        "interleaved",
        *SITES,
    ),
]
IN_OBJECTIVES = [
    of(
        "a KL weight on the observations, too",
        "elbo.objectives.weights:_ScaleLatents._pyro_sample",
        'if not msg["is_observed"]:',
        "if True:",
        lambda: WeightedKL(elbos.Trace(), 0.3),
        "linear",
        *OBJECTIVES,
    ),
    of(
        "a KL weight on the scale once more",
        "elbo.objectives.weights:_ScaleLatents._pyro_sample",
        'msg["scale"] * self.weight',
        'msg["scale"] * self.weight * self.weight',
        lambda: WeightedKL(elbos.MeanField(), 0.3),
        "linear",
        *OBJECTIVES,
    ),
    of(
        "a ceiling in place of a floor",
        "elbo.objectives.free_bits:FreeBits.penalty",
        "clamp_min",
        "clamp_max",
        named("free_bits", bits=0.4),
        "linear",
        *OBJECTIVES,
    ),
    of(
        "a floor under each datum's KL",
        "elbo.objectives.free_bits:_MeanKL._kl",
        "kl = kl.mean([dim - event for dim in batch])",
        "kl = kl.clamp_min(self.bits).mean([dim - event for dim in batch])",
        named("free_bits", bits=0.3),
        "linear",
        *OBJECTIVES,
    ),
    of(
        "a capacity without its absolute value",
        "elbo.objectives.free_bits:Capacity.penalty",
        ".abs()",
        "",
        named("capacity", capacity=5.0, gamma=3.0),
        "linear",
        *OBJECTIVES,
    ),
]
ESTIMATOR_MUTANTS = [*MULTI_SAMPLE, *SCORE_FUNCTIONS, *TRACE_BOUNDS, *MECHANISM, *BITS, *BY_SITE, *IN_OBJECTIVES]
