"""YAML into patches: what a document says of a message, its values checked, and every fault with its file and line.

A patch is a dictionary by the API's field names that holds only what was named: None for "back to its default", a value, a
patch, a list of either, or for a map its entries. `overlay` puts one on a message.
"""

import difflib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import yaml
from google.protobuf.descriptor import FieldDescriptor

from client.apply.fields import Field, Unit, by_any_name, entry_of, is_map, writable
from client.apply.scalars import read_scalar
from common.errors import GugusError, Violation

Patch = dict[str, Any]

_NULL = "tag:yaml.org,2002:null"
_MERGE = "tag:yaml.org,2002:merge"
_NEAR = 0.6
_SHOWN = 5
"""Faults that the one-line message holds; all are in the error's violations."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong at one place."""

    where: str
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.path}: {self.message}" if self.path else f"{self.where}: {self.message}"


@dataclass
class Reader:
    """Reads the nodes of one source; faults gather in `faults`. `refused`: full names of fields that may not be named.

    lines: whether the source has lines that a fault is to name; an option of the command line has none.
    """

    source: str
    refused: Collection[str] = ()
    faults: list[Fault] = field(default_factory=list)
    lines: bool = True

    def fault(self, node: yaml.Node | None, path: str, message: str) -> None:
        """Note a fault at a node."""
        where = self.source if node is None or not self.lines else f"{self.source}:{node.start_mark.line + 1}"
        self.faults.append(Fault(where, path, message))

    def message(self, node: yaml.Node, descriptor: Any, path: str = "") -> Patch:
        """Return the patch of a mapping for a message."""
        known, patch = by_any_name(descriptor), Patch()
        for name, key, value in self.entries(node, path):
            found = known.get(name)
            inner = f"{path}.{name}" if path else name
            if found is None:
                self.fault(key, inner, _unknown(name, writable(descriptor)))
            elif found.descriptor.full_name in self.refused:
                self.fault(key, inner, "is set by the cluster; leave it out")
            elif found.name in patch:
                self.fault(key, inner, "is there twice")
            else:
                patch[found.name] = self.value(value, found, name, inner)
        return patch

    def value(self, node: yaml.Node, found: Field, name: str, path: str) -> Any:
        """Return what a node says of a field that was called `name`; under the API's name a number is in the API's unit."""
        descriptor = found.descriptor
        raw = name != found.short
        if is_null(node):
            return None
        if is_map(descriptor):
            return self._map(node, descriptor, path)
        if not descriptor.is_repeated:
            return self._single(node, descriptor, found.unit, path, raw)
        if not isinstance(node, yaml.SequenceNode):
            self.fault(node, path, "is not a list")
            return None
        return [self._single(item, descriptor, found.unit, f"{path}[{i}]", raw) for i, item in enumerate(node.value)]

    def entries(self, node: yaml.Node, path: str) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        """Yield the entries of a mapping: name, and the nodes of name and value. Merge keys ("<<") count as entries."""
        if is_null(node):
            return
        if not isinstance(node, yaml.MappingNode):
            self.fault(node, path, "is not a mapping (names with values)")
            return
        own = set[str]()
        for key, value in node.value:
            if key.tag == _MERGE:
                continue
            if not isinstance(key, yaml.ScalarNode):
                self.fault(key, path, "has a name that is not a word")
            elif key.value in own:
                self.fault(key, f"{path}.{key.value}" if path else key.value, "is there twice")
            else:
                own.add(key.value)
                yield key.value, key, value
        for key, value in node.value:
            for part in (value.value if isinstance(value, yaml.SequenceNode) else [value]) if key.tag == _MERGE else ():
                for name, inner, merged in self.entries(part, path):
                    if name not in own:
                        own.add(name)
                        yield name, inner, merged

    def _single(self, node: yaml.Node, descriptor: FieldDescriptor, unit: Unit, path: str, raw: bool = False) -> Any:
        if descriptor.message_type is not None:
            return self.message(node, descriptor.message_type, path)
        if not isinstance(node, yaml.ScalarNode) or is_null(node):
            self.fault(node, path, "is not a single value")
            return None
        try:
            return read_scalar(descriptor, unit, node.value, raw=raw)
        except ValueError as error:
            self.fault(node, path, str(error))
            return None

    def _map(self, node: yaml.Node, descriptor: FieldDescriptor, path: str) -> dict[Any, Any]:
        key_field, value_field = entry_of(descriptor)
        found = dict[Any, Any]()
        for name, key, value in self.entries(node, path):
            try:
                word = read_scalar(key_field, Unit.NONE, name)
            except ValueError as error:
                self.fault(key, path, str(error))
                continue
            found[word] = self._single(value, value_field, Unit.NONE, f"{path}.{name}")
        return found


def is_null(node: yaml.Node) -> bool:
    """Whether a node says nothing."""
    return isinstance(node, yaml.ScalarNode) and node.tag == _NULL


def error_of(faults: list[Fault]) -> GugusError:
    """Return all faults as one error; each is a violation of it."""
    told = "; ".join(str(fault) for fault in faults[:_SHOWN])
    more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    violations = [Violation(f"{f.where}: {f.path}" if f.path else f.where, f"{f.message}.") for f in faults]
    return GugusError(grpc.StatusCode.INVALID_ARGUMENT, "BAD_DOCUMENT", f"{told}{more}.", violations=violations)


def _unknown(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=_NEAR)
    hint = f' (did you mean "{near[0]}"?)' if near else ""
    return f"there is no such field{hint}; there are {', '.join(known)}"
