"""`fit`: checks its arguments, sets up a run and trains."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import pyro.infer
import torch
from pyro.infer import TraceEnum_ELBO
from pyro.optim import PyroOptim

from pyro_vae import elbo as elbos
from pyro_vae.compilation.precision import Precision
from pyro_vae.data import Data
from pyro_vae.distributed.ranks import Devices, Ranks, launch
from pyro_vae.evaluate.guide_density import check_guide
from pyro_vae.evaluate.preflight.report import preflight as check_pair
from pyro_vae.pair.device import choose_device
from pyro_vae.pair.enumeration import completed, summed_out
from pyro_vae.pair.protocol import Program
from pyro_vae.pair.scale import DataScale, data_scale
from pyro_vae.support import arguments
from pyro_vae.support.progress import is_shown, progress_bar
from pyro_vae.support.random import fork_rng
from pyro_vae.training.batches import BATCH_SIZE, Batches, Head, batches_for
from pyro_vae.training.callbacks import Callback, State
from pyro_vae.training.checkpoints.checkpointer import Checkpointer, checkpoints_of
from pyro_vae.training.checkpoints.directory import Checkpoints
from pyro_vae.training.checkpoints.signals import stop_between_steps
from pyro_vae.training.checkpoints.svi import objective_values
from pyro_vae.training.compile_choice import CompileChoice
from pyro_vae.training.driving import drive
from pyro_vae.training.forms import in_tensors
from pyro_vae.training.guards import check_grad_enabled, only_thread
from pyro_vae.training.history import History
from pyro_vae.training.loop import Run
from pyro_vae.training.minibatches import check_minibatches
from pyro_vae.training.monitor import SEED, Monitor
from pyro_vae.training.nonfinite import LossCheck
from pyro_vae.training.optimizers import OptimizerFactory, fused_adam
from pyro_vae.training.rollback import Rollbacks
from pyro_vae.training.schedules import LRSchedule, RunLength, Schedules
from pyro_vae.training.settings import Settings, is_bound
from pyro_vae.training.state import TrainState
from pyro_vae.training.step import TrainStep
from pyro_vae.training.stopping import BestWeights, EarlyStopping
from pyro_vae.training.svi import SVI
from pyro_vae.training.threads import ThreadNumber, Threads
from pyro_vae.training.weights import WeightCopies

__all__ = ["State", "fit"]


def fit(
    model: Program,
    guide: Program | None,
    data: Any,
    *,
    valid: Any = None,
    elbo: elbos.Estimator = "mean_field",
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    accumulate: int = 1,
    lr: float = 1e-3,
    lr_schedule: LRSchedule = "constant",
    optim: OptimizerFactory | PyroOptim | None = None,
    clip_norm: float | None = None,
    skip_norm: float | None = None,
    ema: float | None = None,
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
    threads: ThreadNumber = None,
    preflight: bool = True,
    progress: bool | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoints: Checkpoints | str | Path | None = None,
    resume: bool | str | Path = False,
    rollbacks: int = 0,
) -> History:
    """Train any model/guide pair by stochastic variational inference.

    The loss is the negative objective, averaged over the data of the batch. After each epoch the true ELBO is measured
    on training and validation data, whatever the objective.

    Args:
        model, guide: The pair. If the guide is None, `fit` makes a `pv.AmortizedGuide` from the first data; it is
            `guide` of the result.
        data: What `pv.data.load` returns; a tensor or array `(N, ...)`, or a list of N numbers; a tuple that begins
            with one, whose further members are passed on as `*args`, those that are no tensors as they are; a
            dictionary of tensors, which are passed on by keyword if the model takes all of its keys, else as one
            dictionary; or a loader, whose batches are passed on, cut to the number of arguments that the model takes.
        valid: Validation data, in any of these forms. Default: the validation split of `data`, if it has one.
        elbo: An estimator's name (`pv.elbo.names()`), a `pyro.infer.ELBO` object, a dictionary of them by latent site
            (`{"y": "enum", "z": "stl"}`, see `pv.elbo.BySite`), or a function `(model, guide, *args, **kwargs) ->
            loss`, a tensor in nats, summed over the data.
        epochs: Length of the run in passes over the data. Default: 50, unless `steps` is given.
        steps: Length of the run in gradient steps, in place of `epochs`.
        batch_size: Data per step; the last batch of an epoch may be smaller. Default: 100, or all data if there are
            fewer. A loader has its own batch size.
        accumulate: Number of parts in which the gradient of each batch is computed, one after the other, which takes
            less memory. The step is that of the whole batch, with other noise.
        lr: Learning rate.
        lr_schedule: Schedule of the learning rate over the run: "constant", "linear" or "cosine" (both to zero), or a
            function that maps the completed fraction of the run, in [0, 1], to a factor.
        optim: A function `params -> torch.optim.Optimizer`, or a `pyro.optim.PyroOptim`, which has its own rates and
            whose scheduler is stepped after each epoch. Default: fused Adam at rate `lr`.
        clip_norm: Rescale the gradient (of the mean loss) to at most this norm.
        skip_norm: Leave out each step whose gradient (of the mean loss, before clipping) has a larger norm than this,
            or one that is not a number: a guard of deep models against rare batches (Child 2021, arXiv 2011.10650).
            The steps still count; `skipped` of the result is their number.
        ema: Decay of an exponential moving average of the weights, 0.999 for example. All that is measured, compared,
            shown to callbacks and saved as the run's weights is the average, and the pair has it at the end; training
            itself goes on from the latest weights, which checkpoints hold as well. The average is over some 1 / (1 -
            ema) updates, without the initial weights; the buffers of networks are not averaged. After an error the pair
            has its latest weights, those that the error is about.
        num_particles: Samples from the guide per datum and step.
        kl_weight: Weight of the KL in the objective: a number (beta), a `pv.elbo.Warmup` or `pv.elbo.Cyclical`, or a
            function of the epoch (fractional, from 0).
        early_stopping: Stop after this number of epochs without a better validation ELBO, counted once the KL weight no
            longer changes.
        keep_best: Restore the weights of the epoch with the best validation ELBO at the end, counted once the KL weight
            no longer changes. Without validation data, or if the objective is not a bound on log p(x), the last weights
            stay.
        seed: Seed of the shuffling and of all noise; torch's generators are left as they were. Weights are initialized
            before this function is called: seed them there.
        device: "auto": a GPU if there is one and the pair's networks can be found and moved, else where they are.
        devices: Number of processes that train together on each machine, one per device. "auto": those that `torchrun`
            has started, or a single one. Each process takes an equal shard of every batch (from a loader, batches of
            the loader's size from a shard of the data set) and draws noise of its own. Gradients are summed over the
            processes, so that all have equal weights. Only rank 0 calls the callbacks, writes checkpoints and shows
            progress. See `pv.launch`.
        num_nodes: Number of machines that train together.
        strategy: How the processes work together: "auto" or "ddp".
        compile: Compile the gradient step (see `pv.SVI`). If the data are in memory, the first epoch runs eagerly, so
            that Pyro validates every datum. "auto": compile if a quarter of the time of the steps that are left, by
            those of the first epoch (of a loader, by the first 100), is longer than compiling takes on this machine, as
            measured before, or 15 seconds.
        precision: What the networks compute in: "float32", "bfloat16" or "float16" (see `pv.SVI`).
        threads: Number of PyTorch's threads on CPUs during the run. None: PyTorch's own. "auto": one or all of these,
            whichever takes the first 24 steps faster; `threads` of the result says which. The last bits of a run depend
            on that number, so "auto" gives up that the same seed gives the same bits.
        preflight: Check the pair on the first few data before training.
        progress: Show a progress bar: True, False, or None (in a terminal).
        callbacks: Called with a `State` after each epoch; returning True ends the run.
        checkpoints: A folder, or a `pv.Checkpoints` that also says how often to write. All that is needed to resume the
            run is written there every ten minutes, at its end, and when Ctrl-C or SIGTERM stops it (between two steps).
        resume: Resume from the latest checkpoint. True: the one in `checkpoints`; if there is none, training begins at
            the start, so the same script can be run repeatedly. A folder: the one in that folder, where checkpoints are
            written, too. The run ends with the same weights and metrics, to the bit, as if it had not stopped; see
            "Reproducibility" in the documentation for the conditions. `epochs`, `steps`, `early_stopping` and `device`
            may change, other settings may not. A finished run continues if `epochs` is larger than before.
        rollbacks: How often a NaN or infinite loss takes the run back to the end of the previous epoch (or of the one
            before, if the loss is not finite there either), with half the learning rate, before such a loss ends the
            run.

    Returns:
        History: The metrics of each epoch, in nats per datum. Ctrl-C ends training, too: the pair then has its best
        weights so far.

    Raises:
        ValueError, TypeError: For bad arguments, an unsound pair (see `preflight`) or unusable data, before any step.
            For NaN in a batch of a loader of validation data, when it is met; the run can be resumed.
        NonFiniteLoss: If the loss becomes NaN or infinite. The message names the site, the step and the batch. The pair
            has its last good weights, and so has the last checkpoint.
        FileNotFoundError: If there is no checkpoint in the folder that `resume` names.
        RuntimeError: If another run is training in the same folder of checkpoints, or in another thread of this
            process; under `torch.no_grad`.
        OSError: If a checkpoint cannot be written; earlier ones stay.
    """
    _check_call(model, guide, device, threads, preflight, progress, callbacks)
    settings = Settings(
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        lr=lr,
        lr_schedule=lr_schedule,
        optim=optim,
        clip_norm=clip_norm,
        skip_norm=skip_norm,
        ema=ema,
        num_particles=num_particles,
        kl_weight=kl_weight,
        early_stopping=early_stopping,
        keep_best=keep_best,
        seed=seed,
        compile=compile,
        precision=precision,
        rollbacks=rollbacks,
    )
    objective = settings.checked(elbos.make(elbo, num_particles=num_particles))
    checkpoints = checkpoints_of(checkpoints, resume)
    model, guide, data, valid = in_tensors(model, guide, data, valid)
    ranks = launch(devices, num_nodes, strategy, device)
    progress = progress if ranks.is_main else False
    target = choose_device(device if ranks.device is None else str(ranks.device), model, guide)
    train = batches_for(data, batch_size, target, model, ranks)
    history = _history(seed, elbo if isinstance(elbo, str) else objective, data)
    if guide is None:
        guide = history.guide = _guide_for(model, train.monitored_head(1), seed, progress)
    validation = _validation(data, valid, target, model, train, early_stopping)
    schedules = Schedules(RunLength.from_arguments(epochs, steps, train.steps_per_epoch), lr_schedule, kl_weight)
    optimizer, weighted = fused_adam(lr) if optim is None else optim, schedules.with_weight(objective)
    svi = SVI(model, guide, optimizer, weighted, clip_norm=clip_norm, compile=False, precision=precision)
    checkpointer = Checkpointer(checkpoints, resume, ranks)
    fixed = _fixed_settings(settings, history, objective, train, validation) if checkpointer.is_active else {}
    with ExitStack() as stack:
        stack.enter_context(only_thread())
        threading = stack.enter_context(Threads(threads).in_use())
        stack.enter_context(ranks.only_main_warns())
        saved = stack.enter_context(checkpointer.open())
        generator = stack.enter_context(_seeded(seed, ranks))
        head = train.monitored_head(accumulate * ranks.size)
        _check_pair(preflight, model, guide, head, objective, num_particles)
        check_minibatches(model, guide, train, head, accumulate * ranks.size)
        if ranks.size > 1:
            svi.join(ranks, head.example_args)
        state = TrainState(svi, WeightCopies(svi), history, generator, fixed, compile, ranks, ema, skip_norm)
        checkpointer.load(state, saved, compile, head.example_args)
        state.steps_per_epoch = state.steps_per_epoch or train.steps_per_epoch
        rolls = Rollbacks(state, rollbacks, head.example_args, keeps=checkpointer.is_active)
        check = LossCheck(state.weights, target)
        scale, enumerating = _scale(model, guide, head, accumulate * ranks.size, objective)
        checkpointer.start(state, resumed=saved is not None)
        signals = stack.enter_context(stop_between_steps(checkpointer.is_active or ranks.size > 1))
        advance = stack.enter_context(progress_bar("training", schedules.length.steps, progress))
        advance(state.step)
        drive(
            Run(
                state,
                head.example_args,
                train,
                TrainStep(state, train, schedules, scale, check, accumulate),
                check,
                schedules,
                Monitor(model, guide, head, validation, scale, enumerating),
                BestWeights(state, compares=validation is not None and is_bound(objective), keeps=keep_best),
                EarlyStopping(early_stopping),
                callbacks,
                checkpointer,
                rolls,
                signals,
                advance,
                stack,
                CompileChoice(schedules.length.steps),
                threading,
            )
        )
    return history


def _check_pair(
    preflight: bool, model: Program, guide: Program, head: Head, objective: pyro.infer.ELBO, num_particles: int
) -> None:
    """Check the pair before training, or only what its ELBO, measured after each epoch, needs of the guide."""
    args, is_whole = head.example_args, head.is_whole
    if preflight:
        check_pair(model, guide, *args, elbo=objective, num_particles=num_particles, full_batch=is_whole)
    else:
        check_guide(model, guide, args)


def _guide_for(model: Program, head: Head, seed: int | None, progress: bool | None) -> Program:
    """A guide made from the model and the first data, and shown where progress is."""
    from pyro_vae.guides import AmortizedGuide

    guide = AmortizedGuide(model, *head.args, seed=seed)
    if is_shown(progress):
        print(f"{guide}, made for the model", file=sys.stderr)
    return guide


def _check_call(
    model: Program,
    guide: Program | None,
    device: str,
    threads: ThreadNumber,
    preflight: bool,
    progress: bool | None,
    callbacks: Sequence[Callback],
) -> None:
    """Check the arguments of `fit` that are neither settings nor checked where they are used, before all work."""
    arguments.function("model", model)
    arguments.function("guide", guide, none=True)
    arguments.instance("device", device, (str, torch.device), "the name of a device")
    if threads != "auto":
        arguments.count("threads", threads, none=True)
    arguments.flag("preflight", preflight)
    arguments.flag("progress", progress, none=True)
    arguments.callables("callbacks", callbacks)
    check_grad_enabled("fit")


def _history(seed: int | None, elbo: elbos.Estimator, data: Any) -> History:
    """An empty history with the objective, the seed and the description of the data."""
    history = History(seed=seed, elbo=elbos.label(elbo))
    if isinstance(data, Data):
        history.data = data.describe()
    return history


def _validation(
    data: Any, valid: Any, device: torch.device, model: Program, train: Batches, early_stopping: int | None
) -> Batches | None:
    """The validation data: those given, or those of the data set; all data are the same in all processes."""
    if valid is None and isinstance(data, Data):
        valid = data.valid
    if valid is not None:
        validation = batches_for(valid, 1, device, model, train.ranks, trains=False)
        _check_same_data(train, validation)
        return validation
    if early_stopping is not None:
        raise ValueError("early_stopping needs validation data: load(..., valid=0.1), or fit(..., valid=x_valid)")
    _check_same_data(train, None)
    return None


def _fixed_settings(
    settings: Settings, history: History, objective: Any, train: Batches, validation: Batches | None
) -> dict[str, Any]:
    """The settings that must be the same when the run is resumed, ready for JSON."""
    more: dict[str, Any] = {
        "batch_size": train.batch_size or settings.batch_size or BATCH_SIZE,
        "elbo": [history.elbo, objective_values(objective)],
        "data": {**train.describe(), **history.data},
        "valid": None if validation is None else validation.describe(),
    }
    if train.ranks.size > 1:
        more["processes"] = train.ranks.size
    return settings.describe(**more)


def _check_same_data(train: Batches, validation: Batches | None) -> None:
    if train.ranks.size == 1:
        return
    for name, data in (("", train), ("validation ", validation)):
        described = train.ranks.gather(None if data is None else data.describe())
        if any(other != described[0] for other in described):
            raise ValueError(
                f"the processes have been given different {name}data: {described}. Seed the code that makes or splits "
                "them"
            )


@contextmanager
def _seeded(seed: int | None, ranks: Ranks) -> Iterator[torch.Generator]:
    """Seed this process; yields the generator that shuffles the data, which is the same in all processes."""
    with ExitStack() as stack:
        if seed is not None:
            stack.enter_context(fork_rng(seed + ranks.rank))
        shared = ranks.broadcast(int(torch.randint(2**62, ())) if seed is None else seed)
        if seed is None and not ranks.is_main:
            torch.manual_seed(shared + ranks.rank)
        yield torch.Generator().manual_seed(shared)


def _scale(
    model: Program, guide: Program, head: Head, parts: int, objective: pyro.infer.ELBO
) -> tuple[Callable[[], DataScale], pyro.infer.ELBO | None]:
    """What the loss of a batch is of, found when it is first asked for; and the objective, if it sums out a latent."""
    enumerated = summed_out(model, guide, head.example_args) if isinstance(objective, TraceEnum_ELBO) else []
    whole_guide = completed(model, guide, enumerated) if enumerated else guide
    return cache(partial(_checked_scale, model, whole_guide, head, parts)), objective if enumerated else None


def _checked_scale(model: Program, guide: Program, head: Head, parts: int) -> DataScale:
    scale = data_scale(model, guide, head.example_args, SEED)
    if parts > 1 and not scale.per_datum and scale.full_size is None:
        raise ValueError(
            f"a batch is taken in {parts} parts, each of which would count the latents that all data share: give the "
            "plate over the data its full size, pyro.plate(name, N, subsample_size=len(x))"
        )
    return scale
