"""Single fields by their paths: "cpus", "disks[data].settings.cache", "virtual_machine.smbios[serial]"."""

import re
from typing import Any

import yaml
from google.protobuf.message import Message

from client.apply.fields import REFUSED, Field, Unit, by_any_name, entry_of, is_map, writable
from client.apply.overlay import key_of, overlay
from client.apply.reader import Reader, error_of
from client.apply.scalars import read_scalar, write_scalar
from client.apply.spec import compose
from common.errors import GugusError, invalid

_PART = re.compile(r"(?P<name>[a-z][a-z0-9_]*)(\[(?P<key>[^\]]+)\])?")
_PATH = re.compile(r"(\[[^\]]*\]|[^\[.])+")
"""Parts between dots; those in brackets divide nothing."""


def set_field(message: Message, text: str, option: str = "--set") -> None:
    """Change one field of a message as "path=value" says; an empty value is the default, or takes the item of a list away.

    Raises GugusError naming what is there instead.
    """
    path, value = _divide(text)
    if not path:
        raise invalid(option, f'"{text}" is not PATH=VALUE, like memory=2GiB or disks[data].settings.cache=none.')
    _set(message, [match[0] for match in _PATH.finditer(path)], value, f"{path}: ", option)


def assign(message: Message, path: str, text: str, option: str) -> None:
    """Change the field at a path to what a text says, for an option that stands for it. Raises GugusError naming the option."""
    _set(message, path.split("."), text, "", option)


def put(message: Message, path: str, value: Any) -> None:
    """Change the field at a path of single messages to a value of the API's: a scalar, a patch, or a list; None clears it."""
    *parents, last = path.split(".")
    for parent in parents:
        field = by_any_name(message.DESCRIPTOR)[parent].name
        if value is None and not message.HasField(field):
            return
        message = getattr(message, field)
        message.SetInParent()
    name = by_any_name(message.DESCRIPTOR)[last].name
    if isinstance(value, list) and value and isinstance(value[0], Message):
        message.ClearField(name)
        getattr(message, name).extend(value)
    else:
        overlay(message, {name: value})


def shown(path: str, text: str) -> str:
    """Return the value of a field of GuestSpec, as the API writes it, in the words of documents; "default" for none."""
    from gugus.cluster.v1.guest_pb2 import GuestSpec

    descriptor: Any = GuestSpec.DESCRIPTOR
    field: Field | None = None
    for part in (match[0].partition("[")[0] for match in _PATH.finditer(path)):
        field = by_any_name(descriptor).get(part) if descriptor is not None else None
        if field is None:
            return text or "default"
        descriptor = field.descriptor.message_type
    if field is None or not text or field.descriptor.message_type is not None or field.descriptor.is_repeated:
        return text or "default"
    try:
        return str(
            write_scalar(field.descriptor, field.unit, read_scalar(field.descriptor, field.unit, text, raw=True))
        )
    except ValueError:
        return text


def _divide(text: str) -> tuple[str, str]:
    """Return path and value; the path is "" when there is no "=" outside of brackets."""
    depth = 0
    for place, letter in enumerate(text):
        depth += {"[": 1, "]": -1}.get(letter, 0)
        if letter == "=" and not depth:
            return text[:place].strip(), text[place + 1 :]
    return "", ""


def _set(message: Message, parts: list[str], text: str, shown: str, option: str) -> None:
    match = _PART.fullmatch(parts[0])
    known = by_any_name(message.DESCRIPTOR)
    if not match or match["name"] not in known:
        there = ", ".join(writable(message.DESCRIPTOR))
        raise invalid(option, f'{shown}"{parts[0]}" is no field there; there are {there}.')
    name, key, rest = match["name"], match["key"], parts[1:]
    field = known[name]
    if field.descriptor.full_name in REFUSED:
        raise invalid(option, f"{shown}is set by the cluster.")
    value: Any = getattr(message, field.name)
    if key is not None:
        _set_keyed(message, field, key, rest, text, shown, option)
    elif rest:
        if field.descriptor.message_type is None or field.descriptor.is_repeated:
            raise invalid(option, f'{shown}"{name}" has no fields{_how(field, value)}.')
        value.SetInParent()
        _set(value, rest, text, shown, option)
    elif not text:
        message.ClearField(field.name)
    else:
        overlay(message, {field.name: _read(field, name, text, shown, option)})


def _set_keyed(message: Message, field: Field, key: str, rest: list[str], text: str, shown: str, option: str) -> None:
    """Change one entry of a map, or one item of a list or a field of it."""
    target: Any = getattr(message, field.name)
    if is_map(field.descriptor) and not rest:
        key_field, value_field = entry_of(field.descriptor)
        try:
            word = read_scalar(key_field, Unit.NONE, key)
            if text:
                target[word] = read_scalar(value_field, Unit.NONE, text)
            else:
                target.pop(word, None)
        except ValueError as error:
            raise invalid(option, f"{shown}{error}.") from None
        return
    if not field.descriptor.is_repeated or field.descriptor.message_type is None or is_map(field.descriptor):
        raise invalid(option, f'{shown}"{field.short}" has no items with fields.')
    names = [key_of(item, place) or str(place) for place, item in enumerate(target)]
    if key not in names and not (key.isdigit() and int(key) < len(names)):
        raise invalid(option, f'{shown}there is no "{key}" in it{_how(field, target)}.')
    place = names.index(key) if key in names else int(key)
    if rest:
        _set(target[place], rest, text, shown, option)
    elif text:
        overlay(target[place], _read_item(field, text, shown, option))
    else:
        del target[place]


def _how(field: Field, value: Any) -> str:
    if not field.descriptor.is_repeated or field.descriptor.message_type is None or is_map(field.descriptor):
        return ""
    names = [key_of(item, place) or str(place) for place, item in enumerate(value)]
    return f"; there are {', '.join(f'{field.short}[{name}]' for name in names)}" if names else "; it is empty"


def _read(field: Field, name: str, text: str, shown: str, option: str) -> Any:
    """Return what a text says of a field. Texts are taken as they are; what is more than one value is YAML."""
    descriptor = field.descriptor
    if not descriptor.is_repeated and descriptor.message_type is None:
        try:
            return read_scalar(descriptor, field.unit, text, raw=name != field.short)
        except ValueError as error:
            raise invalid(option, f"{shown}{error}.") from None
    if descriptor.is_repeated and descriptor.message_type is None and not text.lstrip().startswith("["):
        text = f"[{text}]"
    reader, node = Reader(option, REFUSED, lines=False), _node(text, option)
    return _checked(reader, reader.value(node, field, name, name))


def _read_item(field: Field, text: str, shown: str, option: str) -> Any:
    reader = Reader(option, REFUSED, lines=False)
    return _checked(reader, reader.message(_node(text, option), field.descriptor.message_type, field.short))


def _node(text: str, option: str) -> yaml.Node:
    nodes = compose(text, option, lines=False)
    if not nodes:
        raise invalid(option, f'"{text}" says nothing.')
    return nodes[0]


def _checked(reader: Reader, value: Any) -> Any:
    if reader.faults:
        error: GugusError = error_of(reader.faults)
        raise error
    return value
