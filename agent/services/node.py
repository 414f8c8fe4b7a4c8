"""NodeService: the host itself."""

import asyncio
from functools import partial
from typing import Any

from gugus.agent.v1 import node_pb2, node_pb2_grpc

from agent import shutdown
from agent.facts import HostFacts
from agent.managers import ManagerFiles
from agent.reach import MOST_REACH_MS, reach
from agent.storage.beats import StorageBeats
from agent.turns import Turns


class NodeService(node_pb2_grpc.NodeServiceServicer):
    """See proto/gugus/agent/v1/node.proto."""

    def __init__(self, facts: HostFacts, managers: ManagerFiles, turns: Turns, beats: StorageBeats) -> None:
        self._facts, self._managers, self._turns, self._beats = facts, managers, turns, beats

    async def GetFacts(self, request: node_pb2.GetFactsRequest, context: Any) -> node_pb2.Facts:
        """Tell what the host is."""
        return await self._facts.refresh()

    async def GetHealth(self, request: node_pb2.GetHealthRequest, context: Any) -> node_pb2.Health:
        """Tell how the host is."""
        return self._facts.health()

    async def Reach(self, request: node_pb2.ReachRequest, context: Any) -> node_pb2.ReachResponse:
        """Tell whether another host is reached from here."""
        beat = asyncio.create_task(self._storage_beat(request.node))
        try:
            reached, reason = await reach(request.endpoint, min(request.timeout_ms, MOST_REACH_MS) / 1000)
            return node_pb2.ReachResponse(
                reached=reached,
                reason=reason,
                storage_beat=node_pb2.STORAGE_BEAT_UNSPECIFIED if reached else await beat,
            )
        finally:
            beat.cancel()

    async def _storage_beat(self, node: str) -> node_pb2.StorageBeat.ValueType:
        match await self._beats.goes_on(node) if node else None:
            case True:
                return node_pb2.STORAGE_BEAT_GOES_ON
            case False:
                return node_pb2.STORAGE_BEAT_STANDS_STILL
            case _:
                return node_pb2.STORAGE_BEAT_UNSPECIFIED

    async def ActivateManager(
        self, request: node_pb2.ActivateManagerRequest, context: Any
    ) -> node_pb2.ActivateManagerResponse:
        """Make the host a voter."""
        await self._turns.run("manager", request.epoch, partial(self._managers.activate, request))
        return node_pb2.ActivateManagerResponse()

    async def DeactivateManager(
        self, request: node_pb2.DeactivateManagerRequest, context: Any
    ) -> node_pb2.DeactivateManagerResponse:
        """End that."""
        await self._turns.run("manager", request.epoch, self._managers.deactivate)
        return node_pb2.DeactivateManagerResponse()

    async def RebootHost(self, request: node_pb2.RebootHostRequest, context: Any) -> node_pb2.RebootHostResponse:
        """Reboot the host, unless the boot that is to end is over."""
        same = request.boot_id == self._facts.facts.boot_id
        await self._turns.run("host", request.epoch, shutdown.reboot if same else _nothing)
        return node_pb2.RebootHostResponse()


async def _nothing() -> None:
    return None
