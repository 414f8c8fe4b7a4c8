"""Noticing that a process ended, in the event loop, for processes that are nobody's children here (pidfd_open(2))."""

import asyncio
import os
from collections.abc import Callable

from agent.compute.processes import ProcessRecord, is_alive


class ExitWatcher:
    """Calls back once for each watched process, by guest name, as soon as it has ended."""

    def __init__(self, ended: Callable[[str], None]) -> None:
        self._ended = ended
        self._handles: dict[str, tuple[ProcessRecord, int]] = {}

    def watch(self, name: str, record: ProcessRecord) -> None:
        """Watch the process of a guest in place of the one watched before; one that is gone is reported soon."""
        if name in self._handles and self._handles[name][0] == record:
            return
        self.forget(name)
        loop = asyncio.get_running_loop()
        try:
            handle = os.pidfd_open(record.pid)
        except OSError:
            loop.call_soon(self._ended, name)
            return
        self._handles[name] = (record, handle)
        if is_alive(record):  # opened first, compared then: the pid cannot have changed hands
            loop.add_reader(handle, self._fire, name)
        else:
            loop.call_soon(self._fire, name)

    def forget(self, name: str) -> None:
        """Stop watching a guest."""
        if name in self._handles:
            _, handle = self._handles.pop(name)
            asyncio.get_running_loop().remove_reader(handle)
            os.close(handle)

    def close(self) -> None:
        """Stop watching all."""
        for name in list(self._handles):
            self.forget(name)

    def _fire(self, name: str) -> None:
        if name in self._handles:
            self.forget(name)
            self._ended(name)
