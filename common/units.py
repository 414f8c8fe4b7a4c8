"""Sizes and durations as people write them.

Sizes are binary: K, M, G, T and Ki, Mi, Gi, Ti (with or without B after the i) mean powers of 1024, as memory and disk
images are made. "MB" and its like are refused, for some mean 1000 by it and some 1024.
"""

import re
from decimal import Decimal

_SIZE_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4, "p": 1024**5}
_SIZE = re.compile(r"(?P<number>[0-9]{1,19}(\.[0-9]{1,12})?)\s*(?P<unit>b|[kmgtp]?|[kmgtp]ib?)", re.IGNORECASE)
_AMBIGUOUS = re.compile(r"[0-9.]+\s*(?P<letter>[kmgtp])b", re.IGNORECASE)
_MAX_BYTES = 2**63 - 1

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)(ms|s|m|h|d)")
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,6})?")


def parse_size(text: str) -> int:
    """Return the bytes that a text like "512MiB", "2G" (2 GiB), "1.5GiB" or "1024" means. Raises ValueError."""
    stripped = text.strip()
    match = _SIZE.fullmatch(stripped)
    if not match:
        if ambiguous := _AMBIGUOUS.fullmatch(stripped):
            letter = ambiguous["letter"].upper()
            raise ValueError(f'"{text}" is ambiguous: write "{letter}iB" for the binary unit')
        raise ValueError(f'"{text}" is not a size like "512MiB", "2G" or "1.5GiB"')
    factor = _SIZE_UNITS[match["unit"].lower().removesuffix("b").removesuffix("i")]
    size = Decimal(match["number"]) * factor
    if size != size.to_integral_value():
        raise ValueError(f'"{text}" is not a whole number of bytes')
    if size > _MAX_BYTES:
        raise ValueError(f'"{text}" is more than any host or pool holds')
    return int(size)


def format_size(size_bytes: int) -> str:
    """Return a size in the largest unit that keeps it at 1 or more, with at most two decimals: "1.5GiB", "100B"."""
    value, unit = Decimal(size_bytes), "B"
    for name in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(value) < 1024:
            break
        value, unit = value / 1024, name
    number = f"{value:.2f}"
    return number.rstrip("0").rstrip(".") + unit


def parse_duration(text: str) -> float:
    """Return the seconds that a text like "10s", "5m", "1h30m", "250ms" or "10" (seconds) means. Raises ValueError."""
    stripped = text.strip().lower()
    if _NUMBER.fullmatch(stripped):
        return float(stripped)
    parts = _PART.findall(stripped)
    if not parts or "".join(number + unit for number, unit in parts) != stripped:
        raise ValueError(f'"{text}" is not a duration like "10s", "5m", "1h30m" or "250ms"')
    units = [unit for _, unit in parts]
    if len(set(units)) != len(units):
        raise ValueError(f'"{text}" names a unit twice')
    return float(sum(Decimal(number) * Decimal(str(_DURATION_UNITS[unit])) for number, unit in parts))


def format_duration(seconds: float) -> str:
    """Return a duration in at most two units: "250ms", "1.5s", "1m30s", "2d3h"."""
    if seconds < 0:
        return "-" + format_duration(-seconds)
    if round(seconds * 1000) < 1000:
        return f"{round(seconds * 1000)}ms"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f}".removesuffix(".0") + "s"
    whole = round(seconds)
    for large, small in (("d", "h"), ("h", "m"), ("m", "s")):
        size, step = int(_DURATION_UNITS[large]), int(_DURATION_UNITS[small])
        if whole >= size:
            rest = whole % size // step
            return f"{whole // size}{large}" + (f"{rest}{small}" if rest else "")
    return f"{whole}s"
