"""CPUs, memory and id."""

from collections.abc import Iterator

from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER, GUEST_KIND_VIRTUAL_MACHINE
from gugus.cluster.v1.guest_pb2 import GuestSpec

from common.errors import GugusError, invalid
from common.units import format_size
from manager.guests.known import Known
from manager.guests.rules import check

FIRST_ID = 100
MAX_ID = 999_999_999
"""Ids from 100, as people coming from Proxmox VE expect."""

MAX_CPUS = 512
MIN_CPU_LIMIT_MILLI = 10
"""The kernel's least quota, 1 ms, of the period of 100 ms that both drivers use (Documentation/scheduler/sched-bwc.rst)."""

MIN_MEMORY_BYTES = 16 * 2**20
MAX_MEMORY_BYTES = 64 * 2**40
DEFAULT_MEMORY_BYTES = {GUEST_KIND_VIRTUAL_MACHINE: 512 * 2**20, GUEST_KIND_CONTAINER: 256 * 2**20}

MAX_SPEC_BYTES = 28 * 1024
"""So that a guest, with its status, fits into one object of the store (`manager.store.rules`)."""


def faults(spec: GuestSpec, known: Known) -> Iterator[GugusError]:
    """Sizes are in range. That an id is free is looked at by whoever knows whose it may be (`complete`)."""
    yield from check.ranged("spec.id", spec.id, FIRST_ID, MAX_ID, also="or 0 to choose one")
    yield from check.ranged("spec.cpus", spec.cpus, 1, MAX_CPUS)
    most = 1000 * min(max(1, spec.cpus), MAX_CPUS)
    yield from check.ranged(
        "spec.cpu_limit_milli", spec.cpu_limit_milli, MIN_CPU_LIMIT_MILLI, most, also="or 0 for no limit"
    )
    yield from check.ranged(
        "spec.memory_bytes", spec.memory_bytes, MIN_MEMORY_BYTES, MAX_MEMORY_BYTES, show=format_size
    )
    if (size := spec.ByteSize()) > MAX_SPEC_BYTES:
        yield invalid("spec", f"has {size:,} bytes in all; at most {MAX_SPEC_BYTES:,}: shorten texts and lists.")
