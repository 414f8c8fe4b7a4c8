"""Which tasks can be asked to end, and who asks them: the user, or what may not wait for them (a kill, a deletion)."""

from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.task_pb2 import Task

from manager.controllers import balance, drains, images, reboots
from manager.operations import CANCELLABLE, KINDS
from manager.store import Store, Txn
from manager.tasks import ENDED, log_line


def cancellable(task: Task) -> bool:
    """Return whether a task that has not ended can be asked to. Of operations any can that has done nothing yet."""
    waits = task.kind in KINDS and not task.step
    return (
        waits
        or task.kind
        in images.CANCELLABLE | drains.CANCELLABLE | balance.CANCELLABLE | reboots.CANCELLABLE | CANCELLABLE
    )


def give_way(store: Store, guest: Guest, task: Task, txn: Txn, why: str) -> None:
    """Ask what works on a guest to end, for a task that does not want to wait; the log of either says so.

    What cannot be cancelled is waited for. why: what is to become of the guest, in words.
    """
    holder = store.peek(Task, guest.status.lock.task) if guest.status.HasField("lock") else None
    if holder is None or holder.state in ENDED:
        return
    what = f"{holder.kind} (task {holder.meta.name})"
    if not cancellable(holder):
        log_line(task, f"waiting for {what}, which cannot be cancelled")
        return
    log_line(task, f"asked {what} to end, and waiting for that")
    if not holder.cancel_requested:
        holder.cancel_requested = True
        log_line(holder, f"asked to end: {why}")
        txn.put(holder, expect_revision=holder.meta.revision)
