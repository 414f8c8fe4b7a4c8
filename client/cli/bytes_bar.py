"""How far a file is on its way: a bar on a terminal, else nothing but the end."""

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress


class BytesBar:
    """Shows bytes done and in all, on stderr."""

    def __init__(self, words: str) -> None:
        self._words = words
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            from rich.console import Console  # here: without a terminal the command starts faster
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
            self._bar = Bar(*columns, TransferSpeedColumn(), console=Console(stderr=True), transient=True)
            self._row = self._bar.add_task(words, total=None)

    def __enter__(self) -> Self:
        """Show it."""
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take it away."""
        if self._bar:
            self._bar.stop()

    def show(self, done: int, total: int) -> None:
        """Show how far it is."""
        if self._bar:
            self._bar.update(self._row, completed=done, total=total)
