"""GuestService: guests on this host."""

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from gugus.agent.v1 import guest_pb2, guest_pb2_grpc, task_pb2

from agent.guests import Guests
from agent.tasks import Tasks
from common import validate
from common.errors import GugusError


class GuestService(guest_pb2_grpc.GuestServiceServicer):
    """See proto/gugus/agent/v1/guest.proto."""

    def __init__(self, guests: Guests, tasks: Tasks) -> None:
        self._guests, self._tasks = guests, tasks

    async def CreateGuest(self, request: guest_pb2.CreateGuestRequest, context: Any) -> guest_pb2.Guest:
        """Define a guest."""
        return await self._guests.create(request.epoch, request.spec)

    async def StartGuest(self, request: guest_pb2.StartGuestRequest, context: Any) -> guest_pb2.Guest:
        """Start a guest."""
        return await self._guests.start(request.epoch, request.name, request.grant.generation)

    async def StopGuest(self, request: guest_pb2.StopGuestRequest, context: Any) -> guest_pb2.Guest:
        """Stop a guest."""
        return await self._guests.stop(request.epoch, request.name, request.timeout_ms / 1000)

    async def KillGuest(self, request: guest_pb2.KillGuestRequest, context: Any) -> guest_pb2.Guest:
        """Kill a guest."""
        return await self._guests.kill(request.epoch, request.name)

    async def SuspendGuest(self, request: guest_pb2.SuspendGuestRequest, context: Any) -> guest_pb2.Guest:
        """Hold a guest."""
        return await self._guests.suspend(request.epoch, request.name)

    async def ResumeGuest(self, request: guest_pb2.ResumeGuestRequest, context: Any) -> guest_pb2.Guest:
        """Let a guest go on."""
        return await self._guests.resume(request.epoch, request.name)

    async def ResetGuest(self, request: guest_pb2.ResetGuestRequest, context: Any) -> guest_pb2.Guest:
        """Press a guest's reset button."""
        return await self._guests.reset(request.epoch, request.name)

    async def HibernateGuest(self, request: guest_pb2.HibernateGuestRequest, context: Any) -> task_pb2.Task:
        """Begin to write a guest's memory into a volume."""
        validate.require("name", validate.name(request.name))
        validate.require("volume", validate.name(request.volume))
        await self._guests.admit_hibernation(request.epoch, request.name)
        work = partial(self._guests.hibernate, request.epoch, request.name, request.pool, request.volume)
        return self._tasks.begin(request.task_id, "hibernate-guest", f"guest/{request.name}", work)

    async def DeleteGuest(self, request: guest_pb2.DeleteGuestRequest, context: Any) -> guest_pb2.DeleteGuestResponse:
        """Undefine a guest."""
        await self._guests.delete(request.epoch, request.name)
        return guest_pb2.DeleteGuestResponse()

    async def InspectGuest(self, request: guest_pb2.InspectGuestRequest, context: Any) -> guest_pb2.Guest:
        """Tell of one guest."""
        return self._guests.get(request.name)

    async def ListGuests(self, request: guest_pb2.ListGuestsRequest, context: Any) -> guest_pb2.ListGuestsResponse:
        """Tell of all guests."""
        return guest_pb2.ListGuestsResponse(guests=self._guests.list())

    async def WatchGuests(
        self, request: guest_pb2.WatchGuestsRequest, context: Any
    ) -> AsyncIterator[guest_pb2.WatchGuestsResponse]:
        """Tell of all guests, then of each change."""
        watcher = self._guests.changes.watch()
        try:
            for guest in self._guests.list():
                yield guest_pb2.WatchGuestsResponse(guest=guest)
            while True:
                for name in sorted(await watcher.next()):
                    yield self._change(name)
        finally:
            self._guests.changes.unwatch(watcher)

    async def GetConsoleLog(
        self, request: guest_pb2.GetConsoleLogRequest, context: Any
    ) -> guest_pb2.GetConsoleLogResponse:
        """Return the end of a console log."""
        return guest_pb2.GetConsoleLogResponse(data=await self._guests.console_log(request.name, request.max_bytes))

    def _change(self, name: str) -> guest_pb2.WatchGuestsResponse:
        try:
            return guest_pb2.WatchGuestsResponse(guest=self._guests.get(name))
        except GugusError:  # gone meanwhile
            return guest_pb2.WatchGuestsResponse(
                guest=guest_pb2.Guest(spec=guest_pb2.GuestSpec(name=name)), deleted=True
            )
