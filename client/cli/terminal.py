"""The user's terminal while a guest has it: raw, its keys read as they come, and put back whatever happens."""

import asyncio
import atexit
import os
import signal
import sys
import termios
import tty
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress

PIECE_BYTES = 64 * 1024
DEFAULT_SIZE = (80, 24)

_RESET = "\x1b[0m\x1b[?25h"
"""Usual colours and a visible cursor (xterm's control sequences), for a guest's program may have been cut off in the middle."""


def is_terminal() -> bool:
    """Whether both input and output are a terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def size() -> tuple[int, int]:
    """Return columns and rows of the terminal."""
    with suppress(OSError):
        columns, rows = os.get_terminal_size(sys.stdout.fileno())
        if columns and rows:
            return columns, rows
    return DEFAULT_SIZE


@contextmanager
def raw() -> Iterator[None]:
    """Have the terminal pass every key on; as it was before at the end, also when the process exits some other way."""
    if not sys.stdin.isatty():
        yield
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)

    def restore() -> None:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)

    atexit.register(restore)
    try:
        tty.setraw(fd)
        yield
    finally:
        restore()
        atexit.unregister(restore)
        if sys.stdout.isatty():
            sys.stdout.write(_RESET)
            sys.stdout.flush()


async def keys() -> AsyncGenerator[bytes, None]:
    """Yield standard input as it comes, until its end."""
    fd, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    ready = asyncio.Event()
    try:
        loop.add_reader(fd, ready.set)
    except OSError:  # a regular file, which never makes one wait
        ready.set()
        while data := os.read(fd, PIECE_BYTES):
            yield data
            await asyncio.sleep(0)
        return
    try:
        while True:
            ready.clear()
            await ready.wait()
            loop.remove_reader(fd)  # not while the guest takes it: it would spin
            try:
                data = os.read(fd, PIECE_BYTES)
            except OSError:  # the terminal is gone
                return
            if not data:
                return
            yield data
            loop.add_reader(fd, ready.set)
    finally:
        loop.remove_reader(fd)


def show(data: bytes, *, error: bool = False) -> None:
    """Write bytes of a guest to standard output (or error) as they are."""
    fd = (sys.stderr if error else sys.stdout).fileno()
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


@contextmanager
def on_signals(handlers: dict[signal.Signals, Callable[[], None]]) -> Iterator[None]:
    """Call functions in the loop on signals, as long as the block runs."""
    loop = asyncio.get_running_loop()
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)
