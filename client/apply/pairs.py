"""Messages in a word: "size=10GiB,pool=local,bus=scsi,iothread". Parts of parts are named as if they were its own.

Names may be written as the API has them, or with "-" or without a gap: io_thread, io-thread, iothread.
"""

import difflib
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from client.apply.fields import REFUSED, Field, fields_of
from client.apply.overlay import overlay
from client.apply.reader import Patch
from client.apply.scalars import read_scalar
from common.errors import GugusError, invalid, several

_NEAR = 0.5


def read_pairs(kind: type[Message], text: str, option: str) -> Any:
    """Return the message that a text describes; a flag needs no value. Raises GugusError naming every fault."""
    message, faults = kind(), list[GugusError]()
    names = _flat(kind.DESCRIPTOR)
    for part in text.split(","):
        name, equals, value = part.partition("=")
        found = names.get(_bare(name))
        if found is None:
            near = difflib.get_close_matches(name, names, n=1, cutoff=_NEAR)
            hint = f' (did you mean "{near[0]}"?)' if near else ""
            shown = ", ".join(path[-1].short.replace("_", "-") for path in names.values())
            faults.append(invalid(option, f'"{name}" is not known{hint}; there are {shown}.'))
            continue
        field = found[-1]
        if not equals and field.descriptor.cpp_type != field.descriptor.CPPTYPE_BOOL:
            faults.append(invalid(option, f'"{name}" has no value; write {name}=VALUE.'))
            continue
        try:
            scalar = read_scalar(field.descriptor, field.unit, value if equals else "true")
        except ValueError as error:
            faults.append(invalid(option, f"{name}: {error}."))
            continue
        overlay(message, _nested(found, scalar))
    if faults:
        raise several(faults)
    return message


@cache
def _flat(descriptor: Descriptor) -> dict[str, tuple[Field, ...]]:
    """Return the single values of a message and of its parts, by their bare names; outer ones win."""
    flat, parts = dict[str, tuple[Field, ...]](), list[tuple[Field, ...]]()
    for field in fields_of(descriptor).values():
        if field.descriptor.is_repeated or field.descriptor.full_name in REFUSED:
            continue
        if field.descriptor.message_type is None:
            flat[_bare(field.short)] = (field,)
        else:
            inner: Any = field.descriptor.message_type
            parts += [(field, *path) for path in _flat(inner).values()]
    for path in parts:
        flat.setdefault(_bare(path[-1].short), path)
    return flat


def _nested(path: tuple[Field, ...], value: Any) -> Patch:
    for field in reversed(path):
        value = {field.name: value}
    patch: Patch = value
    return patch


def _bare(name: str) -> str:
    return name.strip().lower().replace("-", "").replace("_", "")
