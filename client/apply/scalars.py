"""Single values: what people write, and the API's numbers, words and flags. Reading what was written gives the same value."""

import base64
import binascii
import difflib
import re
from decimal import Decimal, InvalidOperation
from typing import Any

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

from client.apply.fields import Unit, enum_synonyms, enum_words, is_integer
from common.units import parse_duration, parse_size

_BOUNDS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_SIZES = (("PiB", 2**50), ("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))
_TIMES = (("h", 3_600_000), ("m", 60_000), ("s", 1000))
_WHOLE = re.compile(r"-?[0-9]{1,20}")
_MODE = re.compile(r"0o?[0-7]{1,12}")
_NEAR = 0.5
_MIB = 2**20


def read_scalar(field: FieldDescriptor, unit: Unit, text: str, *, raw: bool = False) -> Any:
    """Return what a text means for a field. `raw`: a number without a unit is in the API's own. Raises ValueError in words."""
    if field.enum_type is not None:
        return _read_word(field.enum_type, text)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return _read_bytes(text) if field.type == FieldDescriptor.TYPE_BYTES else text
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        if text.lower() not in _FLAGS:
            raise ValueError(f'"{text}" is neither true nor false')
        return _FLAGS[text.lower()]
    if is_integer(field):
        raw = raw and unit is not Unit.OCTAL and _WHOLE.fullmatch(text.strip()) is not None
        return _bounded(field, _read_number(Unit.NONE if raw else unit, text.strip()))
    try:
        return float(text)
    except ValueError:
        raise ValueError(f'"{text}" is not a number') from None


def write_scalar(field: FieldDescriptor, unit: Unit, value: Any) -> Any:
    """Return a value as YAML has it: a text, a number or a flag that `read_scalar` reads back."""
    if field.enum_type is not None:
        return next((word for word, number in enum_words(field.enum_type).items() if number == value), int(value))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return base64.b64encode(value).decode()
    return _write_number(unit, value) if is_integer(field) else value


def _read_word(enum: EnumDescriptor, text: str) -> int:
    words = enum_words(enum)
    word = text.strip().lower().replace("-", "_").replace(" ", "_")
    known = {**enum_synonyms(enum), **words}
    if word in known:
        return known[word]
    if _WHOLE.fullmatch(word):
        if int(word) in enum.values_by_number:
            return int(word)
        raise ValueError(f"{text} is no value of it; there are {', '.join(words)}")
    near = difflib.get_close_matches(word, words, n=1, cutoff=_NEAR)
    hint = f' (did you mean "{near[0]}"?)' if near else ""
    raise ValueError(f'"{text}" is not one of {", ".join(words)}{hint}')


def _read_number(unit: Unit, text: str) -> int:
    if unit is Unit.OCTAL:
        if text == "0":
            return 0
        if not _MODE.fullmatch(text):
            raise ValueError(f'"{text}" is not a mode in octal; write it with its 0, like 0660')
        return int(text.removeprefix("0o").removeprefix("0") or "0", 8)
    if unit is Unit.NONE or (unit in (Unit.BYTES, Unit.RATE) and _WHOLE.fullmatch(text)):
        if not _WHOLE.fullmatch(text):
            raise ValueError(f'"{text}" is not a whole number')
        return int(text)
    if unit in (Unit.BYTES, Unit.RATE, Unit.MIB):
        size = parse_size(text.removesuffix("/s") if unit is Unit.RATE else text)
        if unit is Unit.MIB and size % _MIB:
            raise ValueError(f'"{text}" is not a whole number of MiB, like 16MiB')
        return size // _MIB if unit is Unit.MIB else size
    if unit is Unit.MILLI:
        return _whole(_decimal(text) * 1000, text, "has more than three decimals")
    factor = 1000 if unit is Unit.MS else 1
    return _whole(Decimal(str(parse_duration(text))) * factor, text, f"is not a whole number of {unit.value}")


def _write_number(unit: Unit, value: int) -> int | str:
    if unit is Unit.OCTAL:
        return f"0{value:o}" if value else 0
    if unit in (Unit.BYTES, Unit.RATE):
        end = "/s" if unit is Unit.RATE else ""
        return next((f"{value // size}{name}{end}" for name, size in _SIZES if value and value % size == 0), value)
    if unit is Unit.MIB:
        return f"{value}MiB"
    if unit is Unit.MILLI:
        return f"{value // 1000}.{value % 1000:03}".rstrip("0").rstrip(".")
    if unit in (Unit.MS, Unit.SECONDS):
        value_ms = value * (1000 if unit is Unit.SECONDS else 1)
        return next((f"{value_ms // size}{name}" for name, size in _TIMES if value_ms % size == 0), f"{value_ms}ms")
    return value


def _bounded(field: FieldDescriptor, number: int) -> int:
    least, most = _BOUNDS[field.cpp_type]
    if not least <= number <= most:
        raise ValueError(f"{number} is out of range; {least} to {most}")
    return number


def _decimal(text: str) -> Decimal:
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise ValueError(f'"{text}" is not a number of CPUs like 2 or 0.5') from None
    if not number.is_finite():
        raise ValueError(f'"{text}" is not a number of CPUs like 2 or 0.5')
    return number


def _whole(number: Decimal, text: str, fault: str) -> int:
    if number != number.to_integral_value():
        raise ValueError(f'"{text}" {fault}')
    return int(number)


def _read_bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("is not base64") from None
