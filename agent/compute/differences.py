"""What differs between two specs, field by field, in the words of the spec. Pure.

Items of a list that have a name are compared by it and named by it: "disks[data].settings.bus".
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

ABSENT = "absent"
PRESENT = "there"
_SECRET = frozenset({"password_hash", "user_data", "vendor_data", "network_config"})
"""Fields whose values are never shown, for they may hold secrets."""

_LONGEST_WORDS = 80
_STEP = re.compile(r"([a-z_0-9]+)(?:\[([^\]]*)\])?")
"""One step of a path: a field's name, and the name or key of an item of it."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One field that differs; `item` is the name of the list item that comes or goes or holds it, "" for none."""

    field: str
    present: str
    wanted: str
    item: str = ""

    @property
    def comes(self) -> bool:
        """Whether a whole list item is added."""
        return self.present == ABSENT and self.wanted == PRESENT

    @property
    def goes(self) -> bool:
        """Whether a whole list item is removed."""
        return self.present == PRESENT and self.wanted == ABSENT


def differences(present: Message, wanted: Message) -> list[Difference]:
    """Return what differs between two messages of the same type, in the order of the fields."""
    return list(_of_message("", "", present, wanted))


def _of_message(path: str, item: str, present: Message, wanted: Message) -> Iterator[Difference]:
    if present == wanted:
        return
    fields: Sequence[Any] = present.DESCRIPTOR.fields
    for field in fields:
        before, after = getattr(present, field.name), getattr(wanted, field.name)
        if before == after:
            continue
        name = f"{path}.{field.name}" if path else field.name
        if _is_map(field):
            yield from _of_map(name, item, dict(before), dict(after))
        elif field.is_repeated:
            yield from _of_list(name, item, field, list(before), list(after))
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            yield from _of_message(name, item, before, after)
        else:
            yield Difference(name, _words(field, before), _words(field, after), item)


def _of_list(path: str, item: str, field: Any, before: list[Any], after: list[Any]) -> Iterator[Difference]:
    kind = field.message_type
    if kind is None or "name" not in kind.fields_by_name:
        yield Difference(path, _several(field, before), _several(field, after), item)
        return
    old, new = {each.name: each for each in before}, {each.name: each for each in after}
    for name in [*old, *(name for name in new if name not in old)]:
        where = f"{path}[{name}]"
        if name not in new:
            yield Difference(where, PRESENT, ABSENT, name)
        elif name not in old:
            yield Difference(where, ABSENT, PRESENT, name)
        else:
            yield from _of_message(where, name, old[name], new[name])
    common = [name for name in old if name in new]
    if common != [name for name in new if name in old]:
        yield Difference(path, ", ".join(old), ", ".join(new), item)


def _of_map(path: str, item: str, before: dict[Any, Any], after: dict[Any, Any]) -> Iterator[Difference]:
    for key in sorted({*before, *after}):
        old, new = str(before.get(key, "")), str(after.get(key, ""))
        if old != new:
            yield Difference(f"{path}[{key}]", old or ABSENT, new or ABSENT, item)


def _is_map(field: Any) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _several(field: Any, values: list[Any]) -> str:
    return ", ".join(_words(field, value) for value in values) or ABSENT


def _words(field: Any, value: Any) -> str:
    if field.name in _SECRET:
        return "set" if value else "default"
    if field.type == FieldDescriptor.TYPE_ENUM and field.enum_type is not None:
        name = field.enum_type.values_by_number[value].name if value in field.enum_type.values_by_number else str(value)
        return "default" if value == 0 else name
    if field.type == FieldDescriptor.TYPE_BOOL:
        return "yes" if value else "no"
    if isinstance(value, Message):
        return " ".join(str(value).split())[:_LONGEST_WORDS] or "empty"
    return str(value)[:_LONGEST_WORDS] if value else "default"


def transfer(difference: Difference, source: Any, target: Any) -> None:
    """Bring one field that differs from `source` to `target`, messages of the same type.

    Raises ValueError for a path that the messages do not have.
    """
    *parents, last = _STEP.findall(difference.field)
    for name, key in parents:
        source, target = _inside(source, name, key), _inside(target, name, key)
    name, key = last
    field = source.DESCRIPTOR.fields_by_name.get(name)
    if field is None:
        raise ValueError(f"no field {difference.field}")
    if key and _is_map(field):
        _transfer_entry(getattr(source, name), getattr(target, name), field, key)
    elif key:
        _transfer_item(getattr(source, name), getattr(target, name), key)
    elif field.is_repeated:
        target.ClearField(name)
        getattr(target, name).MergeFrom(getattr(source, name))
    else:
        setattr(target, name, getattr(source, name))


def _inside(message: Any, name: str, key: str) -> Any:
    value = getattr(message, name)
    if not key:
        return value
    found = next((each for each in value if each.name == key), None)
    if found is None:
        raise ValueError(f"no {name} {key}")
    return found


def _transfer_entry(source: Any, target: Any, field: Any, key: str) -> None:
    whole = field.message_type.fields_by_name["key"].type != FieldDescriptor.TYPE_STRING
    known: Any = int(key) if whole else key
    if known in source:
        target[known] = source[known]
    else:
        target.pop(known, None)


def _transfer_item(source: Any, target: Any, key: str) -> None:
    wanted = next((each for each in source if each.name == key), None)
    place = next((index for index, each in enumerate(target) if each.name == key), None)
    if wanted is None and place is not None:
        del target[place]
    elif wanted is not None and place is None:
        target.add().CopyFrom(wanted)
    elif wanted is not None and place is not None:
        target[place].CopyFrom(wanted)
