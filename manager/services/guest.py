"""The guest service: writes down what is asked of guests; controllers make it so, and the returned task ends when it is."""

from gugus.agent.v1 import guest_pb2 as agent_guest
from gugus.cluster.v1 import guest_pb2, guest_pb2_grpc
from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_ERROR,
    GUEST_PHASE_PENDING,
    GUEST_PHASE_STOPPED,
    POWER_OFF,
    POWER_ON,
    Guest,
    Power,
)
from gugus.cluster.v1.network_pb2 import Network
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.pool_pb2 import Image, Pool
from gugus.cluster.v1.task_pb2 import Task

from common.errors import already_exists, precondition, resource_exhausted
from manager.controllers import guest_tasks
from manager.controllers.context import Context
from manager.controllers.placing import decide
from manager.events import record
from manager.scheduler.views import to_proto
from manager.services.forward import actor
from manager.services.guest_rules import Known, check_ha, complete
from manager.services.requests import begin, begun, upon_latest
from manager.store import Txn
from manager.tasks import new_task


class GuestService(guest_pb2_grpc.GuestServiceServicer):
    """Serves `gugus guest`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store

    async def CreateGuest(self, request: guest_pb2.CreateGuestRequest, context: object) -> Task:
        """Make a guest."""
        async with self._context.admission:  # ids and MAC addresses, too, are chosen from what is there
            if done := await self._begun(guest_tasks.CREATE, request.name, request.request_id):
                return done
            guest = complete(request, self._known())
            if self._store.peek(Guest, request.name) is not None:
                raise already_exists("guest", request.name, remedy="Choose another name.")
            decision = decide(self._context, guest)
            if decision.hopeless:
                raise resource_exhausted(
                    "NO_NODE_FITS",
                    f"no node could ever run it: {decision.reason}",
                    remedy="Ask for less, or add a bigger node.",
                )
            task = self._task(guest_tasks.CREATE, guest.meta.name, request.request_id, request)
            guest.meta.generation += self._context.generation_floor()
            guest.status.phase = GUEST_PHASE_PENDING
            guest.status.reason = "just created"
            txn = Txn(spare_reserve=True).put(guest, expect_absent=True)
            record(txn, f"guest/{guest.meta.name}", "GUEST_CREATED", f"created by {actor()}")
            return await begin(self._store, task, txn)

    async def GetGuest(self, request: guest_pb2.GetGuestRequest, context: object) -> Guest:
        """Return one guest."""
        return await self._store.require(Guest, request.name)

    async def ListGuests(self, request: guest_pb2.ListGuestsRequest, context: object) -> guest_pb2.ListGuestsResponse:
        """Return all guests, or those of a node."""
        guests = await self._store.list(Guest)
        return guest_pb2.ListGuestsResponse(
            guests=[guest for guest in guests if request.node in ("", guest.status.node)]
        )

    async def StartGuest(self, request: guest_pb2.StartGuestRequest, context: object) -> Task:
        """Ask a guest to run."""
        return await self._power(request.name, POWER_ON, guest_tasks.START, request.request_id, request)

    async def StopGuest(self, request: guest_pb2.StopGuestRequest, context: object) -> Task:
        """Ask a guest to stop."""
        return await self._power(request.name, POWER_OFF, guest_tasks.STOP, request.request_id, request)

    async def DeleteGuest(self, request: guest_pb2.DeleteGuestRequest, context: object) -> Task:
        """Ask for a guest's end."""

        async def change() -> Task:
            if done := await self._begun(guest_tasks.DELETE, request.name, request.request_id):
                return done
            guest = await self._store.require(Guest, request.name)
            ends = guest.status.phase in (GUEST_PHASE_STOPPED, GUEST_PHASE_ERROR, GUEST_PHASE_PENDING)
            if not (ends or request.force or guest.meta.deleting):
                raise precondition(
                    "GUEST_RUNNING",
                    f"guest {request.name} is not stopped: {guest.status.reason}.",
                    remedy=f"`gugus guest stop {request.name}` first, or delete it with --force.",
                )
            guest.meta.deleting = True
            task = self._task(guest_tasks.DELETE, request.name, request.request_id, request)
            return await begin(self._store, task, Txn().put(guest, expect_revision=guest.meta.revision))

        return await upon_latest(change)

    async def SetHa(self, request: guest_pb2.SetHaRequest, context: object) -> Guest:
        """Change HA settings."""
        pools = {pool.meta.name: pool for pool in await self._store.list(Pool)}

        def change(guest: Guest) -> Guest:
            guest.spec.ha.CopyFrom(request.ha)
            check_ha(guest, pools)
            return guest

        return await self._store.update(Guest, request.name, change)

    async def ExplainGuest(
        self, request: guest_pb2.ExplainGuestRequest, context: object
    ) -> guest_pb2.ExplainGuestResponse:
        """Say why a guest is where it is, and where it would be put now."""
        guest = await self._store.require(Guest, request.name)
        return guest_pb2.ExplainGuestResponse(
            decided=guest.status.placement, now=to_proto(decide(self._context, guest))
        )

    async def GetConsoleLog(
        self, request: guest_pb2.GetConsoleLogRequest, context: object
    ) -> guest_pb2.GetConsoleLogResponse:
        """Fetch the end of a guest's console log from its node."""
        guest = await self._store.require(Guest, request.name)
        node = await self._store.get(Node, guest.status.node) if guest.status.node else None
        if node is None:
            raise precondition("GUEST_NOT_PLACED", f"guest {request.name} has no node yet: {guest.status.reason}.")
        answer = await self._context.tell(
            node,
            lambda agent, _: agent.guests.GetConsoleLog(
                agent_guest.GetConsoleLogRequest(name=request.name, max_bytes=request.max_bytes)
            ),
        )
        return guest_pb2.GetConsoleLogResponse(data=answer.data)

    async def _power(
        self,
        name: str,
        power: Power.ValueType,
        kind: str,
        request_id: str,
        request: guest_pb2.StartGuestRequest | guest_pb2.StopGuestRequest,
    ) -> Task:

        async def change() -> Task:
            if done := await self._begun(kind, name, request_id):
                return done
            guest = await self._store.require(Guest, name)
            if guest.meta.deleting:
                raise precondition("GUEST_DELETING", f"guest {name} is being deleted.")
            guest.spec.power = power
            task = self._task(kind, name, request_id, request)
            return await begin(self._store, task, Txn().put(guest, expect_revision=guest.meta.revision))

        return await upon_latest(change)

    async def _begun(self, kind: str, guest: str, request_id: str) -> Task | None:
        return await begun(self._store, kind, f"guest/{guest}", request_id)

    def _task(self, kind: str, guest: str, request_id: str, request: object) -> Task:
        return new_task(kind, f"guest/{guest}", str(actor()), request_id, request)  # type: ignore[arg-type]

    def _known(self) -> Known:
        def by_name(objects: list) -> dict:  # type: ignore[type-arg]
            return {obj.meta.name: obj for obj in objects}

        peek = self._store.peek_all
        return Known(
            peek(Guest), by_name(peek(Node)), by_name(peek(Pool)), by_name(peek(Network)), by_name(peek(Image))
        )
