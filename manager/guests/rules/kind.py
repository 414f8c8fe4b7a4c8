"""The kind of a guest, and that what only the other kind has is not asked for."""

from collections.abc import Iterator

from gugus.agent.v1.container_pb2 import ContainerSpec
from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER, GUEST_KIND_UNSPECIFIED, GUEST_KIND_VIRTUAL_MACHINE, GuestKind
from gugus.agent.v1.machine_pb2 import VirtualMachineSpec
from gugus.cluster.v1.guest_pb2 import GuestSpec, Power

from common.errors import GugusError, invalid
from manager.guests.known import Known
from manager.guests.rules import check


def faults(spec: GuestSpec, known: Known) -> Iterator[GugusError]:
    """The kind is set and known, and the other kind's settings are empty."""
    if spec.kind == GUEST_KIND_UNSPECIFIED:
        yield invalid("spec.kind", "is not set; say virtual machine or container.")
    yield from check.enum("spec.kind", spec.kind, GuestKind)
    yield from check.enum("spec.power", spec.power, Power)
    if spec.kind == GUEST_KIND_CONTAINER and spec.virtual_machine != VirtualMachineSpec():
        yield invalid("spec.virtual_machine", f"a container has no {_set(spec.virtual_machine)}.")
    if spec.kind == GUEST_KIND_VIRTUAL_MACHINE and spec.container != ContainerSpec():
        yield invalid("spec.container", f"a virtual machine has no {_set(spec.container)}.")


def _set(message: VirtualMachineSpec | ContainerSpec) -> str:
    return ", ".join(field.name for field, _ in message.ListFields())
