"""Notes and tags."""

import re
from collections.abc import Iterator, Mapping

from gugus.cluster.v1.guest_pb2 import GuestSpec

from common.errors import GugusError, invalid
from manager.guests.known import Known
from manager.guests.rules import check

MAX_NOTES_BYTES = 8 * 1024
MAX_TAGS = 64
MAX_LABELS = 64
MAX_LABEL_CHARS = 255

_TAG = re.compile(r"[A-Za-z0-9._-]{1,63}")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")


def faults(spec: GuestSpec, known: Known) -> Iterator[GugusError]:
    """Notes and tags are not too long, and tags are words."""
    yield from check.size_of_text("spec.notes", spec.notes, MAX_NOTES_BYTES)
    yield from check.at_most("spec.tags", len(spec.tags), MAX_TAGS, "tags")
    seen: set[str] = set()
    for index, tag in enumerate(spec.tags):
        yield from check.matching(f"spec.tags[{index}]", tag, _TAG, 'a word of 1 to 63 letters, digits, "-", "_", "."')
        if tag in seen:
            yield invalid(f"spec.tags[{index}]", f"{check.shown(tag)} is given twice.")
        seen.add(tag)


def label_faults(labels: Mapping[str, str]) -> Iterator[GugusError]:
    """Labels are few, and short enough to be looked at."""
    yield from check.at_most("labels", len(labels), MAX_LABELS, "labels")
    for key, value in sorted(labels.items()):
        at = f"labels[{key[:20]}]"
        yield from check.matching(at, key, _LABEL, 'a key of 1 to 63 letters, digits, "-", "_", ".", "/"')
        if len(value) > MAX_LABEL_CHARS or not (value.isprintable() or not value):
            yield invalid(at, f"{check.shown(value)} is not at most {MAX_LABEL_CHARS} printable characters.")
