"""Progress of one or several fits at once: a bar each with the time left, and a live table of their losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

# Called with the step, the number of steps, and what was logged when it is new.
Report = Callable[[int, int, dict[str, float] | None], None]


class FitBars:
    """A bar a fit and a table of the losses; a context, so that both are left whole on the screen whatever happens.

    Args:
        names: What is being fitted.
        quiet: Show nothing.
    """

    def __init__(self, names: Sequence[str], quiet: bool = False) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns)
        self.names = list(names)
        self.quiet = quiet
        self.bars: dict[int, TaskID] = {}
        self.losses: dict[int, dict[str, float]] = {}
        self.live = Live(self.progress, refresh_per_second=4)

    def __enter__(self) -> FitBars:
        if not self.quiet:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.quiet:
            self.live.stop()
            if not self.live.console.is_terminal:
                self.live.console.print()  # a file gets the last picture without its end of line

    def reporter(self, index: int) -> Report:
        """Function that moves the bar of fit `index`, which appears with its first step."""

        def report(step: int, steps: int, logs: dict[str, float] | None = None) -> None:
            if index not in self.bars:
                self.bars[index] = self.progress.add_task(self.names[index], total=steps)
            self.progress.update(self.bars[index], completed=step, total=steps)
            if logs:
                self.losses.setdefault(index, {}).update(logs)
                self.live.update(Group(self.progress, self.table()))

        return report

    def table(self) -> Table:
        """Latest loss of each fit, and its terms with their weights."""
        names = list(dict.fromkeys(name for logs in self.losses.values() for name in logs))
        table = Table("fit", *names)
        for index, logs in sorted(self.losses.items()):
            table.add_row(self.names[index], *(f"{logs[name]:.3f}" if name in logs else "" for name in names))
        return table


class FitProgress(TrainerCallback):
    """Tells a reporter how far `Trainer` is.

    Args:
        report: Receives the step, the number of steps, and the losses when they are new.
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
        """Tell the losses of the last steps: the sum, each weighted term, and that of the watched blocks."""
        told = {}
        for name, value in (logs or {}).items():
            if name in ("loss", "eval_log_loss") or name.startswith("weighted/"):
                told[name.removeprefix("weighted/").replace("eval_log_loss", "validation")] = float(value)
        if told:
            self.report(state.global_step, state.max_steps, told)


class EpochTeller(TrainerCallback):
    """Tells a dataset or a transform which epoch begins, so that its noise is the epoch's own, also in a resumed run.

    Args:
        listener: Anything with `set_epoch`.
    """

    def __init__(self, listener: Any) -> None:
        self.listener = listener
        self.next = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin with the epoch that a resumed run was in."""
        self.next = int((state.epoch or 0) + 1e-6)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tell the epoch; counted here, since `Trainer` takes a stream for one endless epoch."""
        self.listener.set_epoch(self.next)
        self.next += 1
