"""The checks of preflight on sites, shapes and values."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.infer
import torch
from torch import distributions as td

from pyro_vae import elbo as elbos
from pyro_vae.evaluate.guide_density import check_noise, other_terms
from pyro_vae.evaluate.preflight.probe import (
    Run,
    Site,
    base_distribution,
    family,
    fits,
    plate_frames,
    plate_sizes,
    shorten,
    site_shapes,
    wrapped_distributions,
)
from pyro_vae.pair.masks import uncounted_in_model
from pyro_vae.pair.rows import rows_of_others
from pyro_vae.pair.tracing import PairTrace

__all__ = [
    "check_guide_density",
    "check_plates",
    "check_sites",
    "check_shapes",
    "check_estimator",
]

RELAXED = (td.RelaxedBernoulli, td.RelaxedOneHotCategorical)
DISCRETE = (td.Bernoulli, td.Categorical, td.OneHotCategorical)


def check_plates(run: Run) -> None:
    """Check for plates of the wrong size, batch dimensions outside all plates, and a missing plate over the data."""
    sizes = {run.n, *run.other_sizes}
    all_frames = (f for _, _, site in run.sites() for f in plate_frames(site).values())
    over_data = {f.name for f in all_frames if any(has_size(f, size) for size in sizes)}
    wrong: set[tuple[str, str]] = set()
    for where, name, site in run.sites():
        frames = plate_frames(site).values()
        for frame in frames:
            if (where, frame.name) not in wrong and misses_the_data(frame, site, run.n, over_data, run.other_sizes):
                wrong.add((where, frame.name))
                came = "no size" if frame.size == -1 else f"size {frame.size}"
                text = f"the plate {frame.name!r} around the {where}'s site {name!r} has {came}, but the "
                run.error("plate_size", name, f"{text}batch has {run.n} data: {plate_fix(frame.name)}")
        if any((where, frame.name) in wrong for frame in frames):
            run.faulty.add(name)
        elif not fits(site_shapes(site)[0], plate_sizes(site)):
            others = rows_of_others(run.params.shapes, run.n, {*odd_sizes(site, run.n)})
            if others:
                run.error("rows_of_other_data", name, f"the {where}'s site {name!r} does not fit the data: {others}")
                continue
            plates = " and ".join(f"{f.name!r} (size {f.size}, dim {f.dim})" for f in frames)
            text = (
                f"the {where}'s site {name!r} has batch shape {site_shapes(site)[0]}, which does not fit its plates, "
            )
            text += f"{plates or 'of which there are none'}: {batch_fix(site, run.n, over_data)}"
            run.error("batch_outside_plate", name, text)
    full: dict[str, dict[str, int]] = defaultdict(dict)
    for where, _, site in run.sites():
        full |= {f.name: full[f.name] | {where: f.full_size or f.size} for f in site["cond_indep_stack"]}
    for plate, size in full.items():
        if len(set(size.values())) > 1 and not wrong & {("guide", plate), ("model", plate)}:
            text = f"the plate {plate!r} has size {size['model']} in the model and {size['guide']} in the guide, so "
            text += f"Pyro scales their terms differently; write the same line in both: {plate_fix(plate)}"
            run.error("plate_size", None, text)
    if not over_data and run.sound:
        have = {f"{f.name!r} (size {f.size})" for _, _, site in run.sites() for f in site["cond_indep_stack"]}
        text = (
            f"no site is inside a vectorized plate over the {run.n} data (plates: {shorten(sorted(have)) or 'none'}). "
        )
        text += "The pair can be trained, but has no numbers per datum: put the sites of each datum inside "
        run.warn("no_data_plate", None, f"{text}`with pyro.plate('data', len(x)):`")


def odd_sizes(site: Site, n: int) -> Iterator[int]:
    """The sizes of a site's batch dimensions that are not those of its plates, if none is that of n data."""
    batch, sizes = site_shapes(site)[0], plate_sizes(site)
    if n not in batch:  # else plates in another order are more likely
        yield from (
            b for b, d in zip(batch, range(-len(batch), 0), strict=True) if d in sizes and b not in (1, sizes[d])
        )


def plate_fix(plate: str) -> str:
    """The code of a plate over the data, in words for a message."""
    minibatch = f"`with pyro.plate({plate!r}, num_data, subsample_size=len(x)):`"
    return f"`with pyro.plate({plate!r}, len(x)):`, or to count each batch as the whole data set, {minibatch}"


def misses_the_data(frame: Any, site: Site, n: int, over_data: set[str], other_sizes: set[int]) -> bool:
    """Whether a plate of another size than n was meant for the data: by its name, or because the shapes would fit.

    Not one that takes a part of n by itself, or over another axis of the data, of one of the other sizes.
    """
    if has_size(frame, n) or frame.size in other_sizes:
        return False
    if frame.name in over_data or (frame.name == "data" and not over_data):
        return True
    batches = [site_shapes(site)[0]]
    if site["is_observed"]:
        value = torch.as_tensor(site["value"])
        batches.append(tuple(value.shape[: value.dim() - site["fn"].event_dim]))
    # where another plate is over the data, a missing .to_event is more likely
    cut = [b[: len(b) - k] for b in batches for k in range(1 if over_data else len(b) + frame.dim + 1)]
    sizes = plate_sizes(site) | {frame.dim: n}
    return any(len(b) >= -frame.dim and b[frame.dim] == n and fits(b, sizes) for b in cut)


def has_size(frame: Any, n: int) -> bool:
    """Whether a plate is over n data, or draws a minibatch of them by itself."""
    return n in (frame.size, frame.full_size)


def batch_fix(site: Site, n: int, over_data: set[str]) -> str:
    """The code that gives every batch dimension of a site a plate, or declares it as an event dimension."""
    batch, sizes, frames = site_shapes(site)[0], plate_sizes(site), plate_frames(site)
    k = next(k for k in range(1, len(batch) + 1) if fits(batch[: len(batch) - k], sizes))
    declared = sum(
        f.reinterpreted_batch_ndims for f in wrapped_distributions(site["fn"]) if isinstance(f, td.Independent)
    )
    if family(site) == "Unit":
        inside = f"`with pyro.plate({min(over_data, default='data')!r}, len(x)):`"
        return (
            f"a `pyro.factor` adds one number for each element of its plates: put it inside {inside}, or sum it first"
        )
    if -1 not in frames and batch[-1] == n and n in sizes.values():
        plate = next(f for f in frames.values() if f.size == n)
        leave = f"plates count dimensions from the right, beginning with -1: leave out `dim={plate.dim}`"
        return f"{leave}, {plate_fix(plate.name)}"
    if sorted(sizes.values()) == sorted(batch):
        dims = [f"`pyro.plate({f.name!r}, ..., dim={batch.index(f.size) - len(batch)})`" for f in frames.values()]
        return f"plates count dimensions from the right, so name them: {' and '.join(dims)}"
    if n in batch and n not in batch[: len(batch) - k]:
        if sizes:
            unplated = [d for d in range(-len(batch), 0) if batch[d] not in (1, sizes.get(d))]
            inner = [f"`with pyro.plate('inner', {batch[d]}, dim={d}):`" for d in unplated]
            return f"open a plate for the other dimensions: {' '.join(inner)}"
        event = len(batch) - 1 - batch.index(n) + declared
        declare = f" and write `dist.{family(site)}(...).to_event({event})`" if event else ""
        return f"put it inside `with pyro.plate({min(over_data, default='data')!r}, len(x)):`{declare}"
    fix = f"declare the last {k} dimension(s) as one event: `dist.{family(site)}(...).to_event({k + declared})`"
    if site["fn"].event_dim and len(batch) <= len(sizes):  # an event was declared: are these rows of other data?
        return f"if it has {batch[-k]} rows, one for each of other data, take those of the batch; else {fix}"
    return fix


def check_sites(run: Run, estimator: pyro.infer.ELBO) -> None:
    """Check for latents that only the model or only the guide samples."""
    guide, model = run.sites_of("guide"), run.sites_of("model")
    drawn = [name for name, site in guide.items() if not site["is_observed"]]
    latent = [name for name, site in model.items() if not site["is_observed"]]
    seen, seen_by_guide = ([name for name, site in sites.items() if observes(site)] for sites in (model, guide))
    if seen_by_guide and not seen and not run.raised:
        text = f"the model observes nothing, and the guide observes {seen_by_guide}: are they swapped? The model comes "
        text += "first, `(model, guide, x)`; if they are not, observe the data in the model, "
        run.error("swapped", seen_by_guide[0], f"{text}`pyro.sample({seen_by_guide[0]!r}, ..., obs=x)`")
        return
    for name in latent:
        if name not in drawn and not is_enumerated(model[name], estimator):
            why = "observes" if name in guide else "never samples"
            if not any(s["is_observed"] for s in model.values()) and name == latent[-1]:
                text = f"the model observes nothing, and its last site {name!r} is not in the guide: give it the data, "
                run.error("missing_in_guide", name, f"{text}`pyro.sample({name!r}, ..., obs=x)`")
                continue
            text = f"the model samples the latent site {name!r}, which the guide {why} (the guide samples "
            text += f"{drawn or 'nothing'}): add `pyro.sample({name!r}, dist.{family(model[name])}(...))` to the "
            text += f"guide, or observe it in the model, `pyro.sample({name!r}, ..., obs=...)`"
            run.error("missing_in_guide", name, text)
    if run.raised:  # the model may not have reached its last sites
        return
    for name, site in guide.items():
        if name not in latent and not site["infer"].get("is_auxiliary") and not site["is_observed"]:
            text = f"the guide samples the site {name!r}, which the model "
            if name in model:
                text += f"observes: remove `pyro.sample({name!r}, ...)` from the guide"
            else:
                text += f"never samples (the model has {latent}): {missing_fix(name, site, model, latent, drawn)}, or "
                text += "mark it as the guide's own, "
                text += f"`pyro.sample({name!r}, ..., infer={{'is_auxiliary': True}})`, if latents are functions of it"
            run.error("missing_in_model", name, text)


def missing_fix(name: str, site: Site, model: dict[str, Site], latent: list[str], drawn: list[str]) -> str:
    """What to do about a site that only the guide has."""
    sample = f"`{name} = pyro.sample({name!r}, dist.{family(site)}(...))`"
    if not model:
        return f"it returned before its first site: sample in it, {sample}; or rename it"
    if all(other in drawn for other in latent):
        return f"draw it in the model, {sample} (not with torch or NumPy), rename it"
    return "rename it"


def observes(site: Site) -> bool:
    """Whether a site observes a value: a `pyro.factor` does not."""
    return bool(site["is_observed"]) and family(site) != "Unit"


def check_guide_density(run: Run) -> None:
    """Terms and noise of the guide that are no part of a density of the latents."""
    if not run.sound:
        return
    traces = PairTrace(run.model, run.guide)
    try:
        check_noise(traces)
    except ValueError as error:
        run.error("auxiliary_noise", None, str(error))
        return
    for name in uncounted_in_model(traces):
        text = (
            f"the model masks elements of {name!r} that the guide counts: the loss has their -log q against nothing, "
        )
        text += (
            "so -loss may lie above log p(x) (`bound` and `log_marginal` leave them out): put the guide's statement "
        )
        text += "under the same mask, `with poutine.mask(mask=...):`, for obs_mask= that is ~obs_mask"
        run.warn("masked_in_model", name, text)
    for name in other_terms(traces):
        text = f"the guide adds {name!r} to its log-density, by pyro.factor or by observing: training has it, and "
        text += "`bound`, `log_marginal` and all other numbers leave it out, for it is no part of q(z|x)"
        site = traces.guide.nodes[name]
        if family(site) == "Unit":
            text += ". If it is the KL or the entropy, remove it: the ELBO has them"
            if "has_rsample" not in vars(base_distribution(site)):
                text += f". If not, say that it is differentiable, `pyro.factor({name!r}, ..., has_rsample=True)`: "
                text += "else it counts as the score of a draw, with another gradient"
        run.warn("guide_terms", name, text)


def check_shapes(run: Run, estimator: pyro.infer.ELBO) -> None:
    """Compare families and shapes of the model with those of the guide, and of the observations."""
    for name, (q, p) in run.latents().items():
        if name in run.faulty:
            continue
        (q_batch, q_event), (p_batch, p_event) = site_shapes(q), site_shapes(p)
        if isinstance(base_distribution(q), RELAXED) and isinstance(base_distribution(p), DISCRETE):
            if not (is_mean_field(estimator) and has_kl(q, p)):
                straight = f"{family(p)}StraightThrough"  # discrete draws with a biased, but pathwise gradient
                has_straight = hasattr(pyro.distributions, straight)
                discrete, how = (straight, "") if has_straight else (family(p), " with elbo='trace'")
                text = f"site {name!r} is {family(q)} in the guide and {family(p)} in the model: the ratio of a "
                text += "density of relaxed values and a probability of discrete ones is not a KL. Relax both, "
                text += f"`pyro.sample({name!r}, dist.{family(q)}(temperature, ...))`, or draw discrete values in "
                run.error("relaxed_guide", name, f"{text}the guide, `dist.{discrete}(logits=...)`{how}")
        elif q_event != p_event:
            text = f"site {name!r} has event shape {p_event} in the model and {q_event} in the guide: give both the "
            text += f"same sizes and number of event dimensions, `dist.{family(p)}(...).to_event(k)` with one k"
            run.error("event_shape", name, text)
        elif strip_leading_ones(q_batch) != strip_leading_ones(p_batch):
            text = f"site {name!r} has batch shape {p_batch} in the model and {q_batch} in the guide, so its "
            text += "terms differ in number: put it inside the same plates in both, `with pyro.plate('data', len(x)):`"
            run.error("plates_differ", name, text)
    for where, name, site in run.sites():
        if not site["is_observed"] or name in run.faulty:
            continue
        came, (batch, event) = tuple(torch.as_tensor(site["value"]).shape), site_shapes(site)
        split = len(came) - len(event)
        # Pyro lets plates broadcast an observation that lacks batch dimensions, but not one that has more
        broadcasts = fits(came[: max(split, 0)], dict(zip(range(-len(batch), 0), batch, strict=True)))
        if split < 0 or came[split:] != event or not broadcasts:
            same = math.prod(came) == math.prod(batch + event)
            fix = f"`obs=x.reshape({', '.join(map(str, batch + event))})`" if same else "give both the same sizes"
            text = f"the {where}'s site {name!r} observes a value of shape {came}, but its {family(site)} has shape "
            text += f"{batch + event}, batch {batch} and event {event}: {fix}, or change `.to_event(k)`"
            run.error("obs_shape", name, text)


def strip_leading_ones(batch: tuple[int, ...]) -> tuple[int, ...]:
    """A batch shape without its leading dimensions of size 1."""
    return tuple(itertools.dropwhile(lambda b: b == 1, batch))


def is_mean_field(estimator: pyro.infer.ELBO) -> bool:
    """Whether an estimator uses closed-form KLs."""
    return isinstance(estimator, elbos.MeanField | pyro.infer.TraceMeanField_ELBO)


def is_enumerated(site: Site, estimator: pyro.infer.ELBO) -> bool:
    """Whether an estimator sums a site out."""
    return isinstance(estimator, pyro.infer.TraceEnum_ELBO) and bool(site["infer"].get("enumerate"))


def has_kl(q: Site, p: Site) -> bool:
    """Whether KL(q || p) has a closed form."""
    try:
        td.kl_divergence(q["fn"], p["fn"])
    except NotImplementedError:
        return False
    return True


def check_estimator(run: Run, estimator: pyro.infer.ELBO) -> None:
    """Check what the estimator needs of the latents: reparameterized draws, the same order in model and guide."""
    kind, guide = type(estimator).__name__, run.sites_of("guide")
    pathwise = getattr(estimator, "needs_path", False)
    for name, site in guide.items():
        if name in run.faulty or site["is_observed"] or site["fn"].has_rsample or is_enumerated(site, estimator):
            continue
        text = f"the guide draws {name!r} from {family(site)}, which has no reparameterized gradient"
        if pathwise or is_mean_field(estimator):
            text += f", and {kind} needs one: use the score function, `elbo='trace'`, or a relaxed family in both"
            run.error("not_reparameterized", name, text)
        elif not getattr(estimator, "for_discrete", False):
            text += "; the score-function gradient has a high variance: take several draws, `num_particles=10`, or a "
            run.warn("not_reparameterized", name, f"{text}relaxed family in both")
    if run.raised or not is_mean_field(estimator):
        return
    drawn = list(run.latents())
    order = [name for name in guide if name in drawn]
    # a closed-form KL needs all sites that precede this one in the model to precede it in the guide too
    late = [name for name in drawn if not set(drawn[: drawn.index(name)]) <= set(order[: order.index(name)])]
    if late:
        text = f"the guide samples in the order {order}, the model in {drawn}, so the KL of {late} "
        fix = f"sample in the model's order in the guide, {', '.join(f'`pyro.sample({n!r}, ...)`' for n in drawn)}"
        if isinstance(estimator, pyro.infer.TraceMeanField_ELBO):
            text += f"is biased under {kind} unless the sites are independent: use `elbo='mean_field'`, or {fix}"
            run.error("site_order", late[0], text)
        else:
            text += f"is sampled instead of integrated, with more noise; if that is not meant, {fix}"
            run.warn("site_order", late[0], text)
