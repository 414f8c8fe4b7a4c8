"""The way from a manager to the inside of guests: which agent, in which epoch, and bytes passed on at the slower side's pace."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from gugus.agent.v1 import access_pb2_grpc
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, Node

from common.errors import precondition
from common.rpc.streams import Stream
from manager.agents import Agents, told
from manager.controllers.context import Context
from manager.events import record
from manager.store import Txn

Q = TypeVar("Q")
A = TypeVar("A")


@dataclass(frozen=True)
class Way:
    """Into one guest: its agent's stub, and the epoch to be named."""

    guest: Guest
    node: str
    stub: Any
    epoch: int


class Passage:
    """Ways into guests. agents: channels of its own, so that what flows here never stands before the manager's commands."""

    def __init__(self, context: Context, agents: Agents) -> None:
        self._context = context
        self._agents = agents

    @property
    def open_here(self) -> bool:
        """Whether this manager acts."""
        return self._context.acting.valid

    async def into(self, name: str) -> Way:
        """Return the way into a guest. Raises GUEST_NOT_FOUND, GUEST_NOT_PLACED, NODE_NOT_ONLINE, NOT_ACTING."""
        guest = await self._context.store.require(Guest, name)
        if not guest.status.node:
            raise precondition("GUEST_NOT_PLACED", f"guest {name} has no node yet: {guest.status.reason}.")
        node = self._context.store.peek(Node, guest.status.node)
        if node is None or node.status.state != NODE_STATE_ONLINE:
            why = node.status.reason if node else "it was removed"
            raise precondition(
                "NODE_NOT_ONLINE", f"guest {name} is on node {guest.status.node}, which is not online: {why}."
            )
        if not self._context.acting.valid:
            raise precondition("NOT_ACTING", "this manager does not act any more; the one that does will go on.")
        stub = access_pb2_grpc.AccessServiceStub(self._agents.of(node).channel)
        return Way(guest, node.meta.name, stub, self._context.acting.epoch)

    async def note(self, guest: str, reason: str, message: str) -> None:
        """Write down, as an event about a guest, what somebody is about to do. Raises: without that it is not done."""
        await self._context.store.txn(record(Txn(), f"guest/{guest}", reason, message))


class AgentStream(Generic[Q, A]):
    """A stream to an agent, both ways. Errors name the node."""

    def __init__(self, node: str, call: Any) -> None:
        self._node = node
        self._stream = Stream[Q, A](call)
        self.write, self.end, self.cancel = self._stream.write, self._stream.end, self._stream.cancel

    async def read(self) -> A | None:
        """Return the next message; None at the end. Raises what the agent says."""
        return await told(self._node, self._stream.read)

    async def answer(self) -> A:
        """Return the one answer of a call that streams requests alone. Raises what the agent says."""
        return await told(self._node, self._stream.answer)


async def pass_on(
    requests: AsyncIterator[Q], translate: Callable[[Q], Q], stream: AgentStream[Q, A]
) -> AsyncGenerator[A, None]:
    """Send a caller's requests to an agent while its answers are yielded; whoever ends first ends the other."""
    sending = asyncio.create_task(send_all(requests, translate, stream))
    try:
        while (answer := await stream.read()) is not None:
            yield answer
    finally:
        stream.cancel()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def send_all(requests: AsyncIterator[Q], translate: Callable[[Q], Q], stream: AgentStream[Q, Any]) -> None:
    """Send a caller's requests to an agent, then the end. One that cannot be translated ends the stream."""
    try:
        async for request in requests:
            if not await stream.write(translate(request)):
                return
    except BaseException:
        stream.cancel()
        raise
    await stream.end()
