"""What of the steps is compiled, what is not, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pyro_vae.compilation.gradients import CompiledGradients
from pyro_vae.support.results import PanelResult
from pyro_vae.support.tables import new_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CompiledReport", "CompiledSteps", "compiled_report"]


@dataclass(frozen=True)
class CompiledSteps:
    """The steps with one kind of arguments.

    Attributes:
        steps: What they are steps of: "steps", or those of a phase.
        arguments: The shapes of their tensors, and other arguments.
        is_compiled: Whether they run compiled.
        operations: The number of operations in the graph before it is compiled; 0 without a graph.
        seconds_recording, seconds_compiling: How long it took to make the graph; 0 without one.
        reason: Why they run eagerly; "" if they are compiled.
    """

    steps: str
    arguments: str
    is_compiled: bool
    operations: int
    seconds_recording: float
    seconds_compiling: float
    reason: str


@dataclass(frozen=True, repr=False)
class CompiledReport(PanelResult):
    """The kinds of steps that an `SVI` has met, and whether each runs compiled.

    Attributes:
        kinds: One entry for each phase and each kind of arguments.
        reasons: Why all steps of a phase run eagerly, by what they are steps of; empty if none do.
    """

    title: ClassVar[str] = "compiled steps"
    _rows_name: ClassVar[str] = "kinds"
    _columns: ClassVar[list[str]] = list(CompiledSteps.__dataclass_fields__)

    kinds: list[CompiledSteps]
    reasons: dict[str, str]

    @property
    def graphs(self) -> int:
        """The number of compiled graphs."""
        return sum(kind.is_compiled for kind in self.kinds)

    def __repr__(self) -> str:
        lines = [f"{kind.steps} with {kind.arguments}: {_state(kind)}" for kind in self.kinds]
        lines += [f"{steps} run eagerly: {reason}" for steps, reason in self.reasons.items()]
        return "\n".join(lines) or "no step was recorded yet"

    def table(self) -> Any:
        """One row for each kind of steps."""
        table = new_table(self.title, "", "arguments", "operations", "recording s", "compiling s", "eager because")
        for kind in self.kinds:
            seconds = f"{kind.seconds_recording:.1f}", f"{kind.seconds_compiling:.1f}"
            table.add_row(kind.steps, kind.arguments, str(kind.operations), *seconds, kind.reason)
        for steps, reason in self.reasons.items():
            table.add_row(steps, "any", "0", "", "", reason)
        return table

    def _values(self) -> dict[str, Any]:
        return {"graphs": self.graphs, "reasons": dict(self.reasons)}

    def _rows(self) -> Sequence[CompiledSteps]:
        return self.kinds

    def _panel(self, ax: Axes) -> None:
        names = [f"{kind.steps}, {kind.arguments}"[:60] for kind in self.kinds]
        recording = [kind.seconds_recording for kind in self.kinds]
        ax.barh(names, recording, label="recording")
        ax.barh(names, [kind.seconds_compiling for kind in self.kinds], left=recording, label="compiling")
        ax.set_xlabel("seconds")
        ax.legend()


def compiled_report(phases: Sequence[CompiledGradients]) -> CompiledReport:
    """The report on what the phases of an objective have recorded."""
    kinds, reasons = [], {}
    for compiled in phases:
        for arguments, graph, reason in compiled.kinds():
            operations, seconds = (graph.num_operations, graph.seconds) if graph else (0, (0.0, 0.0))
            kinds.append(CompiledSteps(compiled.label, arguments, graph is not None, operations, *seconds, reason))
        if compiled.reason is not None:
            reasons[compiled.label] = compiled.reason
    return CompiledReport(kinds, reasons)


def _state(kind: CompiledSteps) -> str:
    if not kind.is_compiled:
        return f"eager, {kind.reason}"
    recording, compiling = kind.seconds_recording, kind.seconds_compiling
    return f"compiled, {kind.operations} operations, recorded in {recording:.1f} s, compiled in {compiling:.1f} s"
