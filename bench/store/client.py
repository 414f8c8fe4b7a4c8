"""A client of etcd's API, the same for both sides: plain gRPC over mutual TLS, without retries of its own."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import grpc

from bench.store import stubs
from bench.store.sides import CannotMeasure
from bench.store.tls import Files

POLL_S = 0.01
READY_TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 10.0

_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),  # every channel has a connection of its own
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 100),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
]


class Connection:
    """One connection to one member."""

    def __init__(self, endpoint: str, files: Files) -> None:
        held = files.load()
        tls = grpc.ssl_channel_credentials(held.ca_pem, held.key_pem, held.cert_pem)
        self.endpoint = endpoint
        self._wire, services = stubs.messages(), stubs.services()
        self._channel = grpc.aio.secure_channel(endpoint, tls, options=_OPTIONS)
        self._kv = services.KVStub(self._channel)
        self._watch = services.WatchStub(self._channel)
        self._maintenance = services.MaintenanceStub(self._channel)

    async def close(self) -> None:
        """Close it; calls under way are cancelled."""
        await self._channel.close()

    async def put(self, key: bytes, value: bytes, timeout_s: float = CALL_TIMEOUT_S) -> None:
        """Write one key. Raises grpc.aio.AioRpcError."""
        await self._kv.Put(self._wire.PutRequest(key=key, value=value), timeout=timeout_s)

    async def put_all(self, objects: Mapping[bytes, bytes]) -> None:
        """Write several keys in one transaction. Raises grpc.aio.AioRpcError."""
        txn = self._wire.TxnRequest()
        for key, value in objects.items():
            txn.success.add().request_put.MergeFrom(self._wire.PutRequest(key=key, value=value))
        await self._kv.Txn(txn, timeout=CALL_TIMEOUT_S)

    async def swap(self, key: bytes, value: bytes, revision: int) -> bool:
        """Write a key if it was last changed at a revision, 0 for absent; return whether it was written."""
        txn = self._wire.TxnRequest()
        txn.compare.add(key=key, target=self._wire.Compare.MOD, mod_revision=revision)
        txn.success.add().request_put.MergeFrom(self._wire.PutRequest(key=key, value=value))
        return bool((await self._kv.Txn(txn, timeout=CALL_TIMEOUT_S)).succeeded)

    async def get(self, key: bytes, *, local: bool = False, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """Return the key as of now, or as the member's own replica has it (`local`); None when there is none."""
        request = self._wire.RangeRequest(key=key, serializable=local)
        found = (await self._kv.Range(request, timeout=timeout_s)).kvs
        return found[0] if found else None

    async def count(self, prefix: bytes) -> int:
        """Return how many keys start so in the member's own replica."""
        request = self._wire.RangeRequest(key=prefix, range_end=_end(prefix), serializable=True, count_only=True)
        return int((await self._kv.Range(request, timeout=CALL_TIMEOUT_S)).count)

    async def status(self, timeout_s: float = 1.0) -> Any:
        """Return the member's view of itself."""
        return await self._maintenance.Status(self._wire.StatusRequest(), timeout=timeout_s)

    async def watch(self, prefix: bytes) -> AsyncGenerator[Any, None]:
        """Yield the member's answers to one watch of a prefix; the first says that it is on."""
        create = self._wire.WatchCreateRequest(key=prefix, range_end=_end(prefix))
        call = self._watch.Watch()
        try:
            await call.write(self._wire.WatchRequest(create_request=create))
            while (answer := await call.read()) is not grpc.aio.EOF:
                yield answer
        finally:
            call.cancel()


class Cluster:
    """One connection to each member of a side."""

    def __init__(self, endpoints: Sequence[str], files: Files) -> None:
        self.connections = [Connection(endpoint, files) for endpoint in endpoints]

    async def close(self) -> None:
        """Close them."""
        for connection in self.connections:
            await connection.close()

    def at(self, endpoint: str) -> Connection:
        """Return the connection to a member."""
        return next(connection for connection in self.connections if connection.endpoint == endpoint)

    async def ready(self) -> Connection:
        """Wait until all members answer, agree on a leader, have the same log, and a write is accepted.

        Return the connection to the leader. Raises CannotMeasure when that does not come.
        """
        deadline, seen = time.monotonic() + READY_TIMEOUT_S, "nothing"
        while time.monotonic() < deadline:
            try:
                views = [await connection.status() for connection in self.connections]
                seen = "; ".join(f"leader {v.leader:x}, term {v.raftTerm}, log {v.raftIndex}" for v in views)
                if (leader := self._agreed(views)) is not None:
                    await leader.put(b"bench/ready", b"", timeout_s=1.0)
                    return leader
            except grpc.aio.AioRpcError as error:
                seen = f"{error.code().name}: {error.details()}"
            await asyncio.sleep(0.1)
        where = ", ".join(connection.endpoint for connection in self.connections)
        raise CannotMeasure(f"{where}: no agreed leader in {READY_TIMEOUT_S:g} s; last seen: {seen}")

    def _agreed(self, views: Sequence[Any]) -> Connection | None:
        """Return the connection to the leader if all members name the same one and have the same log."""
        if len({view.leader for view in views}) != 1 or len({view.raftIndex for view in views}) != 1:
            return None
        pairs = zip(self.connections, views, strict=True)
        return next((c for c, view in pairs if view.leader and view.header.member_id == view.leader), None)

    async def first_write(self, key: bytes, every_s: float) -> float:
        """Try to write at one member after another, whatever earlier tries do; return when the first one had done so.

        The time is CLOCK_MONOTONIC's, in seconds. Raises CannotMeasure when no write is accepted.
        """
        accepted: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        tries = set[asyncio.Task[None]]()
        try:
            for number in range(int(READY_TIMEOUT_S / every_s)):
                connection = self.connections[number % len(self.connections)]
                tries.add(asyncio.create_task(_try(connection, key, accepted)))
                await asyncio.wait({accepted}, timeout=every_s)
                if accepted.done():
                    return accepted.result()
        finally:
            for one in tries:
                one.cancel()
            await asyncio.gather(*tries, return_exceptions=True)
        raise CannotMeasure(f"no write was accepted within {READY_TIMEOUT_S:g} s")


async def _try(connection: Connection, key: bytes, accepted: asyncio.Future[float]) -> None:
    with suppress(grpc.aio.AioRpcError):
        await connection.put(key, b"", timeout_s=2.0)
        if not accepted.done():
            accepted.set_result(time.monotonic())


def _end(prefix: bytes) -> bytes:
    """Return the first key behind all that start so."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
