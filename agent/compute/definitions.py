"""Definitions: what a driver was told about its guests, kept on disk so that an agent that restarts knows it too.

One file a guest, written as a whole: a definition is the old one or the new one, never a mixture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from gugus.agent.v1 import guest_pb2

from agent.compute.hypervisor import AttachedDisk, AttachedNic
from common.errors import not_found
from common.files import read_json, remove_durably, write_json

FILE_MODE = 0o600
"""First-boot settings may hold secrets."""


@dataclass(frozen=True, slots=True)
class Definition:
    """How a guest is to be run at its next start."""

    spec: guest_pb2.GuestSpec
    disks: tuple[AttachedDisk, ...]
    nics: tuple[AttachedNic, ...]


class DefinitionStore:
    """The definitions of one driver, by guest name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaded: dict[str, Definition] | None = None

    def save(self, spec: guest_pb2.GuestSpec, disks: Sequence[AttachedDisk], nics: Sequence[AttachedNic]) -> Definition:
        """Remember a definition, replacing an older one. Raises OSError."""
        definition = Definition(spec, tuple(disks), tuple(nics))
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._path(spec.name), _to_json(definition), FILE_MODE)
        self._all()[spec.name] = definition
        return definition

    def get(self, name: str) -> Definition:
        """Return a definition. Raises GUEST_NOT_FOUND."""
        definition = self._all().get(name)
        if definition is None:
            raise not_found("guest", name, remedy="It is not defined on this node.")
        return definition

    def names(self) -> frozenset[str]:
        """Names of all guests that are defined."""
        return frozenset(self._all())

    def remove(self, name: str) -> None:
        """Forget a definition, if there is one. Raises OSError."""
        if self._all().pop(name, None) is not None:
            remove_durably(self._path(name))

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _all(self) -> dict[str, Definition]:
        if self._loaded is None:
            definitions = [_from_json(read_json(path)) for path in sorted(self._folder.glob("[!.]*.json"))]
            self._loaded = {definition.spec.name: definition for definition in definitions}
        return self._loaded


def _to_json(definition: Definition) -> dict[str, Any]:
    return {
        "spec": json_format.MessageToDict(definition.spec),
        "disks": [{"path": str(d.path), "format": d.format, "read_only": d.read_only} for d in definition.disks],
        "bridges": [nic.bridge for nic in definition.nics],
    }


def _from_json(value: dict[str, Any]) -> Definition:
    spec = json_format.ParseDict(value["spec"], guest_pb2.GuestSpec())
    disks = [
        AttachedDisk(disk, Path(known["path"]), known["format"], known["read_only"])
        for disk, known in zip(spec.disks, value["disks"], strict=True)
    ]
    nics = [AttachedNic(nic, bridge) for nic, bridge in zip(spec.nics, value["bridges"], strict=True)]
    return Definition(spec, tuple(disks), tuple(nics))
