"""What becomes of the disks of a deleted guest that are to be kept: images of their pools, so that they are known, and can be deleted."""

from gugus.agent.v1 import volume_pb2
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.pool_pb2 import Image, Pool

from manager.controllers.compile import image_name
from manager.controllers.context import Context
from manager.controllers.guest_node import Tell
from manager.guests.known import shared
from manager.store import Txn
from manager.store.kinds import new

LABEL = "kept-from"
"""Label of such an image: the name of the guest whose disk it was."""


async def keep_disks(context: Context, tell: Tell, guest: Guest, node: Node, txn: Txn) -> list[tuple[str, str]]:
    """Add images of a guest's disks to the transaction that deletes it; return pool and name of the volumes that thus stay."""
    kept = []
    for disk in [*guest.spec.disks, *guest.status.unused_disks]:
        volume = await _volume(tell, disk.pool, disk.volume)
        if volume is None:
            continue
        image = new(Image, image_name(disk.pool, disk.volume), labels={LABEL: guest.meta.name})
        image.pool = disk.pool
        image.volume.CopyFrom(volume)
        pool = context.store.peek(Pool, disk.pool)
        image.node = "" if pool is not None and shared(pool) else node.meta.name
        txn.put(image)
        kept.append((disk.pool, disk.volume))
    return kept


async def _volume(tell: Tell, pool: str, name: str) -> volume_pb2.Volume | None:
    listed = await tell(lambda agent, _: agent.volumes.ListVolumes(volume_pb2.ListVolumesRequest(pool=pool)))
    return next((volume for volume in listed.volumes if volume.name == name), None)
