"""Structured logs on standard error, which the systemd journal keeps: one JSON object a line, secrets redacted.

The ids of what is being worked on come from `common.trace`, so that every line of a piece of work carries them.
"""

import logging
import os
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

from common import trace

REDACTED = "[redacted]"

_SECRET_WORDS = ("secret", "token", "ticket", "key", "password")
_PUBLIC_KEYS = frozenset({"idempotency_key", "token_id", "public_key", "key_path"})
"""Keys that hold one of the words above and yet no secret."""

_SYSLOG_PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3, "exception": 3, "critical": 2}
"""Levels as sd-daemon(3) wants them at the line's beginning, so that `journalctl -p` works."""


_least = logging.INFO


def setup(component: str, *, node: str = "", level: str = "INFO", stream: TextIO | None = None) -> None:
    """Set up logging of a whole process, once, at its start.

    component: the daemon's name. node: the host's name, when known. level: the least level logged.
    Lines of the standard library's loggers (grpc, asyncio) go the same way. Raises ValueError on an unknown level.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f'the log level "{level}" is none of DEBUG, INFO, WARNING, ERROR, CRITICAL')
    global _least
    _least = number
    out = stream or sys.stderr
    shared: list[Any] = [
        _traced,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _fixed(component, node),
        redact,
    ]
    render: list[Any] = [structlog.processors.JSONRenderer(default=str), _Prefix()]
    structlog.configure(
        processors=[*shared, *render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(_foreign_formatter(shared, render))
    logging.basicConfig(handlers=[handler], level=max(number, logging.INFO), force=True)


def debugging() -> bool:
    """Return whether DEBUG lines are logged: asked before one is made where calls are many, for making it costs most of it."""
    return _least <= logging.DEBUG


def get_logger(name: str = "") -> structlog.typing.FilteringBoundLogger:
    """Return a logger; `name` says which part of the process speaks. Usable before `setup`, too."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(part=name) if name else structlog.get_logger()
    return logger


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Replace the value of every key, at any depth, that by its name may hold a secret."""
    for key, value in event.items():
        event[key] = _redacted(key, value)
    return event


def _redacted(key: str, value: Any) -> Any:
    lower = key.lower()
    if lower not in _PUBLIC_KEYS and any(word in lower for word in _SECRET_WORDS):
        return REDACTED
    if isinstance(value, dict):
        return {k: _redacted(str(k), v) for k, v in value.items()}
    return value


def _traced(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {**trace.current(), **event}


def _fixed(component: str, node: str) -> Any:
    fixed = {"component": component, **({"node": node} if node else {})}

    def add(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        return {**fixed, **event}

    return add


class _Prefix:
    """Puts the syslog priority before a line when standard error is the journal (JOURNAL_STREAM, systemd.exec(5))."""

    def __init__(self) -> None:
        self._journal = bool(os.environ.get("JOURNAL_STREAM"))

    def __call__(self, _logger: Any, method: str, line: str) -> str:
        return f"<{_SYSLOG_PRIORITY.get(method, 6)}>{line}" if self._journal else line


def _foreign_formatter(shared: list[Any], render: list[Any]) -> logging.Formatter:
    class Formatter(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            method = record.levelname.lower()
            event: Any = {"event": record.getMessage(), "part": record.name}
            if record.exc_info:
                event["exc_info"] = record.exc_info
            for processor in (*shared, *render):
                event = processor(None, method, event)
            return str(event)

    return Formatter()


# Until `setup` is called (a command line, a test) only warnings are written, never to standard output, which is data.
structlog.configure(
    wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
)
