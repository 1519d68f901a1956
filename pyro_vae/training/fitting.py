"""The one training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

import pyro
import pyro.infer
import torch

from pyro_vae import elbo as elbos
from pyro_vae.compilation.precision import Precision
from pyro_vae.data import Data
from pyro_vae.distributed.ranks import Devices, Ranks, launch
from pyro_vae.evaluate.preflight.report import preflight as run_preflight
from pyro_vae.pair.arguments import slices, take
from pyro_vae.pair.device import choose_device
from pyro_vae.support.progress import progress_bar
from pyro_vae.support.random import fork_rng
from pyro_vae.training.batches import feed
from pyro_vae.training.checkpoints import Checkpoints, FollowedCheckpoints, Stop, objective_values, stop_between_steps
from pyro_vae.training.history import Epoch, History
from pyro_vae.training.monitor import Meter
from pyro_vae.training.nonfinite import NonFiniteLoss, WeightGuard
from pyro_vae.training.schedules import Length, LRSchedule, described, kl_schedule, lr_factor
from pyro_vae.training.state import Position, Training
from pyro_vae.training.svi import SVI, OptimizerFactory, fused_adam

__all__ = ["State", "fit"]

Program = Callable[..., Any]
STEPS_TO_COMPILE = 10_000


@dataclass(frozen=True)
class State:
    """What a callback sees after each epoch."""

    history: History
    svi: SVI

    @property
    def epoch(self) -> Epoch:
        """The epoch that just ended."""
        return self.history[-1]


def fit(
    model: Program,
    guide: Program,
    data: Any,
    *,
    valid: Any = None,
    elbo: str | pyro.infer.ELBO = "mean_field",
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 100,
    accumulate: int = 1,
    lr: float = 1e-3,
    lr_schedule: LRSchedule = "constant",
    optim: OptimizerFactory | None = None,
    clip_norm: float | None = None,
    num_particles: int = 1,
    kl_weight: float | elbos.Schedule | Callable[[float], float] = 1.0,
    early_stopping: int | None = None,
    keep_best: bool = True,
    seed: int | None = None,
    device: str = "auto",
    devices: Devices = "auto",
    num_nodes: int = 1,
    strategy: str = "auto",
    compile: bool | Literal["auto"] = "auto",
    precision: Precision = "float32",
    preflight: bool = True,
    progress: bool | None = None,
    callbacks: Sequence[Callable[[State], bool | None]] = (),
    checkpoints: Checkpoints | str | Path | None = None,
    resume: bool | str | Path = False,
    rollbacks: int = 0,
) -> History:
    """Train any model/guide pair by stochastic variational inference.

    What is minimised is the mean over the batch of the negative objective. The true ELBO is measured after each epoch
    beside it, on training and validation data, whatever the objective.

    Args:
        model, guide: The pair.
        data: What `pv.data.load` returns; a tensor; a tuple of tensors, whose further members are passed on as `*args`;
            or a loader, whose batches are passed on as far as the model takes arguments.
        valid: Validation data, in any of these forms. Default: the validation split of `data`, if it has one.
        elbo: An estimator's name (`pv.elbo.names()`) or a `pyro.infer.ELBO` object.
        epochs: Length of the run in passes over the data. Default: 50, unless `steps` is given.
        steps: Length of the run in gradient steps, in place of `epochs`.
        batch_size: Data per step; the last batch of an epoch may be smaller. A loader brings its own.
        accumulate: Take the gradient of each batch in so many parts, one after the other, which takes less memory. The
            step is that of the whole batch, with other noise.
        lr: Learning rate.
        lr_schedule: Of the learning rate over the run: "constant", "linear" or "cosine" (both to zero), or a function
            of the share of the run done, in [0, 1], that gives a factor.
        optim: A function `params -> torch.optim.Optimizer`. Default: fused Adam at rate `lr`.
        clip_norm: Rescale the gradient (of the mean loss) to at most this norm.
        num_particles: Draws from the guide per datum and step.
        kl_weight: Weight of the KL in the objective: a number (beta), a `pv.elbo.Warmup` or `pv.elbo.Cyclical`, or a
            function of the epoch (fractional, from 0).
        early_stopping: Stop after so many epochs without a better validation ELBO, counted once the KL weight has
            settled.
        keep_best: End with the weights of the epoch with the best validation ELBO (again, once the KL weight has
            settled). The last weights stay without validation data, and where the objective is no bound on log p(x).
        seed: Covers the shuffling and all noise, and leaves torch's generators as they were. Weights are initialised
            before this function is called: seed them there.
        device: "auto": a GPU if there is one and the pair's networks can be found and moved, else where they are.
        devices: Processes that train together on each machine, one for each device. "auto": as many as `torchrun` has
            started, else one. Each takes an equal share of every batch (of a loader, batches of the loader's size from
            a share of the data) with noise of its own, and all gradients are summed, so that the weights stay equal on
            all. Rank 0 alone calls the callbacks, writes checkpoints and shows progress. See `pv.launch`.
        num_nodes: Machines that train together.
        strategy: How the processes work together: "auto" or "ddp".
        compile: Compile the gradient step (see `pv.SVI`). The first epoch runs eagerly if the data are in memory, so
            that Pyro has checked every datum. "auto": where at least 10,000 steps are to follow, which pays for the 10
            to 30 seconds of compiling.
        precision: What the networks compute in: "float32", "bfloat16" or "float16" (see `pv.SVI`).
        preflight: Check the pair on the first few data before training.
        progress: Show a progress bar: True, False, or None (in a terminal).
        callbacks: Called with a `State` after each epoch; returning True ends the run.
        checkpoints: A folder, or a `pv.Checkpoints` that also says how often: there everything that the run needs to go
            on is written every ten minutes, at its end, and when Ctrl-C or SIGTERM stop it (between two steps).
        resume: Go on from the latest checkpoint. True: in `checkpoints`, and from the start if there is none yet, so
            that the same script can be started again and again. A folder: from there, and write there. The run ends
            with the same weights and figures, to the bit, as if it had not stopped; see "Reproducibility" in the
            documentation for what that takes. `epochs`, `steps`, `early_stopping` and `device` may differ from
            before, other settings may not. A finished run goes on if `epochs` is larger now.
        rollbacks: How often a NaN or infinite loss, in place of ending the run, takes it back to the end of the epoch
            before with half the learning rate.

    Returns:
        History: The figures of each epoch. After Ctrl-C, too: the pair then has its best weights so far.

    Raises:
        ValueError, TypeError: For bad arguments, an unsound pair (see `preflight`) or unusable data, before any step.
        NonFiniteLoss: When the loss becomes NaN or infinite: it says at which site, step and batch. The weights are the
            last good ones.
        FileNotFoundError: If there is no checkpoint in the folder that `resume` names.
        RuntimeError: If another process is training in the same folder of checkpoints.
        OSError: If a checkpoint cannot be written; those before it stay.
    """
    _check("a number", lr=lr)
    counts = {"num_particles": num_particles, "early_stopping": early_stopping, "epochs": epochs, "steps": steps}
    _check("a whole number", batch_size=batch_size, accumulate=accumulate, **counts)
    if not isinstance(rollbacks, int) or rollbacks < 0:
        raise ValueError(f"rollbacks must be a whole number from 0, got {rollbacks!r}")
    ranks = launch(devices, num_nodes, strategy, device)
    place = choose_device(device if ranks.device is None else str(ranks.device), model, guide)
    train = feed(data, batch_size, place, model, ranks)
    if valid is None and isinstance(data, Data):
        valid = data.valid
    held_out = None if valid is None else feed(valid, 1, place, model, ranks, trains=False)
    if early_stopping is not None and held_out is None:
        raise ValueError("early_stopping needs validation data: load(..., valid=0.1), or fit(..., valid=x_valid)")
    length = Length.of(epochs, steps, train.steps_per_epoch)
    factor, (kl, settles) = lr_factor(lr_schedule), kl_schedule(kl_weight, length.exact)
    objective = elbos.make(elbo, num_particles=num_particles)
    weighted = elbos.WeightedKL(objective) if kl_weight != 1.0 else None
    if compile not in (True, False, "auto"):
        raise ValueError(f"compile must be True, False or 'auto', got {compile!r}")
    svi = SVI(model, guide, optim or fused_adam(lr), weighted or objective, clip_norm=clip_norm, precision=precision)
    later = (length.steps or 0) - (train.steps_per_epoch or 0)  # steps after the first epoch
    history = History(seed=seed, elbo=elbo if isinstance(elbo, str) else type(elbo).__name__)
    if isinstance(data, Data):
        history.data = data.describe()
    keeper = _keeper(checkpoints, resume, ranks)
    # what a run must be resumed with; looking at the data takes time, which a run without checkpoints can spare
    settings: dict[str, Any] = {}
    if keeper is not None:
        settings = {
            "elbo": [history.elbo, objective_values(objective)],
            "batch_size": batch_size,
            "accumulate": accumulate,
            "lr": lr,
            "lr_schedule": described(lr_schedule),
            "optim": described(optim),
            "clip_norm": clip_norm,
            "num_particles": num_particles,
            "kl_weight": described(kl_weight),
            "keep_best": keep_best,
            "seed": seed,
            "precision": precision,
            "data": {**train.describe(), **history.data},
            "valid": None if held_out is None else held_out.describe(),
        }
        if ranks.size > 1:
            settings["processes"] = ranks.size
    seen = ranks.gather(train.describe()) if ranks.size > 1 else []
    if any(other != seen[0] for other in seen):
        raise ValueError(f"the processes have been given different data: {seen}. Seed whatever makes or splits them")
    if accumulate > 1 and isinstance(objective, elbos.PhasedELBO):
        raise ValueError(f"{type(objective).__name__} steps its phases in turn: it takes no accumulate={accumulate}")
    by_elbo = getattr(objective, "bound", "elbo") != "none"
    if early_stopping is not None and not by_elbo:
        raise ValueError(f"early stopping goes by the ELBO, which {type(objective).__name__} does not maximise")

    with ExitStack() as stack:
        stack.enter_context(ranks.speaking())
        saved = None
        if keeper is not None:
            stack.enter_context(keeper.locked())
            saved = ranks.from_leader(keeper.load()) if resume is not False else None
            if saved is None and resume not in (True, False):
                raise FileNotFoundError(f"there is no checkpoint in {keeper.path}: start the run without resume")
        if seed is not None:
            stack.enter_context(fork_rng(seed + ranks.rank))
        order = ranks.from_leader(int(torch.randint(2**62, ())) if seed is None else seed)
        if seed is None and not ranks.leads:
            torch.manual_seed(order + ranks.rank)
        at = Position(torch.Generator().manual_seed(order))
        meter = Meter(model, guide, train, held_out, parts=accumulate * ranks.size)
        if preflight:
            run_preflight(model, guide, *meter.few, elbo=objective, num_particles=num_particles)
        guard = WeightGuard(svi, place)
        if ranks.size > 1:
            svi.join(ranks, guard.running, meter.few)
        compiles = later >= STEPS_TO_COMPILE if compile == "auto" else compile
        training = Training(svi, guard, history, at, settings, compiles, ranks)
        if saved is not None:
            try:
                training.resume(saved, meter.few, compile)
            except (KeyError, TypeError, AttributeError, IndexError) as error:  # of a stranger, or of another version
                raise ValueError(
                    f"the checkpoint in {keeper and keeper.path} is none of this version of pyro_vae or not of this "
                    f"run: {type(error).__name__} {error}"
                ) from error
        good = training.snapshot().copy() if rollbacks and at.step and not at.losses else None
        started = time.perf_counter() - at.seconds

        def save() -> None:
            if keeper is not None and at.step > keeper.last_step:
                guard.flush()  # nothing that is not finite goes to the disk
                at.seconds = time.perf_counter() - started
                keeper.save(at.step, training.snapshot())

        def ended() -> str | None:
            if at.step == length.last_step or at.epoch > length.epochs:
                return "finished"
            waited = at.epoch - 1 - (history.best or at.epoch - 1)
            patient = early_stopping is None or at.losses or waited < early_stopping
            return None if patient else "early stopping"

        if keeper is not None:
            keeper.started(at.step, fresh=saved is None)
        between = keeper is not None or ranks.size > 1
        stop = stack.enter_context(stop_between_steps()) if between else Stop()
        every = 1 if ranks.size == 1 else max(guard.every, 10)  # steps after which ranks ask each other
        advance = stack.enter_context(progress_bar("training", length.steps, progress if ranks.leads else False))
        advance(at.step)
        at.per_epoch = at.per_epoch or train.steps_per_epoch
        stopped, batch, checked, stops = None, meter.few, False, False
        try:
            while stopped is None and (stopped := ended()) is None:
                # Pyro's checks see every datum once; a loader may always bring new ones
                if not checked and at.epoch > 1 and train.in_memory:
                    checked = True
                    stack.enter_context(pyro.validation_enabled(False))
                svi.compile = training.compiles and (checked or not train.in_memory)
                try:
                    for batch in training.batches(train, remember=keeper is not None):
                        position = at.epoch - 1 + at.share
                        if weighted is not None:
                            weighted.weight = kl(position)
                        guard.before_step()
                        loss = svi.share(_loss(svi, guard, meter, batch, at.step, accumulate))
                        guard.check(at.step, loss, batch)
                        done = at.step / length.steps if length.steps else position / length.epochs
                        _set_lr(svi, factor(done) * at.lr_factor)
                        svi.update()
                        at.losses.append(loss)
                        at.step += 1
                        advance(1)
                        due = keeper is not None and keeper.due(at.step)
                        if at.step % every == 0:
                            stops, due = ranks.any(stop.asked, due)
                        if stops or at.step == length.last_step:
                            break
                        if due and at.step % every == 0:
                            save()
                    if stops:
                        raise KeyboardInterrupt
                    if not at.losses:
                        raise ValueError(
                            f"the data gave no batch in epoch {at.epoch}: a loader must start anew each time"
                        )
                    guard.end_epoch(at.step, batch)
                except NonFiniteLoss as error:
                    if at.rollbacks >= rollbacks:
                        raise
                    training.roll_back(good, error)
                    if keeper is not None:
                        keeper.clear(after=at.step)
                    continue
                at.per_epoch = at.per_epoch or len(at.losses)
                history.epochs.append(
                    Epoch(
                        epoch=at.epoch,
                        step=at.step,
                        loss=float(torch.stack(at.losses).mean()),
                        kl_weight=weighted.weight if weighted else 1.0,
                        lr=_get_lr(svi),
                        seconds=time.perf_counter() - started,
                        **meter.measure(),
                    )
                )
                advance(0, _status(history[-1]))
                settled = at.epoch >= settles or at.step == length.last_step
                if held_out is not None and by_elbo and settled and history[-1].monitored > at.best:
                    at.best, history.best = history[-1].monitored, at.epoch
                    guard.keep_best()
                state = State(history, svi)
                answers = [callback(state) for callback in callbacks if ranks.leads]  # all of them are called
                if ranks.from_leader(any(answers)):
                    stopped = "callback"
                at.next_epoch()
                if rollbacks:
                    good = training.snapshot().copy()
        except KeyboardInterrupt:
            svi.zero_grad()
            stopped = "interrupted"
            if stop.at_once or not stops:  # within a step, perhaps: what is on the disk is whole
                keeper = None
        history.stopped = stopped or "finished"
        try:
            save()
        finally:
            if keep_best and history.best is not None:
                guard.restore_best()
            else:
                history.best = None
    return history


def _keeper(
    checkpoints: Checkpoints | str | Path | None, resume: bool | str | Path, ranks: Ranks
) -> Checkpoints | None:
    if not isinstance(resume, bool):
        folder = checkpoints.path if isinstance(checkpoints, Checkpoints) else checkpoints
        if folder is not None and Path(folder) != Path(resume):
            raise ValueError(f"resume={str(resume)!r} says where checkpoints are: pass resume=True with checkpoints=")
        checkpoints = resume if checkpoints is None else checkpoints
    if resume is True and checkpoints is None:
        raise ValueError("resume=True needs checkpoints=, the folder to go on from")
    keeper = Checkpoints(checkpoints) if isinstance(checkpoints, str | Path) else checkpoints
    return keeper if keeper is None or ranks.leads else FollowedCheckpoints(keeper)


def _loss(svi: SVI, guard: WeightGuard, meter: Meter, batch: tuple[Any, ...], step: int, parts: int) -> torch.Tensor:
    """Leave this process's part of the gradient of a batch's mean loss in the parameters; returns that of the loss."""
    rows, share = meter.train.of_rank(batch)
    try:
        return _gradients(svi, meter, rows, parts, share)
    except (ValueError, RuntimeError):
        try:
            guard.look_into(step, rows)
        except NonFiniteLoss:
            if meter.train.ranks.size == 1:
                raise
            return torch.tensor(math.nan, device=meter.train.device)  # which all processes will see at once
        raise


def _gradients(svi: SVI, meter: Meter, batch: tuple[Any, ...], parts: int, share: float) -> torch.Tensor:
    """Leave the gradient of `share` times a batch's mean loss in the parameters, taken in parts; returns that loss."""
    n = len(batch[0])
    loss: Any = 0.0
    for start, stop in slices(n, -(-n // parts)):
        part = batch if parts == 1 else take(batch, {}, start, stop)[0]
        scale = share * (stop - start) / n / meter.divisor(part)
        total = svi.gradients(part, scale=scale)
        loss = loss + scale * torch.stack(total if isinstance(total, tuple) else (total,)).sum()
    return loss


def _check(kind: str, **values: float | None) -> None:
    number = Integral if kind == "a whole number" else Real
    for name, value in values.items():
        if value is None:
            continue
        if not isinstance(value, number) or isinstance(value, bool):
            raise TypeError(f"{name} must be {kind} above 0, got {value!r}")
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be {kind} above 0, got {value!r}")


def _set_lr(svi: SVI, factor: float) -> None:
    for group in (group for optimizer in svi.optimizers for group in optimizer.param_groups):
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def _get_lr(svi: SVI) -> float:
    return float(svi.optimizer.param_groups[0]["lr"]) if svi.optimizer else math.nan


def _status(now: Epoch) -> str:
    valid = "" if now.valid_elbo is None else f" valid {now.valid_elbo:.2f}"
    return f"ELBO train {now.train_elbo:.2f}{valid}"
