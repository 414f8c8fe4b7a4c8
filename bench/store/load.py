"""`python -m bench.store.load JOB`: the load generator, one process of it. Prints what it measured as JSON.

It runs apart from whoever counts, and several may run beside each other, so that its own work can be told from that
of the members.
"""

import asyncio
import json
import os
import random
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.store.client import Connection
from bench.store.tls import Files

CLIENTS_A_CONNECTION = 16
KEYS = 10_000
"""Keys that the writers write and the readers read, over and over."""
WARM_UP_S = 0.5


@dataclass(frozen=True, slots=True)
class Job:
    """What to do: `kind` is "put" or "get"; `start_at_s` is on CLOCK_MONOTONIC, which all processes share."""

    kind: str
    endpoint: str
    ca: str
    certificate: str
    key: str
    clients: int
    seconds: float
    start_at_s: float
    value_bytes: int = 200

    def argv(self) -> list[str]:
        """Return the command that does it."""
        return [sys.executable, "-m", "bench.store.load", json.dumps(asdict(self))]


@dataclass(frozen=True, slots=True)
class Done:
    """What came of it: the time of each call within the window, and the generator's share of a core in it."""

    latencies_ms: list[float] = field(default_factory=list)
    core_share: float = 0.0


def key_of(number: int) -> bytes:
    """Return one of the keys."""
    return f"bench/load-{number:05d}".encode()


async def run(job: Job) -> Done:
    """Do the job."""
    files = Files(Path(job.ca), Path(job.certificate), Path(job.key))
    count = -(-job.clients // CLIENTS_A_CONNECTION)
    connections = [Connection(job.endpoint, files) for _ in range(count)]
    try:
        for connection in connections:
            await connection.status(timeout_s=5.0)
        await asyncio.sleep(max(0.0, job.start_at_s - time.monotonic()))
        begin = time.monotonic() + WARM_UP_S
        clients = [_client(connections[number % count], job, begin) for number in range(job.clients)]
        share, times = await asyncio.gather(_own_share(begin, job.seconds), asyncio.gather(*clients))
    finally:
        for connection in connections:
            await connection.close()
    return Done([round(one * 1000, 4) for several in times for one in several], share)


async def _client(connection: Connection, job: Job, begin: float) -> list[float]:
    """Call one after another; return the seconds of each that began and ended within the window."""
    rng, value = random.Random(), os.urandom(job.value_bytes)
    times, before = list[float](), time.monotonic()
    while before < begin + job.seconds:
        key = key_of(rng.randrange(KEYS))
        if job.kind == "put":
            await connection.put(key, value)
        else:
            await connection.get(key)
        after = time.monotonic()
        if before >= begin and after <= begin + job.seconds:
            times.append(after - before)
        before = after
    return times


async def _own_share(begin: float, seconds: float) -> float:
    await asyncio.sleep(begin - time.monotonic())
    used = time.process_time()
    await asyncio.sleep(seconds)
    return round((time.process_time() - used) / seconds, 3)


def main() -> None:
    """Run the command line."""
    done = asyncio.run(run(Job(**json.loads(sys.argv[1]))))
    json.dump(asdict(done), sys.stdout)


if __name__ == "__main__":
    main()
