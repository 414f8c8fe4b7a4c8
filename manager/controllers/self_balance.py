"""Looks at how even the nodes are, tells what would be moved, and begins a balance when the cluster is set to do so by itself.

Invariant: a look changes nothing; what it came to is kept in memory (`manager.outlook`). A balance is begun by its task alone,
which carries the plan in its log; what was begun within the last hour is read from the tasks, so that another manager
goes on with the same budget. The decision is `manager.scheduler.balancing`.
"""

import asyncio
import time

from gugus.cluster.v1.cluster_pb2 import BALANCE_MODE_OFF, BalanceStatus, Cluster
from gugus.cluster.v1.plan_pb2 import BalanceNotes, BalanceRequest
from gugus.cluster.v1.task_pb2 import Task

from common.errors import GugusError
from common.logs import get_logger
from manager.consensus import ConsensusError
from manager.controllers import balance
from manager.controllers.balance import Balance
from manager.controllers.context import Context
from manager.controllers.placing import stored
from manager.events import INFO, record
from manager.operations.registry import MIGRATE
from manager.scheduler import balancing
from manager.scheduler.balancing import NS_PER_MS, Conclusion, Held, Policy, Recent
from manager.scheduler.what_if import moves_of
from manager.store import Txn
from manager.tasks import ENDED, new_task

PERIOD_S = 10.0
"""Time between two looks: the shortest hold that can be set."""

SHARE = 20
"""A look of a large cluster takes at most so small a part of the time: the next one comes later."""

_log = get_logger("balance")


class SelfBalance:
    """Looks for as long as this manager acts."""

    def __init__(self, context: Context, done: Balance, takeover_ns: int) -> None:
        self._context = context
        self._done = done
        self._takeover_ns = takeover_ns
        self._held: Held | None = None

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            began_s = time.monotonic()
            try:
                await self._look()
            except (ConsensusError, GugusError) as error:
                _log.warning("evenness is looked at again", error=str(error))
            await asyncio.sleep(max(PERIOD_S, SHARE * (time.monotonic() - began_s)))

    async def _look(self) -> None:
        context = self._context
        policy = balancing.policy_of(context.settings().balance)
        if policy.mode == BALANCE_MODE_OFF:
            self._held = None
            context.outlook.parts.clear()
            context.outlook.status = self._with_last(BalanceStatus(mode=policy.mode))
            return
        cluster = context.store.peek_all(Cluster)[
            0
        ]  # before all that is looked at: what is decided holds for these settings
        tasks = context.store.peek_all(Task)
        recent = balancing.recent((task for task in tasks if task.kind == MIGRATE), time.time())
        now_ns, look, hindrance = context.acting.now_ns(), stored(context), self._hindrance(policy, tasks)
        found = await asyncio.to_thread(balancing.conclude, look, policy, recent, hindrance, self._held, now_ns)
        self._held = found.held
        self._tell(policy, recent, found, now_ns)
        if found.begins:
            await self._begin(cluster, found)

    def _hindrance(self, policy: Policy, tasks: list[Task]) -> str:
        """Return why nothing may be begun now, whatever would be won; "" when nothing is in the way."""
        context = self._context
        return balancing.hindrance(
            policy,
            under_way=any(task.kind == balance.KIND and task.state not in ENDED for task in tasks),
            unsettled=balance.unsettled(context, tasks),
            acted_ns=context.acting.now_ns() - self._takeover_ns,
        )

    def _tell(self, policy: Policy, recent: Recent, found: Conclusion, now_ns: int) -> None:
        status = BalanceStatus(
            mode=policy.mode,
            score=found.plan.before.total,
            score_after=found.plan.after.total,
            moves=moves_of(found.plan),
            held_ms=(now_ns - found.held.since_ns) // NS_PER_MS if found.held else 0,
            hold_ms=policy.hold_ns // NS_PER_MS,
            why=found.why,
            moves_last_hour=recent.begun,
            max_moves_per_hour=policy.moves_per_hour,
        )
        self._context.outlook.status = self._with_last(status)
        self._context.outlook.parts = dict(found.plan.before.parts)

    def _with_last(self, status: BalanceStatus) -> BalanceStatus:
        last = self._done.last
        if last is not None:
            status.last = last.log[-1].text if last.log else ""
            status.last_at.CopyFrom(last.ended_at)
        return status

    async def _begin(self, cluster: Cluster, found: Conclusion) -> None:
        """Begin the balance: from here on it is a task like one that a person asked for."""
        target = f"cluster/{cluster.meta.name}"
        task = new_task(balance.KIND, target, balancing.ACTOR, "", BalanceRequest(max_moves=len(found.plan.moves)))
        balance.tell_plan(task, found.plan)
        task.step_notes = BalanceNotes(told=True, score_before=found.plan.before.total).SerializeToString()
        txn = Txn().put(task, expect_absent=True).expect(Cluster, cluster.meta.name, revision=cluster.meta.revision)
        await self._context.store.txn(record(txn, target, "CLUSTER_BALANCING", balancing.summary(found.plan), INFO))
        self._held = None
        _log.info("balance begun", task=task.meta.name, moves=len(found.plan.moves), score=found.plan.before.total)
