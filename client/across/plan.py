"""How a guest becomes one of another cluster: its marks, its disks on their way, its spec there. Pure."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING, GUEST_PHASE_STOPPED, POWER_OFF, DiskSpec, Guest, GuestSpec
from gugus.cluster.v1.network_pb2 import Network
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, Node
from gugus.cluster.v1.pool_pb2 import Image, Pool
from gugus.cluster.v1.project_pb2 import Project

RAN = "gugus/moving"
"""Label of a guest that was shut down in order to move; its value is when it had been started."""

FROM = "gugus/moved-from"
"""Label of a guest that came from another cluster until it is gone there: its UUID there, and the mark of its disks."""

_UID_CHARS = 8
_MARK_CHARS = 12
_DISK_FORMAT = "qcow2"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What was asked for. `pools` and `networks`: ours to theirs, for those that have another name there."""

    name: str
    new_name: str = ""
    node: str = ""
    pools: Mapping[str, str] = field(default_factory=dict)
    networks: Mapping[str, str] = field(default_factory=dict)
    stop: bool = False
    stop_timeout_s: float = 0
    keep: bool = False
    drop_snapshots: bool = False

    @property
    def name_there(self) -> str:
        """Its name in the other cluster."""
        return self.new_name or self.name

    def pool(self, ours: str) -> str:
        """Return what a pool of ours is there."""
        return self.pools.get(ours, ours)

    def network(self, ours: str) -> str:
        """Return what a network of ours is there."""
        return self.networks.get(ours, ours)


@dataclass(frozen=True, slots=True)
class Here:
    """What is known of the guest's own cluster."""

    cluster_id: str
    guest: Guest
    guests: Sequence[Guest] = ()
    snapshots: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class There:
    """What is known of the other cluster."""

    cluster_id: str
    cluster_name: str
    guests: Mapping[str, Guest]
    nodes: Mapping[str, Node]
    pools: Mapping[str, Pool]
    networks: Mapping[str, Network]
    projects: Mapping[str, Project]
    images: Sequence[Image] = ()


@dataclass(frozen=True, slots=True)
class Transfer:
    """A disk on its way: from a volume of ours to an image there. `to_node`: where a pool that is not shared has it."""

    disk: str
    pool: str
    volume: str
    format: str
    to_pool: str
    image: str
    to_node: str


@dataclass(frozen=True, slots=True)
class Plan:
    """How a stopped guest moves."""

    name: str
    moved_from: str
    spec: GuestSpec
    labels: Mapping[str, str]
    transfers: Sequence[Transfer]
    notes: Sequence[str]


def ran(guest: Guest) -> bool:
    """Whether a stopped guest was shut down by an earlier run of the same move, and nobody has started it since."""
    return guest.meta.labels.get(RAN, "") == started(guest)


def started(guest: Guest) -> str:
    """Return when a guest was last started, as the value of a label."""
    return f"at-{guest.status.started_at.ToNanoseconds()}"


def is_still(guest: Guest) -> bool:
    """Whether a guest is down and is to stay so."""
    return guest.status.phase == GUEST_PHASE_STOPPED and guest.spec.power == POWER_OFF and not guest.meta.deleting


def mark(guest: Guest) -> str:
    """Return what changes with everything that may change the content of a stopped guest's disks, or what is copied of its spec."""
    disks = [(disk.name, disk.pool, disk.volume) for disk in guest.spec.disks]
    facts = (
        guest.meta.uid,
        guest.meta.generation,
        guest.spec_number,
        started(guest),
        guest.status.parent_snapshot,
        disks,
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:_MARK_CHARS]


def moved_from(guest: Guest) -> str:
    """Return the value of FROM for a guest of ours as it is now."""
    return f"{guest.meta.uid}.{mark(guest)}"


def is_of(guest: Guest, there: Guest) -> bool:
    """Whether a guest there was made by a move of a guest of ours, whenever that was."""
    return there.meta.labels.get(FROM, "").partition(".")[0] == guest.meta.uid


def image_prefix(guest: Guest) -> str:
    """Return how the names of a guest's disks begin while they are images on their way."""
    return f"moving-{guest.meta.uid[:_UID_CHARS]}-"


def is_shared(pool: Pool) -> bool:
    """Whether every node sees the same in a pool."""
    return pool.spec.dir.shared


def fitting_nodes(guest: Guest, there: There, wishes: Wishes) -> list[str]:
    """Return the nodes there that are online and have the pools and networks of a guest ready, the roomiest first."""
    pools = [
        there.pools[name]
        for name in sorted({wishes.pool(disk.pool) for disk in guest.spec.disks})
        if name in there.pools
    ]
    networks = [
        there.networks[name]
        for name in {wishes.network(nic.network) for nic in guest.spec.nics}
        if name in there.networks
    ]
    found = []
    for name, node in there.nodes.items():
        ready = all(name in pool.status.nodes and pool.status.nodes[name].ready for pool in pools)
        ready &= all(name in network.status.nodes and network.status.nodes[name].ready for network in networks)
        if node.status.state == NODE_STATE_ONLINE and ready and wishes.node in ("", name):
            room = min((pool.status.nodes[name].available_bytes for pool in pools), default=0)
            found.append((-room, name))
    return [name for _, name in sorted(found)]


def make(here: Here, there: There, wishes: Wishes, begun: str = "") -> Plan:
    """Return how a guest that is still and has no obstacles moves. begun: the node that an earlier run has sent disks to."""
    guest, spec = here.guest, placed(here, there, wishes)
    nodes = fitting_nodes(guest, there, wishes)
    node = begun if begun in nodes else nodes[0]
    spec.power = POWER_OFF
    transfers = []
    for index, (ours, disk) in enumerate(zip(guest.spec.disks, spec.disks, strict=True)):
        transfers.append(_transfer(guest, ours, index, there.pools[disk.pool], node))
        disk.image = transfers[-1].image
    labels = {key: value for key, value in guest.meta.labels.items() if key not in (RAN, FROM)}
    return Plan(
        wishes.name_there,
        moved_from(guest),
        spec,
        {**labels, FROM: moved_from(guest)},
        tuple(transfers),
        changes(here, there, wishes),
    )


def placed(here: Here, there: There, wishes: Wishes) -> GuestSpec:
    """Return a guest's spec as it is to be there: with that cluster's pools, networks and nodes, and disks that have no content yet."""
    guest, spec = here.guest, GuestSpec()
    spec.CopyFrom(guest.spec)
    spec.pinned_node, spec.preferred_node = wishes.node, ""
    if _id_is_taken(guest, there):
        spec.id = 0
    for disk in spec.disks:
        new = DiskSpec(name=disk.name, pool=wishes.pool(disk.pool), size_bytes=disk.size_bytes, settings=disk.settings)
        disk.CopyFrom(new)
    for nic in spec.nics:
        nic.network = wishes.network(nic.network)
    for cdrom in spec.virtual_machine.cdroms:
        cdrom.pool = wishes.pool(cdrom.pool) if cdrom.pool else ""
    if guest.spec.kind == GUEST_KIND_CONTAINER:
        spec.ClearField("virtual_machine")
    return spec


def changes(here: Here, there: There, wishes: Wishes) -> tuple[str, ...]:
    """Return what will not be there as it is here, in words."""
    guest, notes = here.guest, list[str]()
    if guest.spec.pinned_node and not wishes.node:
        notes.append(f"it is not pinned any more (here it is pinned to {guest.spec.pinned_node}).")
    if _id_is_taken(guest, there):
        notes.append(f"its id {guest.spec.id} is taken there; it gets another one.")
    return tuple(notes)


def is_live(guest: Guest, wishes: Wishes) -> bool:
    """Whether a guest moves while it runs."""
    return guest.spec.kind != GUEST_KIND_CONTAINER and guest.status.phase == GUEST_PHASE_RUNNING and not wishes.stop


def _id_is_taken(guest: Guest, there: There) -> bool:
    return any(other.spec.id == guest.spec.id for other in there.guests.values() if not is_of(guest, other))


def _transfer(guest: Guest, disk: DiskSpec, index: int, target: Pool, node: str) -> Transfer:
    container = guest.spec.kind == GUEST_KIND_CONTAINER
    return Transfer(
        disk.name,
        disk.pool,
        disk.volume,
        ""
        if container
        else _DISK_FORMAT,  # as an archive of its files, or as what no content can be taken for another format
        target.meta.name,
        f"{image_prefix(guest)}{mark(guest)}-{index}",
        "" if is_shared(target) else node,
    )
