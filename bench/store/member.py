"""`python -m bench.store.member CONFIG`: one of our members, of production's parts, behind the used part of etcd's API.

Consensus, store, TLS and the guard around every call are those of `gugus-manager`; only the services differ, so that
what is measured is the store and neither our API nor our controllers. Like etcd's, a call that consensus cannot serve
is refused with UNAVAILABLE; unlike etcd's followers, ours do not pass writes on, so a client goes to the leader.
"""

import asyncio
import json
import signal
import sys
import zlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

from bench.store import stubs
from bench.store.config import MemberConfig
from bench.store.tls import HOST
from common import logs
from common.rpc.server import Service, start_server
from manager import garbage
from manager.consensus import Consensus, ConsensusError
from manager.replica import Replica
from manager.services.forward import known_error
from manager.store import Conflict, Store, StoreState
from manager.store import Txn as Transaction

wire = stubs.messages()


class _Served:
    """What the services share."""

    def __init__(self, name: str, consensus: Consensus, state: StoreState, store: Store) -> None:
        self._name, self._consensus, self._state, self._store = name, consensus, state, store
        self._replica = Replica(consensus)

    def _header(self, revision: int) -> Any:
        return wire.ResponseHeader(member_id=_member_id(self._name), revision=revision)


class Kv(_Served):
    """Reads and writes."""

    async def Put(self, request: Any, _context: Any) -> Any:
        """Write one key."""
        return wire.PutResponse(header=self._header(await self._write(_transaction((), (request,)))))

    async def Txn(self, request: Any, _context: Any) -> Any:
        """Write several keys if what is compared holds."""
        puts = [operation.request_put for operation in request.success]
        try:
            revision = await self._write(_transaction(request.compare, puts))
        except Conflict:
            return wire.TxnResponse(header=self._header(self._state.revision), succeeded=False)
        return wire.TxnResponse(header=self._header(revision), succeeded=True)

    async def Range(self, request: Any, _context: Any) -> Any:
        """Read a key or a prefix; linearizable unless `serializable`."""
        if not request.serializable:
            try:
                await self._replica.read_barrier()
            except ConsensusError as error:
                raise known_error(error) from error
        key = request.key.decode()
        if request.range_end:
            revision, found = self._state.list(key)
        else:
            revision, entry = self._state.revision, self._state.get(key)
            found = [] if entry is None else [entry]
        kept = [] if request.count_only else found[: request.limit or None]
        return wire.RangeResponse(header=self._header(revision), kvs=map(_key_value, kept), count=len(found))

    async def _write(self, txn: Transaction) -> int:
        try:
            return (await self._store.txn(txn)).revision
        except ConsensusError as error:
            raise known_error(error) from error


class Watch(_Served):
    """Changes as they are made."""

    async def Watch(self, requests: AsyncIterator[Any], _context: Any) -> AsyncIterator[Any]:
        """Serve one watch of a prefix; ends with the client."""
        create = (await anext(aiter(requests))).create_request
        after = create.start_revision - 1 if create.start_revision else self._state.revision
        yield wire.WatchResponse(header=self._header(after), created=True)
        async for change in self._store.watch([create.key.decode()], after):
            kv = wire.KeyValue(key=change.key.encode(), value=change.value, mod_revision=change.revision)
            event = wire.Event(type=wire.Event.DELETE if change.deleted else wire.Event.PUT, kv=kv)
            yield wire.WatchResponse(header=self._header(change.revision), events=[event])


class Maintenance(_Served):
    """What this member says of itself."""

    async def Status(self, _request: Any, _context: Any) -> Any:
        """Answer from the member's own view, without asking others."""
        view = self._consensus.leadership()
        return wire.StatusResponse(
            header=self._header(self._state.revision), version="gugus",
            leader=_member_id(view.leader) if view.leader else 0,
            raftIndex=view.last_log_index, raftTerm=view.term, raftAppliedIndex=view.applied_index,
        )  # fmt: skip


def _transaction(compares: Iterable[Any], puts: Iterable[Any]) -> Transaction:
    """Return a store's transaction; revision 0 in a compare means absent, as in etcd."""
    txn = Transaction()
    for compare in compares:
        key = compare.key.decode()
        if compare.mod_revision:
            txn.message.compares.add(key=key, mod_revision=compare.mod_revision)
        else:
            txn.message.compares.add(key=key, exists=False)
    for put in puts:
        txn.message.puts.add(key=put.key.decode(), value=put.value)
    return txn


def _key_value(entry: Any) -> Any:
    return wire.KeyValue(
        key=entry.key.encode(), value=entry.value, version=entry.version,
        create_revision=entry.create_revision, mod_revision=entry.mod_revision,
    )  # fmt: skip


def _member_id(name: str) -> int:
    return zlib.crc32(name.encode()) or 1  # 0 means none


def _services(parts: tuple[str, Consensus, StoreState, Store]) -> list[Service]:
    add = stubs.services()
    return [
        Service(add.add_KVServicer_to_server, Kv(*parts), "etcdserverpb.KV"),
        Service(add.add_WatchServicer_to_server, Watch(*parts), "etcdserverpb.Watch"),
        Service(add.add_MaintenanceServicer_to_server, Maintenance(*parts), "etcdserverpb.Maintenance"),
    ]


async def serve(config: MemberConfig) -> None:
    """Run until cancelled."""
    state = StoreState()
    consensus = Consensus(config.consensus, state)
    await consensus.start()
    garbage.settle()
    try:
        parts = config.name, consensus, state, Store(Replica(consensus), state)
        server = await start_server(_services(parts), HOST, config.client_port, config.files.load())
        try:
            await server.wait()
        finally:
            await server.stop()
    finally:
        await consensus.stop()


async def _run(config: MemberConfig) -> None:
    running = asyncio.ensure_future(serve(config))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        return


def main() -> None:
    """Run the command line."""
    config = MemberConfig(**json.loads(sys.argv[1]))
    logs.setup("manager", node=config.name)
    asyncio.run(_run(config))


if __name__ == "__main__":
    main()
