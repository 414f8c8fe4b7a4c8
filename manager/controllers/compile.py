"""From a guest of the cluster to what its node's agent is asked: specs without anything left to choose. Pure."""

from gugus.agent.v1 import guest_pb2 as agent_guest
from gugus.agent.v1 import volume_pb2
from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER
from gugus.cluster.v1.guest_pb2 import QUORUM_LOSS_STOP, DiskSpec, Guest


def image_name(pool: str, image: str) -> str:
    """Return the name of an image's object."""
    return f"{pool}.{image}"


def agent_spec(guest: Guest, *, ha: bool) -> agent_guest.GuestSpec:
    """Return the spec for the agent; `ha` says whether it dies with the node's lease."""
    own = guest.spec
    spec = agent_guest.GuestSpec(
        name=guest.meta.name,
        id=own.id,
        uid=guest.meta.uid,
        kind=own.kind,
        cpus=own.cpus,
        cpu_limit_milli=own.cpu_limit_milli,
        memory_bytes=own.memory_bytes,
        first_boot=own.first_boot,
        ha=ha,
        boot_order=own.boot.order,
        after=own.boot.after,
        stop_on_quorum_loss=own.ha.quorum_loss == QUORUM_LOSS_STOP,
        shutdown_timeout_ms=own.shutdown_timeout_ms,
        hibernation_volume=guest.status.hibernation_volume,
        hibernation_pool=guest.status.hibernation_pool,
    )
    for disk in own.disks:
        spec.disks.add(
            name=disk.name,
            pool=disk.pool,
            volume=disk.volume,
            read_only=disk.settings.read_only,
            size_bytes=disk.size_bytes,
            settings=disk.settings if disk.HasField("settings") else None,
        )
    for nic in own.nics:
        spec.nics.add(
            name=nic.name,
            network=nic.network,
            mac=nic.mac,
            settings=nic.settings if nic.HasField("settings") else None,
        )
    if own.HasField("resources"):
        spec.resources.CopyFrom(own.resources)
    if own.HasField("policies"):
        spec.policies.CopyFrom(own.policies)
    if own.kind == GUEST_KIND_CONTAINER:
        spec.container.CopyFrom(own.container)
    else:
        spec.virtual_machine.CopyFrom(own.virtual_machine)
        if guest.status.HasField("cluster_cpu"):
            spec.cluster_cpu.CopyFrom(guest.status.cluster_cpu)
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
        source=disk.base_volume or disk.image,
        privileged=guest.spec.container.privileged,
    )
