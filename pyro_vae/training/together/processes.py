"""Trainings shared among processes of this machine, whose weights come back to this one."""

from __future__ import annotations

import io
import multiprocessing
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import pyro
import torch

from pyro_vae.pair.networks import modules_of
from pyro_vae.training.together.building import build_pair
from pyro_vae.training.together.jobs import Fitted, Job

__all__ = ["in_processes"]


Trained = list[tuple[Fitted, str]]


def in_processes(jobs: Sequence[Job], processes: int, train: Callable[[Sequence[Job]], Trained]) -> Trained:
    """Train a share of the jobs by `train` in each of several processes, which have one thread each.

    Args:
        jobs: The jobs.
        processes: The number of processes.
        train: Returns each trained pair with a text.

    Raises:
        RuntimeError: On systems without `fork`, after CUDA was used, and if a process ends without an answer.
        Exception: Whatever a training raises, with what it had to say.
    """
    if "fork" not in multiprocessing.get_all_start_methods() or torch.cuda.is_initialized():
        raise RuntimeError("processes > 1 needs processes made by fork, which there are not here: give processes=1")
    context: Any = multiprocessing.get_context("fork")
    started = []
    for share in (range(i, len(jobs), processes) for i in range(processes)):
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(theirs, [jobs[i] for i in share], train), daemon=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
            process.start()  # one thread and no GPU, which a fork of PyTorch can do
        theirs.close()
        started.append((share, process, mine))
    found: dict[int, tuple[Fitted, str]] = {}
    try:
        for share, process, mine in started:
            answers = _received(mine)
            process.join()
            found.update({i: (_at_home(jobs[i], a), text) for i, (a, text) in zip(share, answers, strict=True)})
    finally:
        for _, process, _ in started:
            if process.is_alive():
                process.terminate()
    return [found[i] for i in range(len(jobs))]


def _work(pipe: Connection, jobs: Sequence[Job], train: Callable[[Sequence[Job]], Trained]) -> None:
    """In the process: train, and send the answers."""
    torch.set_num_threads(1)
    _compile_without_helpers()
    try:
        answer: Any = [(_for_the_way(fitted), text) for fitted, text in train(jobs)]
    except BaseException as error:
        notes = getattr(error, "__notes__", [])
        answer = type(error).__name__, str(error), notes
    buffer = io.BytesIO()
    torch.save(answer, buffer)
    pipe.send_bytes(buffer.getvalue())
    pipe.close()


def _compile_without_helpers() -> None:
    """Let the compiler run in this process: the threads that talk to its helpers are not in a fork."""
    import torch._inductor.config as inductor

    inductor.compile_threads = 1


def _for_the_way(fitted: Fitted) -> dict[str, Any]:
    """The history, the state of the networks and all other parameters, ready to be sent."""
    nets = list(modules_of(*fitted.pair).values())
    own = {id(p) for net in nets for p in net.parameters()}
    params = {name: p for name, p in fitted.store["params"].items() if id(p) not in own}
    constraints = {name: c for name, c in fitted.store["constraints"].items() if name in params}
    return {
        "history": fitted.history,
        "nets": [net.state_dict() for net in nets],
        "store": {"params": params, "constraints": constraints},
    }


def _received(pipe: Connection) -> list[tuple[dict[str, Any], str]]:
    try:
        answer = torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=False)  # from a process of our own
    except EOFError:
        raise RuntimeError("a process of fit_many ended without an answer: it may have run out of memory") from None
    if isinstance(answer, list):
        return answer
    name, text, notes = answer
    if name == "KeyboardInterrupt":
        raise KeyboardInterrupt
    error = {"ValueError": ValueError, "TypeError": TypeError}.get(name, RuntimeError)
    raised = error(text if error.__name__ == name else f"{name}: {text}")
    for note in notes:
        raised.add_note(note)
    raise raised


def _at_home(job: Job, answer: dict[str, Any]) -> Fitted:
    """The trained pair in this process."""
    with pyro.get_param_store().scope():
        pair, nets = build_pair(job.build, job.seed)
    if pair[1] is None:
        pair = pair[0], answer["history"].guide
    for net, state in zip(nets, answer["nets"], strict=False):
        net.load_state_dict(state)
    return Fitted(job.seed, answer["history"], pair, answer["store"])
