"""Quotas of projects: what guests have together, and what of a change would be too much."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Self

from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.project_pb2 import Project, ProjectUse

from common.errors import GugusError, Violation, resource_exhausted, several
from common.units import format_size


@dataclass(frozen=True, slots=True)
class Use:
    """What one guest, or several, have; or what a change adds to it."""

    cpus: int = 0
    memory_bytes: int = 0
    disk_bytes: int = 0
    guests: int = 0

    def __add__(self, other: Self) -> "Use":
        return Use(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: Self) -> "Use":
        return Use(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))

    def message(self) -> ProjectUse:
        """Return it as the API tells it."""
        return ProjectUse(
            cpus=self.cpus, memory_bytes=self.memory_bytes, disk_bytes=self.disk_bytes, guests=self.guests
        )


def use_of(guest: Guest) -> Use:
    """Return what a guest counts with: the most that it may have without being asked again."""
    spec = guest.spec
    disks = [*spec.disks, *guest.status.unused_disks]
    return Use(
        cpus=max(spec.cpus, spec.virtual_machine.cpu.max_cpus),
        memory_bytes=max(spec.memory_bytes, spec.virtual_machine.memory.max_bytes),
        disk_bytes=sum(disk.size_bytes for disk in disks),
        guests=1,
    )


def used(project: str, guests: Iterable[Guest]) -> Use:
    """Return what the guests of a project have together; those that are being deleted count until they are gone."""
    return sum((use_of(guest) for guest in guests if guest.spec.project == project), Use())


def quota_faults(project: Project, guests: Iterable[Guest], delta: Use) -> list[GugusError]:
    """Return one fault for each limit of a project that `delta` more would exceed. What does not grow is never refused."""
    present, limits = used(project.meta.name, guests), project.spec.limits
    faults = []
    for what, show in (("cpus", str), ("memory_bytes", format_size), ("disk_bytes", format_size), ("guests", str)):
        limit, asked = getattr(limits, what), getattr(delta, what)
        have = getattr(present, what)
        if not limit or asked <= 0 or have + asked <= limit:
            continue
        text = (
            f"{show(have)} of {show(limit)} used in project {project.meta.name}, {show(asked)} more asked, "
            f"{show(max(0, limit - have))} left"
        )
        remedy = f"Ask for less, or have the limits raised: `gugus project set {project.meta.name}`."
        error = resource_exhausted("QUOTA_EXCEEDED", f"{what}: {text}.", remedy=remedy)
        error.violations = (Violation(f"spec.{what}" if what != "guests" else "spec.project", text),)
        faults.append(error)
    return faults


def refuse_beyond_quota(project: Project | None, guests: Iterable[Guest], before: Guest | None, after: Guest) -> None:
    """Raise QUOTA_EXCEEDED, naming each limit, when a new guest (`before` None) or a changed one is too much for its project.

    project: the one that `after` names; None when it names none. To be called while `Context.admission` is held.
    """
    if project is None:
        return
    had = use_of(before) if before is not None and before.spec.project == after.spec.project else Use()
    if faults := quota_faults(project, guests, use_of(after) - had):
        raise several(faults)
