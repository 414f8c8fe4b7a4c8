"""What a guest's spec must be before anything is done with it; all that is wrong is told at once."""

import re
from collections.abc import Iterator

from gugus.agent.v1 import guest_pb2

from common import validate
from common.errors import GugusError, invalid, several

LEAST_ID = 100
_UID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def check(spec: guest_pb2.GuestSpec) -> None:
    """Raise INVALID_ARGUMENT naming every field of the spec that is wrong."""
    errors = list(_errors(spec))
    if errors:
        raise several(errors)


def _errors(spec: guest_pb2.GuestSpec) -> Iterator[GugusError]:
    yield from _name("spec.name", spec.name)
    if spec.id < LEAST_ID:
        yield invalid("spec.id", f"is {spec.id}; ids begin at {LEAST_ID}")
    if not _UID.fullmatch(spec.uid):
        yield invalid("spec.uid", f'"{spec.uid[:80]}" is not a UUID in lower case')
    if spec.kind not in (guest_pb2.GUEST_KIND_VIRTUAL_MACHINE, guest_pb2.GUEST_KIND_CONTAINER):
        yield invalid("spec.kind", "must be GUEST_KIND_VIRTUAL_MACHINE or GUEST_KIND_CONTAINER")
    if spec.cpus < 1:
        yield invalid("spec.cpus", "must be at least 1")
    if spec.memory_bytes < 1:
        yield invalid("spec.memory_bytes", "must be more than 0")
    if not spec.disks:
        yield invalid("spec.disks", "is empty; a guest has at least its boot disk or root file system")
    for i, disk in enumerate(spec.disks):
        yield from _name(f"spec.disks[{i}].name", disk.name)
    for i, nic in enumerate(spec.nics):
        if message := validate.mac(nic.mac):
            yield invalid(f"spec.nics[{i}].mac", message)
    for field, names in (("disks", [d.name for d in spec.disks]), ("nics", [n.name for n in spec.nics])):
        if len(set(names)) != len(names):
            yield invalid(f"spec.{field}", "has the same name twice")


def _name(field: str, value: str) -> Iterator[GugusError]:
    if message := validate.name(value):
        yield invalid(field, message)
