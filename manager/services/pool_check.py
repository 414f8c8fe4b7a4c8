"""`gugus pool check`: volumes that nobody knows, and known ones that are not there. Repair deletes the former, carefully.

The nodes are asked first and the state is read afterwards, behind a read barrier: a volume that was made meanwhile has its owner in the
state already, for owners are written down before their volumes are made.
"""

import time
from collections.abc import Sequence

from gugus.agent.v1 import volume_pb2
from gugus.cluster.v1 import pool_pb2
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.pool_pb2 import Image, Pool, StrayVolume
from gugus.cluster.v1.task_pb2 import Task

from common.errors import GugusError
from manager.controllers.context import Context, with_epoch
from manager.controllers.known_volumes import Known, busy_guests, mentioned, of_guests, of_images
from manager.events import WARNING, record
from manager.services.forward import actor
from manager.services.pool_volumes import Listed, ask
from manager.store import Store, Txn

LEAST_AGE_S = 600
"""An orphan that is younger may belong to something whose end is not known yet."""


ANSWER_S = 60.0
"""A node that lists for longer, as one with a hung file system does, is not waited for."""


async def check(context: Context, pool: Pool) -> pool_pb2.CheckPoolResponse:
    """Compare what is there with what is known."""
    answer = pool_pb2.CheckPoolResponse()
    found = await ask(context, pool, ANSWER_S)
    answer.unchecked_nodes.update(found.unasked)
    await context.store.list(Task)  # a read barrier
    compare(context.store, pool, found.listed, answer)
    return answer


def compare(store: Store, pool: Pool, listed: Sequence[Listed], answer: pool_pb2.CheckPoolResponse) -> None:
    """Fill in what is wrong."""
    tasks = store.peek_all(Task)
    known = [*of_guests(store.peek_all(Guest), busy_guests(tasks)), *of_images(store.peek_all(Image))]
    known = [item for item in known if item.pool == pool.meta.name]
    shared = pool.spec.dir.shared
    for there in listed:
        answer.checked += len(there.volumes)
        owned = {item.volume for item in known if shared or not item.nodes or there.node in item.nodes}
        owned |= _read_by(owned, there.volumes)
        for volume in there.volumes:
            if volume.name not in owned and not mentioned(volume.name, tasks):
                age_s = max(0, int(time.time() - volume.created_at.ToMilliseconds() / 1000))
                answer.orphans.add(node=there.node, volume=volume, age_s=age_s)
    for item in known:
        if item.due and (missing_from := _missing_from(item, listed, shared=shared)):
            answer.missing.add(
                node=missing_from,
                volume=volume_pb2.Volume(pool=item.pool, name=item.volume),
                owner=item.owner,
            )


async def repair(context: Context, pool: Pool, request: pool_pb2.RepairPoolRequest) -> pool_pb2.RepairPoolResponse:
    """Delete orphans that were found, each only if it is one still."""
    answer = pool_pb2.RepairPoolResponse()
    least_age_s = request.least_age_s or LEAST_AGE_S
    async with context.admission:  # no guest is given one of them meanwhile
        now = await check(context, pool)
        orphans = {(stray.node, stray.volume.name): stray for stray in now.orphans}
        for asked in sorted(request.orphans, key=lambda stray: not stray.volume.backing):  # clones before their bases
            label = f"{asked.node}/{asked.volume.name}"
            stray = orphans.get((asked.node, asked.volume.name))
            if stray is None:
                answer.left[label] = "it is no orphan, or its node does not answer"
                continue
            try:
                await _delete(context, pool, stray, least_age_s)
            except GugusError as error:
                answer.left[label] = str(error)
            else:
                answer.deleted.append(stray)
    return answer


async def _delete(context: Context, pool: Pool, stray: StrayVolume, least_age_s: int) -> None:
    node = await context.store.require(Node, stray.node)
    delete = volume_pb2.DeleteVolumeRequest(pool=pool.meta.name, name=stray.volume.name, orphan_age_s=least_age_s)
    await context.tell(node, lambda agent, epoch: agent.volumes.DeleteVolume(with_epoch(delete, epoch)))
    text = f"volume {stray.volume.name} on {stray.node}, which nobody knew, was deleted for {actor()}"
    await context.store.txn(record(Txn(), f"pool/{pool.meta.name}", "ORPHAN_DELETED", text, WARNING))


def _read_by(owned: set[str], volumes: Sequence[volume_pb2.Volume]) -> set[str]:
    """Return what owned volumes read from, to the end of each chain."""
    backing = {volume.name: volume.backing for volume in volumes if volume.backing}
    found: set[str] = set()
    for name in owned:
        while (name := backing.get(name, "")) and name not in found:
            found.add(name)
    return found


def _missing_from(item: Known, listed: Sequence[Listed], *, shared: bool) -> str:
    """Return the node that should have a volume and does not; "" when it has, or was not asked."""
    for there in listed:
        if (shared or there.node in item.nodes) and item.volume not in {volume.name for volume in there.volumes}:
            return there.node
    return ""
