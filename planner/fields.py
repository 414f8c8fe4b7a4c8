"""Fields of a planning document: how each is read, what it may be, and what its JSON schema says, from one table.

A reader turns a value into what the planner uses, or raises ValueError with what would be right. An object's faults are
gathered, so that all of a document are told at once.
"""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from common.errors import Violation
from common.units import parse_size

MOST = (1 << 53) - 1
"""Largest whole number that JSON carries exactly everywhere (RFC 8259, section 6)."""

_NEAR = 0.6
_SHOWN_CHARS = 60

Schema = dict[str, Any]


class Absent:
    """Stands for a field that must be named."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a value may be. `read(value, path, faults)` returns it as the planner has it."""

    schema: Schema
    read: Callable[[Any, str, "list[Violation]"], Any]


@dataclass(frozen=True, slots=True)
class Field:
    """A named value of an object, what it means, and what it is when it is left out."""

    name: str
    kind: Kind
    means: str
    default: Any = Absent


@dataclass(frozen=True, slots=True)
class Form:
    """An object: its fields, and what is made of them."""

    fields: tuple[Field, ...]
    make: Callable[..., Any]
    constants: Mapping[str, str] = field(default_factory=dict)
    """Fields that say which form it is, with the value."""

    def schema(self) -> Schema:
        """Return its JSON schema."""
        known: Schema = {name: {"const": value} for name, value in self.constants.items()}
        for one in self.fields:
            known[one.name] = {**one.kind.schema, "description": one.means, **_default(one)}
        required = [*self.constants, *(one.name for one in self.fields if one.default is Absent)]
        return {"type": "object", "properties": known, "required": required, "additionalProperties": False}

    def read(self, value: Any, path: str, faults: list[Violation]) -> Any:
        """Return what is made of an object; None when it has faults."""
        if not isinstance(value, dict):
            return _fault(faults, path, f"{_shown(value)} is not an object with fields")
        before = len(faults)
        names = [*self.constants, *(one.name for one in self.fields)]
        for name in value:
            if name not in names:
                faults.append(Violation(_join(path, str(name)), f"there is no such field{_near(str(name), names)}"))
        made = {}
        for one in self.fields:
            where = _join(path, one.name)
            given = value.get(one.name)
            if one.name in value and (given is not None or one.default is Absent):
                made[one.name] = one.kind.read(given, where, faults)
            elif one.default is Absent:
                faults.append(Violation(where, f"is missing. {one.means}"))
            else:
                made[one.name] = one.default
        return self.make(**made) if len(faults) == before else None


def whole(least: int = 0, most: int = MOST) -> Kind:
    """A whole number."""

    def read(value: Any, path: str, faults: list[Violation]) -> Any:
        number = int(value) if isinstance(value, float) and value.is_integer() else value
        if not isinstance(number, int) or isinstance(value, bool):
            return _fault(faults, path, f"{_shown(value)} is not a whole number; give one from {least} to {most}")
        if not least <= number <= most:
            return _fault(faults, path, f"{number} is out of range; give one from {least} to {most}")
        return number

    return Kind({"type": "integer", "minimum": least, "maximum": most}, read)


def size(least: int = 0) -> Kind:
    """Bytes, as a whole number or a text like "2GiB"."""
    plain = whole(least)

    def read(value: Any, path: str, faults: list[Violation]) -> Any:
        if not isinstance(value, str):
            return plain.read(value, path, faults)
        try:
            return plain.read(parse_size(value), path, faults)
        except ValueError as error:
            return _fault(faults, path, str(error))

    return Kind({"anyOf": [plain.schema, {"type": "string"}]}, read)


def number(least: float, most: float = math.inf) -> Kind:
    """A number."""
    limits: Schema = {"minimum": least} if math.isinf(most) else {"minimum": least, "maximum": most}
    right = f"from {least:g} on" if math.isinf(most) else f"from {least:g} to {most:g}"

    def read(value: Any, path: str, faults: list[Violation]) -> Any:
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            return _fault(faults, path, f"{_shown(value)} is not a number; give one {right}")
        if not least <= value <= most:
            return _fault(faults, path, f"{value:g} is out of range; give one {right}")
        return float(value)

    return Kind({"type": "number", **limits}, read)


def _read_flag(value: Any, path: str, faults: list[Violation]) -> Any:
    return value if isinstance(value, bool) else _fault(faults, path, f"{_shown(value)} is neither true nor false")


FLAG = Kind({"type": "boolean"}, _read_flag)


def _read_name(value: Any, path: str, faults: list[Violation]) -> Any:
    if isinstance(value, str) and value.strip():
        return value
    return _fault(faults, path, f"{_shown(value)} is not a name; give a text that is not empty")


NAME = Kind({"type": "string", "minLength": 1}, _read_name)


def _read_text(value: Any, path: str, faults: list[Violation]) -> Any:
    return value if isinstance(value, str) else _fault(faults, path, f"{_shown(value)} is not a text")


TEXT = Kind({"type": "string"}, _read_text)


def nullable(kind: Kind) -> Kind:
    """What may be null, which stands for the default."""
    return Kind({"anyOf": [kind.schema, {"type": "null"}]}, kind.read)


def choice(words: type[StrEnum]) -> Kind:
    """One of a few words."""
    known = [str(word) for word in words]

    def read(value: Any, path: str, faults: list[Violation]) -> Any:
        if isinstance(value, str) and value in known:
            return words(value)
        return _fault(faults, path, f"{_shown(value)} is none of {', '.join(known)}")

    return Kind({"enum": known}, read)


def listed(kind: Kind, make: Callable[[list[Any]], Any] = tuple) -> Kind:
    """A list of one kind."""

    def read(value: Any, path: str, faults: list[Violation]) -> Any:
        if not isinstance(value, list):
            return _fault(faults, path, f"{_shown(value)} is not a list")
        before = len(faults)
        items = [kind.read(item, f"{path}[{i}]", faults) for i, item in enumerate(value)]
        return make(items) if len(faults) == before else None

    return Kind({"type": "array", "items": kind.schema}, read)


def mapped(kind: Kind) -> Kind:
    """An object whose fields may have any names, with values of one kind."""

    def read(value: Any, path: str, faults: list[Violation]) -> Any:
        if not isinstance(value, dict):
            return _fault(faults, path, f"{_shown(value)} is not an object with fields")
        return {str(name): kind.read(item, _join(path, str(name)), faults) for name, item in value.items()}

    return Kind({"type": "object", "additionalProperties": kind.schema}, read)


def known_only(kind: Kind, names: Sequence[str]) -> Kind:
    """An object whose fields have some of the names, with values of one kind."""

    def read(value: Any, path: str, faults: list[Violation]) -> Any:
        for name in value if isinstance(value, dict) else ():
            if name not in names:
                faults.append(Violation(_join(path, str(name)), f"there is no such name{_near(str(name), names)}"))
        return mapped(kind).read(value, path, faults)

    schema = {"type": "object", "properties": dict.fromkeys(names, kind.schema), "additionalProperties": False}
    return Kind(schema, read)


def formed(form: Form) -> Kind:
    """An object."""
    return Kind(form.schema(), form.read)


def one_of(key: str, forms: Mapping[str, Form]) -> Kind:
    """An object whose field `key` says which of several forms it has."""

    def read(value: Any, path: str, faults: list[Violation]) -> Any:
        if not isinstance(value, dict):
            return _fault(faults, path, f"{_shown(value)} is not an object with fields")
        form = forms.get(str(value.get(key)))
        if form is None:
            return _fault(faults, _join(path, key), f"{_shown(value.get(key))} is none of {', '.join(forms)}")
        return form.read(value, path, faults)

    return Kind({"oneOf": [form.schema() for form in forms.values()]}, read)


def _default(one: Field) -> Schema:
    """Return what a schema says of a field that is left out: plain values and empty lists and objects."""
    if one.default is Absent or one.default is None:
        return {}
    if isinstance(one.default, str | bool | int | float):
        return {"default": one.default}
    return {"default": [] if isinstance(one.default, tuple | frozenset) else {}}


def _fault(faults: list[Violation], path: str, message: str) -> Any:
    """Add a fault, and return what stands for the value."""
    faults.append(Violation(path, f"{message}."))
    return None


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _near(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=_NEAR)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(names)}."


def _shown(value: Any) -> str:
    text = f'"{value}"' if isinstance(value, str) else "nothing" if value is None else str(value)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"
