"""Progress of a task on stderr: a bar on a terminal, else a line each time something changes."""

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

from gugus.agent.v1.task_pb2 import TaskState
from gugus.cluster.v1.task_pb2 import Task

from client.cli.words import enum_word

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


WARNING = "warning: "
"""Lines of a task's log that begin with this are for whoever asked for it."""


class Progress:
    """Shows one task; `show` is called with each change of it."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        if sys.stderr.isatty():
            self._bar = _bar()
            self._row = self._bar.add_task("waiting", total=100)
        self._last = ""
        self._warned = set[str]()

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar away. May be repeated."""
        if self._bar:
            self._bar.stop()

    def show(self, task: Task) -> None:
        """Show how the task stands now."""
        self._warn(task)
        words = task.log[-1].text if task.log else enum_word(TaskState, task.state, "TASK_STATE_")
        if self._bar:
            self._bar.update(
                self._row, description=f"{task.kind} {task.target}: {words}", completed=task.progress_percent
            )
            return
        line = f"{task.kind} {task.target}: {words}"
        if task.progress_percent and task.state == TaskState.TASK_STATE_RUNNING:
            line += f" ({task.progress_percent}%)"
        if line != self._last:
            print(line, file=sys.stderr, flush=True)
            self._last = line

    def _warn(self, task: Task) -> None:
        """Say, once each, what the log warns of: later lines would hide it."""
        for text in warnings_of(task):
            if text not in self._warned:
                self._warned.add(text)
                print(text, file=sys.stderr, flush=True)


def warnings_of(task: Task) -> list[str]:
    """Return the lines of a task's log that warn of something."""
    return [line.text for line in task.log if line.text.startswith(WARNING)]


def _bar() -> "Bar":
    from rich.console import Console  # here: without a terminal the command starts faster
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn())
    return Progress(*columns, TaskProgressColumn(), TimeElapsedColumn(), console=Console(stderr=True), transient=True)
