"""One host: its disk, its clock, and the member that runs on it and is driven as `manager.consensus.actor` drives it.

Invariant: code of a member runs here only, with the host's clock; whatever it does after its power was cut has no effect.
"""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from manager.consensus.actor import SHORTEST_WAIT_S
from manager.consensus.core import RaftCore, Setup
from manager.consensus.disk import is_full
from manager.consensus.types import CorruptState, Limits, Member, Timings
from manager.store import StoreState

from .disk import Platter, PowerCut, SimDisk
from .network import Network
from .record import Machine, Record
from .timeline import HostClock, Timeline, Violation

HISTORY_CHANGES = 30
"""Changes that a simulated store keeps for watchers: few, so that some come too late."""
LAG_S = 0.002
"""Longest time between a message and the turn that handles all that came meanwhile."""
BACKGROUND_S = (0.0, 0.4)
"""When background work runs, and how long until its end is heard of."""


@dataclass(frozen=True, slots=True)
class Build:
    """What runs on the hosts. A mutation replaces one of these, see `broken`."""

    core: Callable[..., RaftCore] = RaftCore
    store: Callable[[], StoreState] = lambda: StoreState(history_changes=HISTORY_CHANGES)
    disk: Callable[[Platter, Callable[[float], None]], SimDisk] = SimDisk


class Clocks:
    """The clock that consensus reads: that of the host whose code runs."""

    def __init__(self) -> None:
        self.host: Host | None = None

    def now(self) -> float:
        """Return what the present host's clock shows."""
        if self.host is None:
            raise Violation("consensus ran outside of any host")
        return self.host.clock.own(self.host.moment())


@dataclass(slots=True)
class Heard:
    """When a leader last heard a voter's answer, by its own clock; for checking that it steps down."""

    term: int = 0
    since: float = 0.0
    voters: frozenset[str] = frozenset()
    answers: dict[str, float] = field(default_factory=dict)


def uid_of(name: str, disk_number: int) -> str:
    """Return the uid of a member's data folder on its n-th disk."""
    return f"{name}{disk_number:014d}"


class Host:
    """A machine. Its member is gone while it is down."""

    def __init__(
        self, name: str, timeline: Timeline, network: Network, record: Record, clocks: Clocks, rng: random.Random,
        build: Build, limits: Limits, timings: Timings,
    ) -> None:  # fmt: skip
        self.name, self.timeline, self.network, self.record, self.clocks = name, timeline, network, record, clocks
        self.rng, self.build, self.limits, self.timings = rng, build, limits, timings
        self.clock = HostClock(0.0, 1.0)
        self.platter = Platter(rng)
        self.disk_number = 0
        self.boots = 0
        self.core: RaftCore | None = None
        self.machine: Machine | None = None
        self.setup: Setup | None = None
        self.busy_until = 0.0
        self.heard = Heard()
        self._disk: SimDisk | None = None
        self._disk_used = False
        self._went_down: dict[int, float] = {}
        self._waiting = deque[Callable[[RaftCore], None]]()
        """What came while the member was kept busy."""
        self._turn_due = False
        self._due = 0.0
        self._wakes_at: float | None = None

    # -- power

    def boot(self, voters: tuple[Member, ...] = (), *, joining: bool = False) -> None:
        """Start the member; `voters` are told at the first start only. Raises Violation when its own disk is refused."""
        if voters or self.setup is None:
            self.setup = Setup(self.name, voters, joining, self.timings, self.limits, self.uid)
        self.boots += 1
        self._turn_due, self._wakes_at, self.heard = False, None, Heard()
        self._waiting.clear()
        self.busy_until = self.timeline.now
        self._disk = self.build.disk(self.platter, self._wait)
        self.machine = Machine(self.name, self.build.store(), self.record)
        self.clocks.host = self
        boot = self.boots
        try:
            core = self.build.core(
                self.setup,
                self._disk,
                self.machine,
                self._send,
                random.Random(self.rng.getrandbits(64)),
                self._background,
            )
        except PowerCut:
            self.power_off(inside=True)
            return
        except CorruptState as error:
            raise Violation(f"{self.name} refuses its own disk: {error}") from error
        except OSError as error:
            if is_full(error) and self._disk_used:
                raise Violation(f"{self.name} cannot start again, for its disk is full: {error}") from error
            self.record.count("failed starts")
            self.power_off(inside=True)
            return
        self.core, self._disk_used = core, True
        self.timeline.tell(
            self.name, "started, term", core.term, "log to", core.journal.last_index, "applied", core.applied_index
        )
        self.record.booted(self.name, self.disk_number, core.term)
        self.network.dial(self, boot)
        self.request_turn()

    def power_off(self, *, inside: bool = False) -> None:
        """Cut the power, now; `inside` says that it is the member's own present moment, which may be later than the event's."""
        self._went_down[self.boots] = self.moment() if inside else self.timeline.now
        self.timeline.tell(self.name, "loses power in an operation of its disk" if inside else "loses power")
        self.core = self.machine = None
        if self._disk is not None:
            self._disk.kill()
        self.platter.lose_power()
        self.network.host_went_down(self.name)
        self.record.count("crashes")

    def replace_disk(self) -> None:
        """Take the disk out and put an empty one in; the host is down."""
        self.platter.wipe()
        self.disk_number += 1
        self._disk_used = False
        self.setup = None

    @property
    def uid(self) -> str:
        """That of the data folder on the present disk."""
        return uid_of(self.name, self.disk_number)

    def was_up(self, boot: int, moment: float) -> bool:
        """Return whether a boot lasted until a moment."""
        return self._went_down.get(boot, moment) >= moment

    def moment(self) -> float:
        """Return the real time at which code runs here: later than the event's when a sync took time."""
        return max(self.timeline.now, self.busy_until)

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be run here."""
        return not self._turn_due and not self._waiting and self.busy_until <= self.timeline.now

    def freeze(self, seconds: float) -> None:
        """Let nothing run here for a while; its clock goes on."""
        self.busy_until = self.moment() + seconds

    def _wait(self, seconds: float) -> None:
        self.busy_until = self.moment() + seconds

    # -- driving the member

    def enter(self, action: Callable[[RaftCore], None]) -> None:
        """Run something in the member's thread, now or when what keeps it busy is over."""
        self._enter(action, self.boots)

    def _enter(self, action: Callable[[RaftCore], None], boot: int) -> None:
        if self.core is None or self.boots != boot:
            return
        if self._waiting or self.busy_until > self.timeline.now:
            if not self._waiting:
                self.timeline.at(self.busy_until, lambda: self._go_on(boot))
            self._waiting.append(action)
            return
        self._run(self.core, action)

    def _go_on(self, boot: int) -> None:
        """Run what waits, in its order, until something keeps the member busy again."""
        while self._waiting and self.core is not None and self.boots == boot:
            if self.busy_until > self.timeline.now:
                self.timeline.at(self.busy_until, lambda: self._go_on(boot))
                return
            self._run(self.core, self._waiting.popleft())

    def _run(self, core: RaftCore, action: Callable[[RaftCore], None]) -> None:
        self.clocks.host = self
        try:
            action(core)
        except PowerCut:
            self.power_off(inside=True)
        except OSError as error:  # the driver stops such a member for good; its host is started again later
            if is_full(error):
                raise Violation(f"{self.name} stopped because its disk is full: {error}") from error
            self.timeline.tell(self.name, "stops:", error)
            self.record.count("failed disks")
            self.power_off(inside=True)
        except CorruptState as error:
            raise Violation(f"{self.name} stopped: {error}") from error

    def receive(self, sender: str, message: dict[str, object]) -> None:
        """Hand a message to the member, followed by a turn."""

        def handle(core: RaftCore) -> None:
            if message["type"] in ("next_node_idx", "snapshot_received") and message["term"] == core.term:
                self.heard.answers[sender] = self.clocks.now()
            core.receive(sender, message)
            self.request_turn()

        self.enter(handle)

    def introduced(self, name: str, uid: str) -> None:
        """Tell the member that one whom it does not listen to called."""
        self.enter(lambda core: core.introduced(Member(name, "sim", 7000 + int(name[1:]), uid)))
        self.request_turn()

    def connected(self, name: str) -> None:
        """Tell the member that messages reach another one now."""
        self.enter(lambda core: core.peer_connected(name))
        self.request_turn()

    def disconnected(self, name: str) -> None:
        """Tell the member that a connection is gone."""
        self.enter(lambda core: core.peer_disconnected(name))
        self.request_turn()

    def greeted(self, name: str, level: int, uid: str) -> None:
        """Tell the member that another one connected to it, or, with 0, hung up."""
        self.enter(lambda core: core.peer_greeted(name, level, uid))
        self.request_turn()

    def request_turn(self) -> None:
        """Have one turn soon, which handles all that comes until then."""
        if not self._turn_due and self.core is not None:
            self._turn_due = True
            boot = self.boots
            self.timeline.after(self.rng.uniform(0, LAG_S), lambda: self._enter(self._turn, boot))

    def _turn(self, core: RaftCore) -> None:
        self._turn_due = False
        again = core.turn()
        self._watch_leader(core)
        if again:
            self.request_turn()
        self._due = self.clock.real(max(core.deadline(), self.clocks.now() + SHORTEST_WAIT_S))
        if self._wakes_at is None or self._due < self._wakes_at:
            self._wake_at(self._due)

    def _wake_at(self, when: float) -> None:
        self._wakes_at = when
        boot = self.boots

        def wake(core: RaftCore) -> None:
            self._wakes_at = None
            if self._due > self.timeline.now:  # put off meanwhile
                self._wake_at(self._due)
            else:
                self._turn(core)

        def alarm() -> None:
            if self.boots == boot and self._wakes_at == when:
                self._enter(wake, boot)

        self.timeline.at(when, alarm)

    def _watch_leader(self, core: RaftCore) -> None:
        if not core.is_leader:
            return
        self.record.leads(self.name, core.term)
        voters = frozenset(core.voter_names)
        if (self.heard.term, self.heard.voters) != (core.term, voters):
            self.timeline.tell(self.name, "leads in term", core.term, "voters", *sorted(voters))
            self.heard = Heard(core.term, self.clocks.now(), voters)

    # -- what the member is given

    def _send(self, to: str, message: dict[str, object]) -> None:
        self.network.send(self, to, message)

    def _background(self, work: Callable[[], None], done: Callable[[Exception | None], None]) -> None:
        """Run work later, in what would be another thread: it does not wait for the member, nor the member for it."""
        boot = self.boots

        def run() -> None:
            if self.boots != boot or self.core is None:
                return
            self.clocks.host = self
            busy, error = self.busy_until, None
            try:
                work()
            except PowerCut:
                self.power_off()
                return
            except Exception as problem:
                error = problem
            took, self.busy_until = self.busy_until - busy, busy
            later = took + self.rng.uniform(*BACKGROUND_S)
            self.timeline.after(later, lambda: self._enter(lambda _: finish(error), boot))

        def finish(error: Exception | None) -> None:
            done(error)
            self.request_turn()

        self.timeline.after(self.rng.uniform(*BACKGROUND_S), run)
