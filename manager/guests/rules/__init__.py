"""What each part of a guest's spec must be. Every module yields the faults of its part; all of a request are told at once."""

from collections.abc import Callable, Iterator
from typing import Final

from gugus.cluster.v1.guest_pb2 import GuestSpec

from common.errors import GugusError
from manager.guests.known import Known
from manager.guests.rules import (
    boot,
    container,
    cpu,
    disks,
    first_boot,
    kind,
    machine,
    memory,
    nics,
    placement,
    resources,
    size,
    words,
)

Rule = Callable[[GuestSpec, Known], Iterator[GugusError]]

RULES: Final[tuple[Rule, ...]] = (
    kind.faults,
    size.faults,
    cpu.faults,
    memory.faults,
    resources.faults,
    disks.faults,
    nics.faults,
    machine.faults,
    container.faults,
    first_boot.faults,
    boot.faults,
    placement.faults,
    words.faults,
)


def spec_faults(spec: GuestSpec, known: Known) -> list[GugusError]:
    """Return everything that is wrong with a completed spec, each fault naming its field, its value and what would be right."""
    return [fault for rule in RULES for fault in rule(spec, known)]
