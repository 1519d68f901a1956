"""Callbacks for `pv.fit` that log the metrics of each epoch: to JSON lines, TensorBoard, W&B or MLflow."""

from __future__ import annotations

import importlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyro_vae.support.serialization import finite
from pyro_vae.training.callbacks import State

__all__ = ["JSONLines", "MLflow", "TensorBoard", "Tracker", "WandB"]


class Tracker(ABC):
    """A callback of `pv.fit` that logs metrics; for another service, write a subclass with the method `log`.

    It can be used in a `with` block, which closes it at its end.

    Example:
        >>> class Printer(Tracker):
        ...     def log(self, metrics, step):
        ...         print(step, sorted(metrics)[:3])
        >>> import torch, pyro_vae as pv
        >>> vae = pv.VAE(4, latent_dim=1, hidden=(2,))
        >>> history = pv.fit(vae.model, vae.guide, torch.ones(20, 4), batch_size=5, epochs=1, callbacks=[Printer()])
        4 ['epoch', 'kl', 'kl_weight']
    """

    def __call__(self, state: State) -> None:
        """Log the latest epoch."""
        metrics = {name: value for name, value in asdict(state.epoch).items() if name != "step" and _is_number(value)}
        self.log(metrics, state.epoch.step)

    @abstractmethod
    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the metrics of an epoch, in nats per datum, after `step` gradient steps.

        The names are those of `pyro_vae.Epoch`. Values that are missing or not finite are left out.
        """

    def close(self) -> None:  # noqa: B027 - not every service needs to be closed
        """End the logging."""

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class JSONLines(Tracker):
    """One JSON object per epoch, in a file that other programs can read during training.

    The first call writes all epochs so far, so that after a resumed training every epoch is there exactly once.

    Args:
        path: The file; an existing one is replaced.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._is_started = False

    def __call__(self, state: State) -> None:
        """Write the latest epoch."""
        epochs = [state.epoch] if self._is_started else list(state.history)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a" if self._is_started else "w") as file:
            for epoch in epochs:
                file.write(json.dumps(finite(asdict(epoch))) + "\n")
        self._is_started = True

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Do nothing: `__call__` writes the whole epoch, with null for missing values."""


class TensorBoard(Tracker):
    """Scalars for TensorBoard. Needs the package tensorboard.

    Args:
        folder: The folder of its event files, for example the run directory. After a resumed training, it shows the
            metrics of the resumed run from the checkpoint on.

    Raises:
        ImportError: If tensorboard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        self._module = _optional("torch.utils.tensorboard", "tensorboard")
        self.folder = Path(folder)
        self._writer: Any = None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Add the scalars."""
        if self._writer is None:
            self._writer = self._module.SummaryWriter(str(self.folder), purge_step=step)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


class WandB(Tracker):
    """A run of Weights & Biases. Needs the package wandb.

    Args:
        project: Name of the project.
        config: Settings to show with the run.
        **settings: More arguments of `wandb.init`: `name`, `mode="offline"`, `resume` and so on.

    Raises:
        ImportError: If wandb is not installed.
    """

    def __init__(self, project: str, *, config: Mapping[str, Any] | None = None, **settings: Any) -> None:
        self.run = _optional("wandb", "wandb").init(project=project, config=dict(config or {}), **settings)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the metrics."""
        self.run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Finish the run."""
        self.run.finish()


class MLflow(Tracker):
    """A run of MLflow, at the tracking server that MLflow is set to. Needs the package mlflow.

    Args:
        experiment: Name of the experiment.
        config: Settings to log as the run's parameters; nested ones get names with dots.
        **settings: More arguments of `mlflow.start_run`: `run_name`, `tags` and so on.

    Raises:
        ImportError: If mlflow is not installed.
    """

    def __init__(self, experiment: str, *, config: Mapping[str, Any] | None = None, **settings: Any) -> None:
        self._mlflow = _optional("mlflow", "mlflow")
        self._mlflow.set_experiment(experiment)
        self.run = self._mlflow.start_run(**settings)
        if config:
            self._mlflow.log_params(_flat(config))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the metrics."""
        self._mlflow.log_metrics(dict(metrics), step=step)

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()


def _optional(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"this needs the package {package}, which is not installed: pip install {package}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
