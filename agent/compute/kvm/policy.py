"""How a live migration is carried out, in libvirt's words. Pure, but for the little functions that act on a domain.

See https://libvirt.org/html/libvirt-libvirt-domain.html, virDomainMigrateFlags and VIR_MIGRATE_PARAM_*.
"""

from collections.abc import Callable, Mapping
from typing import Any

import libvirt
from gugus.agent.v1.migration_pb2 import (
    MIGRATION_COMPRESSION_XBZRLE,
    MIGRATION_COMPRESSION_ZSTD,
    MIGRATION_TIMEOUT_ACTION_ABORT,
    MIGRATION_TIMEOUT_ACTION_POST_COPY,
    MIGRATION_TIMEOUT_ACTION_SUSPEND,
    MigrationPolicy,
    MigrationTimeoutAction,
)

from common.errors import GugusError, precondition
from common.units import format_size

DEFAULT_DOWNTIME_MS = 300
"""As QEMU has it by default (migration/migration.c, DEFAULT_MIGRATE_SET_DOWNTIME)."""

FIRST_DOWNTIME_MS = 50
"""Tried first, and doubled with each pass after the second: QEMU stops the guest as soon as what is left fits into the limit, although
another pass, which takes as little time, leaves less. Measured with 20 MiB/s of changes: 300 ms at once cost 140 to 220 ms, this 100.

Not where the emulator forgets what a guest writes (`forgets_writes`): the less is left to the end, the more is sent while it forgets.
"""

WRITES_KEPT_SINCE = 9_000_000
"""QEMU 9.0; 1,000,000 x major + 1,000 x minor + release, as libvirt counts.

Until then its emulator (TCG) cleared the marks of written pages without telling its own TLBs: what a guest wrote from then until the
next flush of its TLB was not marked, and an old page was what ran at the target. Mended by "physmem: Fix migration dirty bitmap coherency
with TCG memory access" (commit 03bfc2188f, March 2024). With 7.2 and many passes (8 ms at first) 6 guests of 14 hung at their target, and 2
of 2 with `virsh migrate` alone; with 60 ms at first 2 of 32, with 100 none of 50, with 150 1 of 18, with 300 1 of some 300.
"""

MIB = 1024 * 1024
XBZRLE_CACHE_BYTES = 64 * MIB
POST_COPY_AFTER_PASSES = 2
"""A migration with post-copy goes over when all of its memory was sent once."""

Act = Callable[[Any], object]


def flags(policy: MigrationPolicy, *, copies_disks: bool) -> int:
    """Return libvirt's flags.

    UNSAFE: libvirt does not know which pools are shared; the manager does. ABORT_ON_ERROR: a guest with a broken disk stays.
    """
    wanted = libvirt.VIR_MIGRATE_LIVE | libvirt.VIR_MIGRATE_PEER2PEER | libvirt.VIR_MIGRATE_UNSAFE
    wanted |= libvirt.VIR_MIGRATE_ABORT_ON_ERROR
    wanted |= libvirt.VIR_MIGRATE_POSTCOPY if policy.post_copy else libvirt.VIR_MIGRATE_PAUSED
    if copies_disks:
        wanted |= libvirt.VIR_MIGRATE_NON_SHARED_DISK
    if auto_converges(policy):
        wanted |= libvirt.VIR_MIGRATE_AUTO_CONVERGE
    if policy.compression in (MIGRATION_COMPRESSION_XBZRLE, MIGRATION_COMPRESSION_ZSTD):
        wanted |= libvirt.VIR_MIGRATE_COMPRESSED
    if channels(policy) > 1:
        wanted |= libvirt.VIR_MIGRATE_PARALLEL
    return int(wanted)


def parameters(policy: MigrationPolicy) -> dict[str, Any]:
    """Return libvirt's parameters, addresses and XML apart."""
    wanted: dict[str, Any] = {}
    if policy.bandwidth_bytes_per_s:
        wanted[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = max(1, policy.bandwidth_bytes_per_s // MIB)
    if channels(policy) > 1:
        wanted[libvirt.VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS] = channels(policy)
    if policy.compression == MIGRATION_COMPRESSION_XBZRLE:
        wanted[libvirt.VIR_MIGRATE_PARAM_COMPRESSION] = "xbzrle"
        wanted[libvirt.VIR_MIGRATE_PARAM_COMPRESSION_XBZRLE_CACHE] = XBZRLE_CACHE_BYTES
    if policy.compression == MIGRATION_COMPRESSION_ZSTD:
        wanted[libvirt.VIR_MIGRATE_PARAM_COMPRESSION] = "zstd"
    return wanted


def of_held(policy: MigrationPolicy) -> MigrationPolicy:
    """Return the policy for a guest that is held: libvirt has no post-copy for it."""
    fitting = MigrationPolicy()
    fitting.CopyFrom(policy)
    fitting.post_copy = False
    if fitting.timeout_action == MIGRATION_TIMEOUT_ACTION_POST_COPY:
        fitting.ClearField("timeout_action")
    return fitting


def channels(policy: MigrationPolicy) -> int:
    """Return the number of connections for memory."""
    return policy.channels or (2 if policy.compression == MIGRATION_COMPRESSION_ZSTD else 1)


def auto_converges(policy: MigrationPolicy) -> bool:
    """Return whether the guest is slowed down when it must be; not with post-copy, which needs no such thing."""
    return (policy.auto_converge or not policy.HasField("auto_converge")) and not policy.post_copy


def downtime_ms(policy: MigrationPolicy, passes: int, *, forgetful: bool = False) -> int:
    """Return for how long the guest may stand still, once so many passes over its memory were begun."""
    most = policy.downtime_limit_ms or DEFAULT_DOWNTIME_MS
    return most if forgetful else min(most, FIRST_DOWNTIME_MS << min(10, max(0, passes - 2)))


def forgets_writes(domain_type: str, emulator_version: int) -> bool:
    """Return whether a guest's QEMU may miss pages that the guest changes while it is sent. domain_type: libvirt's, "qemu" or "kvm"."""
    return domain_type == "qemu" and emulator_version < WRITES_KEPT_SINCE


def told(stats: Mapping[str, Any]) -> tuple[int, str]:
    """Return the part done in percent, and words about a migration that is under way."""
    total, left = int(stats.get("data_total", 0)), int(stats.get("data_remaining", 0))
    done = max(0, total - left)
    percent = min(99, done * 100 // total) if total else 0
    words = f"{format_size(done)} of {format_size(total)}"
    if passes := int(stats.get("memory_iteration", 0)):
        words += f", pass {passes}"
    if dirty := int(stats.get("memory_dirty_rate", 0)) * int(stats.get("memory_page_size", 4096)):
        words += f", the guest changes {format_size(dirty)}/s"
    if throttle := int(stats.get("auto_converge_throttle", 0)):
        words += f", CPUs slowed by {throttle} %"
    return percent, words


class Watch:
    """Decides when a migration that is under way is to be hurried, or given up."""

    def __init__(self, policy: MigrationPolicy, began_s: float, *, forgetful: bool = False) -> None:
        self._policy, self._began_s, self._forgetful = policy, began_s, forgetful
        self._acted = self._switched = False
        self._downtime_ms = downtime_ms(policy, 0, forgetful=forgetful)
        self.timed_out = False

    @property
    def action(self) -> str:
        """What is done in the end, in words."""
        return MigrationTimeoutAction.Name(self._policy.timeout_action or MIGRATION_TIMEOUT_ACTION_ABORT)

    def limits(self) -> Act:
        """Return what sets the limits that are no parameters, at first."""
        return lambda domain: domain.migrateSetMaxDowntime(self._downtime_ms, 0)

    def longer(self, stats: Mapping[str, Any]) -> Act | None:
        """Return what lets the guest stand still for longer, when the time allowed so far did not do."""
        allowed_ms = downtime_ms(self._policy, int(stats.get("memory_iteration", 0)), forgetful=self._forgetful)
        if allowed_ms <= self._downtime_ms:
            return None
        self._downtime_ms = allowed_ms
        return lambda domain: domain.migrateSetMaxDowntime(allowed_ms, 0)

    def due(self, stats: Mapping[str, Any], now_s: float) -> Act | None:
        """Return what is to be done to the domain now, if anything; each thing once."""
        if self._policy.post_copy and not self._switched:
            late = self._late(now_s) and self._policy.timeout_action == MIGRATION_TIMEOUT_ACTION_POST_COPY
            soon = not self._policy.timeout_s and int(stats.get("memory_iteration", 0)) >= POST_COPY_AFTER_PASSES
            if late or soon:
                self._switched = True
                return lambda domain: domain.migrateStartPostCopy(0)
        if not self._late(now_s) or self._acted or self._switched:
            return None
        self._acted = True
        if self._policy.timeout_action == MIGRATION_TIMEOUT_ACTION_SUSPEND:
            return lambda domain: domain.suspend()
        self.timed_out = True
        return lambda domain: domain.abortJob()

    def failure(self, name: str, error: GugusError) -> GugusError:
        """Return the error of a migration that did not succeed."""
        if self.timed_out:
            return precondition(
                "MIGRATION_TIMED_OUT",
                f'guest "{name}" did not get over within {self._policy.timeout_s} s; it stays.',
                remedy="Give it more time, more bandwidth, a longer downtime, or --timeout-action suspend.",
                subject=f"guest/{name}",
            )
        if error.reason != "LIBVIRT_REFUSED":
            return error
        return precondition(
            "MIGRATION_FAILED",
            f'guest "{name}" did not get over: {error.message.rstrip(".")}.',
            remedy="It stays where it is. /var/log/libvirt/qemu on both hosts has more.",
            subject=f"guest/{name}",
        )

    def _late(self, now_s: float) -> bool:
        return bool(self._policy.timeout_s) and now_s - self._began_s >= self._policy.timeout_s
