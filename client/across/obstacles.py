"""Everything that is in the way of a guest to another cluster, found before anything happens. Pure."""

from collections.abc import Iterator, Sequence

import grpc
from gugus.agent.v1 import volume_pb2
from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER
from gugus.agent.v1.machine_pb2 import FIRMWARE_KIND_UEFI
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING, Guest, GuestPhase

from client.across.plan import (
    FROM,
    Here,
    There,
    Wishes,
    fitting_nodes,
    is_live,
    is_of,
    is_shared,
    is_still,
    moved_from,
)
from common import validate
from common.abilities import why_not
from common.errors import GugusError, Violation

Obstacle = Violation
"""What it is about, and why it is in the way, with what to do."""

FILESYSTEM, QCOW2 = volume_pb2.VOLUME_FORMAT_FILESYSTEM, volume_pb2.VOLUME_FORMAT_QCOW2


def obstacles(here: Here, there: There, wishes: Wishes) -> list[Obstacle]:
    """Return all that is in the way; none when the guest can move."""
    if here.cluster_id == there.cluster_id:
        words = "that is the cluster that it is in. Within a cluster, `gugus guest migrate NAME --to NODE` moves it."
        return [Obstacle("--to-cluster", words)]
    return [
        *_state(here, wishes),
        *_belongings(here, wishes),
        *_devices(here.guest, live=is_live(here.guest, wishes)),
        *_name(here.guest, there, wishes),
        *_pools(here.guest, there, wishes),
        *_networks(here.guest, there, wishes),
        *_place(here.guest, there, wishes),
    ]


def remarks(guest: Guest, wishes: Wishes) -> list[str]:
    """Return what does not go along and keeps nobody from moving."""
    if is_live(guest, wishes):
        return []
    if guest.spec.virtual_machine.firmware.kind == FIRMWARE_KIND_UEFI:
        return [
            "its UEFI variables do not go along: it boots there as a new machine does, from its disks in their order."
        ]
    return []


def refusal(name: str, found: Sequence[Obstacle], *, live: bool = False) -> GugusError:
    """Return the error that tells all of it. live: of a guest that would have moved while it runs."""
    words = " ".join(f"{one.field}: {one.message}" for one in found)
    return GugusError(
        grpc.StatusCode.FAILED_PRECONDITION,
        "CANNOT_MOVE",
        f"guest {name} cannot move to the other cluster; nothing was changed. {words}",
        remedy="With --stop it would be shut down, copied through this machine, and started there." if live else "",
        violations=found,
    )


def _state(here: Here, wishes: Wishes) -> Iterator[Obstacle]:
    guest = here.guest
    phase = GuestPhase.Name(guest.status.phase).removeprefix("GUEST_PHASE_").lower()
    if guest.meta.deleting:
        yield Obstacle("guest", "it is being deleted.")
    elif guest.status.lock.task:
        words = f"{guest.status.lock.reason} works on it (task {guest.status.lock.task}). Wait for its end."
        yield Obstacle("lock", words)
    elif guest.status.phase == GUEST_PHASE_RUNNING:
        if is_live(guest, wishes) and wishes.name_there != wishes.name:
            words = "what moves while it runs keeps its name. Leave --name away, or give --stop as well."
            yield Obstacle("--name", words)
        if is_live(guest, wishes) and wishes.keep:
            words = "what moves while it runs does not stay here. Leave --keep away, or give --stop as well."
            yield Obstacle("--keep", words)
        elif not is_live(guest, wishes) and not wishes.stop:
            words = "it runs, and a container cannot go over while it does. With --stop it is shut down, moved, and started there."
            yield Obstacle("power", words)
    elif not is_still(guest):
        words = f"it is {phase}{f' ({guest.status.reason})' if guest.status.reason else ''}. Stop it, or have it run, first."
        yield Obstacle("power", words)


def _belongings(here: Here, wishes: Wishes) -> Iterator[Obstacle]:
    guest = here.guest
    if guest.spec.template:
        yield Obstacle("template", "others are made from it. Make a full clone, and move that.")
    if guest.spec.protected:
        yield Obstacle("protected", f"it may not be deleted here. `gugus guest protect {guest.meta.name} --off` first.")
    if here.snapshots and not wishes.drop_snapshots:
        names = ", ".join(here.snapshots)
        yield Obstacle("snapshots", f"they cannot go along: {names}. Delete them, or give --drop-snapshots.")
    if wishes.keep:
        return
    if guest.status.unused_disks:
        names = ", ".join(disk.name for disk in guest.status.unused_disks)
        yield Obstacle("unused disks", f"they would be lost with it: {names}. Attach or delete them, or give --keep.")
    own = {disk.volume for disk in guest.spec.disks if disk.volume}
    if clones := sorted(
        other.meta.name
        for other in here.guests
        if other.meta.uid != guest.meta.uid and any(disk.base_volume in own for disk in other.spec.disks)
    ):
        yield Obstacle("clones", f"disks of {', '.join(clones)} read from its own. Flatten them first, or give --keep.")


def _devices(guest: Guest, *, live: bool) -> Iterator[Obstacle]:
    machine, container = guest.spec.virtual_machine, guest.spec.container
    local = [f"PCI {device.address}" for device in machine.pci_devices]
    local += [f"USB {device.id or device.port}" for device in machine.usb_devices]
    local += [f"device {device.path}" for device in container.devices]
    local += [f"folder {mount.source}" for mount in container.mounts]
    if local:
        yield Obstacle("devices", f"it has parts of its host: {', '.join(local)}. Take them away first.")
    if machine.tpm and not live:
        yield Obstacle(
            "tpm", "what its TPM keeps cannot go along. Save what depends on it, and take the TPM away first."
        )


def _name(guest: Guest, there: There, wishes: Wishes) -> Iterator[Obstacle]:
    name = wishes.name_there
    if wrong := validate.name(name):
        yield Obstacle("--name", f"{wrong}.")
    other = there.guests.get(name)
    if other is not None and not is_of(guest, other):
        yield Obstacle("name", f"{there.cluster_name} has a guest {name}. Choose another with --name.")
    elif other is not None and other.status.HasField("started_at") and other.meta.labels[FROM] != moved_from(guest):
        words = f"{name} runs or ran in {there.cluster_name}, and has been changed here since. Delete one of them."
        yield Obstacle("name", words)
    macs = {nic.mac: one.meta.name for one in there.guests.values() if not is_of(guest, one) for nic in one.spec.nics}
    for nic in guest.spec.nics:
        if nic.mac in macs:
            yield Obstacle(f"nic {nic.name}", f"{macs[nic.mac]} has its address {nic.mac} there. Change one of them.")
    if guest.spec.project and guest.spec.project not in there.projects:
        words = f"there is no project {guest.spec.project}. Make it there, or take the guest out of it."
        yield Obstacle("project", words)


def _pools(guest: Guest, there: There, wishes: Wishes) -> Iterator[Obstacle]:
    have = ", ".join(sorted(there.pools)) or "none"
    cdroms = [cdrom for cdrom in guest.spec.virtual_machine.cdroms if cdrom.image]
    used = {disk.pool for disk in guest.spec.disks} | {cdrom.pool for cdrom in cdroms}
    for ours in sorted(set(wishes.pools) - used):
        yield Obstacle("--pool", f"it has nothing in a pool {ours}.")
    for ours in sorted(used):
        if (theirs := wishes.pool(ours)) not in there.pools:
            words = f"there is no pool {theirs}. Name another with --pool {ours}=POOL; there are: {have}."
            yield Obstacle(f"pool {ours}", words)
    images = {(image.pool, image.volume.name) for image in there.images}
    for cdrom in cdroms:
        if (wishes.pool(cdrom.pool), cdrom.image) not in images:
            words = (
                f"its disc {cdrom.image} is not in pool {wishes.pool(cdrom.pool)} there. Eject it, or bring it there."
            )
            yield Obstacle(f"cdrom {cdrom.name}", words)
    known = sorted({wishes.pool(ours) for ours in used} & set(there.pools))
    local = [name for name in known if not is_shared(there.pools[name])]
    if guest.spec.ha.enabled and local:
        words = f"each node there has {', '.join(local)} by itself. Choose a shared pool, or `gugus guest ha` it off."
        yield Obstacle("ha", words)


def _networks(guest: Guest, there: There, wishes: Wishes) -> Iterator[Obstacle]:
    have = ", ".join(sorted(there.networks)) or "none"
    used = {nic.network for nic in guest.spec.nics}
    for ours in sorted(set(wishes.networks) - used):
        yield Obstacle("--network", f"it has no interface in a network {ours}.")
    for ours in sorted(used):
        if (theirs := wishes.network(ours)) not in there.networks:
            words = f"there is no network {theirs}. Name another with --network {ours}=NETWORK; there are: {have}."
            yield Obstacle(f"network {ours}", words)


def _place(guest: Guest, there: There, wishes: Wishes) -> Iterator[Obstacle]:
    if wishes.node and wishes.node not in there.nodes:
        have = ", ".join(sorted(there.nodes)) or "none"
        yield Obstacle("--to", f"there is no node {wishes.node}; there are: {have}.")
        return
    nodes = fitting_nodes(guest, there, wishes)
    if not nodes:
        which = wishes.node or "any node"
        yield Obstacle(
            "--to" if wishes.node else "node", f"{which} there is not online with all pools and networks ready."
        )
        return
    container = guest.spec.kind == GUEST_KIND_CONTAINER
    wanted, ability = (
        (FILESYSTEM, volume_pb2.POOL_ABILITY_FILESYSTEM) if container else (QCOW2, volume_pb2.POOL_ABILITY_BLOCK)
    )
    for disk in guest.spec.disks:
        pool = there.pools.get(wishes.pool(disk.pool))
        if pool is None:
            continue
        state = pool.status.nodes[nodes[0]]
        why = why_not(state, wanted, ability)
        if container and disk.size_bytes:
            why = why or why_not(state, FILESYSTEM, volume_pb2.POOL_ABILITY_QUOTA)
        if why:
            yield Obstacle(f"disk {disk.name}", why)
