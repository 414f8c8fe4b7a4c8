"""Puts what a document names upon a message; what it does not name stays as it is.

A list that is named is named whole: what is there and not in it goes. Where a list holds things by name (disks, interfaces),
those that stay keep what the document does not say of them. A map that is named is replaced.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from client.apply.fields import ITEM_KEYS, entry_of, is_map
from client.apply.reader import Patch

_MACHINES = {"q35": "pc-q35-", "pc": "pc-i440fx-"}
"""Names of machine types that the manager replaces by the versioned ones they stand for."""


def overlay(message: Message, patch: Patch) -> None:
    """Change a message into what a patch says of it."""
    for name, value in patch.items():
        field: Any = message.DESCRIPTOR.fields_by_name[name]
        if value is None:
            message.ClearField(name)
        elif is_map(field):
            _replace_map(message, field, value)
        elif field.is_repeated:
            _replace_list(message, field, value)
        elif field.message_type is not None:
            part = getattr(message, name)
            part.SetInParent()
            overlay(part, value)
        elif not _means_the_same(field, getattr(message, name), value):
            setattr(message, name, value)


def key_of(item: Message, place: int) -> str:
    """Return the name of an item of a list: its own, or what an unnamed one at its place is called; "" for lists without names."""
    key, prefix = ITEM_KEYS.get(item.DESCRIPTOR.full_name, ("", ""))
    return (getattr(item, key) or (f"{prefix}{place}" if prefix else "")) if key else ""


def _replace_map(message: Message, field: FieldDescriptor, entries: Mapping[Any, Any]) -> None:
    message.ClearField(field.name)
    target = getattr(message, field.name)
    for key, value in entries.items():
        if entry_of(field)[1].message_type is not None:
            overlay(target[key], value)
        else:
            target[key] = value


def _replace_list(message: Message, field: FieldDescriptor, items: Sequence[Any]) -> None:
    target = getattr(message, field.name)
    if field.message_type is None:
        del target[:]
        target.extend(items)
        return
    key, prefix = ITEM_KEYS.get(field.message_type.full_name, ("", ""))
    present = {key_of(item, place): item for place, item in enumerate(target)} if key else {}
    wanted = []
    for place, patch in enumerate(items):
        item = _blank(message, field)
        name = (patch.get(key) or (f"{prefix}{place}" if prefix else "")) if key else ""
        if name and name in present:
            item.CopyFrom(present.pop(name))
        overlay(item, patch)
        wanted.append(item)
    del target[:]
    target.extend(wanted)


def _blank(message: Message, field: FieldDescriptor) -> Message:
    """Return a new item for a list of a message."""
    made: Message = getattr(type(message)(), field.name).add()
    return made


def _means_the_same(field: FieldDescriptor, present: Any, wanted: Any) -> bool:
    """Whether the cluster wrote down what is wanted in other words."""
    if field.full_name == "gugus.agent.v1.VirtualMachineSpec.machine":
        return wanted in _MACHINES and present.startswith(_MACHINES[wanted])
    return bool(field.full_name == "gugus.cluster.v1.NicSpec.mac" and present == wanted.lower() and present)
