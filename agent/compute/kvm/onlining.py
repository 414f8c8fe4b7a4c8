"""CPUs and memory that were plugged into a running guest, put to use there.

Many a Linux (Debian among them) leaves what is plugged in offline until somebody says otherwise. The guest agent can; a guest that has
none, or does it by itself, is left alone.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

from agent.compute.definitions import Definition
from agent.compute.kvm.guest_agent import AgentRefusal, GuestAgent
from common.errors import GugusError
from common.logs import get_logger

TRIES, TRY_S = 15, 1.0
"""The guest's kernel hears of new hardware by ACPI, which takes it some moments."""

_KINDS: tuple[tuple[str, str, str, str], ...] = (
    ("guest-get-vcpus", "guest-set-vcpus", "vcpus", "logical-id"),
    ("guest-get-memory-blocks", "guest-set-memory-blocks", "mem-blks", "phys-index"),
)
"""Question, order, the order's argument, and what names an item (QEMU's docs/interop/qemu-ga-ref)."""

_log = get_logger("kvm.onlining")


def has_grown(before: Definition | None, after: Definition | None) -> bool:
    """Whether CPUs or memory came to a running guest whose agent can be told of them."""
    if before is None or after is None or not after.spec.virtual_machine.guest_agent:
        return False
    return after.spec.cpus > before.spec.cpus or after.spec.memory_bytes > before.spec.memory_bytes


async def online(agent: GuestAgent, name: str) -> None:
    """Put everything to use that is offline in a guest. Never raises for a guest that does not obey: it runs on as it is.

    CPUs and each block of memory appear there when they please, so it is looked until all tries are used up.
    """
    for _ in range(TRIES):
        for kind in _KINDS:
            try:
                await _online(agent, name, *kind)
            except (GugusError, AgentRefusal) as error:
                _log.info("a guest does not put to use what was plugged in", guest=name, error=str(error))
        await asyncio.sleep(TRY_S)


async def _online(agent: GuestAgent, name: str, question: str, order: str, argument: str, key: str) -> None:
    """Put what is offline of one kind to use."""
    items: list[Mapping[str, Any]] = await agent.command(name, question) or []
    wanted = [{key: item[key], "online": True} for item in items if not item["online"]]
    if wanted:
        await agent.command(name, order, {argument: wanted})
        _log.info("plugged in and put to use", guest=name, what=argument, number=len(wanted))
