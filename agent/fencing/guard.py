"""The thread that kills this host's HA guests when the node lease ends, whatever the rest of the agent is doing.

Invariant: an HA guest runs, or is being started, only while the lease is held or this thread is killing. It needs no
event loop, no daemon of a hypervisor, no log that is written and no lock that is held during I/O of others: a lapse is
noticed within TICK_S.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

from gugus.cluster.v1 import heartbeat_pb2

from agent.compute.hypervisor import KillReport
from agent.compute.processes import ProcessRecord
from agent.fencing.lease import LeaseKeeper, Phase
from agent.fencing.ledger import Ledger
from agent.fencing.record import LeaseRecord
from agent.fencing.sidelog import SideLog
from common.clock import boottime_ns
from common.errors import GugusError, precondition

TICK_S = 0.05
"""Longest sleep of the thread: so late, at most, a lapse is noticed, after a suspension of the host, too."""

ALIVE_WITHIN_S = 5.0
"""A thread that has not turned for so long is stuck; twice the time of one emergency kill."""

Killer = Callable[[Collection[str]], Awaitable[KillReport]]
Flush = Callable[[Collection[str]], Awaitable[Mapping[str, str]]]
_log = SideLog("fencing")


async def _nothing_to_flush(_guests: Collection[str]) -> Mapping[str, str]:
    return {}


class Guard:
    """Owns the lease. Every method may be called from any thread.

    kill: ends guests by their processes alone; it is run in a loop of this thread's own. publish: tells the watchdog.
    save_lapse: makes a report durable. flush: writes back what guests that have ended wrote to disks that other hosts
    read; returns whose writes are not through within a moment, and why.
    """

    def __init__(
        self,
        lapses: int,
        kill: Killer,
        publish: Callable[[LeaseRecord], None],
        save_lapse: Callable[[heartbeat_pb2.LapseReport], None],
        *,
        flush: Flush = _nothing_to_flush,
        clock: Callable[[], int] = boottime_ns,
    ) -> None:
        self._keeper = LeaseKeeper(lapses=lapses)
        self._kill, self._publish, self._save_lapse, self._clock = kill, publish, save_lapse, clock
        self._flush = flush
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._stopping = False
        self._turned_s = time.monotonic()
        self._ledger = Ledger()
        self._killed: set[str] = set()
        self._left: Mapping[str, str] = {}
        self._began_s = 0.0
        self._report = heartbeat_pb2.LapseReport(number=lapses)
        self._thread = threading.Thread(target=self._run, name="fencing", daemon=True)

    def start(self, protected: Iterable[str], last: LeaseRecord | None, *, booted: bool = False) -> None:
        """Begin to guard. protected: HA guests defined here. last: record of an earlier process of this boot, if any. booted: there was
        none.

        Without a record there is no lease; if guests are protected, they are killed before anything else, and nothing
        is told until they are dead: the watchdog holds to what it knows, which may be more.
        """
        now_ns = self._clock()
        with self._lock:
            self._ledger.protected.update(protected)
            if last is not None and (last.deadline_ns or last.guarded):
                self._ledger.restore(last, now_ns)
                self._keeper.resume(last.deadline_ns, now_ns)
                self._tell()
            elif self._ledger.protected:
                self._keeper.end()
            else:
                if booted:
                    self._keeper.boot()
                self._tell()
        self._thread.start()

    def stop(self) -> None:
        """End the thread. Guests go on running; the watchdog keeps to the last record."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
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

    @property
    def endangered(self) -> bool:
        """Whether the lease is held, and may well end without having been renewed."""
        with self._lock:
            return self._keeper.endangered(self._clock())

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

    def resign(self, ended: Iterable[str] = ()) -> None:
        """Give the lease up before its end: HA guests that are left are killed, and the report goes out at once.

        ended: HA guests that stopped for it. The caller sees to it that no answer renews the lease.
        """
        with self._lock:
            if self._keeper.tick(self._clock()) in (Phase.VACANT, Phase.HELD):
                self._ledger.unwritten.update(ended)
                self._keeper.end()
                self._tell()
            self._wake.set()

    def protect(self, name: str, process: ProcessRecord | None, *, running: bool) -> None:
        """Put a guest under HA. Raises GugusError LEASE_EXPIRED when it runs and no lease is held."""
        with self._lock:
            if running:
                self.require_lease(name)
            self._ledger.protect(name, process, running=running)
            self._tell()

    def release(self, name: str) -> None:
        """Take a guest out of HA: it outlives the lease from now on."""
        with self._lock:
            self._ledger.release(name)
            self._tell()

    def require_lease(self, name: str) -> None:
        """Raise GugusError LEASE_EXPIRED when an HA guest may not run now."""
        with self._lock:
            if not self._keeper.holds(self._clock()):
                raise _lease_expired(name, self._keeper.phase)

    def admit(self, name: str) -> None:
        """Allow a start of an HA guest; `settle` or `unsettled` must follow. Raises GugusError LEASE_EXPIRED."""
        with self._lock:
            self.require_lease(name)
            self._ledger.admit(name)
            self._tell()

    def settle(self, name: str, process: ProcessRecord | None, *, running: bool) -> bool:
        """Say how a start ended; return whether the guest may go on running. If not, it is being killed."""
        with self._lock:
            now_ns = self._clock()
            self._ledger.settled(name, process, running=running, now_ns=now_ns)
            self._tell()
            return self._keeper.holds(now_ns)

    def unsettled(self, name: str) -> None:
        """Say that a start ended, nobody knows how: it counts as under way until `observed` tells more."""
        with self._lock:
            self._ledger.unsettled(name)
            self._tell()

    def observed(self, name: str, process: ProcessRecord | None, *, running: bool) -> None:
        """Tell what a hypervisor says of a guest: its process may have changed, or ended."""
        with self._lock:
            if name not in self._ledger.protected:
                return
            now_ns = self._clock()
            if self._keeper.tick(now_ns) in (Phase.VACANT, Phase.LAPSED):
                if not self._ledger.strays(name, process, running=running):
                    return
                self._keeper.end()
                self._wake.set()
                _log.error("HA guest runs without a lease: killing it", guest=name)
            if self._ledger.observed(name, process, running=running, now_ns=now_ns):
                self._tell()

    def _tell(self) -> None:
        try:
            self._publish(self._ledger.record(self._keeper.deadline_ns))
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
        """Kill all HA guests, once. The host counts as empty when nothing was learned of any since the kill began."""
        with self._lock:
            names, learned = frozenset(self._ledger.protected), self._ledger.learned
            self._killed |= self._ledger.may_run
            self._ledger.unwritten |= self._killed
        self._note_begin(names)
        left = asyncio.run(self._attempt(names))
        self._note_left(left)
        with self._lock:
            if left or self._ledger.learned != learned:
                return
            self._ledger.clear()
            self._tell()  # first, so that a disk that hangs below does not get the host reset
        lapse = heartbeat_pb2.LapseReport(number=self._keeper.lapses + 1, killed=sorted(self._killed))
        self._save_lapse(lapse)
        with self._lock:
            if self._ledger.learned != learned:
                return
            self._report = lapse
            self._killed.clear()
            self._keeper.emptied(lapse.number)
            self._tell()
        took_ms = round((time.monotonic() - self._began_s) * 1000)
        _log.warning("HA guests are dead", lapse=lapse.number, killed=list(lapse.killed), duration_ms=took_ms)
        self._began_s = 0.0

    async def _attempt(self, names: Collection[str]) -> Mapping[str, str]:
        """Kill, then see to it that the dead write no more; return of whom that is not proven, and why."""
        report = await self._kill(names)
        with self._lock:
            starting = dict.fromkeys(self._ledger.under_way, "its start is under way")
            left = {**starting, **self._ledger.living(), **report.alive}
            unwritten = frozenset(self._ledger.unwritten)
            if left and self._keeper.deadline_ns:
                self._ledger.doubt(left)
            if self._keeper.deadline_ns or unwritten:
                self._tell()  # processes that are gone are no proof for the watchdog while writes are not through
        return left if left or not unwritten else await self._flush(unwritten)

    def _note_begin(self, names: Collection[str]) -> None:
        if not self._began_s:
            self._began_s = time.monotonic()
            _log.warning("node lease ended: killing HA guests", guests=sorted(names))

    def _note_left(self, left: Mapping[str, str]) -> None:
        for name, why in left.items():
            if self._left.get(name) != why:
                _log.error("HA guest is not proven dead; should it stay so, the watchdog acts", guest=name, why=why)
        self._left = left


def _lease_expired(name: str, phase: Phase) -> GugusError:
    why = "has not yet got its first lease" if phase is Phase.VACANT else "has lost its lease"
    return precondition(
        "LEASE_EXPIRED",
        f'guest "{name}" is under HA and this node {why}, so it may not run here.',
        remedy="It gets one as soon as it reaches the acting manager; the agent's log tells why it does not.",
        subject=f"guest/{name}",
    )
