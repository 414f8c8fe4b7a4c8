"""How guests and the reasons for their places look at a terminal."""

from gugus.agent.v1.guest_pb2 import GuestKind, GuestState
from gugus.cluster.v1.guest_pb2 import (
    ExplainGuestResponse,
    Guest,
    GuestPhase,
    NodeVerdict,
    Placement,
    Power,
)

from client.cli.output import table
from client.cli.words import enum_word, moment, short, yes
from common.units import format_size

COLUMNS = ("name", "kind", "phase", "node", "ha", "cpus", "memory", "addresses", "reason")


def row(guest: Guest) -> tuple[str, ...]:
    """Return a guest as a row of a list."""
    return (
        guest.meta.name,
        _kind(guest),
        enum_word(GuestPhase, guest.status.phase, "GUEST_PHASE_"),
        guest.status.node,
        yes(guest.spec.ha.enabled),
        str(guest.spec.cpus or 1),
        format_size(guest.spec.memory_bytes) if guest.spec.memory_bytes else "",
        ", ".join(guest.status.addresses),
        short(guest.status.reason),
    )


def fields(guest: Guest) -> list[tuple[str, str]]:
    """Return everything of a guest that people ask for."""
    spec, status = guest.spec, guest.status
    return [
        ("name", guest.meta.name),
        ("id", str(spec.id or "")),
        ("kind", _kind(guest)),
        ("phase", enum_word(GuestPhase, status.phase, "GUEST_PHASE_")),
        ("reason", status.reason),
        ("power asked", enum_word(Power, spec.power, "POWER_")),
        ("seen", enum_word(GuestState, status.observed, "GUEST_STATE_") + (f" ({status.mode})" if status.mode else "")),
        ("node", status.node),
        ("pinned to", spec.pinned_node),
        ("prefers", spec.preferred_node),
        ("ha", yes(spec.ha.enabled)),
        ("recoveries", f"{status.recoveries}, the last from {status.previous_node}" if status.recoveries else ""),
        ("cpus", f"{spec.cpus or 1}{f', limited to {spec.cpu_limit_milli / 1000:g}' if spec.cpu_limit_milli else ''}"),
        ("memory", format_size(spec.memory_bytes) if spec.memory_bytes else "default"),
        (
            "disks",
            "\n".join(_disk(disk.name, disk.pool, disk.volume, disk.image, disk.size_bytes) for disk in spec.disks),
        ),
        ("interfaces", "\n".join(f"{nic.name or '?'}: {nic.network} {nic.mac}".strip() for nic in spec.nics)),
        ("addresses", ", ".join(status.addresses)),
        ("labels", ", ".join(f"{key}={value}" for key, value in sorted(guest.meta.labels.items()))),
        ("generation", str(guest.meta.generation)),
        ("created", moment(guest.meta.created_at)),
        ("placed", status.placement.reason),
    ]


def explanation(answer: ExplainGuestResponse) -> None:
    """Write why a guest is where it is, and, when it differs, what would be decided now."""
    if answer.HasField("decided") and (answer.decided.verdicts or answer.decided.reason):
        print(answer.decided.reason or "It was placed without a reason on record.")
        _verdicts(answer.decided)
    else:
        print("It has not been placed yet.")
    if answer.HasField("now"):
        print(f"\nNow: {answer.now.reason}")
        _verdicts(answer.now)


def _verdicts(placement: Placement) -> None:
    if placement.verdicts:
        print()
        table(
            ("node", "fits", "score", "parts", "refusals"), [_verdict(item, placement) for item in placement.verdicts]
        )


def _verdict(item: NodeVerdict, placement: Placement) -> tuple[str, ...]:
    chosen = " *" if item.node == placement.node else ""
    parts = ", ".join(f"{name} {value:.2f}" for name, value in sorted(item.scores.items()))
    return (
        item.node + chosen,
        yes(item.fits),
        f"{item.score:.2f}" if item.fits else "",
        parts,
        "; ".join(item.refusals),
    )


def _kind(guest: Guest) -> str:
    return "vm" if guest.spec.kind == GuestKind.GUEST_KIND_VIRTUAL_MACHINE else "container"


def _disk(name: str, pool: str, volume: str, image: str, size_bytes: int) -> str:
    words = f"{name or '?'}: {pool}/{volume or '?'}"
    if size_bytes:
        words += f" {format_size(size_bytes)}"
    return f"{words} from {image}" if image else words
