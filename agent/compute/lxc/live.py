"""Changing a running container into its definition, step by step; what does not work now waits for the next start.

Invariant: what the container is told to have become (`Live.present`) is what was done to it, item by item: an item that
failed is not in it.
"""

import asyncio
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from gugus.agent.v1 import guest_pb2, resources_pb2

from agent.compute.definitions import Definition
from agent.compute.differences import Difference
from agent.compute.hypervisor import AttachedDisk, AttachedNic
from agent.compute.lxc import cgroups, changes, checks, helper, interfaces, limits, prepare
from agent.compute.lxc.cgroups import Cgroup
from agent.compute.lxc.config import Mount
from common.errors import GugusError

Device = limits.Device


@dataclass(slots=True)
class Live:
    """A running container and what it has become. `interfaces`: name -> host's end."""

    name: str
    pid: int
    present: Definition
    interfaces: dict[str, str]
    userns: Path | None
    bind_mount_roots: Sequence[Path] = ()
    pending: list[guest_pb2.PendingChange] = field(default_factory=list)


async def apply(live: Live, wanted: Definition) -> None:
    """Do what can be done; `live` tells what came of it."""
    plan = changes.plan(live.present.spec, wanted.spec)
    for change in plan.disks_go:
        await _step(live, wanted, [change], _detach_disk(live, change.item))
    for change in plan.disks_come:
        await _step(live, wanted, [change], _attach_disk(live, wanted, change.item))
    if plan.mounts is not None:
        await _step(live, wanted, [plan.mounts], _mounts(live, wanted))
    for nic, found in changes.of_item(plan.nics):
        await _nic(live, wanted, nic, found)
    if plan.limits:
        await _limits(live, wanted, plan.limits)
    live.pending += [changes.pending(change) for change in plan.rest]


def devices_of(disks: Iterable[AttachedDisk]) -> dict[str, Device]:
    """Return the disks of the host that a container's disks lie on; those on none are left out. Blocks."""
    found = {}
    for disk in disks:
        try:
            device = cgroups.device_of(disk.path)
        except OSError:
            continue
        if device is not None:
            found[disk.spec.name] = device
    return found


async def enforce(name: str, pid: int, definition: Definition, host_names: Mapping[str, str]) -> list[str]:
    """Set what liblxc does not: further limits, and carrier and rate of interfaces. Returns what cannot be, in words."""
    problems = await asyncio.to_thread(_enforce_limits, name, pid, definition)
    for nic in definition.nics:
        if nic.spec.settings.link_down or nic.spec.settings.rate_bytes_per_s:
            try:
                await interfaces.configure(host_names[nic.spec.name], nic.spec.settings)
            except GugusError as error:
                problems.append(f"interface {nic.spec.name} is not limited: {error.message}")
    return problems


def _enforce_limits(name: str, pid: int, definition: Definition) -> list[str]:
    spec, devices = definition.spec, devices_of(definition.disks)
    problems = [
        f"the limits of disk {disk.spec.name} do not hold: its file system is on no disk of this host"
        for disk in definition.disks
        if limits.is_limited(disk.spec.settings.limits) and disk.spec.name not in devices
    ]
    try:
        wanted = limits.further(spec, devices, unified=cgroups.unified())
        failed = Cgroup(pid, name).set(wanted)
    except OSError as error:
        return [*problems, f"limits cannot be set: {error}"]
    return problems + [
        f"{each.field}: {failed[each.file]}" for each in wanted if each.file in failed and _is_set(spec, each)
    ]


def _is_set(spec: guest_pb2.GuestSpec, limit: limits.Limit) -> bool:
    """Whether a limit was asked for: what is only the default may be missing."""
    if limit.field.startswith("disks["):
        return any(limits.is_limited(disk.settings.limits) for disk in spec.disks)
    head, _, field = limit.field.rpartition(".")
    return bool(getattr(spec.resources if head else spec, field))


async def _step(live: Live, wanted: Definition, found: Sequence[Difference], work: Awaitable[None]) -> None:
    """Do one item; take it over, or say why it waits."""
    try:
        await work
    except (GugusError, OSError) as error:
        reason = f"it could not be changed now: {error.message if isinstance(error, GugusError) else error}"
        live.pending += [changes.pending(change, reason) for change in found]
    else:
        _take_over(live, wanted, found)


def _take_over(live: Live, wanted: Definition, found: Sequence[Difference]) -> None:
    spec = changes.taken_over(live.present.spec, wanted.spec, found)
    disks = {disk.spec.name: disk for disk in (*wanted.disks, *live.present.disks)}
    nics = {nic.spec.name: nic for nic in (*live.present.nics, *wanted.nics)}
    live.present = Definition(
        spec,
        tuple(replace(disks[disk.name], spec=disk, read_only=disk.read_only) for disk in spec.disks),
        tuple(AttachedNic(nic, nics[nic.name].bridge) for nic in spec.nics),
    )


def _mount_path(definition: Definition, name: str) -> str:
    return next((disk.settings.mount_path for disk in definition.spec.disks if disk.name == name), "")


async def _attach_disk(live: Live, wanted: Definition, name: str) -> None:
    disk = next(disk for disk in wanted.disks if disk.spec.name == name)
    settings = disk.spec.settings
    mount = Mount(disk.path, settings.mount_path, read_only=disk.read_only or settings.read_only)
    await helper.attach(live.pid, mount, live.userns)
    problems = await asyncio.to_thread(_enforce_limits, live.name, live.pid, wanted)
    if limits.is_limited(settings.limits) and problems:
        await helper.detach(live.pid, settings.mount_path)
        raise helper.failed("; ".join(problems))


async def _detach_disk(live: Live, name: str) -> None:
    await helper.detach(live.pid, _mount_path(live.present, name))
    lease = next((disk.lease for disk in live.present.disks if disk.spec.name == name), None)
    if lease is not None:  # its holder sees that, and another guest makes a new one
        with suppress(OSError):
            await asyncio.to_thread(lease.unlink)


async def _mounts(live: Live, wanted: Definition) -> None:
    """Change the bind mounts: all, or none when the first fails."""
    if problems := await asyncio.to_thread(checks.host_problems, wanted.spec.container, live.bind_mount_roots):
        raise helper.failed("; ".join(problems))
    go, come = changes.mounts_changed(live.present.spec.container, wanted.spec.container)
    known = {mount.target: mount for mount in prepare.mounts_of(wanted)}
    done: list[str] = []
    try:
        for target in [mount.target for mount in come if mount.target not in {each.target for each in go}]:
            await helper.attach(live.pid, known[target], live.userns)
            done.append(target)
        for mount in go:
            await helper.detach(live.pid, mount.target)
            if mount.target in known:
                await helper.attach(live.pid, known[mount.target], live.userns)
    except GugusError:
        for target in done:
            await helper.detach(live.pid, target)
        raise


async def _nic(live: Live, wanted: Definition, name: str, found: Sequence[Difference]) -> None:
    nic = next((nic for nic in wanted.nics if nic.spec.name == name), None)
    host_name = live.interfaces.get(name, "")
    if nic is None:
        await _step(live, wanted, found, interfaces.unplug(host_name))
        if not interfaces.exists(host_name):
            live.interfaces.pop(name, None)
    elif not host_name:
        free = _free_name(live, wanted.spec.id)
        await _step(live, wanted, found, interfaces.plug(nic, free, live.pid))
        if interfaces.exists(free):
            live.interfaces[name] = free
    else:
        await _step(live, wanted, found, _change_nic(live, nic, host_name))


async def _change_nic(live: Live, nic: AttachedNic, host_name: str) -> None:
    before = next(each for each in live.present.nics if each.spec.name == nic.spec.name)
    if before.bridge != nic.bridge:
        await interfaces.set_bridge(host_name, nic.bridge)
    if before.spec.settings.mtu != nic.spec.settings.mtu:
        await interfaces.set_mtu(nic, host_name, live.pid)
    await interfaces.configure(host_name, nic.spec.settings)


def _free_name(live: Live, guest_id: int) -> str:
    names = (prepare.host_interface(guest_id, number) for number in range(len(live.interfaces) + 1))
    return next(name for name in names if name not in live.interfaces.values())


async def _limits(live: Live, wanted: Definition, found: Sequence[Difference]) -> None:
    """Set the limits of the wanted spec, of the disks that are there; those whose files failed wait."""
    there = {disk.spec.name for disk in live.present.disks}
    disks = [disk for disk in wanted.disks if disk.spec.name in there]
    failed = await asyncio.to_thread(_set_limits, live, wanted.spec, disks)
    for change in found:
        reason = next((why for field, why in failed.items() if _concerns(field, change.field)), "")
        if reason:
            live.pending.append(changes.pending(change, f"it could not be changed now: {reason}"))
        else:
            _take_over(live, wanted, [change])


def _set_limits(live: Live, spec: guest_pb2.GuestSpec, disks: Sequence[AttachedDisk]) -> dict[str, str]:
    """Return what failed, field -> reason."""
    unified, devices = cgroups.unified(), devices_of(disks)
    wanted = limits.essential(spec, unified=unified, swap=cgroups.accounts_swap())
    wanted += limits.further(spec, devices, unified=unified)
    try:
        failed = Cgroup(live.pid, live.name).set(wanted)
    except OSError as error:
        return dict.fromkeys([limit.field for limit in wanted], str(error))
    found = {limit.field: failed[limit.file] for limit in wanted if limit.file in failed}
    missing = "its file system is on no disk of this host"
    return found | {
        f"disks[{disk.spec.name}].settings.limits": missing
        for disk in disks
        if disk.spec.name not in devices and _limits_of(spec, disk.spec.name) is not None
    }


def _limits_of(spec: guest_pb2.GuestSpec, name: str) -> resources_pb2.IoLimits | None:
    return next(
        (disk.settings.limits for disk in spec.disks if disk.name == name and limits.is_limited(disk.settings.limits)),
        None,
    )


_TOGETHER = {"cpus": "cpu_limit_milli"}
"""Fields that are set by the file of another one."""


def _concerns(limit_field: str, changed: str) -> bool:
    return _TOGETHER.get(changed, changed).startswith(limit_field)
