"""The thread that kills this host's HA guests when the node lease ends, whatever the rest of the agent is doing.

Invariant: an HA guest runs, or is being started, only while the lease is held or this thread is killing. It needs no
event loop, no daemon of a hypervisor and no lock that is held during I/O of others: a lapse is noticed within TICK_S.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterable

from gugus.cluster.v1 import heartbeat_pb2

from agent.compute.hypervisor import KillReport
from agent.compute.processes import ProcessRecord
from agent.fencing.lease import LeaseKeeper, Phase
from agent.fencing.record import LeaseRecord
from common.clock import boottime_ns
from common.errors import GugusError, precondition
from common.logs import get_logger

TICK_S = 0.05
"""Longest sleep of the thread: so late, at most, a lapse is noticed, after a suspension of the host, too."""

ALIVE_WITHIN_S = 5.0
"""A thread that has not turned for so long is stuck; twice the time of one emergency kill."""

Killer = Callable[[Collection[str]], Awaitable[KillReport]]
_log = get_logger("fencing")


class Guard:
    """Owns the lease. Every method may be called from any thread.

    kill: ends guests by their processes alone; it is run in a loop of this thread's own. publish: tells the watchdog.
    save_lapse: makes a report durable.
    """

    def __init__(
        self,
        lapses: int,
        kill: Killer,
        publish: Callable[[LeaseRecord], None],
        save_lapse: Callable[[heartbeat_pb2.LapseReport], None],
        *,
        clock: Callable[[], int] = boottime_ns,
    ) -> None:
        self._keeper = LeaseKeeper(lapses=lapses)
        self._kill, self._publish, self._save_lapse, self._clock = kill, publish, save_lapse, clock
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._stopping = False
        self._turned_s = time.monotonic()
        self._protected: set[str] = set()
        self._processes: dict[str, ProcessRecord] = {}
        self._starting: dict[str, int] = {}
        self._unknown: set[str] = set()  # running, by a process that is not known
        self._killed: set[str] = set()
        self._report = heartbeat_pb2.LapseReport(number=lapses)
        self._thread = threading.Thread(target=self._run, name="fencing", daemon=True)

    def start(self, protected: Iterable[str], last: LeaseRecord | None) -> None:
        """Begin to guard. protected: HA guests defined here. last: record of an earlier process of this boot, if any.

        Without a record there is no lease; if guests are protected, they are killed before anything else.
        """
        now_ns = self._clock()
        with self._lock:
            self._protected = set(protected)
            if last is not None and (last.deadline_ns or last.guarded):
                self._processes, self._unknown = dict(last.processes), set(last.starting)
                self._protected.update(last.processes, last.starting)
                self._keeper.resume(last.deadline_ns, now_ns)
            elif self._protected:
                self._keeper.resume(0, now_ns)
            self._tell()
        self._thread.start()

    def stop(self) -> None:
        """End the thread. Guests go on running; the watchdog keeps to the last record."""
        self._stopping = True
        self._wake.set()
        self._thread.join(ALIVE_WITHIN_S)

    def wait_emptied(self, timeout_s: float) -> bool:
        """Wait while HA guests are being killed; return whether that is over. Blocks."""
        end = time.monotonic() + timeout_s
        while self.phase is Phase.LAPSING and time.monotonic() < end:
            time.sleep(TICK_S / 5)
        return self.phase is not Phase.LAPSING

    @property
    def alive(self) -> bool:
        """Whether the thread turns."""
        return self._thread.is_alive() and time.monotonic() - self._turned_s < ALIVE_WITHIN_S

    @property
    def phase(self) -> Phase:
        """Where the lease stands now."""
        with self._lock:
            return self._keeper.tick(self._clock())

    @property
    def remaining_ms(self) -> int:
        """Time left of the lease in milliseconds, 0 when there is none."""
        with self._lock:
            return self._keeper.remaining_ns(self._clock()) // 1_000_000

    def beat_sent(self, sequence: int) -> heartbeat_pb2.LapseReport | None:
        """Note that a beat is about to be sent; return the lapse report that it must carry, if any."""
        with self._lock:
            self._keeper.beat_sent(sequence, self._clock())
            return self._report if self._keeper.phase is Phase.LAPSED else None

    def beat_answered(self, sequence: int, lease_ms: int, *, fenced: bool) -> bool:
        """Note an answer of the acting manager; return whether it renewed the lease."""
        with self._lock:
            renewed = self._keeper.beat_answered(sequence, lease_ms, fenced=fenced, now_ns=self._clock())
            if renewed:
                self._tell()
            elif self._keeper.phase is Phase.LAPSING:
                self._wake.set()
            return renewed

    def protect(self, name: str, process: ProcessRecord | None, *, running: bool) -> None:
        """Put a guest under HA. Raises GugusError LEASE_EXPIRED when it runs and no lease is held."""
        with self._lock:
            if running:
                self._require_lease(name)
            self._protected.add(name)
            self._note(name, process, running=running)

    def release(self, name: str) -> None:
        """Take a guest out of HA: it outlives the lease from now on."""
        with self._lock:
            self._protected.discard(name)
            self._note(name, None, running=False)

    def admit(self, name: str) -> None:
        """Allow the start of an HA guest, which `settle` must follow. Raises GugusError LEASE_EXPIRED."""
        with self._lock:
            self._require_lease(name)
            self._protected.add(name)
            self._starting[name] = self._starting.get(name, 0) + 1
            self._tell()

    def settle(self, name: str, process: ProcessRecord | None, *, running: bool) -> bool:
        """Say how a start ended; return whether the guest may go on running. If not, it is being killed."""
        with self._lock:
            left = self._starting.pop(name, 1) - 1
            if left:
                self._starting[name] = left
            self._note(name, process, running=running)
            return self._keeper.holds(self._clock())

    def observed(self, name: str, process: ProcessRecord | None, *, running: bool) -> None:
        """Tell what a hypervisor says of a protected guest: its process may have changed, or ended."""
        with self._lock:
            if name not in self._protected:
                return
            if running and self._keeper.phase in (Phase.VACANT, Phase.LAPSED):
                _log.error("HA guest runs without a lease: killing it", guest=name)
                self._keeper.phase = Phase.LAPSING
                self._wake.set()
            if self._processes.get(name) != process or running != (name in self._processes or name in self._unknown):
                self._note(name, process, running=running)

    def _require_lease(self, name: str) -> None:
        if not self._keeper.holds(self._clock()):
            raise _lease_expired(name, self._keeper.phase)

    def _note(self, name: str, process: ProcessRecord | None, *, running: bool) -> None:
        self._processes.pop(name, None)
        self._unknown.discard(name)
        if running and process is not None:
            self._processes[name] = process
        elif running:
            self._unknown.add(name)
        self._tell()

    def _tell(self) -> None:
        unknown = tuple(sorted(self._unknown | self._starting.keys()))
        try:
            self._publish(LeaseRecord(self._keeper.deadline_ns, dict(self._processes), unknown))
        except OSError as error:  # the watchdog then holds to the last lease it knows of, which ends earlier
            _log.error("the lease record cannot be written", error=str(error))

    def _run(self) -> None:
        while not self._stopping:
            self._turned_s = time.monotonic()
            try:
                if self.phase is Phase.LAPSING:
                    self._empty_host()
            except Exception as error:  # nothing may end this thread
                _log.error("fencing failed; trying again", error=repr(error), exc_info=error)
            self._wake.wait(TICK_S)
            self._wake.clear()

    def _empty_host(self) -> None:
        """Kill all HA guests, once. The host counts as empty when no start was under way before the kill began."""
        with self._lock:
            names, starting = frozenset(self._protected), dict(self._starting)
            self._killed.update(self._processes, self._unknown, starting)
        started_s = time.monotonic()
        _log.warning("node lease ended: killing HA guests", guests=sorted(names))
        report = asyncio.run(self._attempt(names))
        for name, why in report.alive.items():
            _log.error("HA guest could not be killed; the watchdog resets the host", guest=name, why=why)
        if report.alive or starting or self._starting:
            return
        with self._lock:
            self._processes.clear()
            self._unknown.clear()
            self._tell()  # first, so that a disk that hangs below does not get the host reset
        lapse = heartbeat_pb2.LapseReport(number=self._keeper.lapses + 1, killed=sorted(self._killed))
        self._save_lapse(lapse)
        with self._lock:
            self._report = lapse
            self._killed.clear()
            self._keeper.emptied(lapse.number)
            self._tell()
        took_ms = round((time.monotonic() - started_s) * 1000)
        _log.warning("HA guests are dead", lapse=lapse.number, killed=list(lapse.killed), duration_ms=took_ms)

    async def _attempt(self, names: Collection[str]) -> KillReport:
        return await self._kill(names)


def _lease_expired(name: str, phase: Phase) -> GugusError:
    why = "has not yet got its first lease" if phase is Phase.VACANT else "has lost its lease"
    return precondition(
        "LEASE_EXPIRED",
        f'guest "{name}" is under HA and this node {why}, so it may not run here.',
        remedy="It gets one as soon as it reaches the acting manager; the agent's log tells why it does not.",
        subject=f"guest/{name}",
    )
