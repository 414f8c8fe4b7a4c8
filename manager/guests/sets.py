"""Sets of small numbers as the kernel writes them: "0-3,8"."""

import re

MAX_MEMBER = 4095
"""Largest CPU or NUMA node: above what Linux is built for (NR_CPUS of x86 is at most 8,192, distributions take less)."""

_PART = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")


def parse_set(text: str) -> frozenset[int] | None:
    """Return the numbers of a set; None for what is none, and for the empty text."""
    numbers: set[int] = set()
    for part in text.split(","):
        found = _PART.fullmatch(part)
        if found is None:
            return None
        first = int(found[1])
        last = int(found[2]) if found[2] else first
        if last < first or last > MAX_MEMBER:
            return None
        numbers.update(range(first, last + 1))
    return frozenset(numbers)
