"""Definitions: what a driver was told about its guests, kept on disk so that an agent that restarts knows it too.

One file a guest, written as a whole: a definition is the old one or the new one, never a mixture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format
from gugus.agent.v1 import guest_pb2

from agent.compute.hypervisor import NO_FILES, AttachedDisk, AttachedNic, MachineFiles
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
    files: MachineFiles = NO_FILES


class DefinitionStore:
    """The definitions of one driver, by guest name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaded: dict[str, Definition] | None = None

    def save(
        self,
        spec: guest_pb2.GuestSpec,
        disks: Sequence[AttachedDisk],
        nics: Sequence[AttachedNic],
        files: MachineFiles = NO_FILES,
    ) -> Definition:
        """Remember a definition, replacing an older one. Raises OSError."""
        kept = guest_pb2.GuestSpec()
        kept.CopyFrom(spec)
        definition = Definition(kept, tuple(disks), tuple(nics), files)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_json(self._path(spec.name), to_json(definition), FILE_MODE)
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
            definitions = [from_json(read_json(path)) for path in sorted(self._folder.glob("[!.]*.json"))]
            self._loaded = {definition.spec.name: definition for definition in definitions}
        return self._loaded


def to_json(definition: Definition) -> dict[str, Any]:
    """Return a definition as JSON has it."""
    files = definition.files
    return {
        "spec": json_format.MessageToDict(definition.spec),
        "disks": [
            {"path": str(d.path), "format": d.format, "read_only": d.read_only, "lease": _words(d.lease)}
            for d in definition.disks
        ],
        "bridges": [nic.bridge for nic in definition.nics],
        "files": {
            "discs": {name: str(path) for name, path in files.discs.items()},
            "hibernation": _words(files.hibernation),
            "state": _words(files.state),
        },
    }


def from_json(value: dict[str, Any]) -> Definition:
    """Return the definition that `to_json` was given. Raises ValueError and its like for what is none."""
    spec = json_format.ParseDict(value["spec"], guest_pb2.GuestSpec())
    disks = [
        AttachedDisk(disk, Path(known["path"]), known["format"], known["read_only"], _path(known.get("lease", "")))
        for disk, known in zip(spec.disks, value["disks"], strict=True)
    ]
    nics = [AttachedNic(nic, bridge) for nic, bridge in zip(spec.nics, value["bridges"], strict=True)]
    known = value.get("files", {})
    files = MachineFiles(
        {name: Path(path) for name, path in known.get("discs", {}).items()},
        _path(known.get("hibernation", "")),
        _path(known.get("state", "")),
    )
    return Definition(spec, tuple(disks), tuple(nics), files)


def _words(path: Path | None) -> str:
    return "" if path is None else str(path)


def _path(words: str) -> Path | None:
    return Path(words) if words else None
