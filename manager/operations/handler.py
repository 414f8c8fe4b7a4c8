"""What the work of one kind of operation has to offer."""

from typing import Protocol, runtime_checkable

from common.errors import GugusError, aborted
from manager.operations.operation import Operation


class Handler(Protocol):
    """The work of one kind of task about a guest. Stateless: all it has to remember is noted in the task (`Operation.note`)."""

    @property
    def kind(self) -> str:
        """Kind of the tasks, for example "snapshot-guest"."""

    @property
    def verb(self) -> str:
        """What it does, for the guest's lock: "snapshot"."""

    @property
    def cancellable(self) -> bool:
        """Whether such a task can be cancelled once it was begun. One that waits for its turn always can."""

    async def run(self, op: Operation) -> str:
        """Do the work, and return how it ended in a sentence for the task's log.

        May be called again at any time, after any line of an earlier call of this or another manager: it goes on from `op.step`, and
        what was done already is not done twice. Raises GugusError: one that says nothing of the request (`TRANSIENT_REASONS`) leads to
        another call later; any other fails the task, after `undo`.
        """

    async def undo(self, op: Operation) -> None:
        """Take back what a failed or cancelled run left behind. Idempotent, for it may be called again."""


@runtime_checkable
class Cleaner(Protocol):
    """What a handler offers, too, whose work is done for the user before everything is tidy."""

    async def clean(self, op: Operation) -> None:
        """Tidy up after a task that succeeded. The guest's lock is held meanwhile: no other operation begins.

        Idempotent, for it may be called again, by another manager, too. Raises GugusError when it is to be called again later;
        what cannot be tidied at all is no error.
        """


def moved(op: Operation) -> GugusError:
    """Return the error of an operation whose guest was given to another node meanwhile."""
    guest = op.guest
    return aborted(
        "GUEST_MOVED",
        f"guest {guest.meta.name} was given to {guest.status.node or 'no node'} meanwhile.",
        remedy="Ask for it again.",
    )
