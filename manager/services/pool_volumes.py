"""What nodes have in a pool: all of them are asked at once, of a shared pool one; who cannot be asked is told with the reason."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from gugus.agent.v1 import volume_pb2
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.pool_pb2 import Pool

from common.errors import GugusError
from manager.controllers.context import Context


@dataclass(frozen=True, slots=True)
class Listed:
    """What a node says it has in a pool."""

    node: str
    volumes: Sequence[volume_pb2.Volume]


@dataclass(frozen=True, slots=True)
class Listing:
    """What nodes said, by name, and why others could not be asked."""

    listed: list[Listed] = field(default_factory=list)
    unasked: dict[str, str] = field(default_factory=dict)


async def ask(context: Context, pool: Pool, answer_s: float, node: str = "") -> Listing:
    """Ask the nodes that have a pool, or one of them, for their volumes in it.

    answer_s: a node that lists for longer, as one with a hung file system does, is not waited for.
    """
    listing = Listing()
    chosen = _chosen(context, pool, listing, node)
    for name, told in zip(
        chosen, await asyncio.gather(*(_ask(context, pool, each, answer_s) for each in chosen.values())), strict=True
    ):
        if isinstance(told, str):
            listing.unasked[name] = told
        else:
            listing.listed.append(Listed(name, told))
    return listing


async def _ask(context: Context, pool: Pool, node: Node, answer_s: float) -> Sequence[volume_pb2.Volume] | str:
    """Return a node's volumes, or why it does not tell them."""
    request = volume_pb2.ListVolumesRequest(pool=pool.meta.name)
    try:
        async with asyncio.timeout(answer_s):
            return (await context.tell(node, lambda agent, _: agent.volumes.ListVolumes(request))).volumes
    except GugusError as error:
        return error.message
    except TimeoutError:
        return f"its pool did not answer within {answer_s:g} s"


def _chosen(context: Context, pool: Pool, listing: Listing, node: str) -> dict[str, Node]:
    """Return the nodes to be asked, by name: of a shared pool one is enough."""
    online = {each.meta.name: each for each in context.online_nodes()}
    chosen = {}
    for name, state in sorted(pool.status.nodes.items()):
        if node not in ("", name):
            continue
        if name not in online:
            listing.unasked[name] = "it is not online"
        elif not state.ready:
            listing.unasked[name] = state.reason
        else:
            chosen[name] = online[name]
    if pool.spec.dir.shared and chosen:
        listing.unasked.clear()
        return dict(list(chosen.items())[:1])
    return chosen
