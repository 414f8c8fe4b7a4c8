"""The guest service: writes down what is asked of guests; controllers make it so, and the returned task ends when it is."""

from collections.abc import Callable

from google.protobuf.message import Message
from google.protobuf.wrappers_pb2 import UInt64Value
from gugus.agent.v1 import guest_pb2 as agent_guest
from gugus.agent.v1.guest_pb2 import GUEST_STATE_PAUSED
from gugus.cluster.v1 import guest_pb2, guest_pb2_grpc
from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_ERROR,
    GUEST_PHASE_HIBERNATED,
    GUEST_PHASE_PAUSED,
    GUEST_PHASE_PENDING,
    GUEST_PHASE_STOPPED,
    HA_STATE_ERROR,
    POWER_OFF,
    POWER_ON,
    POWER_PAUSED,
    Guest,
    Power,
)
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.pool_pb2 import Pool
from gugus.cluster.v1.project_pb2 import Project
from gugus.cluster.v1.task_pb2 import Task

from common import validate
from common.errors import already_exists, not_found, precondition, resource_exhausted
from manager.controllers import admission, guest_tasks
from manager.controllers.context import Context
from manager.controllers.placing import decide
from manager.events import record
from manager.guests.complete import check_ha, complete, without_output
from manager.guests.known import Known
from manager.guests.quota import refuse_beyond_quota
from manager.guests.update import updated
from manager.ha import account
from manager.ha.guest_machine import Event
from manager.operations import power, rename
from manager.scheduler import weights_of
from manager.scheduler.views import to_proto
from manager.services.cancel import give_way
from manager.services.forward import actor
from manager.services.guest_checks import (
    linked,
    refuse_change_beyond_node,
    refuse_deleting,
    refuse_unless_runs,
    selects,
    snapshots_holding,
)
from manager.services.requests import begin, begun, change_once, known_nodes, upon_latest
from manager.store import Txn
from manager.tasks import new_task

ENDED_PHASES = (GUEST_PHASE_STOPPED, GUEST_PHASE_ERROR, GUEST_PHASE_PENDING, GUEST_PHASE_HIBERNATED)
"""Phases in which a guest is deleted without `force`."""

Prepare = Callable[[Guest], object]
"""Checks a guest, and changes it as a call asks for. Raises GugusError."""


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
            request.spec.CopyFrom(without_output(request.spec))
            guest = complete(request, Known.of(self._store))
            if self._store.peek(Guest, request.name) is not None:
                raise already_exists("guest", request.name, remedy="Choose another name.")
            self._refuse_beyond_quota(None, guest)
            decision = decide(self._context, guest)
            if decision.hopeless:
                raise resource_exhausted(
                    "NO_NODE_FITS",
                    f"no node could ever run it: {decision.reason}",
                    remedy="Ask for less, or add a bigger node.",
                )
            short = admission.admit(self._context, None, guest, decision.node)
            kept = guest_pb2.CreateGuestRequest(name=request.name)  # the guest holds the rest
            task = self._task(guest_tasks.CREATE, guest.meta.name, request.request_id, kept)
            guest.meta.generation += self._context.generation_floor()
            guest.status.phase = GUEST_PHASE_PENDING
            guest.status.reason = "just created"
            txn = Txn(spare_reserve=True).put(guest, expect_absent=True)
            record(txn, f"guest/{guest.meta.name}", "GUEST_CREATED", f"created by {actor()}")
            admission.tell(txn, f"guest/{guest.meta.name}", short, task)
            return await begin(self._store, task, txn)

    async def GetGuest(self, request: guest_pb2.GetGuestRequest, context: object) -> Guest:
        """Return one guest."""
        return await self._store.require(Guest, request.name)

    async def ListGuests(self, request: guest_pb2.ListGuestsRequest, context: object) -> guest_pb2.ListGuestsResponse:
        """Return the guests that the request selects. A node or project that is none is a slip, not an empty answer."""
        guests = await self._store.list(Guest)
        if request.node and not any(guest.status.node == request.node for guest in guests):
            known_nodes(self._store, [request.node])
        if request.project and self._store.peek(Project, request.project) is None:
            raise not_found("project", request.project, remedy="`gugus project list` tells which there are.")
        return guest_pb2.ListGuestsResponse(guests=[guest for guest in guests if selects(request, guest)])

    async def UpdateGuest(self, request: guest_pb2.UpdateGuestRequest, context: object) -> Task:
        """Change a guest's spec; the controller brings its node up to date."""

        async def change() -> Task:
            if done := await self._begun(guest_tasks.UPDATE, request.name, request.request_id):
                return done
            before = await self._store.require(Guest, request.name)
            refuse_deleting(before)
            known = Known.of(self._store)
            after = updated(before, request, known, snapshots_holding(self._store, before))
            self._refuse_beyond_quota(before, after)
            refuse_change_beyond_node(self._context, before, after)
            short = admission.admit(self._context, before, after, after.status.node)
            kept = guest_pb2.UpdateGuestRequest(name=request.name, update_mask=request.update_mask)
            task = self._task(guest_tasks.UPDATE, request.name, request.request_id, kept)
            task.step_notes = UInt64Value(value=after.spec_number).SerializeToString()
            txn = Txn(spare_reserve=True).put(after, expect_revision=before.meta.revision)
            admission.tell(txn, f"guest/{request.name}", short, task)
            return await begin(self._store, task, txn)

        async with self._context.admission:
            return await upon_latest(change)

    async def StartGuest(self, request: guest_pb2.StartGuestRequest, context: object) -> Task:
        """Ask a guest to run."""

        def change(guest: Guest) -> None:
            if guest.spec.template:
                raise precondition(
                    "GUEST_IS_TEMPLATE",
                    f"guest {guest.meta.name} is a template: others are made from it.",
                    remedy=f"`gugus guest clone {guest.meta.name} NAME`, and start that.",
                )
            if guest.spec.ha.disabled:
                raise precondition(
                    "GUEST_DISABLED",
                    f"guest {guest.meta.name} is out of use (HA).",
                    remedy=f"`gugus guest ha on {guest.meta.name}` first.",
                )
            if guest.status.ha.state == HA_STATE_ERROR:  # this is the way out of it
                account.happen(guest, Event.START, f"started by {actor()}")
            guest.status.booting = False  # who starts it by hand does not wait for its turn
            guest.status.failures = 0  # nor for the pause after what failed before

        return await self._power(request, POWER_ON, guest_tasks.START, change)

    async def StopGuest(self, request: guest_pb2.StopGuestRequest, context: object) -> Task:
        """Ask a guest to stop; by force what works on it is asked to end first, if it can be."""
        return await self._power(
            request, POWER_OFF, guest_tasks.STOP, gives_way="it is to be killed" if request.force else ""
        )

    async def SuspendGuest(self, request: guest_pb2.SuspendGuestRequest, context: object) -> Task:
        """Ask for a guest's CPUs to be held."""
        return await self._power(request, POWER_PAUSED, guest_tasks.SUSPEND, refuse_unless_runs)

    async def ResumeGuest(self, request: guest_pb2.ResumeGuestRequest, context: object) -> Task:
        """Ask a held guest to go on."""

        def change(guest: Guest) -> None:
            refuse_unless_runs(guest)
            if guest.status.observed == GUEST_STATE_PAUSED:  # also one that was held by its hypervisor
                guest.status.phase, guest.status.reason = GUEST_PHASE_PAUSED, "to be resumed"

        return await self._power(request, POWER_ON, guest_tasks.RESUME, change)

    async def HibernateGuest(self, request: guest_pb2.HibernateGuestRequest, context: object) -> Task:
        """Ask for a guest's memory to be written to disk."""
        if request.pool:
            await self._store.require(Pool, request.pool)
        return await self._ask(request, power.HIBERNATE, power.refuse_to_hibernate)

    async def ResetGuest(self, request: guest_pb2.ResetGuestRequest, context: object) -> Task:
        """Press a guest's reset button."""
        return await self._ask(request, power.RESET, refuse_unless_runs)

    async def RebootGuest(self, request: guest_pb2.RebootGuestRequest, context: object) -> Task:
        """Shut a guest down and start it again."""
        return await self._ask(request, power.REBOOT, refuse_unless_runs)

    async def RenameGuest(self, request: guest_pb2.RenameGuestRequest, context: object) -> Task:
        """Give a guest another name."""
        validate.require("new_name", validate.name(request.new_name))
        async with self._context.admission:
            if self._store.peek(Guest, request.new_name) is not None:
                raise already_exists("guest", request.new_name, remedy="Choose another name.")
            return await self._ask(request, rename.KIND, rename.refuse_unless_stopped)

    async def DeleteGuest(self, request: guest_pb2.DeleteGuestRequest, context: object) -> Task:
        """Ask for a guest's end."""

        async def change() -> Task:
            if done := await self._begun(guest_tasks.DELETE, request.name, request.request_id):
                return done
            guest = await self._store.require(Guest, request.name)
            if guest.spec.protected:
                raise precondition(
                    "GUEST_PROTECTED",
                    f"guest {request.name} is protected.",
                    remedy=f"`gugus guest protect {request.name} --off` first.",
                )
            if clones := linked(self._store, guest):
                raise precondition(
                    "VOLUME_IN_USE",
                    f"guest {request.name}: the disks of {', '.join(clones)} read from its own.",
                    remedy="Delete them first, or flatten their disks.",
                )
            if not (guest.status.phase in ENDED_PHASES or request.force or guest.meta.deleting):
                raise precondition(
                    "GUEST_RUNNING",
                    f"guest {request.name} is not stopped: {guest.status.reason}.",
                    remedy=f"`gugus guest stop {request.name}` first, or delete it with --force.",
                )
            guest.meta.deleting = True
            task = self._task(guest_tasks.DELETE, request.name, request.request_id, request)
            txn = Txn().put(guest, expect_revision=guest.meta.revision)
            give_way(self._store, guest, task, txn, "the guest is to be deleted")
            return await begin(self._store, task, txn)

        async with self._context.admission:
            return await upon_latest(change)

    async def SetHa(self, request: guest_pb2.SetHaRequest, context: object) -> Guest:
        """Change HA settings."""
        known = Known.of(self._store)

        async def change(key: str) -> None:
            guest = await self._store.require(Guest, request.name)
            wish = guest_pb2.UpdateGuestRequest(spec=guest_pb2.GuestSpec(ha=request.ha))
            wish.update_mask.paths.append("ha")
            if request.ha.disabled:
                wish.spec.power = POWER_OFF
                wish.update_mask.paths.append("power")
            after = updated(guest, wish, known)
            check_ha(after, known.pools)
            account.follow(after)
            txn = Txn(key).put(after, expect_revision=guest.meta.revision)
            short = admission.admit(self._context, guest, after, after.status.node)
            admission.tell(txn, f"guest/{request.name}", short)
            await self._store.txn(txn)

        async with self._context.admission:
            await change_once(self._store, f"set-ha guest/{request.name}", request.request_id, change)
        return await self._store.require(Guest, request.name)

    async def ExplainGuest(
        self, request: guest_pb2.ExplainGuestRequest, context: object
    ) -> guest_pb2.ExplainGuestResponse:
        """Say why a guest is where it is, and where it would be put now."""
        guest = await self._store.require(Guest, request.name)
        now = to_proto(decide(self._context, guest))
        now.weights.update(weights_of(self._context.planner_settings()))
        return guest_pb2.ExplainGuestResponse(decided=guest.status.placement, now=now)

    async def GetGuestUsage(self, request: guest_pb2.GetGuestUsageRequest, context: object) -> agent_guest.GuestUsage:
        """Ask a guest's node what it uses now."""
        inspect = agent_guest.InspectGuestRequest(name=request.name)
        answer = await self._context.tell(
            await self._home(request.name), lambda agent, _: agent.guests.InspectGuest(inspect)
        )
        return answer.usage

    async def GetConsoleLog(
        self, request: guest_pb2.GetConsoleLogRequest, context: object
    ) -> guest_pb2.GetConsoleLogResponse:
        """Fetch the end of a guest's console log from its node."""
        answer = await self._context.tell(
            await self._home(request.name),
            lambda agent, _: agent.guests.GetConsoleLog(
                agent_guest.GetConsoleLogRequest(name=request.name, max_bytes=request.max_bytes)
            ),
        )
        return guest_pb2.GetConsoleLogResponse(data=answer.data)

    async def _home(self, name: str) -> Node:
        """Return the node of a guest. Raises GUEST_NOT_FOUND, GUEST_NOT_PLACED."""
        guest = await self._store.require(Guest, name)
        node = await self._store.get(Node, guest.status.node) if guest.status.node else None
        if node is None:
            raise precondition(
                "GUEST_NOT_PLACED",
                f"guest {name} has no node yet: {guest.status.reason}.",
                remedy=f"`gugus guest explain {name}` tells what is in the way.",
            )
        return node

    async def _power(
        self,
        request: Message,
        wanted: Power.ValueType,
        kind: str,
        prepare: Prepare = lambda _: None,
        *,
        gives_way: str = "",
    ) -> Task:
        """Change a guest's power, and return the task that ends when it is so."""

        def change(guest: Guest) -> None:
            prepare(guest)
            guest.spec.power = wanted
            account.follow(guest)

        return await self._ask(request, kind, change, change=True, gives_way=gives_way)

    async def _ask(
        self, request: Message, kind: str, prepare: Prepare, *, change: bool = False, gives_way: str = ""
    ) -> Task:
        """Write a task about a guest down once `prepare` found nothing wrong.

        change: with what it changed in the guest. gives_way: why what works on the guest is asked to end; it is waited for if empty.
        """
        name, request_id = request.name, request.request_id  # type: ignore[attr-defined]

        async def ask() -> Task:
            if done := await self._begun(kind, name, request_id):
                return done
            guest = await self._store.require(Guest, name)
            refuse_deleting(guest)
            prepare(guest)
            txn = Txn()
            if change:
                txn.put(guest, expect_revision=guest.meta.revision)
            else:
                txn.expect(Guest, name, revision=guest.meta.revision)
            task = self._task(kind, name, request_id, request)
            if gives_way:
                give_way(self._store, guest, task, txn, gives_way)
            return await begin(self._store, task, txn)

        return await upon_latest(ask)

    def _refuse_beyond_quota(self, before: Guest | None, after: Guest) -> None:
        project = self._store.peek(Project, after.spec.project) if after.spec.project else None
        refuse_beyond_quota(project, self._store.peek_all(Guest), before, after)

    async def _begun(self, kind: str, guest: str, request_id: str) -> Task | None:
        return await begun(self._store, kind, f"guest/{guest}", request_id)

    def _task(self, kind: str, guest: str, request_id: str, request: Message) -> Task:
        return new_task(kind, f"guest/{guest}", str(actor()), request_id, request)
