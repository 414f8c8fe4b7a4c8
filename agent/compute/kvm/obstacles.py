"""What keeps a running virtual machine on its host, or from another one, as libvirt and its XML tell."""

import xml.etree.ElementTree as ET
from typing import Any

import libvirt
from gugus.agent.v1 import migration_pb2
from gugus.agent.v1.migration_pb2 import MIGRATION_COMPRESSION_ZSTD, MigrationObstacle

from agent.compute.kvm.destination import host_bound

ZSTD_SINCE = 9_004_000
"""libvirt 9.4 can compress channels (its NEWS); 1,000,000 x major + 1,000 x minor + release."""

USERFAULTFD = "/proc/sys/vm/unprivileged_userfaultfd"
"""1 when processes without privileges may have their page faults served, as post-copy needs it (userfaultfd(2))."""


def kept_here(xml: str) -> list[MigrationObstacle]:
    """Return what binds a domain to its host."""
    return [
        MigrationObstacle(
            reason="HOST_DEVICE",
            subject="spec.virtual_machine",
            message=f"It has {what}.",
            remedy="Take it away, or stop the guest and start it without it.",
        )
        for what in host_bound(xml)
    ]


def incompatible(
    connection: Any, survey: migration_pb2.GuestSurvey, policy: migration_pb2.MigrationPolicy
) -> list[MigrationObstacle]:
    """Ask this host's libvirt whether it can run a domain from elsewhere, in a thread of libvirt's pool. Raises libvirtError."""
    found = []
    kind = "kvm" if survey.mode == "kvm" else "qemu"
    try:
        capabilities = connection.getDomainCapabilities(None, None, survey.machine or None, kind, 0)
    except libvirt.libvirtError as error:
        found.append(_obstacle("MACHINE_UNKNOWN", f"{survey.machine} ({survey.mode}): {error}", "Update QEMU there."))
        return found
    if survey.cpu_xml and not _fits(connection, survey, kind):
        emulator_ = ET.fromstring(capabilities).findtext("path", "QEMU")  # noqa: S314  (libvirt's own output)
        what = f"Its CPU has features that {emulator_} cannot offer on this host's processor"
        remedy = 'Give it the CPU model "cluster", and restart it.'
        found.append(_obstacle("CPU_INCOMPATIBLE", what, remedy))
    here = emulator(connection)
    if survey.emulator_version and _number(here) < _number(survey.emulator_version):
        what = f"QEMU {here} here is older than the {survey.emulator_version} that runs it"
        found.append(_obstacle("EMULATOR_OLDER", what, "Update QEMU there first."))
    if policy.compression == MIGRATION_COMPRESSION_ZSTD and connection.getLibVersion() < ZSTD_SINCE:
        found.append(_obstacle("COMPRESSION_MISSING", "libvirt here cannot do zstd", "Use xbzrle, or none."))
    if policy.post_copy and (why := post_copy_problem()):
        found.append(_obstacle("POST_COPY_MISSING", why, "`sysctl vm.unprivileged_userfaultfd=1` there allows it."))
    return found


def emulator(connection: Any) -> str:
    """Return the version of this host's QEMU, "7.2.4"."""
    number = connection.getVersion()
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def post_copy_problem(file: str = USERFAULTFD) -> str:
    """Return why a QEMU of this host cannot fetch memory on demand; "" when it can."""
    try:
        with open(file) as setting:
            allowed = setting.read().strip() == "1"
    except OSError:
        return "This kernel has no userfaultfd"
    return "" if allowed else "QEMU here, which runs without privileges, may not use userfaultfd"


def _fits(connection: Any, survey: migration_pb2.GuestSurvey, kind: str) -> bool:
    try:
        result = connection.compareHypervisorCPU(None, None, survey.machine or None, kind, survey.cpu_xml, 0)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_CPU_INCOMPATIBLE:
            return False
        raise
    return bool(result in (libvirt.VIR_CPU_COMPARE_IDENTICAL, libvirt.VIR_CPU_COMPARE_SUPERSET))


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())[:2]


def _obstacle(reason: str, message: str, remedy: str) -> MigrationObstacle:
    return MigrationObstacle(reason=reason, subject="spec.virtual_machine", message=f"{message}.", remedy=remedy)
