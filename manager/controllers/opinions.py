"""The second opinion: other hosts are asked whether they reach one that is silent, before its power is cut.

They are asked while it is not even suspected, so that the answers are there when it is.
"""

import asyncio

from gugus.agent.v1 import node_pb2
from gugus.cluster.v1.node_pb2 import Node

from common.config import join_endpoint
from common.errors import GugusError
from common.logs import get_logger
from manager.controllers.context import Context
from manager.controllers.fencing import Fencing
from manager.ha.fence_plan import Opinion, opinion_due

MOST_ASKED = 5
"""Hosts that are asked about one: more would not be wiser."""

REACH_TIMEOUT_MS = 800
"""A host that is reached answers within milliseconds; a lost packet is sent again after 200 ms at most twice."""

ANSWER_S = 1.2
"""The others' own answers are waited for so long: what is later came from a host that is in trouble itself."""

_log = get_logger("opinions")


class Opinions:
    """Asks, one question about a node at a time."""

    def __init__(self, context: Context, fencing: Fencing) -> None:
        self._context, self._fencing = context, fencing
        self._asking: set[str] = set()

    def look(self, group: asyncio.TaskGroup) -> None:
        """Begin the questions that are due."""
        now_ns = self._context.acting.now_ns()
        for node in self._fencing.silent():
            name = node.meta.name
            if name not in self._asking and opinion_due(self._fencing.view(node), now_ns):
                self._asking.add(name)
                group.create_task(self._ask(node))

    async def _ask(self, node: Node) -> None:
        asked_ns = self._context.acting.now_ns()
        others = [other for other in self._context.online_nodes() if other.meta.name != node.meta.name][:MOST_ASKED]
        try:
            answers = await asyncio.gather(*(self._reaches(other, node) for other in others))
        finally:
            self._asking.discard(node.meta.name)
        told = dict(zip((other.meta.name for other in others), answers, strict=True))
        self._fencing.opinions[node.meta.name] = Opinion(
            asked_ns,
            tuple(name for name, reached in told.items() if reached),
            tuple(name for name, reached in told.items() if reached is False),
        )

    async def _reaches(self, other: Node, node: Node) -> bool | None:
        """Return whether a host reaches the node, None when it does not say."""
        request = node_pb2.ReachRequest(
            endpoint=join_endpoint(node.spec.address, node.spec.agent_port), timeout_ms=REACH_TIMEOUT_MS
        )
        try:
            answer = await self._context.tell(other, lambda agent, _: agent.host.Reach(request, timeout=ANSWER_S))
        except GugusError as error:
            _log.info("no opinion", of=other.meta.name, about=node.meta.name, error=str(error))
            return None
        return bool(answer.reached)
