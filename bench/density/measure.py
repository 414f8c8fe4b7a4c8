"""The measurement, the same for every kind of guests: fill an agent, look at it at rest, list, and start it again."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
from gugus.agent.v1 import guest_pb2, guest_pb2_grpc, volume_pb2, volume_pb2_grpc
from gugus.cluster.v1 import heartbeat_pb2, heartbeat_pb2_grpc

from bench.density import processes
from bench.density.figures import Figures
from common.errors import unimplemented
from common.identity.ca import CertificateAuthority
from common.identity.credentials import Credentials
from common.identity.names import Identity, Role, any_of
from common.rpc.channel import open_channel
from common.rpc.server import Service, start_server

CLUSTER_ID, NODE, POOL, EPOCH = "00000000000000be", "n1", "local", 1
LEASE_MS = 10_000
SETTLE_S = 5.0
REST_S = 20.0
LISTS = 21
READY_S = 60.0
CALL_S = 60.0


@dataclass(frozen=True)
class Manager:
    """A manager that does nothing but answer beats: where it listens, its credentials and its cluster's authority."""

    port: int
    credentials: Credentials
    authority: CertificateAuthority

    def for_node(self, address: str) -> Credentials:
        """Return what an agent at an address proves itself with."""
        return self.authority.issue(Identity(CLUSTER_ID, Role.NODE, NODE), addresses=[address])


class Bed(Protocol):
    """An agent's process, wherever it is."""

    endpoint: str

    def run(self, words: Sequence[str], /) -> str:
        """Run a command where the agent is, and return what it wrote; a failure is no error."""

    def start(self) -> None:
        """Start the agent; it need not serve yet."""

    def stop(self) -> None:
        """Stop the agent in order; guests run on."""

    def pid(self) -> int:
        """Return the agent's process, as `run` sees processes."""


Disk = Callable[[volume_pb2_grpc.VolumeServiceStub, guest_pb2.GuestSpec], Any]
"""Makes the disk of a guest."""


@asynccontextmanager
async def manager(address: str) -> AsyncIterator[Manager]:
    """Run a manager on a free port of an address of this machine."""
    authority = CertificateAuthority.create(CLUSTER_ID, "bench")
    credentials = authority.issue(Identity(CLUSTER_ID, Role.MANAGER, "m1"), addresses=[address])
    service = Service(
        heartbeat_pb2_grpc.add_HeartbeatServiceServicer_to_server, _Beats(), "gugus.cluster.v1.HeartbeatService"
    )
    server = await start_server([service], address, 0, credentials)
    try:
        yield Manager(server.port, credentials, authority)
    finally:
        await server.stop(0)


async def measure(
    bed: Bed, manager: Manager, pool: volume_pb2.PoolSpec, guests: Sequence[guest_pb2.GuestSpec], disk: Disk
) -> Figures:
    """Measure an agent with these guests running. Raises TimeoutError, grpc errors, OSError."""
    count = len(guests)
    await asyncio.to_thread(bed.start)
    try:
        async with await _serving(bed, manager, 0) as channel:
            await _fill(channel, pool, guests, disk)
        async with await _serving(bed, manager, count) as channel:
            await asyncio.sleep(SETTLE_S)
            cpu_percent, rss_mib = await asyncio.to_thread(_at_rest, bed)
            list_ms = await _list_ms(guest_pb2_grpc.GuestServiceStub(channel))
        await asyncio.to_thread(bed.stop)
        began = time.perf_counter()
        await asyncio.to_thread(bed.start)
        async with await _serving(bed, manager, count) as channel:
            adopt_s = time.perf_counter() - began
            await _empty(guest_pb2_grpc.GuestServiceStub(channel), guests)
    finally:
        await asyncio.to_thread(bed.stop)
    return Figures(count, round(cpu_percent, 2), round(rss_mib, 1), round(list_ms, 1), round(adopt_s, 2))


class _Beats(heartbeat_pb2_grpc.HeartbeatServiceServicer):
    """Gives the lease at every beat."""

    async def Heartbeat(self, requests: Any, context: Any) -> AsyncIterator[heartbeat_pb2.HeartbeatResponse]:
        async for beat in requests:
            yield heartbeat_pb2.HeartbeatResponse(sequence=beat.sequence, lease_ms=LEASE_MS, epoch=EPOCH)

    async def RenewCertificate(self, request: Any, context: Any) -> heartbeat_pb2.RenewCertificateResponse:
        raise unimplemented("RENEWAL_UNSUPPORTED", "certificates of benchmarks are not renewed.")


async def _serving(bed: Bed, manager: Manager, count: int) -> grpc.aio.Channel:
    """Return a channel to the agent as soon as it serves and tells of so many running guests."""
    async with asyncio.timeout(READY_S):
        while True:
            channel = open_channel(bed.endpoint, manager.credentials, verify=any_of(Role.NODE, CLUSTER_ID))
            if await _running(guest_pb2_grpc.GuestServiceStub(channel)) == count:
                return channel
            await channel.close()  # a channel that failed to connect once waits for a second before it tries again
            await asyncio.sleep(0.02)


async def _running(stub: Any) -> int:
    try:
        answer = await stub.ListGuests(guest_pb2.ListGuestsRequest(), timeout=1.0)
    except grpc.aio.AioRpcError:
        return -1
    return sum(guest.state == guest_pb2.GUEST_STATE_RUNNING for guest in answer.guests)


async def _fill(
    channel: grpc.aio.Channel, pool: volume_pb2.PoolSpec, guests: Sequence[guest_pb2.GuestSpec], disk: Disk
) -> None:
    """Make the pool, and each guest with its disk, and start it."""
    stub: Any = guest_pb2_grpc.GuestServiceStub(channel)
    volumes: Any = volume_pb2_grpc.VolumeServiceStub(channel)
    await volumes.EnsurePool(volume_pb2.EnsurePoolRequest(epoch=EPOCH, spec=pool))
    for spec in guests:
        await disk(volumes, spec)
        await stub.CreateGuest(guest_pb2.CreateGuestRequest(epoch=EPOCH, spec=spec), timeout=CALL_S)
        request = guest_pb2.StartGuestRequest(epoch=EPOCH, name=spec.name, grant=guest_pb2.Grant(generation=1))
        await stub.StartGuest(request, timeout=CALL_S)


async def _empty(stub: Any, guests: Sequence[guest_pb2.GuestSpec]) -> None:
    """End all guests and forget them."""
    for spec in guests:
        await stub.KillGuest(guest_pb2.KillGuestRequest(epoch=EPOCH, name=spec.name), timeout=CALL_S)
        await stub.DeleteGuest(guest_pb2.DeleteGuestRequest(epoch=EPOCH, name=spec.name), timeout=CALL_S)


def _at_rest(bed: Bed) -> tuple[float, float]:
    """Return the agent's CPU use in percent of a core, and its memory in MiB, while nobody asks for anything."""
    own = processes.own_processes(bed.run, bed.pid())
    before, began = processes.cpu_seconds(bed.run, own), time.perf_counter()
    time.sleep(REST_S)
    used_s, took_s = processes.cpu_seconds(bed.run, own) - before, time.perf_counter() - began
    return 100 * used_s / took_s, processes.rss_mib(bed.run, own)


async def _list_ms(stub: Any) -> float:
    """Return the median duration of a list of all guests with all that is known of them, in milliseconds."""
    times = list[float]()
    for _ in range(LISTS):
        began = time.perf_counter()
        await stub.ListGuests(guest_pb2.ListGuestsRequest())
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)
