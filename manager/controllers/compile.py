"""From a guest of the cluster to what its node's agent is asked: specs without anything left to choose. Pure."""

from gugus.agent.v1 import guest_pb2 as agent_guest
from gugus.agent.v1 import volume_pb2
from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER
from gugus.cluster.v1.guest_pb2 import DiskSpec, Guest


def image_name(pool: str, image: str) -> str:
    """Return the name of an image's object."""
    return f"{pool}.{image}"


def agent_spec(guest: Guest, *, ha: bool) -> agent_guest.GuestSpec:
    """Return the spec for the agent; `ha` says whether it dies with the node's lease."""
    spec = agent_guest.GuestSpec(
        name=guest.meta.name,
        id=guest.spec.id,
        uid=guest.meta.uid,
        kind=guest.spec.kind,
        cpus=guest.spec.cpus,
        cpu_limit_milli=guest.spec.cpu_limit_milli,
        memory_bytes=guest.spec.memory_bytes,
        ha=ha,
    )
    spec.disks.extend(
        agent_guest.GuestDisk(name=disk.name, pool=disk.pool, volume=disk.volume) for disk in guest.spec.disks
    )
    spec.nics.extend(agent_guest.GuestNic(name=nic.name, network=nic.network, mac=nic.mac) for nic in guest.spec.nics)
    spec.first_boot.CopyFrom(guest.spec.first_boot)
    if guest.spec.kind == GUEST_KIND_CONTAINER:
        spec.container.CopyFrom(guest.spec.container)
    else:
        spec.virtual_machine.CopyFrom(guest.spec.virtual_machine)
    return spec


def volume_request(guest: Guest, disk: DiskSpec, epoch: int) -> volume_pb2.CreateVolumeRequest:
    """Return the request that makes one disk of a guest."""
    container = guest.spec.kind == GUEST_KIND_CONTAINER
    return volume_pb2.CreateVolumeRequest(
        epoch=epoch,
        pool=disk.pool,
        name=disk.volume,
        format=volume_pb2.VOLUME_FORMAT_FILESYSTEM if container else volume_pb2.VOLUME_FORMAT_QCOW2,
        size_bytes=disk.size_bytes,
        source=disk.image,
        privileged=guest.spec.container.privileged,
    )
