"""The plan service: what would happen, from the state as it is now."""

import asyncio
from collections.abc import Iterable

from gugus.cluster.v1 import plan_pb2, plan_pb2_grpc
from gugus.cluster.v1.cluster_pb2 import Cluster
from gugus.cluster.v1.guest_pb2 import CreateGuestRequest
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, Node
from gugus.cluster.v1.task_pb2 import Task

from common.errors import invalid, precondition
from manager.controllers import balance
from manager.controllers.context import Context
from manager.controllers.placing import stored
from manager.guests.complete import complete, without_output
from manager.guests.known import Known
from manager.scheduler import balancing, what_if
from manager.services.forward import actor
from manager.services.requests import begin, begun, known_hosts, known_nodes
from manager.store import Txn
from manager.tasks import new_task

MAX_GUESTS = 1_000
MAX_NODES = 100
MAX_MOVES = 1_000


class PlanService(plan_pb2_grpc.PlanServiceServicer):
    """Serves `gugus what-if`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._store = context.store

    async def WhatIf(self, request: plan_pb2.WhatIfRequest, context: object) -> plan_pb2.WhatIf:
        """Answer a question; nothing is changed."""
        await self._store.list(Node)  # a read barrier: the answer is about the newest state
        look = stored(self._context)
        match request.WhichOneof("question"):
            case "lose":
                return what_if.lose(look, self._named(request.lose.nodes))
            case "empty":
                return what_if.empty(look, self._named(request.empty.nodes))
            case "add":
                return what_if.add(look, self._like(request.add))
            case "make":
                return self._make(look, request.make)
            case "even":
                if request.even.max_moves > MAX_MOVES:
                    raise invalid("even.max_moves", f"{request.even.max_moves} is out of range: 1 to {MAX_MOVES}.")
                return await asyncio.to_thread(balancing.even, look, request.even.max_moves)
            case _:
                raise invalid("question", "is missing: say what is to happen.")

    async def Balance(self, request: plan_pb2.BalanceRequest, context: object) -> Task:
        """Even the cluster out; each plan is made when its turn has come."""
        if request.max_moves > MAX_MOVES:
            raise invalid("max_moves", f"{request.max_moves} is out of range: 1 to {MAX_MOVES}.")
        target = f"cluster/{self._store.peek_all(Cluster)[0].meta.name}"
        if done := await begun(self._store, balance.KIND, target, request.request_id):
            return done
        task = new_task(balance.KIND, target, str(actor()), request.request_id, request)
        return await begin(self._store, task, Txn())

    def _named(self, names: Iterable[str]) -> list[str]:
        wanted = sorted(set(names))
        if not wanted:
            raise invalid("nodes", "is missing: name at least one node.")
        known_nodes(self._store, wanted)
        return wanted

    def _like(self, asked: plan_pb2.AddNodes) -> plan_pb2.AddNodes:
        """Return the question with the node named that the new ones are like."""
        if asked.count > MAX_NODES:
            raise invalid("add.count", f"{asked.count} is out of range: 1 to {MAX_NODES}.")
        if asked.like:
            known_hosts(self._store, [asked.like])
            return asked
        nodes = [node for node in self._store.peek_all(Node) if node.status.state == NODE_STATE_ONLINE]
        online = sorted(node.meta.name for node in nodes if not node.spec.witness)
        if not online:
            raise precondition(
                "NODE_NOT_ONLINE",
                "no node is online that a new one could be like.",
                remedy="Name one (NODE), or wait until one is.",
            )
        full = plan_pb2.AddNodes()
        full.CopyFrom(asked)
        full.like = online[0]
        return full

    def _make(self, look: what_if.Stored, asked: plan_pb2.MakeGuests) -> plan_pb2.WhatIf:
        if asked.count > MAX_GUESTS:
            raise invalid("make.count", f"{asked.count} is out of range: 1 to {MAX_GUESTS}.")
        name = "what-if"
        request = CreateGuestRequest(name=name, spec=without_output(asked.spec))
        return what_if.make(look, complete(request, Known.of(self._store)), asked.count or 1)
