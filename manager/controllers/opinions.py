"""The second opinion, before the power of a silent host is cut: others are asked whether they reach it, or see it write to shared storage.

They are asked while it is not even suspected, so that the answers are there when it is.
"""

import asyncio

from gugus.agent.v1.node_pb2 import STORAGE_BEAT_GOES_ON, STORAGE_BEAT_STANDS_STILL, ReachRequest, ReachResponse
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

ANSWER_S = 1.45
"""The others' own answers are waited for so long, a fifth of a second more than they watch its beat in shared storage; what is later came
from a host that is in trouble itself. They are there when the node is suspected: half its three beats are over when they are asked."""

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
        told = {other.meta.name: answer for other, answer in zip(others, answers, strict=True) if answer is not None}
        missed = {name: answer.storage_beat for name, answer in told.items() if not answer.reached}
        self._fencing.opinions[node.meta.name] = Opinion(
            asked_ns,
            tuple(name for name, answer in told.items() if answer.reached),
            tuple(missed),
            tuple(name for name, beat in missed.items() if beat == STORAGE_BEAT_GOES_ON),
            tuple(name for name, beat in missed.items() if beat == STORAGE_BEAT_STANDS_STILL),
        )

    async def _reaches(self, other: Node, node: Node) -> ReachResponse | None:
        """Return what a host says of the node, None when it does not."""
        request = ReachRequest(
            endpoint=join_endpoint(node.spec.address, node.spec.agent_port),
            timeout_ms=REACH_TIMEOUT_MS,
            node=node.meta.name,
        )
        try:
            return await self._context.tell(other, lambda agent, _: agent.host.Reach(request, timeout=ANSWER_S))
        except GugusError as error:
            _log.info("no opinion", of=other.meta.name, about=node.meta.name, error=str(error))
            return None
