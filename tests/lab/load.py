"""A load upon a cluster's API: clients that write and read, and watchers; what they asked and saw is noted for `history`.

The objects cost nothing and harm nobody: networks only of a host that does not exist, which no agent ever makes, and whether such
hosts are cordoned. Making a network carries an idempotency key and is repeated by the SDK until its outcome is known; other writes
are attempted once, so that each attempt is an operation of its own.
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from gugus.agent.v1.network_pb2 import BridgeNetwork, NetworkSpec
from gugus.cluster.v1 import network_pb2, network_pb2_grpc, node_pb2, node_pb2_grpc
from gugus.cluster.v1.event_pb2 import WatchResponse
from gugus.cluster.v1.network_pb2 import Network
from gugus.cluster.v1.node_pb2 import Node

from agent.join import JoinOptions, join
from client.caller import STREAM_PATIENCE_S, Caller, Stub, T
from client.config import ClientConfig, with_endpoints
from client.sdk import Gugus
from common.config import AgentConfig
from common.errors import GugusError, from_rpc_error
from common.identity.names import Role, any_of
from common.identity.tokens import JoinToken
from common.rpc.channel import open_channel
from tests.lab.history import (
    OFF,
    ON,
    Answer,
    Asked,
    Create,
    Delete,
    Done,
    Get,
    Given,
    Missing,
    Put,
    Seen,
    Sight,
    Stretch,
    Taken,
    Value,
)
from tests.simulation.consensus.linearizability import NEVER

PREFIX = "load-"
"""How the names of all objects of the load begin."""

NETWORKS = 4
"""Names in use at once; each round has its own, so that the history of one stays short."""
HOSTS = 2
ROUNDS_A_HOST = 10
NOWHERE = "192.0.2.1"
"""Of TEST-NET-1 (RFC 5737), where nobody is."""

PAUSE_S = 0.06
"""Longest pause of a client between two operations."""
ATTEMPT_S = 6.0
"""Longer than a manager waits for the majority, which is 5 s."""
PATIENCE_S = 60.0

_NO_EFFECT = frozenset({"NOT_ACTING", "NO_ACTING_MANAGER", "CONFLICT"})
_NOT_CONNECTED = "failed to connect"
"""Words of gRPC when a call was not sent at all."""
_LOST = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})


class NoEffect(Exception):
    """An attempt surely changed nothing, and answered nothing."""


@dataclass(slots=True)
class Notes:
    """All that clients asked. `round` is what the clients' names of networks are chosen by."""

    round: int = 0
    operations: list[Asked] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    _values: int = 0

    def value(self) -> str:
        """Return a value that no other write has: a bridge's name."""
        self._values += 1
        return f"lw{self._values:x}"

    def accepted(self) -> list[tuple[float, float]]:
        """Return when each acknowledged write was asked and answered."""
        return [
            (op.invoked, op.returned)
            for op in self.operations
            if isinstance(op.output, Done) and isinstance(op.input, Create | Delete | Put)
        ]


def hosts(rounds: int) -> list[str]:
    """Return the names of the hosts that do not exist, for so many rounds."""
    return [f"{PREFIX}h{number}" for number in range(HOSTS * (1 + rounds // ROUNDS_A_HOST))]


async def make_host(gugus: Gugus, name: str, folder: Path) -> None:
    """Enrol a host that is never switched on: it stays JOINING, and nobody waits for it."""
    token = await gugus.cluster.create_token(node=name)
    settings = AgentConfig(name=name, cluster_id="", address=NOWHERE, pki_dir=folder / "pki")
    options = JoinOptions(folder / "agent.yaml", name=name, address=NOWHERE, base=settings)
    await join(JoinToken.parse(token.token), options)


async def remove_all(gugus: Gugus) -> None:
    """Remove every object of the load, and return when all are gone."""
    async with asyncio.timeout(PATIENCE_S):
        while left := [n for n in await gugus.networks.list() if n.meta.name.startswith(PREFIX)]:
            for network in left:
                if not network.meta.deleting:
                    await gugus.networks.delete(network.meta.name)
            await asyncio.sleep(0.1)
    for node in await gugus.nodes.list():
        if node.meta.name.startswith(PREFIX):
            await gugus.nodes.remove(node.meta.name)


class Doors:
    """The API of each manager by itself, for calls that are made once, at one of them."""

    def __init__(self, config: ClientConfig) -> None:
        credentials, name = config.credentials(), any_of(Role.MANAGER, config.cluster_id)
        self._channels = [open_channel(endpoint, credentials, verify=name) for endpoint in config.endpoints]
        self.networks: list[Any] = [network_pb2_grpc.NetworkServiceStub(channel) for channel in self._channels]
        self.nodes: list[Any] = [node_pb2_grpc.NodeServiceStub(channel) for channel in self._channels]

    async def close(self) -> None:
        """Close the channels."""
        for channel in self._channels:
            await channel.close()


class Client:
    """Does one thing after another, beginning at the manager of its own number."""

    def __init__(self, number: int, config: ClientConfig, doors: Doors, notes: Notes) -> None:
        self._name, self._doors, self._notes = f"client{number}", doors, notes
        self._gugus = Gugus.connect(_from(config, number), timeout_s=PATIENCE_S)
        self._door, self._rng = number % len(config.endpoints), random.Random(number)

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`; what is under way then is finished."""
        async with self._gugus:
            while not stop.is_set():
                await self._one()
                await asyncio.sleep(self._rng.uniform(0, PAUSE_S))

    async def _one(self) -> None:
        notes, rng = self._notes, self._rng
        network = f"network/{PREFIX}r{notes.round}-{rng.randrange(NETWORKS)}"
        host = f"node/{PREFIX}h{HOSTS * (notes.round // ROUNDS_A_HOST) + rng.randrange(HOSTS)}"
        what = rng.random()
        if what < 0.35:
            await self.ask(Get(rng.choice((network, host))))
        elif what < 0.6:
            await self.ask(Create(network, notes.value()))
        elif what < 0.75:
            await self.ask(Delete(network))
        else:
            await self.ask(Put(host, rng.choice((ON, OFF))))

    async def ask(self, given: Given) -> None:
        """Ask one thing and note what came of it."""
        invoked = time.monotonic()
        self._notes.used.add(given.key)
        try:
            answer = await self._answer(given)
        except NoEffect:
            await self._next_door()
            return
        if answer is None:
            await self._next_door()
            if isinstance(given, Get):
                return
        returned = NEVER if answer is None else time.monotonic()
        self._notes.operations.append(Asked(self._name, invoked, returned, given, answer))

    async def _next_door(self) -> None:
        self._door = (self._door + 1) % len(self._doors.nodes)
        await asyncio.sleep(self._rng.uniform(0, 0.2))

    async def _answer(self, given: Given) -> Answer | None:
        try:
            return await self._call(given)
        except GugusError as error:
            if error.reason == "NETWORK_ALREADY_EXISTS":
                return Taken()
            if error.reason == "NETWORK_NOT_FOUND":  # of a create: another client deleted what it had made
                return Done() if isinstance(given, Create) else Missing()
            once = isinstance(given, Delete | Put)
            if once and (error.reason in _NO_EFFECT or _NOT_CONNECTED in error.message):
                raise NoEffect from None
            if error.code in _LOST or error.reason == "OUTCOME_UNKNOWN" or error.reason.startswith("RPC_"):
                return None
            raise

    async def _call(self, given: Given) -> Answer:
        kind, _, name = given.key.partition("/")
        if isinstance(given, Get):
            found = await (self._gugus.networks.get(name) if kind == "network" else self._gugus.nodes.get(name))
            value, leaving = value_of(found)
            return Seen(value, leaving, found.meta.revision)
        if isinstance(given, Create):
            spec = NetworkSpec(name=name, bridge=BridgeNetwork(bridge=given.value))
            made = await self._gugus.networks.create(spec, nodes=hosts(0)[:1])
            return Done(made.meta.revision if value_of(made) == (given.value, False) else 0)
        if isinstance(given, Delete):
            networks = self._doors.networks[self._door]
            await _once(networks.DeleteNetwork, network_pb2.DeleteNetworkRequest(name=name))
            return Done()
        request = node_pb2.CordonNodeRequest(name=name, cordoned=given.value == ON)
        node = await _once(self._doors.nodes[self._door].CordonNode, request)
        return Done(node.meta.revision)


async def _once(call: Callable[..., Awaitable[Any]], request: Message) -> Any:
    try:
        return await call(request, timeout=ATTEMPT_S)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from None


def value_of(obj: Network | Node) -> tuple[str, bool]:
    """Return the value of an object, and whether it is leaving."""
    if isinstance(obj, Network):
        return obj.spec.bridge.bridge, obj.meta.deleting
    return ON if obj.spec.cordoned else OFF, False


class Watcher:
    """Follows all objects of the load. `hop_s`: it leaves the manager that it watches at so often, and goes on at the next one."""

    def __init__(self, number: int, config: ClientConfig, hop_s: float | None = None) -> None:
        self._config, self._number, self._hop_s = config, number, hop_s
        self.stretches: list[Stretch] = []
        self.compacted = 0
        self.opened = 0
        self._resume = 0
        self._listing: dict[str, tuple[int, Value]] = {}

    @property
    def reached(self) -> int:
        """The last revision seen."""
        return self.stretches[-1].end if self.stretches else 0

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            caller = _Counting(_from(self._config, self._number), self)
            try:
                async with Gugus(caller) as gugus:
                    await self._follow(gugus)
            except GugusError as error:
                if error.reason == "COMPACTED":
                    self.compacted += 1
                    self._resume = 0
                elif error.code not in _LOST:
                    raise
            self._number += 1

    async def _follow(self, gugus: Gugus) -> None:
        began = time.monotonic()
        prefixes = [f"network/{PREFIX}", f"node/{PREFIX}"]
        async with aclosing(gugus.events.watch(prefixes, from_revision=self._resume)) as changes:
            async for change in changes:
                self._take(change)
                if self._resume and self._hop_s and time.monotonic() - began > self._hop_s:
                    return

    def _take(self, change: WatchResponse) -> None:
        if change.synced:
            self.stretches.append(Stretch(change.revision, self._listing))
            self._listing = {}
        elif self._resume:
            self.stretches[-1].sights.append(Sight(change.revision, change.key, _value(change)))
        else:
            self._listing[change.key] = (change.revision, _value(change))
        self._resume = change.resume or self._resume


def _value(change: WatchResponse) -> Value:
    if change.deleted:
        return None
    kind = Network if change.key.startswith("network/") else Node
    return value_of(kind.FromString(change.value))


class _Counting(Caller):
    """A caller that counts how often a watcher's stream was opened."""

    def __init__(self, config: ClientConfig, watcher: Watcher) -> None:
        super().__init__(config)
        self._watcher = watcher

    def stream(
        self,
        stub: Stub,
        method: str,
        request: Callable[[], Message],
        answer: type[T],
        *,
        patience_s: float = STREAM_PATIENCE_S,
    ) -> AsyncGenerator[T, None]:
        """Open a stream like any caller."""

        def counted() -> Message:
            self._watcher.opened += 1
            return request()

        return super().stream(stub, method, counted, answer, patience_s=patience_s)


async def read_all(gugus: Gugus, keys: Sequence[str]) -> list[Asked]:
    """Read all of these objects, as operations of the history."""
    began = time.monotonic()
    found: dict[str, Network | Node] = {f"network/{obj.meta.name}": obj for obj in await gugus.networks.list()}
    found |= {f"node/{obj.meta.name}": obj for obj in await gugus.nodes.list()}
    ended = time.monotonic()
    answers: dict[str, Answer] = {
        key: Seen(*value_of(found[key]), found[key].meta.revision) if key in found else Missing() for key in keys
    }
    return [Asked("reader", began, ended, Get(key), answer) for key, answer in answers.items()]


def _from(config: ClientConfig, number: int) -> ClientConfig:
    """Return a configuration that begins with the manager of a number."""
    first = number % len(config.endpoints)
    return with_endpoints(config, config.endpoints[first:] + config.endpoints[:first])
