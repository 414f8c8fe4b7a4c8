"""A small cluster as rules see it, and guests in it."""

from collections.abc import Sequence

from gugus.agent.v1.container_pb2 import ContainerSpec
from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER, GUEST_KIND_VIRTUAL_MACHINE
from gugus.agent.v1.volume_pb2 import (
    VOLUME_FORMAT_ARCHIVE,
    VOLUME_FORMAT_QCOW2,
    VOLUME_FORMAT_RAW,
    VOLUME_KIND_ISO,
    DirPool,
    PoolSpec,
    Volume,
)
from gugus.cluster.v1.guest_pb2 import CreateGuestRequest, DiskSpec, Guest, GuestSpec, NicSpec
from gugus.cluster.v1.network_pb2 import Network
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.pool_pb2 import Image, Pool
from gugus.cluster.v1.project_pb2 import Project

from manager.guests.complete import complete
from manager.guests.known import Known
from manager.store.kinds import new

MIB, GIB = 2**20, 2**30


def known(*guests: Guest, projects: Sequence[Project] = ()) -> Known:
    """Nodes n1 and n2, pools "shared" and "local", network "lan", images of every kind, and guests."""
    return Known(
        guests,
        {name: node(name) for name in ("n1", "n2")},
        {name: pool(name, shared=name == "shared") for name in ("shared", "local")},
        {"lan": new(Network, "lan")},
        {image.meta.name: image for name in ("shared", "local") for image in images(name)},
        {project.meta.name: project for project in projects},
    )


def node(name: str) -> Node:
    made = new(Node, name)
    made.status.facts.cpus = 8
    made.status.facts.hypervisors.add(
        driver="kvm",
        kinds=[GUEST_KIND_VIRTUAL_MACHINE],
        ready=True,
        machine_types=["pc-q35-7.2", "pc-q35-7.1", "pc-i440fx-7.2"],
        cpu_models=["qemu64", "Nehalem", "Haswell"],
    )
    return made


def pool(name: str, *, shared: bool) -> Pool:
    made = new(Pool, name)
    made.spec.CopyFrom(PoolSpec(name=name, dir=DirPool(path=f"/srv/{name}", shared=shared)))
    return made


def images(pool: str) -> list[Image]:
    kinds = {
        "debian": Volume(format=VOLUME_FORMAT_QCOW2, size_bytes=2 * GIB),
        "root": Volume(format=VOLUME_FORMAT_ARCHIVE, size_bytes=1_037_810),
        "installer": Volume(format=VOLUME_FORMAT_RAW, kind=VOLUME_KIND_ISO, size_bytes=GIB),
    }
    made = []
    for name, volume in kinds.items():
        image = new(Image, f"{pool}.{name}")
        image.pool, volume.pool, volume.name = pool, pool, name
        image.volume.CopyFrom(volume)
        made.append(image)
    return made


def vm(**changes: object) -> GuestSpec:
    """A virtual machine that nothing is wrong with."""
    spec = GuestSpec(
        kind=GUEST_KIND_VIRTUAL_MACHINE,
        cpus=4,
        memory_bytes=GIB,
        disks=[DiskSpec(name="root", pool="shared", image="debian")],
        nics=[NicSpec(name="eth0", network="lan")],
    )
    spec.MergeFrom(GuestSpec(**changes))  # type: ignore[arg-type]
    return spec


def container(**changes: object) -> GuestSpec:
    """A container that nothing is wrong with."""
    spec = GuestSpec(
        kind=GUEST_KIND_CONTAINER,
        container=ContainerSpec(),
        disks=[DiskSpec(name="root", pool="shared", image="root")],
        nics=[NicSpec(name="eth0", network="lan")],
    )
    spec.MergeFrom(GuestSpec(**changes))  # type: ignore[arg-type]
    return spec


def guest(spec: GuestSpec, world: Known, name: str = "web") -> Guest:
    """A guest as it is stored once it was asked for."""
    return complete(CreateGuestRequest(name=name, spec=spec), world)
