"""Consensus as the rest of the manager sees it: propose bytes, make sure of a read, watch leadership, change voters.

Invariant: every call ends within its timeout, with a result, a refusal that did nothing, or "outcome unknown".
"""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from .actor import Actor
from .core import RaftCore
from .handover import Handover
from .types import (
    MAX_PAYLOAD_BYTES,
    ConsensusConfig,
    Leadership,
    Member,
    PayloadTooLarge,
    ProposalTimeout,
    Role,
    StateMachine,
    Unavailable,
)

T = TypeVar("T")
Subscriber = Callable[[Leadership], None]
_Settle = Callable[[T | Exception], None]
_Request = Callable[[RaftCore, _Settle[T]], None]

_Answer = tuple[asyncio.Future[Any], Any]

_STOP_TIMEOUT_S = 10.0


class Consensus:
    """One member of the replicated state machine. All methods are for one asyncio loop, that of `start`."""

    def __init__(self, config: ConsensusConfig, machine: StateMachine) -> None:
        self._config, self._machine = config, machine
        self._actor: Actor | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._answers: Handover[_Answer] | None = None
        self._view = Leadership()
        self._subscribers: list[Subscriber] = []

    async def start(self) -> None:
        """Load the disk, listen, and take part. Raises CorruptState, OSError, ssl.SSLError, ValueError."""
        self._loop = asyncio.get_running_loop()
        self._answers = Handover(self._loop, _settle)
        self._actor = Actor(self._config, self._machine, self._publish, self._answered)
        await asyncio.wrap_future(self._actor.start())

    async def stop(self) -> None:
        """Leave; what waits fails. Safe to repeat."""
        actor, self._actor = self._actor, None
        if actor is not None:
            actor.stop()
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await asyncio.to_thread(actor.join)

    async def propose(self, payload: bytes, timeout_s: float) -> bytes:
        """Replicate a payload and return what the state machine's `apply` returned here.

        Raises NotLeader, Unavailable and PayloadTooLarge (nothing was done), ProposalTimeout (outcome unknown).
        """
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise PayloadTooLarge(len(payload))
        late = ProposalTimeout(f"outcome unknown: no commit within {timeout_s} s; is a majority of voters up?")
        return await self._ask(lambda core, settle: core.propose(payload, settle), timeout_s, late)

    async def read_barrier(self, timeout_s: float) -> None:
        """Return when a local read sees all that was committed before the call.

        Leadership was confirmed with a majority after the call. Raises NotLeader, Unavailable.
        """
        late = Unavailable(f"leadership was not confirmed by a majority within {timeout_s} s")
        request: _Request[None] = lambda core, settle: core.reads.request(settle)  # noqa: E731
        await self._ask(request, timeout_s, late)

    def leadership(self) -> Leadership:
        """Return the newest view of this member."""
        return self._view

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        """Call back in our loop at each change of role, leader, term or voters; return how to end that."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback) if callback in self._subscribers else None

    async def add_voter(self, member: Member, timeout_s: float = 30.0) -> None:
        """Catch a started, joining member up and make it a voter; done if it is one already.

        Raises NotLeader, MembershipRefused (it is not reached, or another change runs), ProposalTimeout, Unavailable.
        """
        late = ProposalTimeout(f"outcome unknown: {member.name} was not added within {timeout_s} s; look at the voters")
        request: _Request[None] = lambda core, settle: core.membership.add(member, timeout_s, settle)  # noqa: E731
        await self._ask(request, timeout_s * 2, late)

    async def remove_voter(self, name: str, timeout_s: float = 10.0) -> None:
        """Make a voter none; done if it is none. The leader cannot remove itself: `transfer_leadership` first.

        Raises NotLeader, MembershipRefused, ProposalTimeout, Unavailable.
        """
        late = ProposalTimeout(f"outcome unknown: {name} was not removed within {timeout_s} s; look at the voters")
        request: _Request[None] = lambda core, settle: core.membership.remove(name, settle)  # noqa: E731
        await self._ask(request, timeout_s, late)

    async def transfer_leadership(self, to: str | None = None, timeout_s: float = 5.0) -> str:
        """Ask a voter (or the most suitable one) to take over and return its name; watch leadership for the outcome.

        Raises NotLeader, MembershipRefused, Unavailable.
        """
        late = Unavailable(f"no answer within {timeout_s} s")
        return await self._ask(lambda core, settle: settle(core.hand_over(to)), timeout_s, late)

    # -- between the threads

    async def _ask(self, request: _Request[T], timeout_s: float, late: Exception) -> T:
        loop, actor, answers = self._loop, self._actor, self._answers
        if loop is None or actor is None or answers is None:
            raise Unavailable("this member's consensus is not running")
        future: asyncio.Future[T] = loop.create_future()

        def settle(result: T | Exception) -> None:
            answers.put((future, result))

        actor.submit(lambda core: request(core, settle), settle)
        deadline = loop.call_later(timeout_s, _settle, (future, late))  # half the price of asyncio.timeout
        try:
            return await future
        finally:
            deadline.cancel()

    def _answered(self) -> None:
        """Have our loop take the answers; called in the consensus thread."""
        if self._answers is not None and self._loop is not None and not self._loop.is_closed():
            self._answers.wake()

    def _publish(self, view: Leadership) -> None:
        """Take a new view; called in the consensus thread. Our loop is woken only for what subscribers wait for."""
        before, self._view = self._view, view
        if _essence(before) != _essence(view) and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._tell, view)

    def _tell(self, view: Leadership) -> None:
        for callback in tuple(self._subscribers):
            callback(view)


def _settle(answer: _Answer) -> None:
    future, result = answer
    if future.done():
        return  # its caller waited no longer
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)


def _essence(view: Leadership) -> tuple[Role, str | None, int, tuple[Member, ...]]:
    return view.role, view.leader, view.term, view.voters
