"""How guests and the reasons for their places look at a terminal."""

from gugus.agent.v1.guest_pb2 import GuestKind, GuestState, GuestUsage
from gugus.cluster.v1.guest_pb2 import (
    HA_STATE_DISABLED,
    HA_STATE_STARTED,
    HA_STATE_STOPPED,
    HA_STATE_UNSPECIFIED,
    QUORUM_LOSS_STOP,
    BootPolicy,
    ExplainGuestResponse,
    Guest,
    GuestPhase,
    HaState,
    NodeVerdict,
    Placement,
    Power,
)

from client.cli.output import table
from client.cli.words import enum_word, moment, short, yes
from common.units import format_size

COLUMNS = ("name", "kind", "phase", "node", "ha", "cpus", "memory", "addresses", "marks", "reason")


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
        ", ".join(marks(guest)),
        short(guest.status.reason),
    )


def marks(guest: Guest) -> list[str]:
    """Return, in words, what sets a guest apart from others of its phase: what it is, what works on it, what waits."""
    spec, status = guest.spec, guest.status
    going = status.HasField("migration")
    return [
        word
        for word, so in (
            ("template", spec.template),
            ("protected", spec.protected),
            (f"on its way from {status.migration.source} to {status.migration.target}", going),
            (f"locked: {status.lock.reason}", status.HasField("lock") and not going),
            ("changes wait", bool(status.pending)),
            ("from before a recovery", status.inherited),
        )
        if so
    ]


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
        ("locked", f"{status.lock.reason} (task {status.lock.task})" if status.HasField("lock") else ""),
        ("pending", "\n".join(pending(guest))),
        ("node", status.node),
        ("comes back to", status.home),
        ("pinned to", spec.pinned_node),
        ("prefers", spec.preferred_node),
        ("ha", _ha(guest)),
        ("recoveries", f"{status.recoveries}, the last from {status.previous_node}" if status.recoveries else ""),
        ("cpus", f"{spec.cpus or 1}{f', limited to {spec.cpu_limit_milli / 1000:g}' if spec.cpu_limit_milli else ''}"),
        ("memory", format_size(spec.memory_bytes) if spec.memory_bytes else "default"),
        (
            "disks",
            "\n".join(_disk(disk.name, disk.pool, disk.volume, disk.image, disk.size_bytes) for disk in spec.disks),
        ),
        ("interfaces", "\n".join(f"{nic.name or '?'}: {nic.network} {nic.mac}".strip() for nic in spec.nics)),
        ("addresses", ", ".join(status.addresses)),
        ("tags", ", ".join(spec.tags)),
        ("project", spec.project),
        ("protected", yes(spec.protected) if spec.protected else ""),
        ("template", yes(spec.template) if spec.template else ""),
        ("boots", _boot(guest)),
        ("unused disks", "\n".join(_disk(d.name, d.pool, d.volume, "", d.size_bytes) for d in status.unused_disks)),
        ("snapshot", status.parent_snapshot),
        ("notes", spec.notes),
        ("labels", ", ".join(f"{key}={value}" for key, value in sorted(guest.meta.labels.items()))),
        ("generation", str(guest.meta.generation)),
        ("created", moment(guest.meta.created_at)),
        ("started", moment(status.started_at)),
        ("placed", status.placement.reason),
    ]


def _ha(guest: Guest) -> str:
    """Return what HA does with a guest, and why when it is not what it was asked for."""
    account = guest.status.ha
    if not guest.spec.ha.enabled:
        return "no"
    state = enum_word(HaState, account.state, "HA_STATE_") if account.state else "to be taken up"
    counts = [f"restarts {account.restarts}"] if account.restarts else []
    counts += [f"failed on {', '.join(account.failed_nodes)}"] if account.failed_nodes else []
    why = [account.reason] if counts or account.state not in _CALM else []
    loss = ["shuts down when no manager is reached"] if guest.spec.ha.quorum_loss == QUORUM_LOSS_STOP else []
    return "; ".join([state, *counts, *why, *loss])


_CALM = (HA_STATE_UNSPECIFIED, HA_STATE_STARTED, HA_STATE_STOPPED, HA_STATE_DISABLED)
"""States of which nothing needs to be told but their names."""


def pending(guest: Guest) -> list[str]:
    """Return what of a guest waits for its next start, a sentence each."""
    from client.apply.paths import shown  # here: other commands start faster without it

    return [
        f"{change.field}: {shown(change.field, change.present)} -> {shown(change.field, change.wanted)}"
        + (f" ({change.reason})" if change.reason else "")
        for change in guest.status.pending
    ]


def usage_fields(usage: GuestUsage) -> list[tuple[str, str]]:
    """Return what a running guest has used since it started."""
    memory = format_size(usage.memory_bytes)
    memory += (
        f", of which it says to use {format_size(usage.memory_guest_used_bytes)}"
        if usage.memory_guest_used_bytes
        else ""
    )
    memory += f", balloon at {format_size(usage.balloon_bytes)}" if usage.balloon_bytes else ""
    memory += f", swap {format_size(usage.swap_bytes)}" if usage.swap_bytes else ""
    disks = [f"{d.name}: {format_size(d.read_bytes)} read, {format_size(d.written_bytes)} written" for d in usage.disks]
    nics = [f"{n.name}: {format_size(n.received_bytes)} in, {format_size(n.sent_bytes)} out" for n in usage.nics]
    return [
        ("used: cpu", f"{usage.cpu_time_ns / 1e9:.1f} s"),
        ("used: memory", memory),
        ("used: processes", str(usage.pids or "")),
        ("used: disks", "\n".join(disks)),
        ("used: network", "\n".join(nics)),
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
        if weights := {name: weight for name, weight in sorted(answer.now.weights.items()) if weight}:
            told = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
            print(f"\nEach part is a score from 0 to 1 times its weight: {told}.")


def _verdicts(placement: Placement) -> None:
    if placement.verdicts:
        print()
        table(
            ("node", "fits", "score", "parts", "refusals"), [_verdict(item, placement) for item in placement.verdicts]
        )
    if placement.left_out:
        print(f"and {placement.left_out} more nodes")


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


def _boot(guest: Guest) -> str:
    boot = guest.spec.boot
    words = [enum_word(BootPolicy, boot.policy, "BOOT_POLICY_")]
    words += [f"number {boot.order}"] if boot.order else []
    words += [f"the next {boot.delay_s} s later"] if boot.delay_s else []
    words += [f"after {', '.join(boot.after)}"] if boot.after else []
    return ", ".join(word for word in words if word)


def _disk(name: str, pool: str, volume: str, image: str, size_bytes: int) -> str:
    words = f"{name or '?'}: {pool}/{volume or '?'}"
    if size_bytes:
        words += f" {format_size(size_bytes)}"
    return f"{words} from {image}" if image else words
