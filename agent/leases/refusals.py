"""Why a start is refused for a disk that something else has, or had under a later grant, in the agent's words. Pure."""

from agent.leases.lease import Record
from common.errors import GugusError, precondition

IN_USE = "DISK_IN_USE"
"""Reason of a start that is refused because something else has one of the guest's disks."""

IN_USE_REMEDY = (
    "It is tried again by itself until that one has ended. If its host is off, the storage's server gives the lock back after its lease "
    "time (NFSv4: 90 s)."
)


def in_use(claimed: Record, disk: str, known: Record | None) -> GugusError:
    """Return the error for a disk that something else has. claimed: who wants it; known: what its lease says, None when nothing."""
    what = f'disk "{disk}" of guest "{claimed["guest"]}" is in use'
    if known is not None and known["host"] != claimed["host"]:
        what += f" on host {known['host']} (generation {known['generation']})"
    return precondition(
        IN_USE,
        f"{what}: the storage has it locked for a process that lives.",
        remedy=IN_USE_REMEDY,
        subject=f"guest/{claimed['guest']}",
        metadata={"host": known["host"], "generation": str(known["generation"])} if known is not None else {},
    )


def outdated(claimed: Record, disk: str, known: Record | None) -> GugusError:
    """Return the error for a disk that was given away under a later generation than that of the grant."""
    there = known["generation"] if known is not None else 0
    host = known["host"] if known is not None else "another host"
    return precondition(
        "STALE_GENERATION",
        f'the grant of generation {claimed["generation"]} for guest "{claimed["guest"]}" is old: its disk "{disk}" was given '
        f"to {host} under {there}.",
        remedy="The guest was given away since; ask the manager for its present grant.",
        subject=f"guest/{claimed['guest']}",
        metadata={"generation": str(there)},
    )
