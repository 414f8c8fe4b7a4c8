"""Messages as YAML for people: short names, units, words; what is at its default is left out."""

from collections.abc import Collection
from typing import Any

import yaml
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from client.apply.fields import Unit, entry_of, fields_of, is_map
from client.apply.scalars import write_scalar


def to_plain(message: Message, *, without: Collection[str] = ()) -> dict[str, Any]:
    """Return a message as what YAML is made from. `without`: full names of fields to leave out."""
    plain = dict[str, Any]()
    set_ = {field.name for field, _ in message.ListFields()}
    for short, field in fields_of(message.DESCRIPTOR).items():
        descriptor = field.descriptor
        if descriptor.name in set_ and descriptor.full_name not in without:
            plain[short] = _value(descriptor, field.unit, getattr(message, descriptor.name), without)
    return plain


def dump(plain: Any) -> str:
    """Return what `to_plain` made as YAML; texts of several lines stand as they are."""
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def to_yaml(message: Message) -> str:
    """Return a message as YAML."""
    return dump(to_plain(message))


def _value(field: FieldDescriptor, unit: Unit, value: Any, without: Collection[str]) -> Any:
    if is_map(field):
        _, kind = entry_of(field)
        return {key: _single(kind, Unit.NONE, value[key], without) for key in sorted(value)}
    if field.is_repeated:
        return [_single(field, unit, item, without) for item in value]
    return _single(field, unit, value, without)


def _single(field: FieldDescriptor, unit: Unit, value: Any, without: Collection[str]) -> Any:
    if field.message_type is not None:
        return to_plain(value, without=without)
    return write_scalar(field, unit, value)


class _Dumper(yaml.SafeDumper):
    """Writes lists as people do, and texts of several lines as blocks."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    lines = text.split("\n")
    if not all(line.isprintable() for line in lines):
        style: str | None = '"'  # PyYAML folds some of Unicode's line breaks away in the other styles
    else:
        style = "|" if len(lines) > 1 and lines[0] and all(line == line.rstrip() for line in lines) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
