"""A running guest of another cluster that comes in: it is a guest here from the first step, locked, and comes to life when it is here.

Nobody here can ask its source; what is known of that is told by a client of both clusters (`GuestAbroad.told`). Until then: one that
runs here has come, for it runs only after its source let go of it; one that is not complete, and whose source is not connected and may
not come in any more, never will. One that is complete and was not let go, as far as its node knows, waits to be told.
"""

import asyncio
import time
from typing import Final

from gugus.agent.v1 import migration_pb2
from gugus.agent.v1.migration_pb2 import MIGRATION_PRESENCE_ABSENT, MIGRATION_PRESENCE_UNSPECIFIED, MigrationReport
from gugus.agent.v1.task_pb2 import TASK_STATE_CANCELLED, TASK_STATE_FAILED
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING, Guest
from gugus.cluster.v1.migration_pb2 import ReceiveGuestRequest

from common.errors import GugusError, aborted, from_status, precondition
from common.logs import get_logger
from manager.controllers.context import with_epoch
from manager.events import INFO, WARNING, record
from manager.ha.migration import Verdict, Word, arrival
from manager.ha.stored import assign
from manager.operations.migrate_settle import REMOVE_TIMEOUT_S, SAY_TIMEOUT_S, target_word
from manager.operations.operation import Cancelled, Operation
from manager.store import Txn
from manager.tasks import finish

KIND: Final = "receive-guest"

LOOK_S = 0.5
"""So often the target is asked how far it is."""

PREPARED_IN_S = 600
"""An arrival that nobody made ready for so long after it was asked for is given up: whoever asked is gone."""

_log = get_logger("receive")


class ReceiveGuest:
    """Work of ReceiveGuest."""

    kind, verb, cancellable = KIND, "receive", True

    async def run(self, op: Operation) -> str:
        """Look at the target until the guest runs there, or surely never will."""
        if not op.step:
            await op.note("expecting", node=op.guest.status.migration.target)
        while op.guest.status.HasField("migration"):
            if not await self._look(op):
                await asyncio.sleep(LOOK_S)
        await _forget(op)
        return f"{op.name} is on {op.guest.status.node}"

    async def undo(self, op: Operation) -> None:
        """Remove what came, then the guest; one that runs here all the same stays."""
        guest = op.guest
        if not guest.status.HasField("migration"):
            return
        word, _ = await target_word(op, guest)
        if word is Word.RUNNING or (word is not Word.GONE and not await self._dropped(op, guest)):
            await _adopt(op)
            await _forget(op)
            return
        await _removed(op)

    async def _look(self, op: Operation) -> bool:
        """Ask the target, and do what follows; return whether anything was done. Raises why the guest does not come any more."""
        guest = op.guest
        abroad = guest.status.migration.abroad
        word, report = (
            Word.ABSENT,
            MigrationReport(),
        )  # before it was made ready nobody has a ticket, and nothing can come
        if abroad.prepared:
            word, report = await target_word(op, guest)
        expected = report.expected or not (abroad.prepared or _is_forgotten(op))
        verdict = arrival(abroad.told, word, expected=expected)
        if verdict is Verdict.MOVED:
            await _adopt(op)
            return True
        if verdict is Verdict.TAKE_OVER:
            request = migration_pb2.TakeOverGuestRequest(migration=guest.status.migration.task, name=op.name)
            await op.tell(
                lambda agent, epoch: agent.migrations.TakeOverGuest(with_epoch(request, epoch), timeout=SAY_TIMEOUT_S),
                guest.status.migration.target,
            )
            return True
        if op.task.cancel_requested or guest.meta.deleting:
            raise Cancelled
        if verdict is not Verdict.WAIT:
            raise _does_not_come(op, guest)
        if word is Word.WAITING and not report.expected:
            await op.log(
                f"{op.name} is complete and waits to be told what became of it in {guest.status.migration.abroad.cluster_name}"
            )
        return False

    async def _dropped(self, op: Operation, guest: Guest) -> bool:
        """Have the target remove what came; return False when the guest runs there."""
        migration = guest.status.migration
        request = migration_pb2.DropArrivalRequest(migration=migration.task, name=op.name)
        try:
            await op.tell(
                lambda agent, epoch: agent.migrations.DropArrival(with_epoch(request, epoch), timeout=REMOVE_TIMEOUT_S),
                migration.target,
            )
        except GugusError as error:
            if error.reason == "GUEST_RUNNING":
                return False
            kept = migration.abroad.told not in (MIGRATION_PRESENCE_ABSENT, MIGRATION_PRESENCE_UNSPECIFIED)
            if error.reason != "NODE_NOT_ONLINE" or not kept:
                raise  # it may run there: it is asked again until it answers
            await op.log(f"{migration.target} does not answer; what came there is removed when it is back")
        return True


def _is_forgotten(op: Operation) -> bool:
    """Whether nobody made the arrival ready in all the time that he had."""
    return time.time() - op.task.meta.created_at.seconds > PREPARED_IN_S


async def _adopt(op: Operation) -> None:
    """It is a guest like any other from now on."""

    def take(guest: Guest) -> None:
        migration, status = guest.status.migration, guest.status
        assign(guest, migration.target, guest.meta.generation)
        status.volumes_ready = True
        status.phase, status.reason = GUEST_PHASE_RUNNING, f"runs on {migration.target}"
        status.ClearField("migration")

    abroad = op.guest.status.migration.abroad
    text = f"{op.name} came from {abroad.cluster_name}"
    guest = await op.change(take, lambda txn: record(txn, f"guest/{op.name}", "GUEST_ARRIVED", text, INFO))
    _log.info("guest arrived", guest=op.name, node=guest.status.node, generation=guest.meta.generation)


async def _forget(op: Operation) -> None:
    """Have the target forget the migration; one that does not answer only keeps a small file."""
    guest = op.guest
    request = migration_pb2.ForgetMigrationRequest(migration=op.request(ReceiveGuestRequest).migration)
    try:
        await op.tell(
            lambda agent, epoch: agent.migrations.ForgetMigration(with_epoch(request, epoch)), guest.status.node
        )
    except GugusError as error:
        await op.log(f"{guest.status.node} keeps a note of the migration: {error.message}")


async def _removed(op: Operation) -> None:
    """Forget the guest and end the task, in one transaction: a turn that is repeated finds neither."""
    guest, task = op.guest, op.task
    error = from_status(task.error)
    cancelled = error.reason == Cancelled.REASON
    if cancelled:
        task.ClearField("error")
    finish(task, TASK_STATE_CANCELLED if cancelled else TASK_STATE_FAILED, str(error))
    txn = Txn().put(task, expect_revision=task.meta.revision)
    txn.delete(Guest, op.name, expect_revision=guest.meta.revision)
    text = f"{op.name} did not come from {guest.status.migration.abroad.cluster_name}: {error.message}"
    await op.context.store.txn(record(txn, f"guest/{op.name}", "GUEST_DID_NOT_ARRIVE", text, WARNING))


def _does_not_come(op: Operation, guest: Guest) -> GugusError:
    abroad = guest.status.migration.abroad
    if abroad.told not in (MIGRATION_PRESENCE_ABSENT, MIGRATION_PRESENCE_UNSPECIFIED):
        return aborted("GUEST_STAYS", f"guest {op.name} stays in {abroad.cluster_name}.")
    return precondition(
        "MIGRATION_INTERRUPTED",
        f"guest {op.name} did not come from {abroad.cluster_name}: its source is not connected, and its copy here is not complete.",
        remedy="It is where it was; move it again.",
    )
