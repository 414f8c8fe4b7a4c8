"""Who acts: keeps this manager's lease in the replicated state, and runs the controllers for as long as it is held.

Invariant: controllers run only while the lease is valid by this manager's own clock, counted from before its last renewal was proposed.
The rules are `manager.ha.manager_lease`; this is the shell that proposes what they ask for.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from gugus.cluster.v1.cluster_pb2 import ManagerLease

from common.clock import Clock
from common.errors import GugusError, precondition
from common.leases import DRIFT_PPM, MANAGER_LEASE_MS
from common.logs import get_logger
from common.waiting import happened
from manager.consensus import Consensus, ConsensusError, Role
from manager.ha.manager_lease import Acquire, LeaseMachine, LeaseView, Renew
from manager.store import Store, Txn
from manager.store.kinds import LEASE_NAME, new

STEP_S = 0.2
"""Time between two looks at the lease: a fifteenth of its length, so that a renewal is never late by much."""

PROPOSE_TIMEOUT_S = 1.0
"""A renewal that takes longer is given up and tried again, so that the end of the lease is not slept through."""

HAND_OVER_TIMEOUT_S = 5.0
"""How long a successor may take to lead: several elections. Nobody acts meanwhile."""

HAND_OVER_ASK_S = 0.5
"""A successor that does not lead by then is asked again; it may have lacked an entry, or the question was lost."""

HAND_OVER_RETRY_S = 0.02

Work = Callable[[int], Coroutine[Any, Any, None]]
"""What the acting manager does, given the moment of its takeover (nanoseconds of `Acting.now_ns`); cancelled when the lease ends."""

_log = get_logger("acting")


class Acting:
    """The lease of one manager, and the work that hangs on it."""

    def __init__(self, me: str, store: Store, consensus: Consensus, clock: Clock, work: Work) -> None:
        self._me = me
        self._store = store
        self._consensus = consensus
        self._clock = clock
        self._work = work
        self._machine = LeaseMachine(me)
        self._task: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._nudge = asyncio.Event()
        consensus.subscribe(lambda _: self._nudge.set())

    @property
    def valid(self) -> bool:
        """Whether this manager may act right now."""
        return self._machine.acting(self.now_ns())

    @property
    def epoch(self) -> int:
        """Epoch that every call to an agent must carry; read it right before the call."""
        return self._machine.epoch

    def holder(self) -> str:
        """Return the manager that holds the lease as far as this replica knows; empty when nobody does."""
        lease = self._store.peek(ManagerLease, LEASE_NAME)
        return lease.holder if lease else ""

    def now_ns(self) -> int:
        """Return the time in which all leases are counted here: CLOCK_BOOTTIME, so that a suspended host's lease ends meanwhile."""
        return self._clock.boottime_ns()

    async def run(self) -> None:
        """Take, keep and hand back the lease until cancelled."""
        try:
            while True:
                async with self._turn:
                    await self._step()
                    await self._run_work()
                await happened(self._nudge, STEP_S)
                self._nudge.clear()
        finally:
            await self._end_work()
            await self._release()

    async def hand_over(self, to: str | None = None) -> None:
        """Stop acting, and let another voter (or the most suitable one) lead; if none does, this manager goes on.

        The lease goes first: then nothing more is written through this manager, so that the others soon have the whole log,
        and whoever leads next need not wait for the lease's end. Raises FAILED_PRECONDITION NOT_HANDED_OVER.
        """
        async with self._turn:
            await self._end_work()
            await self._release()
            await self._leave_leadership(to)

    def observe(self) -> None:
        """Take in the lease as it is stored now; called after a transaction of this manager's changed it."""
        self._machine = self._machine.observe(self._view(), self.now_ns())

    async def _step(self) -> None:
        self.observe()
        instruction = self._machine.step(self.now_ns(), self._leads(), DRIFT_PPM)
        if isinstance(instruction, Acquire | Renew):
            await self._propose(instruction)

    async def _propose(self, instruction: Acquire | Renew) -> None:
        asked_ns = self.now_ns()
        self._machine = self._machine.proposed(instruction.epoch, asked_ns)
        try:
            async with asyncio.timeout(PROPOSE_TIMEOUT_S):
                await self._store.txn(self._renewal(instruction))
        except (ConsensusError, GugusError, TimeoutError) as error:
            _log.warning("lease not renewed", epoch=instruction.epoch, error=str(error))
            return
        view = self._view()
        if view is not None and view.holder == self._me and view.epoch == instruction.epoch:
            self._machine = self._machine.granted(asked_ns, view)
        if isinstance(instruction, Acquire) and self.valid:
            _log.info("acting", epoch=instruction.epoch)

    async def _leave_leadership(self, to: str | None) -> None:
        why = "the other did not take it"
        try:
            async with asyncio.timeout(HAND_OVER_TIMEOUT_S):
                while self._leads():
                    patience_s = HAND_OVER_ASK_S
                    try:
                        await self._consensus.transfer_leadership(to)
                    except ConsensusError as error:  # refused while the last entries are on their way
                        why, patience_s = str(error), HAND_OVER_RETRY_S
                    await self._until_following(patience_s)
        except TimeoutError:
            raise precondition(
                "NOT_HANDED_OVER",
                f"{self._me} still leads: {why}.",
                remedy="`gugus cluster status` tells how they are.",
            ) from None

    async def _until_following(self, patience_s: float) -> None:
        """Return once this member leads no more, or when it is time to ask again."""
        follows = asyncio.Event()
        forget = self._consensus.subscribe(lambda view: None if view.role is Role.LEADER else follows.set())
        try:
            if self._leads():
                await happened(follows, patience_s)
        finally:
            forget()

    def _renewal(self, instruction: Acquire | Renew) -> Txn:
        stored = self._store.peek(ManagerLease, LEASE_NAME)
        lease = stored or new(ManagerLease, LEASE_NAME)
        lease.holder, lease.epoch, lease.ttl_ms = self._me, instruction.epoch, MANAGER_LEASE_MS
        lease.renewals += 1
        if stored is None:
            return Txn().put(lease, expect_absent=True)
        return Txn().put(lease, expect_revision=instruction.expected)

    def _view(self) -> LeaseView | None:
        lease = self._store.peek(ManagerLease, LEASE_NAME)
        if lease is None:
            return None
        return LeaseView(lease.holder, lease.epoch, lease.ttl_ms, lease.renewals, lease.meta.revision)

    def _leads(self) -> bool:
        return self._consensus.leadership().role is Role.LEADER

    async def _run_work(self) -> None:
        if self._task and (self._task.done() or not self.valid):
            await self._end_work()
        if self._task is None and self.valid:
            self._task = asyncio.create_task(self._work(self.now_ns()))

    async def _end_work(self) -> None:
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            _log.info("stood down")
        except Exception:
            _log.exception("the controllers failed; they are started anew")

    async def _release(self) -> None:
        """Hand the lease back, so that the next manager need not wait for its end. From here on this one does not act."""
        release = self._machine.released()
        acted, self._machine = self.valid, LeaseMachine(self._me)
        lease = self._store.peek(ManagerLease, LEASE_NAME)
        if release is None or lease is None or not acted:
            return
        lease.holder = ""
        try:
            async with asyncio.timeout(PROPOSE_TIMEOUT_S):
                await self._store.txn(Txn().put(lease, expect_revision=release.expected))
        except (ConsensusError, GugusError, TimeoutError) as error:
            _log.warning("lease not handed back; others wait for its end", error=str(error))
        else:
            _log.info("lease handed back", epoch=lease.epoch)
