"""What is measured, section by section. Rounds alternate between the two sides; only one is loaded at a time."""

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

import grpc

from bench.store import sides
from bench.store.bed import Bed, Party
from bench.store.client import POLL_S, READY_TIMEOUT_S, Connection
from bench.store.figures import Figures, Sample, medians, percentile
from bench.store.load import WARM_UP_S, Done, Job, key_of
from bench.store.sides import CannotMeasure
from lab.machine import bound_to_us

OBJECTS = 100_000
OBJECT_BYTES = 1024
OBJECTS_A_TXN = 32
TXNS_AT_ONCE = 8
WATCHERS = 100
RETRY_S = 0.02
START_UP_S = 1.5
"""Time that a generator gets to start and to connect."""

Measure = Callable[[Party], Awaitable[Sample]]


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured."""

    rounds: int
    seconds: float
    idle_seconds: float
    failovers: int
    recoveries: int
    fan_outs: int
    objects: int
    generators: int


async def alternate(bed: Bed, rounds: int, measure: Measure) -> Figures:
    """Measure both sides in turns; return the medians."""
    samples: dict[str, list[Sample]] = {bed.ours.name: [], bed.etcd.name: []}
    for number in range(rounds):
        for party in bed.turns(number):
            samples[party.name].append(await measure(party))
    return medians(samples[bed.ours.name], samples[bed.etcd.name])


# -- throughput, by generators in processes of their own


async def sequential_writes(bed: Bed, extent: Extent) -> Figures:
    """One client, one write after another."""

    async def measure(party: Party) -> Sample:
        done = await generate(bed, party, "put", 1, extent.seconds, 1)
        return {
            "sequential_write_p50_ms": percentile(done.latencies_ms, 50),
            "sequential_write_p99_ms": percentile(done.latencies_ms, 99),
        }

    return await alternate(bed, extent.rounds, measure)


async def concurrent_writes(bed: Bed, extent: Extent, clients: int) -> Figures:
    """Many clients, each one write after another."""

    async def measure(party: Party) -> Sample:
        done = await generate(bed, party, "put", clients, extent.seconds, extent.generators)
        return {
            f"writes_{clients}_clients_per_s": len(done.latencies_ms) / extent.seconds,
            f"writes_{clients}_clients_p99_ms": percentile(done.latencies_ms, 99),
            f"writes_{clients}_clients_generator_percent_of_core": 100 * done.core_share,
        }

    return await alternate(bed, extent.rounds, measure)


async def linearizable_reads(bed: Bed, extent: Extent) -> Figures:
    """Reads that see every write acknowledged before, from the leader."""
    for party in (bed.ours, bed.etcd):
        await party.leader.put_all({key_of(number): bytes(200) for number in range(100)})

    async def measure(party: Party) -> Sample:
        one = await generate(bed, party, "get", 1, extent.seconds, 1)
        many = await generate(bed, party, "get", 32, extent.seconds, extent.generators)
        return {
            "sequential_read_p50_ms": percentile(one.latencies_ms, 50),
            "reads_32_clients_per_s": len(many.latencies_ms) / extent.seconds,
            "reads_32_clients_p99_ms": percentile(many.latencies_ms, 99),
        }

    return await alternate(bed, extent.rounds, measure)


async def generator_check(bed: Bed, extent: Extent) -> dict[str, float]:
    """Return etcd's writes/s at 32 clients with one and with two generators: whether the generator is what limits."""
    figures = {}
    for generators in (1, 2):
        done = await generate(bed, bed.etcd, "put", 32, extent.seconds, generators)
        figures[f"etcd_writes_32_clients_{generators}_generators_per_s"] = len(done.latencies_ms) / extent.seconds
    return figures


async def generate(bed: Bed, party: Party, kind: str, clients: int, seconds: float, generators: int) -> Done:
    """Load a side's leader from generators that start at the same moment; return what they saw together."""
    start_at = time.monotonic() + START_UP_S
    shares = [clients // generators + (number < clients % generators) for number in range(generators)]
    files = bed.files
    jobs = [
        Job(
            kind, party.leader.endpoint, str(files.ca), str(files.certificate), str(files.key), share, seconds, start_at
        )
        for share in shares
    ]
    parts = await asyncio.gather(*(_generator(job) for job in jobs))
    return Done([one for part in parts for one in part.latencies_ms], sum(part.core_share for part in parts))


async def _generator(job: Job) -> Done:
    process = await asyncio.create_subprocess_exec(*bound_to_us(job.argv()), stdout=subprocess.PIPE)
    try:
        async with asyncio.timeout(job.seconds + WARM_UP_S + READY_TIMEOUT_S):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise CannotMeasure(f"a load generator failed at {job.endpoint}")
    return Done(**json.loads(output))


# -- watchers


async def watch_fan_out(bed: Bed, extent: Extent) -> Figures:
    """From a write's sending until the last of many watchers, spread over all members, has its event."""
    return await alternate(bed, extent.rounds, lambda party: _fan_out(party, extent.fan_outs))


async def _fan_out(party: Party, writes: int) -> Sample:
    watchers = [_Watcher(party.cluster.connections[number % 3]) for number in range(WATCHERS)]
    times = list[float]()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(watcher.run()) for watcher in watchers]
        for watcher in watchers:
            await watcher.on.wait()
        for number in range(writes):
            value = str(number).encode()
            arrivals = [watcher.expect(value) for watcher in watchers]
            began = time.monotonic()
            await party.leader.put(b"bench/watched-1", value)
            times.append((max(await asyncio.gather(*arrivals)) - began) * 1000)
            await asyncio.sleep(0.02)
        for task in tasks:
            task.cancel()
    return {"watch_100_watchers_p50_ms": percentile(times, 50), "watch_100_watchers_p99_ms": percentile(times, 99)}


class _Watcher:
    def __init__(self, connection: Connection) -> None:
        self.on = asyncio.Event()
        self._connection = connection
        self._expected = b""
        self._arrived: asyncio.Future[float] | None = None

    def expect(self, value: bytes) -> asyncio.Future[float]:
        """Return when the event of a value arrives."""
        self._expected = value
        self._arrived = asyncio.get_running_loop().create_future()
        return self._arrived

    async def run(self) -> None:
        """Watch until cancelled."""
        async for answer in self._connection.watch(b"bench/watched-"):
            self.on.set()
            for event in answer.events:
                if self._arrived is not None and event.kv.value == self._expected and not self._arrived.done():
                    self._arrived.set_result(time.monotonic())


# -- idle


async def idle(bed: Bed, extent: Extent) -> Figures:
    """CPU time of all members while nobody asks for anything; heartbeats go on."""
    await asyncio.sleep(1.0)
    parties = (bed.ours, bed.etcd)
    before = [_cpu(party) for party in parties]
    began = time.monotonic()
    await asyncio.sleep(extent.idle_seconds)
    passed = time.monotonic() - began
    name = "idle_cpu_three_members_percent_of_core"
    ours, etcd = ({name: 100 * (_cpu(party) - cpu) / passed} for party, cpu in zip(parties, before, strict=True))
    return medians([ours], [etcd])


def _cpu(party: Party) -> float:
    return sum(node.cpu_seconds() for node in party.side.nodes)


# -- failures


async def failover(bed: Bed, extent: Extent) -> Figures:
    """From the leader's SIGKILL to the next write that is accepted, by a client that tries members in turn."""
    return await _failovers(bed, extent, "failover", sides.Node.kill)


async def frozen_leader(bed: Bed, extent: Extent) -> Figures:
    """The same when the leader is frozen (SIGSTOP): its connections stay open, as those of a host without power do."""
    return await _failovers(bed, extent, "frozen_leader", sides.Node.freeze)


async def _failovers(bed: Bed, extent: Extent, name: str, end: Callable[[sides.Node], None]) -> Figures:
    times: dict[str, list[float]] = {bed.ours.name: [], bed.etcd.name: []}
    for number in range(extent.failovers):
        for party in bed.turns(number):
            await party.settle()
            await asyncio.sleep(1.0)
            victim = party.leading
            began = time.monotonic()
            end(victim)
            times[party.name].append(await party.cluster.first_write(b"bench/failover", RETRY_S) - began)
            victim.kill()
            victim.start()
    for party in bed.turns(0):
        await party.settle()
    ours, etcd = ({f"{name}_p50_s": percentile(t, 50), f"{name}_max_s": max(t)} for t in times.values())
    return medians([ours], [etcd])


async def memory(bed: Bed, extent: Extent) -> Figures:
    """Memory of the largest member with many objects of 1 KiB that do not compress, and how long loading them took."""
    samples = []
    for party in (bed.ours, bed.etcd):
        began = time.monotonic()
        await _fill(party, extent.objects)
        seconds = time.monotonic() - began
        await party.settle()
        used = [node.memory() for node in party.side.nodes]
        samples.append({
            f"memory_{extent.objects}_objects_mib": max(m.resident_mib for m in used),
            f"memory_{extent.objects}_objects_peak_mib": max(m.peak_mib for m in used),
            f"load_{extent.objects}_objects_s": seconds,
            f"disk_{extent.objects}_objects_mib": _disk_mib(party) / len(party.side.nodes),
        })  # fmt: skip
    return medians(samples[:1], samples[1:])


async def recovery(bed: Bed, extent: Extent) -> Figures:
    """From the start of a killed follower that has all objects until it shows a write made while it was down."""
    return await alternate(bed, extent.recoveries, _recover)


async def _recover(party: Party) -> Sample:
    await party.settle()
    victim = party.following
    victim.kill()
    marker = os.urandom(8)
    await party.leader.put(b"bench/marker", marker)
    began = time.monotonic()
    victim.start()
    await _shows(party.cluster.at(victim.endpoint), b"bench/marker", marker)
    return {"recovery_s": time.monotonic() - began, "recovered_peak_mib": victim.memory().peak_mib}


async def _shows(connection: Connection, key: bytes, value: bytes) -> None:
    """Wait until a member's own replica has a value."""
    async with asyncio.timeout(READY_TIMEOUT_S):
        while True:
            with suppress(grpc.aio.AioRpcError):
                found = await connection.get(key, local=True, timeout_s=1.0)
                if found is not None and found.value == value:
                    return
            await asyncio.sleep(POLL_S)


async def _fill(party: Party, objects: int) -> None:
    """Write objects that were not there, several a transaction, several transactions at a time."""
    numbers = iter(range(0, objects, OBJECTS_A_TXN))

    async def write() -> None:
        for first in numbers:
            keys = range(first, min(first + OBJECTS_A_TXN, objects))
            await party.leader.put_all({b"bench/object-%06d" % key: os.urandom(OBJECT_BYTES) for key in keys})

    await asyncio.gather(*(write() for _ in range(TXNS_AT_ONCE)))
    found = await party.leader.count(b"bench/object-")
    if found != objects:
        raise CannotMeasure(f"{party.name} has {found} objects, {objects} were written")


def _disk_mib(party: Party) -> float:
    return sum(file.stat().st_blocks * 512 for file in party.side.folder.rglob("*") if file.is_file()) / (1 << 20)
