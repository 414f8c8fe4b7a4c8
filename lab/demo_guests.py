"""What the demo runs: a network, a shared pool, two images, and two guests that take their place on one node.

Invariant: whatever is there already in the right form is used; what is there in another form is made anew.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gugus.agent.v1.container_pb2 import ContainerSpec
from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER, GUEST_KIND_VIRTUAL_MACHINE
from gugus.agent.v1.network_pb2 import BridgeNetwork, DhcpRange, NetworkSpec
from gugus.agent.v1.volume_pb2 import DirPool, PoolSpec
from gugus.cluster.v1.guest_pb2 import POWER_ON, DiskSpec, Guest, GuestSpec, HaSpec, NicSpec
from gugus.cluster.v1.node_pb2 import Node

from common.errors import GugusError
from lab.images import Heartbeat, NoHeartbeat, images, read_container_history, read_history
from lab.operator import Operator
from lab.plan import LabPlan

NETWORK, POOL, VM, CONTAINER = "lan", "shared", "web", "db"
VM_IMAGE, CONTAINER_IMAGE = "demo-vm", "demo-container"
GUESTS = (VM, CONTAINER)

VM_MEMORY_BYTES = 128 * 2**20
CONTAINER_MEMORY_BYTES = 64 * 2**20

#: Seconds until every node has a new pool or network.
READY_SECONDS = 30.0
#: Size of a simulated node's disk image: it is never read.
_TOKEN_BYTES = 2**20
_BOOT_SIGNATURE = b"\x55\xaa"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Source:
    """An image as nodes find it: a path on every node, and its SHA-256 in hex."""

    name: str
    path: Path
    sha256: str


def place_images(plan: LabPlan) -> tuple[Source, ...]:
    """Build the images, or find them built, and lay them where every node sees them."""
    folder = plan.shared / "images"
    folder.mkdir(exist_ok=True)
    if plan.kind == "simulated":
        return _token_images(folder)
    built = images(image_cache())
    vm = Source(VM_IMAGE, Path("/srv/shared/images") / built.vm.name, built.vm_sha256)
    container = Source(CONTAINER_IMAGE, Path("/srv/shared/images") / built.container.name, built.container_sha256)
    for file in (built.vm, built.container):
        if not (folder / file.name).exists():
            shutil.copyfile(file, folder / f".{file.name}")
            (folder / f".{file.name}").rename(folder / file.name)
    return vm, container


def image_cache() -> Path:
    """Where built images are kept from one lab to the next."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gugus" / "images"


def prepare(operator: Operator, plan: LabPlan) -> None:
    """Make all that guests need: the network, the pool, and the images in it."""
    make_network(operator)
    make_pool(operator, plan)
    for source in place_images(plan):
        import_image(operator, source)


def make_network(operator: Operator) -> None:
    """Make the bridge network with NAT and DHCP, the same on every node, unless it is there."""
    spec = NetworkSpec(
        name=NETWORK,
        bridge=BridgeNetwork(
            bridge="gg-lan", address="10.20.0.1/24", nat=True, dhcp=DhcpRange(first="10.20.0.100", last="10.20.0.200")
        ),
    )
    sdk = operator.gugus.networks
    if NETWORK not in {network.meta.name for network in operator.run(sdk.list())}:
        operator.run(sdk.create(spec))

    def ready() -> bool:
        found = operator.run(sdk.get(NETWORK)).status.nodes
        return len(found) == len(_hosts(operator)) and all(state.ready for state in found.values())

    operator.wait(f"network {NETWORK} on every node", ready, READY_SECONDS)


def make_pool(operator: Operator, plan: LabPlan) -> None:
    """Make the pool in the folder that all nodes share, unless it is there."""
    path = plan.shared / "pool"
    path.mkdir(exist_ok=True)
    seen = path if plan.kind == "simulated" else Path("/srv/shared/pool")
    sdk = operator.gugus.pools
    if POOL not in {pool.meta.name for pool in operator.run(sdk.list())}:
        operator.run(sdk.create(PoolSpec(name=POOL, dir=DirPool(path=str(seen), shared=True))))

    def ready() -> bool:
        found = operator.run(sdk.get(POOL)).status.nodes
        return len(found) == len(_hosts(operator)) and all(state.ready for state in found.values())

    operator.wait(f"pool {POOL} on every node", ready, READY_SECONDS)


def _hosts(operator: Operator) -> list[Node]:
    return [node for node in operator.nodes() if not node.spec.witness]


def import_image(operator: Operator, source: Source) -> None:
    """Import an image with its checksum; one of the same content stays, another one is replaced."""
    sdk = operator.gugus.pools
    for image in operator.run(sdk.images(pool=POOL)):
        if image.volume.name == source.name:
            if image.volume.sha256 == source.sha256:
                return
            operator.do(sdk.delete_image(POOL, source.name))
    operator.do(sdk.import_image(POOL, source.name, str(source.path), sha256=source.sha256))


def remove_guests(operator: Operator, names: tuple[str, ...] = GUESTS) -> list[str]:
    """Delete the guests of an earlier run, in whatever state they are; return which there were."""
    there = [guest.meta.name for guest in operator.guests() if guest.meta.name in names]
    for name in there:
        try:
            operator.do(operator.gugus.guests.delete(name, force=True))
        except GugusError as error:
            if not error.reason.endswith("_NOT_FOUND"):
                raise
    return there


def vm_spec(node: str = "", *, ha: bool = True, image: str = VM_IMAGE, simulated: bool = False) -> GuestSpec:
    """The virtual machine; ``node``: where it starts, if it fits there."""
    # Without qemu-img nothing can make a disk; then a simulated guest has a folder instead.
    if simulated and not shutil.which("qemu-img"):
        return container_spec(node, ha=ha, simulated=True)
    return GuestSpec(
        kind=GUEST_KIND_VIRTUAL_MACHINE,
        cpus=1,
        memory_bytes=VM_MEMORY_BYTES,
        disks=[DiskSpec(pool=POOL, image=image)],
        nics=[NicSpec(network=NETWORK)],
        power=POWER_ON,
        ha=HaSpec(enabled=ha),
        preferred_node=node,
    )


def container_spec(
    node: str = "", *, ha: bool = True, image: str = CONTAINER_IMAGE, simulated: bool = False
) -> GuestSpec:
    """The container; ``node``: where it starts, if it fits there. A simulated one needs no user ids of its own."""
    return GuestSpec(
        kind=GUEST_KIND_CONTAINER,
        cpus=1,
        memory_bytes=CONTAINER_MEMORY_BYTES,
        disks=[DiskSpec(pool=POOL, image=image)],
        nics=[NicSpec(network=NETWORK)],
        power=POWER_ON,
        ha=HaSpec(enabled=ha),
        preferred_node=node,
        container=ContainerSpec(privileged=simulated),
    )


def beats(plan: LabPlan, guest: Guest) -> tuple[Heartbeat, ...]:
    """What a guest of a real lab wrote on its disk while it ran, by all of its copies; empty when nothing yet."""
    volume = guest.spec.disks[0].volume
    pool = plan.shared / "pool" / "gugus"
    try:
        if guest.spec.kind == GUEST_KIND_CONTAINER:
            return read_container_history(pool / "filesystems" / volume)
        return read_history(pool / "disks" / f"{volume}.qcow2")
    except NoHeartbeat:
        return ()


def _token_images(folder: Path) -> tuple[Source, ...]:
    """Files that a pool takes for a disk and for a root file system; simulated guests never read them."""
    disk = bytearray(_TOKEN_BYTES)
    disk[510:512] = _BOOT_SIGNATURE
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        entry = tarfile.TarInfo("etc/hostname")
        entry.uid, entry.gid, entry.size = os.getuid(), os.getgid(), 1
        tar.addfile(entry, io.BytesIO(b"\n"))
    container = _file(folder / "root.tar", CONTAINER_IMAGE, archive.getvalue())
    if not shutil.which("qemu-img"):
        return (container,)
    return _file(folder / "disk.raw", VM_IMAGE, bytes(disk)), container


def _file(path: Path, name: str, content: bytes) -> Source:
    if not path.exists() or path.read_bytes() != content:
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(content)
        Path(file.name).rename(path)
    return Source(name, path, hashlib.sha256(content).hexdigest())
