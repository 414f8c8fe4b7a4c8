"""The heartbeat: finds the acting manager, beats once a second and on every change, and renews the node lease.

A manager that does not answer within ANSWER_TIMEOUT_S is left for the next one, so that the death of the acting manager
costs a fraction of the default lease.
"""

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

import grpc
from gugus.agent.v1 import guest_pb2
from gugus.cluster.v1 import heartbeat_pb2, heartbeat_pb2_grpc
from gugus.cluster.v1.cluster_pb2 import SHUTDOWN_POLICY_UNSPECIFIED, ShutdownPolicy
from gugus.cluster.v1.node_pb2 import HOST_EXIT_UNSPECIFIED, HostExit

from agent.facts import HostFacts
from agent.farewell import Farewell
from agent.fencing.guard import Guard
from agent.guests import Guests
from agent.state import AgentState
from agent.turns import Turns
from common import validate
from common.config import AgentConfig
from common.errors import GugusError, from_rpc_error, unavailable
from common.identity.credentials import Credentials
from common.identity.names import Role, any_of
from common.leases import HEARTBEAT_PERIOD_MS
from common.logs import get_logger
from common.metrics import RpcMetrics
from common.rpc.channel import open_channel

PERIOD_S = HEARTBEAT_PERIOD_MS / 1000
LEAST_PERIOD_S = 0.1
"""Shortest time between two beats, however fast guests change."""

ENDANGERED_PERIOD_S = 0.25
"""Between beats of a host whose lease is running out and that is answered without one: a manager that suspected it has to write down first
that it is back. With a beat a second a cut of 6 s could cost a lease of 10."""

FAREWELL_PERIOD_S = 0.005
"""The same for the last beats: the one without the report must be there before the guests have new hosts."""

CONNECT_TIMEOUT_S = 1.0
ANSWER_TIMEOUT_S = 2.5
"""Two beats and a half without an answer: the manager is gone, or acts no more."""

PAUSE_FIRST_S = 0.2
PAUSE_MAX_S = 1.0
"""Pause after all known managers were tried in vain; doubled each time."""

REMOVED_PAUSE_S = 30.0
"""Pause after a manager said that this node was removed: it may be a mistake that is put right."""


class Heartbeat:
    """Runs for ever; one per agent."""

    def __init__(
        self,
        config: AgentConfig,
        credentials: Credentials,
        boot_id: str,
        state: AgentState,
        guests: Guests,
        facts: HostFacts,
        guard: Guard,
        turns: Turns,
        metrics: RpcMetrics | None = None,
    ) -> None:
        self._config, self._credentials, self._boot_id, self._state = config, credentials, boot_id, state
        self._guests, self._facts, self._guard, self._turns, self._metrics = guests, facts, guard, turns, metrics
        self._sequence = 0
        self._hint = ""
        self._log = get_logger("heartbeat")
        self._complaint = ""
        self._now = asyncio.Event()
        self._exit: HostExit.ValueType = HOST_EXIT_UNSPECIFIED
        self.order: ShutdownPolicy.ValueType = SHUTDOWN_POLICY_UNSPECIFIED
        """What the acting manager wants to become of the guests of a host that goes down (`leave`)."""
        self._farewell: Farewell | None = None
        self._fenced = asyncio.Event()

    def beat_soon(self) -> None:
        """Beat at once: facts changed."""
        self._now.set()

    def leave(self, exit_: HostExit.ValueType) -> None:
        """Say from now on that the host goes down; `order` is what is to be done."""
        self._exit = exit_
        self.beat_soon()

    def take_leave(self) -> asyncio.Event:
        """Renew no lease any more, and have the acting manager count this node as fenced once its HA guests are dead.

        Returns the event of that. Call it before the lease is given up.
        """
        self._farewell = Farewell()
        return self._fenced

    async def run(self) -> None:
        """Try the managers in turn until cancelled."""
        pause_s = PAUSE_FIRST_S
        while True:
            answered, tried = False, set[str]()
            for endpoint in self._candidates():
                answered = await self._try(endpoint)
                tried.add(endpoint)
                if answered or (self._hint and self._hint not in tried):
                    break
            pause_s = PAUSE_FIRST_S if answered or self._hint else min(PAUSE_MAX_S, pause_s * 2)
            await asyncio.sleep(pause_s)

    def _candidates(self) -> list[str]:
        """The manager that was named as acting, then those learned, first the one that acted then, then those configured."""
        hint, self._hint = self._hint, ""
        known: Iterable[str] = (hint, *self._state.managers, *self._config.managers)
        return list(dict.fromkeys(endpoint for endpoint in known if endpoint))

    async def _try(self, endpoint: str) -> bool:
        """Beat to one manager until it fails; return whether it ever renewed the lease."""
        session = _Session(self, endpoint)
        try:
            await session.run()
        except grpc.aio.AioRpcError as error:
            await self._failed(endpoint, from_rpc_error(error))
        except GugusError as error:
            await self._failed(endpoint, error)
        return session.answered

    async def _failed(self, endpoint: str, error: GugusError) -> None:
        hint = error.metadata.get("acting", "")
        self._hint = "" if hint == endpoint or validate.endpoint(hint) else hint
        complaint = f"{endpoint}: {error.reason}"
        log = self._log.debug if complaint == self._complaint else self._log.warning
        log("manager does not renew the lease", manager=endpoint, reason=error.reason, error=str(error))
        self._complaint = complaint
        if error.code is grpc.StatusCode.NOT_FOUND:
            self._log.error("this node was removed from the cluster; to use it again, join it anew", manager=endpoint)
            await asyncio.sleep(REMOVED_PAUSE_S)

    def _beat(self, told_facts: object) -> heartbeat_pb2.HeartbeatRequest:
        self._sequence += 1
        beat = heartbeat_pb2.HeartbeatRequest(
            node=self._config.name,
            sequence=self._sequence,
            boot_id=self._boot_id,
            epoch=self._state.epoch,
            guests=[_report(guest) for guest in self._guests.list()],
            facts=self._facts.facts if self._facts.known and self._facts.facts != told_facts else None,
            exit=self._exit,
        )
        lapse = self._guard.beat_sent(self._sequence)  # last: the lease counts from here
        if self._farewell is not None:
            lapse = self._farewell.sent(self._sequence, lapse)
        if lapse is not None:
            beat.lapse.CopyFrom(lapse)
        return beat

    async def _answered(self, endpoint: str, answer: heartbeat_pb2.HeartbeatResponse) -> bool:
        known = self._state.epoch
        await self._turns.admit(answer.epoch)  # an answer of an epoch that is over renews nothing
        if answer.epoch > known:
            self.beat_soon()  # a manager believes another boot only once it knows the manager's epoch
        if answer.shutdown != SHUTDOWN_POLICY_UNSPECIFIED:
            self.order = answer.shutdown
        if self._farewell is not None:
            self._take_leave(self._farewell, answer)
            return False
        renewed = self._guard.beat_answered(answer.sequence, answer.lease_ms, fenced=answer.fenced)
        if renewed and self._complaint != f"{endpoint}: renewed":
            self._log.info("node lease held", manager=endpoint, epoch=answer.epoch, lease_ms=answer.lease_ms)
            self._complaint = f"{endpoint}: renewed"
        if not renewed and self._guard.endangered:
            asyncio.get_running_loop().call_later(ENDANGERED_PERIOD_S, self.beat_soon)
        if answer.managers:
            await self._learn((endpoint, *(other for other in answer.managers if other != endpoint)))
        return renewed

    async def _learn(self, managers: tuple[str, ...]) -> None:
        """Keep the managers' addresses, first the one that acts: an agent that is restarted has no time to look for it."""
        if managers != self._state.managers:
            await self._state.run(self._state.save_managers, managers)

    def _take_leave(self, farewell: Farewell, answer: heartbeat_pb2.HeartbeatResponse) -> None:
        if farewell.answered(answer.sequence, answer.lease_ms, fenced=answer.fenced):
            self.beat_soon()
        if farewell.over:
            self._fenced.set()

    @property
    def _least_period_s(self) -> float:
        return LEAST_PERIOD_S if self._farewell is None else FAREWELL_PERIOD_S


if TYPE_CHECKING:
    _Call = grpc.aio.StreamStreamCall[heartbeat_pb2.HeartbeatRequest, heartbeat_pb2.HeartbeatResponse]


class _Session:
    """One stream to one manager."""

    def __init__(self, heart: Heartbeat, endpoint: str) -> None:
        self._heart, self._endpoint = heart, endpoint
        self._told_facts: object = None
        self.answered = False

    async def run(self) -> None:
        """Beat until the stream fails. Raises AioRpcError or GugusError."""
        heart = self._heart
        verify = any_of(Role.MANAGER, heart._config.cluster_id)
        channel = open_channel(self._endpoint, heart._credentials, verify=verify, metrics=heart._metrics)
        try:
            await self._connect(channel)
            call = heartbeat_pb2_grpc.HeartbeatServiceStub(channel).Heartbeat()
            beating = asyncio.create_task(self._beat(call))
            try:
                await self._listen(call)
            finally:
                beating.cancel()
                await asyncio.gather(beating, return_exceptions=True)
                call.cancel()
        finally:
            await channel.close(None)

    async def _connect(self, channel: grpc.aio.Channel) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await channel.channel_ready()
        except TimeoutError:
            raise unavailable("MANAGER_UNREACHABLE", f"{self._endpoint} cannot be reached.") from None

    async def _beat(self, call: "_Call") -> None:
        heart = self._heart
        watcher = heart._guests.changes.watch()
        changed = asyncio.create_task(watcher.next())
        try:
            while True:
                heart._now.clear()
                facts = heart._facts.facts if heart._facts.known else None
                beat = heart._beat(self._told_facts)
                await call.write(beat)
                self._told_facts = facts
                await asyncio.sleep(heart._least_period_s)
                wanted = asyncio.create_task(heart._now.wait())
                await asyncio.wait({changed, wanted}, timeout=PERIOD_S - LEAST_PERIOD_S, return_when="FIRST_COMPLETED")
                wanted.cancel()
                if changed.done():
                    changed = asyncio.create_task(watcher.next())
        finally:
            changed.cancel()
            heart._guests.changes.unwatch(watcher)

    async def _listen(self, call: "_Call") -> None:
        while True:
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    answer = await call.read()
            except TimeoutError:
                raise unavailable(
                    "MANAGER_SILENT", f"{self._endpoint} has not answered for {ANSWER_TIMEOUT_S} s."
                ) from None
            if not isinstance(answer, heartbeat_pb2.HeartbeatResponse):  # grpc.aio.EOF
                await _ended(call, self._endpoint)
                return
            if await self._heart._answered(self._endpoint, answer):
                self.answered = True


async def _ended(call: "_Call", endpoint: str) -> None:
    """Raise why a stream ended."""
    code, details = await call.code(), await call.details()
    if code is not grpc.StatusCode.OK:
        initial, trailing = await call.initial_metadata(), await call.trailing_metadata()
        raise grpc.aio.AioRpcError(code, initial, trailing, details)
    raise unavailable("STREAM_ENDED", f"{endpoint} ended the heartbeat stream.")


def _report(guest: guest_pb2.Guest) -> heartbeat_pb2.GuestReport:
    return heartbeat_pb2.GuestReport(
        name=guest.spec.name,
        state=guest.state,
        generation=guest.generation,
        reason=guest.reason,
        addresses=guest.addresses,
        ha=guest.spec.ha,
        cpu_time_ns=guest.cpu_time_ns,
        memory_used_bytes=guest.memory_used_bytes,
        mode=guest.mode,
        uid=guest.spec.uid,
        ended=guest.ended,
    )
