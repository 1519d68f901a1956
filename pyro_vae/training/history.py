"""The metrics of a training run, epoch by epoch."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rich.table import Table

from pyro_vae.support.results import PanelResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Epoch", "History"]


@dataclass(frozen=True)
class Epoch:
    """The metrics of one epoch, in nats per datum.

    `loss` is the mean of the minimized loss over the epoch's steps, with its KL weight and noise. The ELBOs and their
    terms are measured with the weights at the end of the epoch: `train_elbo` on the first training data (at most 1000);
    `valid_elbo`, `log_likelihood` and `kl` on the whole validation split. Without validation data, `valid_elbo` is None
    and the terms are those of the training data. `seconds` is the time since the start of the run.
    """

    epoch: int
    step: int
    loss: float
    train_elbo: float
    valid_elbo: float | None
    log_likelihood: float
    kl: float
    kl_weight: float
    lr: float
    seconds: float

    @property
    def monitored(self) -> float:
        """The ELBO by which epochs are compared: that of the validation data, or of the training data without them."""
        return self.train_elbo if self.valid_elbo is None else self.valid_elbo


@dataclass(repr=False)
class History(PanelResult):
    """The epochs of a run.

    Attributes:
        epochs: The epochs, in order.
        best: The epoch whose weights the pair has after training; None if these are the last ones.
        stopped: Why training ended: "finished", "early stopping", "interrupted" or "callback".
        data: The training data as `Data.describe` returns it; empty if they were not a `Data`.
        seed: The seed given to `fit`.
        elbo: The name of the objective.
        guide: The guide of the pair, if `fit` made it.
        threads: The number of threads that `fit(threads="auto")` has chosen.
        skipped: The number of steps that `fit(skip_norm=...)` has left out.
    """

    title: ClassVar[str] = "history"
    _rows_name: ClassVar[str] = "epochs"
    _columns: ClassVar[list[str]] = list(Epoch.__dataclass_fields__)
    _width: ClassVar[int] = 120

    epochs: list[Epoch] = field(default_factory=list)
    best: int | None = None
    stopped: str = "finished"
    data: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    elbo: str = ""
    guide: Any = field(default=None, repr=False, compare=False)
    threads: int | None = field(default=None, repr=False, compare=False)
    skipped: int = field(default=0, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.epochs)

    def __iter__(self) -> Iterator[Epoch]:
        return iter(self.epochs)

    def __getitem__(self, index: int) -> Epoch:
        return self.epochs[index]

    @property
    def valid_elbo(self) -> list[float | None]:
        """Validation ELBO of each epoch."""
        return [e.valid_elbo for e in self.epochs]

    @property
    def train_elbo(self) -> list[float]:
        """Training ELBO of each epoch."""
        return [e.train_elbo for e in self.epochs]

    @property
    def loss(self) -> list[float]:
        """Mean minimized loss of each epoch."""
        return [e.loss for e in self.epochs]

    def _values(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("elbo", "seed", "best", "stopped", "data")}

    def _rows(self) -> list[Epoch]:
        return self.epochs

    def table(self, last: int = 10) -> Table:
        """The last epochs as a rich table."""
        table = Table(title=f"{self.elbo}, {self.stopped}" + (f", weights of epoch {self.best}" if self.best else ""))
        validated = any(v is not None for v in self.valid_elbo)
        names = [n for n in Epoch.__dataclass_fields__ if n != "valid_elbo" or validated]
        for name in names:
            table.add_column(name, justify="right")
        for e in self.epochs[-last:]:
            values = (getattr(e, name) for name in names)
            table.add_row(*(f"{v:.4g}" if isinstance(v, float) else "" if v is None else str(v) for v in values))
        return table

    def __repr__(self) -> str:
        if not self.epochs:
            return f"History(no epoch, {self.stopped})"
        return super().__repr__()

    @staticmethod
    def load(path: str | Path) -> History:
        """Read the epochs from a `.csv` that `save` wrote."""
        with open(path, newline="") as file:
            return History.parse(file.read(), path)

    @staticmethod
    def parse(text: str, path: str | Path = "it") -> History:
        """The epochs in the text of such a file; `path` is for the errors.

        Raises:
            ValueError: If it is not such a text.
        """
        fields = Epoch.__dataclass_fields__
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        try:
            epochs = [Epoch(**{name: _parse(name, row[name]) for name in fields}) for row in rows]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is not a table of epochs with the columns {', '.join(fields)}: {error}"
            ) from error
        return History(epochs)

    def _panel(self, ax: Axes) -> None:
        """The ELBO against the epoch."""
        steps = [e.epoch for e in self.epochs]
        marker = "." if len(steps) < 20 else ""  # a line of one epoch would not be seen
        ax.plot(steps, self.train_elbo, marker=marker, label="training ELBO")
        if any(v is not None for v in self.valid_elbo):
            ax.plot(
                steps, [math.nan if v is None else v for v in self.valid_elbo], marker=marker, label="validation ELBO"
            )
        if self.best:
            ax.axvline(self.best, color="gray", lw=0.8, ls=":", label="best epoch")
        ax.set(xlabel="epoch", ylabel="nats per datum")
        ax.locator_params(axis="x", integer=True)
        ax.legend()


def _parse(name: str, text: str) -> Any:
    if text == "":
        return None
    return int(text) if name in ("epoch", "step") else float(text)
