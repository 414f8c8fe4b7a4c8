"""Differences between two messages, field by field, in the words of the documents."""

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import unified_diff
from typing import Any

import yaml
from google.protobuf.message import Message

from client.apply.fields import HIDDEN, ITEM_KEYS, Field, Unit, entry_of, fields_of, is_map
from client.apply.overlay import key_of
from client.apply.scalars import write_scalar
from client.apply.writer import to_plain

DEFAULT = "default"
_NO_LIMIT = 1 << 30


@dataclass(frozen=True, slots=True)
class Difference:
    """One field that differs. `old` is None for what is added, `new` for what goes."""

    path: str
    old: str | None
    new: str | None

    def lines(self) -> list[str]:
        """Return it as people read it: "path: old -> new", "+ path: new", "- path: old", or a text's lines that differ."""
        if self.old is None:
            return [f"+ {self.path}: {self.new}"]
        if self.new is None:
            return [f"- {self.path}: {self.old}"]
        if "\n" not in self.old + self.new:
            return [f"  {self.path}: {self.old} -> {self.new}"]
        changed = list(unified_diff(self.old.splitlines(), self.new.splitlines(), lineterm="", n=1))[2:]
        return [f"  {self.path}:", *(f"    {line}" for line in changed)]


def differences(present: Message, wanted: Message, path: str = "") -> list[Difference]:
    """Return what has to change for `present` to become `wanted`; both are of one type. Unset and default are the same."""
    found = list[Difference]()
    for short, field in fields_of(present.DESCRIPTOR).items():
        inner = f"{path}.{short}" if path else short
        old, new = getattr(present, field.name), getattr(wanted, field.name)
        descriptor = field.descriptor
        if is_map(descriptor):
            found += _of_maps(field, old, new, inner)
        elif descriptor.is_repeated and descriptor.message_type is not None:
            found += _of_lists(old, new, inner)
        elif descriptor.message_type is not None:
            found += differences(old, new, inner)
        elif old != new:
            found.append(Difference(inner, _word(field, old), _word(field, new)))
    return found


def _of_maps(field: Field, old: Any, new: Any, path: str) -> Iterator[Difference]:
    _, value = entry_of(field.descriptor)

    def word(entries: Any, key: Any) -> str | None:
        return _line(write_scalar(value, Unit.NONE, entries[key])) if key in entries else None

    for key in sorted({*old, *new}):
        if word(old, key) != word(new, key):
            yield Difference(f"{path}[{key}]", word(old, key), word(new, key))


def _of_lists(old: Any, new: Any, path: str) -> Iterator[Difference]:
    before = {key_of(item, place) or str(place): item for place, item in enumerate(old)}
    after = {key_of(item, place) or str(place): item for place, item in enumerate(new)}
    for key, item in before.items():
        if key not in after:
            yield Difference(f"{path}[{key}]", _line(to_plain(item)), None)
    for key, item in after.items():
        if key in before:
            yield from differences(before[key], item, f"{path}[{key}]")
        else:
            yield Difference(f"{path}[{key}]", None, _line(to_plain(item)))
    stay = [key for key in before if key in after]
    if ITEM_KEYS and stay != [key for key in after if key in before]:
        yield Difference(f"{path} in order", ", ".join(before), ", ".join(after))


def _word(field: Field, value: Any) -> str:
    if field.descriptor.full_name in HIDDEN:
        return "(hidden)"
    if field.descriptor.is_repeated:
        return _line([write_scalar(field.descriptor, field.unit, item) for item in value])
    if not value:
        return DEFAULT if not isinstance(value, bool) else "no"
    if value is True:
        return "yes"
    return str(write_scalar(field.descriptor, field.unit, value))


def _line(plain: Any) -> str:
    """Return plain data as YAML on one line."""
    text: str = yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, allow_unicode=True, width=_NO_LIMIT)
    return text.removesuffix("...\n").strip()
