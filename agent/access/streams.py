"""Byte streams upon file descriptors, for drivers: a socket or a terminal as a `Console`, with backpressure both ways.

Nothing is buffered here: what the reader does not ask for stays in the kernel, and so in the guest.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import struct
import termios
from collections.abc import Callable

from agent.compute.access import CHUNK_BYTES, Size

_GONE = frozenset({errno.EIO, errno.EPIPE, errno.ECONNRESET, errno.EBADF, errno.ENOTCONN})
"""What the kernel says of a stream whose other end has closed; EIO is a terminal's word (tty_ioctl(4), pty(7))."""


class FdConsole:
    """A `Console` upon a file descriptor (socket, terminal, pipe), which it owns. Made and used in one loop.

    terminal: the descriptor is a terminal's that takes its size.
    """

    def __init__(self, fd: int, *, terminal: bool = False) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._terminal = terminal
        self._closed = asyncio.Event()
        self._waits: set[asyncio.Future[None]] = set()
        self._loop = asyncio.get_running_loop()

    async def read(self) -> bytes:
        """Return the next bytes; b"" at the end. One reader at a time."""
        while not self._closed.is_set():
            try:
                return os.read(self._fd, CHUNK_BYTES)
            except BlockingIOError:
                await self._ready(self._loop.add_reader, self._loop.remove_reader)
            except OSError as error:
                if error.errno in _GONE:
                    return b""
                raise
        return b""

    async def write(self, data: bytes) -> None:
        """Write all of it. One writer at a time."""
        left = memoryview(data)
        while left and not self._closed.is_set():
            try:
                left = left[os.write(self._fd, left) :]
            except BlockingIOError:
                await self._ready(self._loop.add_writer, self._loop.remove_writer)
            except OSError as error:
                if error.errno in _GONE:
                    return
                raise

    async def resize(self, size: Size) -> None:
        """Set the terminal's size."""
        if self._terminal and not self._closed.is_set():
            set_size(self._fd, size)

    async def close(self) -> None:
        """Close the descriptor, and wake whoever waits for it."""
        if self._closed.is_set():
            return
        self._closed.set()
        for wait in self._waits:
            if not wait.done():
                wait.set_result(None)
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        os.close(self._fd)

    async def _ready(self, watch: Callable[..., None], unwatch: Callable[[int], object]) -> None:
        """Wait until the descriptor is ready or closed."""
        wait: asyncio.Future[None] = self._loop.create_future()
        self._waits.add(wait)
        watch(self._fd, _wake, wait)
        try:
            await wait
        finally:
            self._waits.discard(wait)
            if not self._closed.is_set():  # else the number may be another file's by now
                unwatch(self._fd)


def set_size(fd: int, size: Size) -> None:
    """Set the size of a terminal; what runs on it is told by the kernel (SIGWINCH)."""
    with contextlib.suppress(OSError):  # it has ended
        fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows, size.columns, 0, 0))


def _wake(wait: asyncio.Future[None]) -> None:
    if not wait.done():
        wait.set_result(None)
