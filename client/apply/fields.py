"""What the API's fields are called in YAML, and what their values look like there: read from the proto descriptors.

A name ends in its unit where the API has one ("memory_bytes"). People write the unit with the value instead, so that a
field has a short name, too ("memory: 2GiB"); both names are read, the short one is written.
"""

from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor


class Unit(Enum):
    """What a number counts."""

    NONE = ""
    BYTES = "bytes"
    RATE = "bytes a second"
    MIB = "MiB"
    MS = "milliseconds"
    SECONDS = "seconds"
    MILLI = "thousandths"
    OCTAL = "a mode in octal"


_SUFFIXES = (
    ("_bytes_per_s", Unit.RATE),
    ("_bytes", Unit.BYTES),
    ("_mib", Unit.MIB),
    ("_ms", Unit.MS),
    ("_s", Unit.SECONDS),
    ("_milli", Unit.MILLI),
)

_UNITS = {"gugus.agent.v1.ContainerDevice.mode": Unit.OCTAL}
"""Units that a name does not tell."""

ITEM_KEYS = {
    "gugus.cluster.v1.DiskSpec": ("name", "disk"),
    "gugus.cluster.v1.NicSpec": ("name", "eth"),
    "gugus.agent.v1.CdromSpec": ("name", "cd"),
    "gugus.agent.v1.NicAddress": ("nic", ""),
    "gugus.agent.v1.BindMount": ("target", ""),
    "gugus.agent.v1.ContainerDevice": ("path", ""),
    "gugus.agent.v1.PciDevice": ("address", ""),
}
"""Messages that lists hold by name: the field that is the name, and what an unnamed one is called before its place in the list."""

OUTPUT_ONLY = frozenset(
    {
        "gugus.cluster.v1.DiskSpec.volume",
        "gugus.cluster.v1.DiskSpec.base_volume",
        "gugus.cluster.v1.GuestSpec.template",
    }
)
"""Fields of specs that the cluster chooses: they are no part of a document that is exported."""

REFUSED = OUTPUT_ONLY - {"gugus.cluster.v1.DiskSpec.volume"}
"""Those that nobody else may choose; a disk's volume may be that of an unused disk, to take it up again."""

HIDDEN = frozenset({"gugus.agent.v1.FirstBoot.password_hash"})
"""Fields whose values are not shown in differences."""

_WORDS = {"GUEST_KIND_VIRTUAL_MACHINE": "vm"}
"""Words for enum values that are not the value's own name."""

_INTEGERS = frozenset(
    {
        FieldDescriptor.CPPTYPE_INT32,
        FieldDescriptor.CPPTYPE_INT64,
        FieldDescriptor.CPPTYPE_UINT32,
        FieldDescriptor.CPPTYPE_UINT64,
    }
)


@dataclass(frozen=True, slots=True)
class Field:
    """A field, with the names it may have in YAML. `unit` is how values read under `short`."""

    descriptor: FieldDescriptor
    short: str
    unit: Unit

    @property
    def name(self) -> str:
        """Its name in the API."""
        return self.descriptor.name


@cache
def fields_of(descriptor: Descriptor) -> dict[str, Field]:
    """Return the fields of a message by their short names, in the API's order."""
    taken = {field.name for field in descriptor.fields}
    found = dict[str, Field]()
    for field in descriptor.fields:
        short, unit = _split(field)
        if short in taken - {field.name} or short in found:
            short = field.name
        found[short] = Field(field, short, unit)
    return found


@cache
def by_any_name(descriptor: Descriptor) -> dict[str, Field]:
    """Return the fields of a message by their short names and by the API's."""
    return {**{field.name: field for field in fields_of(descriptor).values()}, **fields_of(descriptor)}


def writable(descriptor: Any) -> list[str]:
    """Return the short names of the fields that may be set."""
    return [short for short, field in fields_of(descriptor).items() if field.descriptor.full_name not in REFUSED]


def is_integer(field: FieldDescriptor) -> bool:
    """Whether a field holds whole numbers."""
    return field.cpp_type in _INTEGERS


def is_map(field: FieldDescriptor) -> bool:
    """Whether a field is a map."""
    return bool(field.message_type is not None and field.message_type.GetOptions().map_entry)


def entry_of(field: FieldDescriptor) -> tuple[FieldDescriptor, FieldDescriptor]:
    """Return what the keys and the values of a map field are."""
    entry = field.message_type
    if entry is None:
        raise TypeError(f"{field.full_name} is not a map")
    return entry.fields_by_name["key"], entry.fields_by_name["value"]


@cache
def enum_words(enum: EnumDescriptor) -> dict[str, int]:
    """Return the words for an enum's values, "default" for the unset one first."""
    prefix = _prefix(enum)
    words = dict[str, int]()
    for value in enum.values:
        word = value.name.removeprefix(prefix).lower()
        words["default" if not value.number else _WORDS.get(value.name, word)] = value.number
    return words


@cache
def enum_synonyms(enum: EnumDescriptor) -> dict[str, int]:
    """Return whatever else is read for an enum's values: the API's names, and those that `enum_words` has another word for."""
    prefix = _prefix(enum)
    return {
        name: value.number
        for value in enum.values
        for name in (value.name.lower(), value.name.removeprefix(prefix).lower())
    }


def _prefix(enum: EnumDescriptor) -> str:
    """Return what all values of an enum begin with: its own name, as buf's lint wants it (ENUM_VALUE_PREFIX)."""
    unset = enum.values_by_number[0].name if 0 in enum.values_by_number else ""
    return unset.removesuffix("UNSPECIFIED")


def _split(field: FieldDescriptor) -> tuple[str, Unit]:
    if unit := _UNITS.get(field.full_name):
        return field.name, unit
    if is_integer(field):
        for suffix, unit in _SUFFIXES:
            if field.name.endswith(suffix) and len(field.name) > len(suffix):
                return field.name.removesuffix(suffix), unit
    return field.name, Unit.NONE
