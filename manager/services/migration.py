"""The migration service: checks at the door what can be checked there, and hands the rest over to an operation on the guest."""

import asyncio

from gugus.agent.v1 import migration_pb2 as agent_pb2
from gugus.agent.v1.migration_pb2 import GuestSurvey, MigrationPolicy
from gugus.cluster.v1 import migration_pb2, migration_pb2_grpc
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import Node
from gugus.cluster.v1.task_pb2 import Task

from common.errors import invalid
from manager.controllers.context import Context
from manager.operations import migrate_check, send
from manager.operations.migrate import KIND
from manager.services import arrivals
from manager.services.forward import actor
from manager.services.requests import begin, begun, known_nodes, upon_latest
from manager.store import Txn
from manager.tasks import new_task


class MigrationService(migration_pb2_grpc.MigrationServiceServicer):
    """Serves `gugus guest migrate`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store

    async def MigrateGuest(self, request: migration_pb2.MigrateGuestRequest, context: object) -> Task:
        """Begin to move a guest. The whole check is the operation's first step, when its turn has come."""

        async def ask() -> Task:
            if done := await begun(self._store, KIND, f"guest/{request.name}", request.request_id):
                return done
            guest = await self._store.require(Guest, request.name)
            known_nodes(self._store, [request.target] if request.target else [])
            txn = Txn()
            if guest.status.home not in (
                "",
                request.target,
            ):  # it stays where a person moves it, whatever maintenance ends
                guest.status.home = ""
                txn.put(guest, expect_revision=guest.meta.revision)
            task = new_task(KIND, f"guest/{request.name}", str(actor()), request.request_id, request)
            return await begin(self._store, task, txn)

        return await upon_latest(ask)

    async def CheckMigration(
        self, request: migration_pb2.CheckMigrationRequest, context: object
    ) -> migration_pb2.CheckMigrationResponse:
        """Tell of one node, or of all others, what is in the way."""
        guest = await self._store.require(Guest, request.name)
        known_nodes(self._store, [request.target] if request.target else [])
        migrate_check.refuse_moving(guest)
        names = [request.target] if request.target else self._others(guest)
        told = await migrate_check.survey(self._context, guest)
        plans = await asyncio.gather(*(self._plan(guest, told, name, request.policy) for name in names))
        return migration_pb2.CheckMigrationResponse(checks=[plan.to_proto() for plan in plans])

    async def SurveyGuest(self, request: migration_pb2.SurveyGuestRequest, context: object) -> GuestSurvey:
        """Ask a guest's node what another cluster has to know."""
        guest = await self._store.require(Guest, request.name)
        question = agent_pb2.SurveyGuestRequest(
            name=request.name,
            with_files=request.with_files,
            reach_address=request.reach_address,
            reach_port=request.reach_port,
        )
        return await migrate_check.asked(self._context, guest, question)

    async def ReceiveGuest(
        self, request: migration_pb2.ReceiveGuestRequest, context: object
    ) -> migration_pb2.ReceiveGuestResponse:
        """Expect a guest of another cluster, or tell what is in the way."""
        if request.dry_run:
            return await arrivals.looked(self._context, request)
        return await arrivals.expected(self._context, request)

    async def SendGuest(self, request: migration_pb2.SendGuestRequest, context: object) -> Task:
        """Begin to send a guest to another cluster."""
        if done := await begun(self._store, send.KIND, f"guest/{request.name}", request.request_id):
            return done
        await self._store.require(Guest, request.name)
        if request.target.spec.name != request.name:
            raise invalid("target.spec.name", f'"{request.target.spec.name}": what moves while it runs keeps its name.')
        task = new_task(send.KIND, f"guest/{request.name}", str(actor()), request.request_id, request)
        return await begin(self._store, task, Txn())

    async def TellMigration(self, request: migration_pb2.TellMigrationRequest, context: object) -> Guest:
        """Write down what another cluster knows of a guest that is on its way."""
        return await self._store.update(Guest, request.name, lambda guest: arrivals.told(guest, request))

    async def _plan(self, guest: Guest, told: GuestSurvey, target: str, policy: MigrationPolicy) -> migrate_check.Plan:
        return await migrate_check.plan(self._context, guest, told, target, policy)

    def _others(self, guest: Guest) -> list[str]:
        return [node.meta.name for node in self._store.peek_all(Node) if node.meta.name != guest.status.node]
