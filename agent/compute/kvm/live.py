"""Brings a changed definition into a running domain, item by item; what fails waits, with its reason.

Invariant: what a domain runs with is written into its mark after each change. Should the agent die between the two, the
next attempt finds the device there already and notes it.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import libvirt
from gugus.agent.v1 import guest_pb2, resources_pb2

from agent.compute.definitions import Definition
from agent.compute.differences import transfer
from agent.compute.kvm import changes, host_devices, plug, tune
from agent.compute.kvm.changes import Change, Way
from agent.compute.kvm.connection import REFUSED
from agent.compute.kvm.domains import Domains, remark
from agent.compute.kvm.work import Refused, Shape, Work
from agent.compute.kvm.xml import system
from agent.compute.kvm.xml.mark import veiled
from agent.network import shaping
from common.errors import GugusError
from common.logs import get_logger

APPLY_TIMEOUT_S = 30.0
"""Longest application of changes, of which guests take the most: some seconds to let a device go."""

PATIENCE_S = 18.0
"""So long guests are waited for in one application, whatever number of devices they are to let go."""

SHAPE_TIMEOUT_S = 20.0
_LIFECYCLE_ACTIONS = {
    "destroy": libvirt.VIR_DOMAIN_LIFECYCLE_ACTION_DESTROY,
    "restart": libvirt.VIR_DOMAIN_LIFECYCLE_ACTION_RESTART,
}
_log = get_logger("kvm.live")


class Live:
    """Changes running guests, and knows what of each waits."""

    def __init__(self, domains: Domains, cgroup_v2: bool) -> None:
        self._domains, self._cgroup_v2 = domains, cgroup_v2
        self._reasons: dict[str, dict[str, str]] = {}
        self._pending: dict[str, tuple[Definition, Definition, tuple[guest_pb2.PendingChange, ...]]] = {}

    def forget(self, name: str) -> None:
        """A guest is started anew or gone: nothing of it waits."""
        self._reasons.pop(name, None)
        self._pending.pop(name, None)

    def pending(self, name: str, running: Definition | None, wanted: Definition) -> tuple[guest_pb2.PendingChange, ...]:
        """Return what of a running guest's definition waits for its next start."""
        if running is None:
            return ()
        known = self._pending.get(name)
        if known is None or known[0] is not running or known[1] is not wanted:
            waits = changes.pending(changes.plan(running, wanted), self._reasons.get(name, {}))
            known = self._pending[name] = (running, wanted, waits)
        return known[2]

    async def apply(self, wanted: Definition) -> Sequence[guest_pb2.PendingChange]:
        """Change a running domain into a definition as far as that goes; return what waits. Raises HYPERVISOR_DOWN."""
        name = wanted.spec.name
        mark = await self._domains.mark(name)
        if mark is None or mark.running is None:
            return ()
        running, places, shape = mark.running, await _usb_places(wanted), _shaper(asyncio.get_running_loop())
        reasons: dict[str, str] = {}

        def change(connection: Any) -> None:
            domain = connection.lookupByName(name)
            patient_until_s = time.monotonic() + PATIENCE_S
            work = Work(connection, domain, mark, running, wanted, self._cgroup_v2, shape, places, patient_until_s)
            reasons.update(_apply_all(work))
            self._domains.marks.forget(domain)

        try:
            await self._domains.call(change, timeout_s=APPLY_TIMEOUT_S)
        except GugusError as error:
            if error.reason != REFUSED:
                raise
            _log.warning("guest not changed", guest=name, error=str(error))
        self._reasons[name] = reasons
        self._pending.pop(name, None)
        now = await self._domains.mark(name)
        return self.pending(name, now.running if now else None, wanted)


def _apply_all(work: Work) -> dict[str, str]:
    """Apply what can be; return why not, by field, for what could have been."""
    reasons: dict[str, str] = {}
    plan = changes.plan(work.running, work.wanted)
    for way in Way:
        for group in _groups(way, [change for change in plan if change.way is way]):
            try:
                _HOW[way](work, group)
            except (Refused, GugusError) as refusal:
                reasons |= {change.difference.field: str(refusal) for change in group}
            except libvirt.libvirtError as error:
                _log.warning("change refused", guest=work.wanted.spec.name, way=way.value, error=str(error))
                reasons |= {change.difference.field: str(error).rstrip(".") for change in group}
            else:
                _note(work, group)
    _set_reboot(work)
    return reasons


def _groups(way: Way, found: list[Change]) -> list[list[Change]]:
    """Return changes that are made in one step: those of one item, or all of one way."""
    items = list(dict.fromkeys(change.item for change in found))
    groups = [[change for change in found if change.item == item] for item in items]
    if way in (Way.DISK, Way.NIC):  # what goes makes room for what comes
        groups.sort(key=lambda group: not any(change.difference.goes for change in group))
    return groups


def _note(work: Work, group: list[Change]) -> None:
    """Write into the mark that the domain has this now."""
    spec = guest_pb2.GuestSpec()
    spec.CopyFrom(work.running.spec)
    wanted = veiled(work.wanted)
    for change in group:
        transfer(change.difference, wanted.spec, spec)
    items = {change.item for change in group}
    work.running = _resolved(spec, work.running, wanted, items)
    work.mark = replace(work.mark, running=work.running)
    remark(work.domain, work.mark)


def _resolved(spec: guest_pb2.GuestSpec, running: Definition, wanted: Definition, items: set[str]) -> Definition:
    """Return a definition of a spec whose paths and bridges are the wanted ones for these items, else the present ones."""
    old_disks, new_disks = ({d.spec.name: d for d in each.disks} for each in (running, wanted))
    old_nics, new_nics = ({n.spec.name: n for n in each.nics} for each in (running, wanted))
    disks = [
        replace((new_disks if d.name in items or d.name not in old_disks else old_disks)[d.name], spec=d)
        for d in spec.disks
    ]
    nics = [
        replace((new_nics if n.name in items or n.name not in old_nics else old_nics)[n.name], spec=n)
        for n in spec.nics
    ]
    discs = {**running.files.discs}
    for name in items:
        discs.pop(name, None)
        if name in wanted.files.discs:
            discs[name] = wanted.files.discs[name]
    return Definition(spec, tuple(disks), tuple(nics), replace(running.files, discs=discs))


def _set_reboot(work: Work) -> None:
    """While something waits a reboot ends the guest, so that it is started anew with it."""
    left = changes.pending(changes.plan(work.running, work.wanted), {})
    action = _LIFECYCLE_ACTIONS[system.reboot_action(work.wanted, pending=bool(left))]
    try:
        work.domain.setLifecycleAction(libvirt.VIR_DOMAIN_LIFECYCLE_REBOOT, action, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    except libvirt.libvirtError as error:
        _log.warning("what a reboot does is not changed", guest=work.wanted.spec.name, error=str(error))


async def _usb_places(wanted: Definition) -> dict[str, tuple[int, int]]:
    present = await asyncio.to_thread(host_devices.usb_devices)
    ports = {usb.port for usb in wanted.spec.virtual_machine.usb_devices}
    return {port: place for port, (_, place) in present.items() if port in ports}


def _shaper(loop: asyncio.AbstractEventLoop) -> Shape:
    """Return what sets rates, for threads of libvirt's pool."""

    def shape(interface: str, settings: resources_pb2.NicSettings) -> None:
        asyncio.run_coroutine_threadsafe(shaping.limit(interface, settings), loop).result(SHAPE_TIMEOUT_S)

    return shape


def _nothing(_work: Work, _group: list[Change]) -> None:
    """Noting it is enough."""


_HOW: dict[Way, Callable[[Work, list[Change]], None]] = {
    Way.CPUS: tune.cpus,
    Way.CPU_SHARE: tune.cpu_share,
    Way.CPU_PINS: tune.cpu_pins,
    Way.MEMORY: plug.memory,
    Way.IO_SHARE: tune.io_share,
    Way.DISK: plug.disk,
    Way.DISK_SIZE: tune.disk_size,
    Way.DISK_LIMITS: tune.disk_limits,
    Way.NIC: plug.nic,
    Way.NIC_SETTINGS: tune.nic,
    Way.DISC: plug.disc,
    Way.USB: plug.usb,
    Way.PCI: plug.pci,
    Way.NOTE: _nothing,
}
