"""An agent in the simulation: the real LeaseKeeper of agent.fencing in a shell that kills, reports, and is watched.

What lives on the disk survives a power cut: the highest epoch, generations, definitions, and the number of the last lapse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gugus.agent.v1.guest_pb2 import GUEST_END_CRASH, GUEST_END_HOST, GUEST_END_UNSPECIFIED, GuestEnd, GuestSpec
from gugus.cluster.v1.cluster_pb2 import SHUTDOWN_POLICY_MIGRATE, SHUTDOWN_POLICY_UNSPECIFIED, ShutdownPolicy
from gugus.cluster.v1.heartbeat_pb2 import LapseReport
from gugus.cluster.v1.node_pb2 import HOST_EXIT_UNSPECIFIED, HostExit

from agent.early_ends import EarlyEnds
from agent.farewell import Farewell
from agent.fencing.lease import ENDANGERED_PERCENT, LeaseKeeper, Phase
from common.leases import KILL_BUDGET_MS
from manager.ha.node_machine import Beat
from simulator.clockwork import MS, S
from simulator.moves import Ends

if TYPE_CHECKING:
    from simulator.host import Host

GRAIN = 100 * MS
"""An agent notices within so long that its lease has ended."""

KILL_BUDGET = KILL_BUDGET_MS * MS

SHUTDOWN = 1 * S
"""A guest takes so long to shut itself down."""

EARLY_LOOK = 250 * MS
"""While its lease is endangered, an agent looks so often whom to ask to end before it does (agent.quorum_loss)."""

CONNECT_TIMEOUT = 1 * S
ANSWER_TIMEOUT = 2_500 * MS
"""For so long a manager may be silent before the next one is tried (agent.heartbeat)."""

ENDANGERED_PERIOD = 250 * MS
"""Between beats that are answered without a lease while the lease runs out (agent.heartbeat)."""

ORDER_TIMEOUT = 6 * S
"""For the acting manager to say what becomes of the guests of a host that goes down (agent.shutdown)."""

ASK_MANAGER = 250 * MS
"""So often it is asked."""

FAREWELL = 2 * S
"""A host that goes down in order has so long told the managers that it has no guest under HA any more."""


@dataclass(frozen=True, slots=True)
class Copy:
    """What a host has of a guest. held: under HA, so that it dies with the lease. ended: how its last run did."""

    generation: int
    running: bool
    held: bool
    ended: GuestEnd.ValueType = GUEST_END_UNSPECIFIED


@dataclass(frozen=True, slots=True)
class Report:
    """What a host has of guests. A higher version is newer."""

    version: int
    copies: Mapping[str, Copy]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an agent does not do what it is asked to. text: for people."""

    reason: str
    text: str = ""


STALE_EPOCH = Refusal("STALE_EPOCH")
LEASE_EXPIRED = Refusal("LEASE_EXPIRED")

Reply = Callable[[Refusal | None, Report], None]
"""Takes what went wrong, None when nothing did, and what the host has of guests afterwards."""


class Agent:
    """One host's agent, its guests and its watchdog."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.world = host.world
        self.epoch = 0
        self.generations: dict[str, int] = {}
        self.specs: dict[str, GuestSpec] = {}
        self.lapses = 0
        self.boots = 0
        self.version = 0
        self.copies: Mapping[str, Copy] = {}
        self.running: frozenset[str] = frozenset()
        self._running_held: tuple[str, ...] = ()
        self._close_early: tuple[GuestSpec, ...] = ()
        """Of guests that run and want to end before the lease does."""
        self.hung = False
        self._farewell: Farewell | None = None
        self.exit: HostExit.ValueType = HOST_EXIT_UNSPECIFIED
        """How the host is going down in order."""
        self.order: ShutdownPolicy.ValueType = SHUTDOWN_POLICY_UNSPECIFIED
        """What the acting manager wants to become of its guests then."""
        self._held_up: list[Callable[[], None]] = []
        self._armed = self._watched = self._early_armed = False
        self.ends = Ends(self)
        self.target = self.world.rng.choice(self.world.voters)
        self._answers = False
        self._silent = ""
        """The manager that was left for another one because it did not answer."""

    @property
    def boot_id(self) -> str:
        """Id of this boot of the host."""
        return f"{self.host.name}-boot-{self.boots}"

    def report(self) -> Report:
        """Return what the host has of guests."""
        return Report(self.version, self.copies)

    def boot(self) -> None:
        """Begin with the host."""
        self.boots += 1
        self.keeper = LeaseKeeper(lapses=self.lapses)
        self.keeper.boot()
        self.sequence = 0
        self.heard = self.host.clock.now()
        self.killing = self.hung = self._beats_soon = False
        self._farewell = None
        self.exit, self.order = HOST_EXIT_UNSPECIFIED, SHUTDOWN_POLICY_UNSPECIFIED
        self._held_up.clear()
        self._armed = self._watched = self._early_armed = False
        self._early = EarlyEnds()
        boot = self.boots
        self.host.every(S, lambda: boot == self.boots, lambda: self.do(self.beat))

    def power_cut(self) -> None:
        """End with the host."""
        self._end_all(GUEST_END_HOST)
        self.ends.power_cut()
        self.boots += 1

    def do(self, what: Callable[[], None]) -> None:
        """Do something now, or once the agent goes on if it hangs. The guests and the watchdog do not need it."""
        if self.hung:
            self._held_up.append(what)
        else:
            what()

    def hang(self, *, hangs: bool) -> None:
        """Stop the agent's process while all else of the host goes on, or let it go on."""
        self.hung = hangs and self.host.powered
        held, self._held_up = ([], self._held_up) if hangs else (self._held_up, [])
        for what in held:
            self.host.do(what)

    # The lease.

    def tick(self) -> None:
        """Let guests die if the lease is over."""
        if self.keeper.tick(self.host.clock.now()) is Phase.LAPSING and not self.killing:
            self.killing = True
            takes = self.world.rng.randrange(GRAIN, KILL_BUDGET - GRAIN) if self._running_held else 0
            self.host.after(takes, self.boots, lambda: self.do(self.emptied))

    def emptied(self) -> None:
        """No guest under HA runs any more, and the report of it is on the disk."""
        if self.keeper.phase is not Phase.LAPSING:
            return
        self._end_all(GUEST_END_HOST, only_held=True)
        self.ends.killed()
        self.lapses += 1
        self.killing = False
        self.keeper.emptied(self.lapses)

    def _arm(self) -> None:
        """Look at the lease and at the watchdog when their time has come; one look at a time is under way."""
        self._arm_early()
        if not self._armed:
            self._armed = True
            self._at(self.keeper.deadline_ns, self._lease_due)
        if not self._watched:
            self._watched = True
            self._at(self.keeper.deadline_ns + KILL_BUDGET, self._watchdog_due)

    def _at(self, own_ns: int, what: Callable[[int], None]) -> None:
        boot = self.boots
        self.world.queue.at(self.host.clock.real(own_ns), lambda: what(boot) if boot == self.boots else None)

    def _lease_due(self, boot: int) -> None:
        def look() -> None:
            self._armed = False
            self.tick()
            if self.keeper.phase is Phase.HELD:
                self._armed = True
                self._at(self.keeper.deadline_ns, self._lease_due)

        self.host.do(lambda: self.do(look) if boot == self.boots else None)

    def _arm_early(self) -> None:
        """Look at the lease once it is endangered, for guests that want to end before it does."""
        if self._close_early and not self._early_armed and self.keeper.phase is Phase.HELD:
            self._early_armed = True
            part = self.keeper.lease_ns * (100 - ENDANGERED_PERCENT) // 100
            soon = self.host.clock.now() + EARLY_LOOK
            self._at(max(soon, self.keeper.deadline_ns - part + 1), self._early_due)

    def _early_due(self, boot: int) -> None:
        def look() -> None:
            self._early_armed = False
            now = self.host.clock.now()
            for name in self._early.due(self._close_early, now / S, endangered=self.keeper.endangered(now)):
                self.world.tell(f"guest/{name}", f"asked to end before the lease of {self.host.name} does")
                self.host.after(SHUTDOWN, boot, lambda n=name: self.end(n, "shut down", GUEST_END_HOST))  # type: ignore[misc]
            self._arm_early()

        self.host.do(lambda: self.do(look) if boot == self.boots else None)

    def _watchdog_due(self, boot: int) -> None:
        """The watchdog is hardware that nothing stops: it resets no later than lease end and kill budget."""
        keeper = self.keeper
        if not self.host.watchdog or keeper.phase not in (Phase.HELD, Phase.LAPSING):
            self._watched = False
            return
        deadline = keeper.deadline_ns + KILL_BUDGET
        if self.host.clock.now() < deadline:
            self._at(deadline, self._watchdog_due)
            return
        fed = not self.host.frozen and not self.world.rules.watchdog_minds_leases
        if not fed and (self.host.frozen or self._running_held):
            self.world.tell(f"node/{self.host.name}", "its watchdog resets it")
            self.host.power_off()
            self.host.boot()
            return
        self._watched = False

    # Heartbeats.

    def beat(self) -> None:
        """Tell the acting manager, or who may know it, of this host."""
        self._beats_soon = False
        if self._farewell is not None and self._farewell.over:
            return
        patience = ANSWER_TIMEOUT if self._answers else CONNECT_TIMEOUT
        if self.host.clock.now() - self.heard > patience:
            self._silent = self.target
            self._try(self._next())
        self.sequence += 1
        lapse = self.lapses if self.keeper.phase is Phase.LAPSED else None
        if self._farewell is not None:
            report_of_it = LapseReport(number=lapse) if lapse is not None else None
            carried = self._farewell.sent(self.sequence, report_of_it)
            lapse = carried.number if carried is not None else None
        beat = Beat(0, self.boot_id, lapse, self._running_held)
        sequence, boot, to, epoch, exit_ = self.sequence, self.boots, self.target, self.epoch, self.exit
        report = self.report()
        self.keeper.beat_sent(sequence, self.host.clock.now())
        manager = self.world.hosts[to].manager
        self.world.send(
            self.host.name,
            to,
            f"beats-{boot}",
            lambda: manager.heard(self.host.name, boot, sequence, epoch, beat, report, exit_),
        )

    def answered(
        self,
        boot: int,
        sequence: int,
        lease_ms: int,
        fenced: bool,
        epoch: int,
        order: ShutdownPolicy.ValueType = SHUTDOWN_POLICY_UNSPECIFIED,
    ) -> None:
        """Take in a manager's answer to a beat."""
        if boot != self.boots or (epoch < self.epoch and self.world.rules.epochs):
            return
        self.heard = self.host.clock.now()
        self._answers, self._silent = True, ""
        self.order = order or self.order
        self.epoch = max(self.epoch, epoch)
        if self._farewell is not None:
            if self._farewell.answered(sequence, lease_ms, fenced=fenced):
                self.beat()
            return
        now = self.host.clock.now()
        renewed = self.keeper.beat_answered(sequence, lease_ms, fenced=fenced, now_ns=now)
        self.tick()
        if self.keeper.phase is Phase.HELD:
            self._arm()
        if not renewed and self.keeper.endangered(now) and not self._beats_soon:
            self._beats_soon = True
            self.host.after(ENDANGERED_PERIOD, boot, lambda: self.do(self.beat))

    def redirected(self, boot: int, to: str) -> None:
        """Take in who acts, as a manager says that does not; one that was silent just now is not believed to."""
        if boot == self.boots:
            self._try(to if to != self._silent else self._next())

    def _next(self) -> str:
        voters = self.world.voters
        return voters[(voters.index(self.target) + 1) % len(voters)]

    def _try(self, manager: str) -> None:
        self.target, self.heard, self._answers = manager, self.host.clock.now(), False

    # Guests.

    def start(self, spec: GuestSpec, generation: int, epoch: int, reply: Reply) -> None:
        """Start a guest. Idempotent."""
        rules, guest, held = self.world.rules, spec.name, spec.ha
        if epoch < self.epoch and rules.epochs:
            return reply(STALE_EPOCH, self.report())
        if generation < self.generations.get(guest, 0) and rules.generations:
            return reply(Refusal("STALE_GENERATION"), self.report())
        self.epoch = max(self.epoch, epoch)
        if held and not self.keeper.holds(self.host.clock.now()) and rules.start_needs_lease:
            return reply(LEASE_EXPIRED, self.report())
        self.generations[guest] = max(generation, self.generations.get(guest, 0))
        self.specs[guest] = spec
        runs = guest in self.running
        if not runs and (why := self._hindrance(spec, generation)):
            self.put(guest, Copy(generation, False, held))
            return reply(why, self.report())
        self.put(guest, Copy(generation, True, held))
        if not runs:
            self.ends.here(guest)
            self.world.check_copies(guest)
        return reply(None, self.report())

    def _hindrance(self, spec: GuestSpec, generation: int) -> Refusal | None:
        """Lock the disks of a guest that is to be started; return why it cannot be."""
        if error := self.world.storage.claim(self.host, spec, generation):
            return Refusal(error.reason, str(error))
        if self.world.start_fails(spec.name, self.host.name):
            self.world.storage.release(self.host.name, spec.name)
            self.world.tell(f"guest/{spec.name}", f"could not be started on {self.host.name}")
            return Refusal("START_FAILED")
        return None

    def arrived(self, spec: GuestSpec, generation: int) -> str:
        """Let a guest run that came here; return why not, if its disks are not to be had."""
        if error := self.world.storage.claim(self.host, spec, generation):
            return str(error)
        self.specs[spec.name] = spec
        self.put(spec.name, Copy(generation, True, spec.ha))
        self.ends.here(spec.name)
        self.world.check_copies(spec.name)
        return ""

    def stop(self, guest: str, epoch: int, reply: Reply) -> None:
        """Shut a guest down."""
        if not self.current(epoch):
            return reply(STALE_EPOCH, self.report())

        def down() -> None:
            self.end(guest, "shut down")
            reply(None, self.report())

        self.host.after(SHUTDOWN, self.boots, lambda: self.do(down))
        return None

    def define(self, spec: GuestSpec, epoch: int, reply: Reply) -> None:
        """Take in another spec of a guest: hold it under HA, or not any more."""
        copy = self.copies.get(spec.name)
        if not self.current(epoch):
            return reply(STALE_EPOCH, self.report())
        if spec.ha and copy is not None and copy.running and not self.keeper.holds(self.host.clock.now()):
            return reply(LEASE_EXPIRED, self.report())
        self.specs[spec.name] = spec
        if copy is not None:
            self.put(spec.name, replace(copy, held=spec.ha))
        return reply(None, self.report())

    def remove(self, guest: str, epoch: int, reply: Reply) -> None:
        """Kill a copy and forget it."""
        if not self.current(epoch):
            return reply(STALE_EPOCH, self.report())
        self.end(guest, "killed")
        self.put(guest, None)
        return reply(None, self.report())

    def crash(self, guest: str) -> None:
        """A guest ends by itself."""
        self.end(guest, "crashed", GUEST_END_CRASH)

    def current(self, epoch: int) -> bool:
        """Take in the epoch of a command; return whether it is to be obeyed."""
        if epoch < self.epoch:
            return False
        self.epoch = epoch
        return True

    def put(self, guest: str, copy: Copy | None) -> None:
        """Have something else of a guest than before."""
        copies = {**self.copies}
        if copy is None:
            copies.pop(guest, None)
        else:
            copies[guest] = copy
        self._take(copies)

    def end(self, guest: str, how: str, ended: GuestEnd.ValueType = GUEST_END_UNSPECIFIED) -> None:
        """Let a guest run no more."""
        if guest in self.running:
            self.put(guest, replace(self.copies[guest], running=False, ended=ended))
            self.world.tell(f"guest/{guest}", f"{how} on {self.host.name}")
            self.world.changed()

    def reboot(self, boot_id: str, epoch: int, reply: Reply) -> None:
        """Have the host reboot in order, if it is in that boot still and not going down already."""
        if not self.current(epoch):
            return reply(STALE_EPOCH, self.report())
        if boot_id == self.boot_id and self.exit == HOST_EXIT_UNSPECIFIED:
            self.host.go_down(reboot=True)
        return reply(None, self.report())

    def leave(self, exit_: HostExit.ValueType, then: Callable[[], None]) -> None:
        """Go down in order, as the acting manager says: first the guests that move away, then the others, then the host."""
        self.exit = exit_
        boot, until = self.boots, self.host.clock.now() + ORDER_TIMEOUT

        def ask() -> None:
            waits = self.order == SHUTDOWN_POLICY_UNSPECIFIED and self.host.clock.now() < until
            moves = self.order == SHUTDOWN_POLICY_MIGRATE and self.keeper.phase is Phase.HELD
            if waits or moves:
                self.beat()
                self.host.after(ASK_MANAGER, boot, lambda: self.do(ask))
            else:
                self._end_in_order(then)

        ask()

    def _end_in_order(self, then: Callable[[], None]) -> None:
        """Guests end, the managers hear of it, then the host goes."""
        self._farewell = Farewell()
        boot = self.boots

        def emptied() -> None:
            for name in sorted(self.running):
                self.end(name, "shut down")
            if self.keeper.phase is Phase.HELD:
                self.keeper.end()
            if self.keeper.phase is Phase.LAPSING:
                self.emptied()
            self.beat()
            self.host.after(FAREWELL, boot, then)

        self.host.after(SHUTDOWN, boot, lambda: self.do(emptied))

    def _end_all(self, ended: GuestEnd.ValueType, *, only_held: bool = False) -> None:
        copies = {**self.copies}
        dead = sorted(name for name in self.running if copies[name].held or not only_held)
        for name in dead:
            copies[name] = replace(copies[name], running=False, ended=ended)
            self.world.tell(
                f"guest/{name}",
                f"ended with its host {self.host.name}"
                if not only_held
                else f"killed on {self.host.name}: its lease is over",
            )
        self._take(copies)

    def _take(self, copies: Mapping[str, Copy]) -> None:
        before, self.copies = self.running, copies
        self.running = frozenset(name for name, copy in copies.items() if copy.running)
        for ended in sorted(before - self.running):
            self.world.storage.release(self.host.name, ended)
        self._running_held = tuple(sorted(name for name in self.running if copies[name].held))
        self._close_early = tuple(
            self.specs[name] for name in self._running_held if self.specs[name].stop_on_quorum_loss
        )
        self._arm_early()
        self.version += 1
