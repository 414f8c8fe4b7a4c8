"""Memory of virtual machines: pages, growth, the balloon."""

from collections.abc import Iterator

from gugus.agent.v1.machine_pb2 import HUGE_PAGES_1G, HUGE_PAGES_2M, HugePages
from gugus.cluster.v1.guest_pb2 import GuestSpec

from common.errors import GugusError, invalid
from common.units import format_size
from manager.guests.known import Known
from manager.guests.rules import check
from manager.guests.rules.size import MAX_MEMORY_BYTES, MIN_MEMORY_BYTES

STEP_BYTES = 128 * 2**20
"""Memory grows in such blocks: the least that Linux on x86 adds (memory_block_size_bytes)."""

PAGE_BYTES = {HUGE_PAGES_2M: 2 * 2**20, HUGE_PAGES_1G: 2**30}


def faults(spec: GuestSpec, known: Known) -> Iterator[GugusError]:
    """Everything in `virtual_machine.memory`, and what of `resources` depends on it."""
    memory, at = spec.virtual_machine.memory, "spec.virtual_machine.memory"
    yield from check.enum(f"{at}.huge_pages", memory.huge_pages, HugePages)
    page = PAGE_BYTES.get(memory.huge_pages, 1)
    sound = (
        MIN_MEMORY_BYTES <= spec.memory_bytes <= MAX_MEMORY_BYTES
    )  # else that is told, and nothing that follows from it
    if sound and spec.memory_bytes % page:
        text = f"{format_size(spec.memory_bytes)} is no multiple of its huge pages of {format_size(page)}."
        yield invalid("spec.memory_bytes", text)
    if memory.max_bytes:
        least = max(1, spec.memory_bytes) if sound else 1
        yield from check.ranged(f"{at}.max_bytes", memory.max_bytes, least, MAX_MEMORY_BYTES, show=format_size)
        if sound and least < memory.max_bytes <= MAX_MEMORY_BYTES:
            yield from _steps(f"{at}.max_bytes", spec.memory_bytes, memory.max_bytes, max(STEP_BYTES, page))
    reserved = spec.resources.memory_reserved_bytes
    if 0 < reserved < spec.memory_bytes and spec.virtual_machine.ByteSize():
        if memory.no_balloon:
            yield invalid(
                "spec.resources.memory_reserved_bytes", "only a balloon gives memory back, and no_balloon is set."
            )
        if memory.huge_pages:
            yield invalid("spec.resources.memory_reserved_bytes", "a balloon cannot give huge pages back; leave it 0.")


def _steps(at: str, least: int, most: int, step: int) -> Iterator[GugusError]:
    """Memory grows by whole steps from what the guest has at first."""
    if (most - least) % step:
        right = least + -(-(most - least) // step) * step
        if right > MAX_MEMORY_BYTES:
            right -= step
        text = f"{_exact(most)} is not {_exact(least)} plus a multiple of {_exact(step)}; {_exact(right)} would be."
        yield invalid(at, text)


def _exact(size: int) -> str:
    """Return a size in the largest unit that does not round it."""
    units = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10), ("B", 1))
    return next(f"{size // unit}{name}" for name, unit in units if size % unit == 0)
