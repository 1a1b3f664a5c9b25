"""Progress of one or several fits at once: a bar each, with time left and the running loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

# Called with the step, the number of steps, and the loss when it is new.
Report = Callable[[int, int, float | None], None]


class FitBars:
    """A bar a fit; a context, so that the bars are left whole on the screen whatever happens.

    Args:
        names: What is being fitted.
        quiet: Show nothing.
    """

    def __init__(self, names: Sequence[str], quiet: bool = False) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, TextColumn("{task.fields[loss]}"), disable=quiet)
        self.names = list(names)
        self.bars: dict[int, TaskID] = {}

    def __enter__(self) -> FitBars:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def reporter(self, index: int) -> Report:
        """Function that moves the bar of fit `index`, which appears with its first step."""

        def report(step: int, steps: int, loss: float | None = None) -> None:
            if index not in self.bars:
                self.bars[index] = self.progress.add_task(self.names[index], total=steps, loss="")
            fields = {} if loss is None else {"loss": f"loss {loss:.3f}"}
            self.progress.update(self.bars[index], completed=step, **fields)

        return report


class FitProgress(TrainerCallback):
    """Tells a reporter how far `Trainer` is.

    Args:
        report: Receives the step, the number of steps, and the loss when it is new.
    """

    def __init__(self, report: Report) -> None:
        self.report = report

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the bar on, a hundred times at most."""
        if state.global_step == state.max_steps or state.global_step % max(1, state.max_steps // 100) == 0:
            self.report(state.global_step, state.max_steps, None)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Tell the loss of the last steps."""
        if logs and "loss" in logs:
            self.report(state.global_step, state.max_steps, float(logs["loss"]))
