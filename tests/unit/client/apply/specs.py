"""Arbitrary messages of the API, from their descriptors."""

from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from client.apply.fields import entry_of, is_map

M = TypeVar("M", bound=Message)

TEXT = st.text(max_size=30) | st.sampled_from(
    ["on", "no", "null", "~", "0123", "1e3", "a: b", "- x", "x\ny\n", " x\n\n y"]
)
_NUMBERS = {
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1) | st.sampled_from([1000, 60, 1024, 1500]),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1) | st.sampled_from([2**30, 3 * 2**20, 1000]),
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32, allow_nan=False, allow_infinity=False),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(allow_nan=False, allow_infinity=False),
}


def messages(kind: type[M]) -> st.SearchStrategy[M]:
    """Return a strategy of messages with any of their fields set to anything."""

    @st.composite
    def draw_one(draw: st.DrawFn) -> M:
        message = kind()
        _fill(draw, message)
        return message

    return draw_one()


def _fill(draw: st.DrawFn, message: Message) -> None:
    fields: list[Any] = list(message.DESCRIPTOR.fields)
    for field in draw(st.lists(st.sampled_from(fields), unique_by=lambda f: f.name, max_size=6)) if fields else ():
        if is_map(field):
            key, value = entry_of(field)
            for _ in range(draw(st.integers(0, 2))):
                getattr(message, field.name)[draw(_scalar(key))] = draw(_scalar(value))
        elif field.message_type is not None:
            if field.is_repeated:
                for _ in range(draw(st.integers(0, 2))):
                    _fill(draw, getattr(message, field.name).add())
            else:
                getattr(message, field.name).SetInParent()
                _fill(draw, getattr(message, field.name))
        elif field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(_scalar(field), max_size=3)))
        else:
            setattr(message, field.name, draw(_scalar(field)))


def _scalar(field: Any) -> st.SearchStrategy[Any]:
    if field.enum_type is not None:
        return st.sampled_from([value.number for value in field.enum_type.values])
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.binary(max_size=10)
    return TEXT if field.cpp_type == FieldDescriptor.CPPTYPE_STRING else _NUMBERS[field.cpp_type]
