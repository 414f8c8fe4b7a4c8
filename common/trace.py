"""The ids of what is being worked on (task, guest, node): every log line and every call made meanwhile carries them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

_ids: ContextVar[Mapping[str, str]] = ContextVar("gugus_trace", default=MappingProxyType({}))


def current() -> Mapping[str, str]:
    """Return the ids of the present work."""
    return _ids.get()


def bind(**ids: str) -> None:
    """Add ids for the rest of this task of the event loop."""
    _ids.set({**_ids.get(), **ids})


@contextmanager
def bound(**ids: str) -> Iterator[None]:
    """Add ids inside."""
    token = _ids.set({**_ids.get(), **ids})
    try:
        yield
    finally:
        _ids.reset(token)
