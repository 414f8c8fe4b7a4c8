"""What rules are made of: each check yields nothing, or one fault that names field, value and accepted range."""

import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

from common.errors import GugusError, invalid

SHOWN_CHARS = 60

_PATH = re.compile(r"(/[^/\x00-\x1f]+)+")


def ranged(
    field: str, value: int, least: int, most: int, *, show: Callable[[int], str] = str, also: str = ""
) -> Iterator[GugusError]:
    """A number that is set lies in a range; 0 means the default and is always right. also: words for what 0 means."""
    if value and not least <= value <= most:
        yield invalid(field, f"{show(value)} is out of range; {show(least)} to {show(most)}{also and f', {also}'}.")


def enum(field: str, value: int, kind: Any) -> Iterator[GugusError]:
    """A value is one of its enum."""
    if value not in kind.values():
        names = ", ".join(kind.keys()[1:])
        yield invalid(field, f"{value} is none of {names}.")


def matching(field: str, value: str, pattern: re.Pattern[str], what: str) -> Iterator[GugusError]:
    """A text is wholly of a pattern; `what` says of which, in words, with an example."""
    if not pattern.fullmatch(value):
        yield invalid(field, f"{shown(value)} is not {what}.")


def one_of(field: str, value: str, allowed: Collection[str]) -> Iterator[GugusError]:
    """A text is empty or one of those allowed."""
    if value and value not in allowed:
        yield invalid(field, f"{shown(value)} is none of {', '.join(allowed)}.")


def at_most(field: str, count: int, most: int, what: str) -> Iterator[GugusError]:
    """There are not too many of something."""
    if count > most:
        yield invalid(field, f"has {count} {what}; at most {most}.")


def size_of_text(field: str, value: str, most: int) -> Iterator[GugusError]:
    """A text has at most so many bytes."""
    if (size := len(value.encode())) > most:
        yield invalid(field, f"has {size:,} bytes; at most {most:,}.")


def path(field: str, value: str) -> Iterator[GugusError]:
    """A text is an absolute path without "." and "..", doubled or trailing slashes."""
    if not (_PATH.fullmatch(value) and value.isprintable()) or {".", ".."} & set(value.split("/")):
        yield invalid(field, f'{shown(value)} is no absolute path without "..", like /srv/data.')


def shown(value: str) -> str:
    """Return a value as an error shows it: quoted, cut, and without control characters."""
    cut = value if len(value) <= SHOWN_CHARS else f"{value[:SHOWN_CHARS]}…"
    return f'"{cut}"' if cut.isprintable() else ascii(cut)
