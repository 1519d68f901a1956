"""log p(x) by annealed importance sampling with Hamiltonian moves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import pyro
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pyro_vae.evaluate.marginal.importance_sampling import check_finite
from pyro_vae.evaluate.marginal.latent_space import LatentSpace, Point
from pyro_vae.evaluate.marginal.methods import AIS
from pyro_vae.evaluate.marginal.result import LogMarginal, concatenate, estimate_from_weights
from pyro_vae.evaluate.marginal.weights import Weights
from pyro_vae.pair.arguments import slices, take
from pyro_vae.pair.planning import rows_that_fit, run_on_examples
from pyro_vae.pair.protocol import Data, Program
from pyro_vae.support.progress import Advance, progress_bar, until_interrupted
from pyro_vae.support.random import fork_rng

__all__ = ["Annealing", "annealed", "prepared", "temperatures"]

TARGET_ACCEPTANCE = 0.65
PILOT_MOVES = 100  # at least, so that the step sizes converge
PILOT_TEMPERATURES = 200  # at most, since step sizes vary slowly
CPU_MEMORY = 16 * 2**20  # larger runs with their gradients exceed the cache


def temperatures(number: int, schedule: str) -> list[float]:
    """Inverse temperatures from 0 to 1 in `number` steps: "linear", or "sigmoid", which is finer at both ends.

    Reference: Wu et al. 2017, arXiv 1611.04273, section 4.3.
    """
    if number < 1:
        raise ValueError(f"num_temperatures must be at least 1, got {number}")
    t = torch.linspace(-1, 1, number + 1, dtype=torch.float64)
    if schedule == "sigmoid":
        t = torch.sigmoid(4 * t)
    elif schedule != "linear":
        raise ValueError(f"schedule must be 'sigmoid' or 'linear', got {schedule!r}")
    betas: list[float] = ((t - t[0]) / (t[-1] - t[0])).tolist()
    return betas


def move(space: LatentSpace, current: Point, beta: float, step: Tensor, leapfrog_steps: int) -> tuple[Point, Tensor]:
    """One Hamiltonian Monte Carlo move for base^(1 - beta) p(x, z)^beta; returns the point and acceptance rates.

    `step` is the step size of each row, `(R,)`.
    """
    momentum = torch.randn_like(current.u)
    energy = momentum.square().sum(-1) / 2 - current.log_density(beta)
    # a random length: a trajectory of fixed length may return to its start
    step = (step * (0.8 + 0.4 * torch.rand_like(step))).unsqueeze(-1)
    proposed = current
    momentum = momentum + step / 2 * current.grad(beta)
    for i in range(leapfrog_steps):
        proposed = space.point(proposed.u + step * momentum)
        momentum = momentum + (step if i < leapfrog_steps - 1 else step / 2) * proposed.grad(beta)
    change = energy - momentum.square().sum(-1) / 2 + proposed.log_density(beta)
    probability = change.clamp(max=0).exp().nan_to_num(nan=0.0)
    return proposed.where(torch.rand_like(probability) < probability, current), probability


class Annealing:
    """Chains that anneal draws from the base to p(x, z), or in reverse, with fixed step sizes.

    The step sizes come from a pilot run of two chains, which adapts them to a target acceptance per datum and
    temperature. The chains themselves do not adapt: if a step size depended on a chain's past, the moves would not
    leave their distribution invariant, and the expectation of the weights would be wrong, above all in the reversed
    chain.

    Args:
        space: The densities, with C copies of the data.
        betas: Inverse temperatures, from 0 to 1.
        leapfrog_steps: Leapfrog steps of each move.
        steps: Step sizes by temperature, `(T - 1, N)`.
    """

    def __init__(self, space: LatentSpace, betas: list[float], leapfrog_steps: int, steps: Tensor) -> None:
        self.space, self.betas, self.leapfrog_steps, self.steps = space, betas, leapfrog_steps, steps

    def run(self, u: Tensor, advance: Advance, *, backward: bool = False) -> tuple[Tensor, Tensor]:
        """Log-weights and mean acceptance probabilities, both `(C, N)`, of chains that begin at `u`, `(C N, D)`."""
        betas, steps = self.betas, self.steps
        if backward:
            betas, steps = betas[::-1], steps.flip(0)
        with pyro.validation_enabled(False):
            current = self.space.point(u)
            log_w, accepted = torch.zeros_like(current.base, dtype=torch.float64), torch.zeros_like(current.base)
            for t in range(1, len(betas)):
                log_w += (betas[t] - betas[t - 1]) * current.tilt.double()
                if t < len(betas) - 1:
                    step = steps[t - 1].repeat(self.space.copies)
                    current, probability = move(self.space, current, betas[t], step, self.leapfrog_steps)
                    accepted += probability
                advance(self.space.n)
        shape = self.space.copies, self.space.n
        return log_w.reshape(shape), (accepted / max(1, len(betas) - 2)).reshape(shape)


def pilot(space: LatentSpace, betas: list[float], leapfrog_steps: int, advance: Advance) -> Tensor:
    """Step sizes that reach the target acceptance, `(T - 1, N)`, from an adaptive run."""
    current = space.point(space.draw())
    log_step = current.u.new_full((space.n,), math.log(0.5 / space.dims**0.25))
    found = []
    # moves at the first temperature, which leave the base invariant, to adapt the first step size
    warm_up = [betas[0]] * 30
    each = max(1, PILOT_MOVES // len(betas))
    for t, beta in enumerate([*warm_up, *(b for b in betas[1:-1] for _ in range(each))]):
        step = log_step.exp().repeat(space.copies)
        current, probability = move(space, current, beta, step, leapfrog_steps)
        surplus = probability.reshape(space.copies, space.n).mean(0) - TARGET_ACCEPTANCE
        log_step = log_step + (0.5 if t < len(warm_up) else 0.2) * surplus
        if t >= len(warm_up):
            found.append(log_step)
            if len(found) % each == 0:
                advance(space.n)
    if not found:
        return log_step.new_zeros(0, space.n)
    return torch.stack(found).unflatten(0, (-1, each)).mean(1).exp()


def pilot_temperatures(method: AIS) -> int:
    """Number of temperature steps of the pilot run."""
    return min(method.num_temperatures, PILOT_TEMPERATURES)


def prepared(
    model: Program, guide: Program | None, data: Data, method: AIS, memory: int | None, advance: Advance
) -> Iterator[tuple[int, int, Annealing]]:
    """Split the data to fit the memory; yields each piece as (start, stop, chains with adapted step sizes)."""
    n = len(data[0][0])
    rows = rows_at_once(model, guide, data, memory)
    betas = temperatures(method.num_temperatures, method.schedule)
    coarse = temperatures(pilot_temperatures(method), method.schedule)
    per_data = max(1, rows // method.num_chains) if rows else n
    long = method.num_temperatures * method.leapfrog_steps > 200  # recording costs about as much as 100 evaluations
    for first, last in slices(n, max(per_data, rows // 2) if rows else n):
        # parameters may overflow far out in the latent space: the move is rejected, and the pair is not at fault
        with pyro.validation_enabled(False):
            trial = LatentSpace(model, guide, take(*data, first, last), min(2, method.num_chains))
            if long:
                trial.record()
            steps = pilot(trial, coarse, method.leapfrog_steps, advance)
            if len(steps):
                steps = interpolate(steps.T[None], len(betas) - 2, mode="linear", align_corners=True)[0].T
        for start, stop in slices(last - first, per_data):
            space = LatentSpace(model, guide, take(*data, first + start, first + stop), method.num_chains)
            if long:
                space.record()
            yield first + start, first + stop, Annealing(space, betas, method.leapfrog_steps, steps[:, start:stop])


def annealed(
    model: Program, guide: Program | None, data: Data, method: AIS, *, memory: int | None, progress: bool | None
) -> LogMarginal:
    """`log_marginal` by annealed importance sampling.

    The caller disables gradients and puts the networks in evaluation mode.
    """
    guide = guide if method.start == "guide" else None
    x, n = data[0][0], len(data[0][0])

    def parts(advance: Advance) -> Iterator[LogMarginal]:
        for start, stop, chains in prepared(model, guide, data, method, memory, advance):
            log_w, accepted = chains.run(chains.space.draw(), advance)
            weights = Weights(stop - start, method.num_chains, x.device)
            weights.add(log_w)
            check_finite(weights, start)
            yield estimate_from_weights(weights, x.dtype, method=method.name, acceptance=accepted.mean(0))

    with progress_bar("AIS", n * (method.num_temperatures + pilot_temperatures(method) - 1), progress) as advance:
        found, interrupted = until_interrupted(parts(advance))
    return dataclasses.replace(concatenate(found), interrupted=interrupted)


def rows_at_once(model: Program, guide: Program | None, data: Data, memory: int | None) -> int:
    """How many rows, each a datum and a chain, to run at once; 0 if the data cannot be split."""
    with fork_rng():
        space, _, whole = run_on_examples(lambda some: LatentSpace(model, guide, some, 1), data)
        if whole:
            return 0
        u = space.draw()
    # the backward pass stores the tensors of the forward pass
    device = data[0][0].device
    return rows_that_fit(lambda: space.point(u), len(u), device, memory, cpu_memory=CPU_MEMORY, copies=2)
