"""What goes wrong in a run, and when: chosen by the seed.

Each run leaves out some kinds of faults altogether, so that others are seen undisturbed (swarm testing: Groce et al.,
ISSTA 2012).
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial

from manager.consensus.core import RaftCore
from manager.consensus.types import ConsensusError, Member

from .host import Host
from .network import Network, Weather
from .record import Record
from .timeline import Timeline

PAUSE_S = (0.1, 0.9)
"""Time between two faults."""
ADD_S = 3.0
"""How long a newcomer may take to catch up."""
OLD_MESSAGES_S = 3.0
"""After this no message of a removed member is under way any more, and its host may come back with an empty disk."""


@dataclass(frozen=True, slots=True)
class Faults:
    """Which kinds may happen in a run."""

    crashes: bool = True
    torn_writes: bool = True
    partitions: bool = True
    weather: bool = True
    freezes: bool = True
    slow_disks: bool = True
    full_disks: bool = True
    failing_disks: bool = True
    lost_disks: bool = True
    membership: bool = True
    transfers: bool = True

    @classmethod
    def none(cls) -> "Faults":
        """Return a quiet run's."""
        return cls(**dict.fromkeys((field.name for field in fields(cls)), False))

    def some(self, rng: random.Random) -> "Faults":
        """Return a random part of these."""
        return Faults(**{field.name: getattr(self, field.name) and rng.random() < 0.65 for field in fields(self)})


class Nemesis:
    """Makes things go wrong until it is told to stop."""

    def __init__(
        self, hosts: Sequence[Host], members: Sequence[Member], network: Network, timeline: Timeline, record: Record,
        rng: random.Random, faults: Faults,
    ) -> None:  # fmt: skip
        self.hosts, self.members = {host.name: host for host in hosts}, {member.name: member for member in members}
        self.network, self.timeline, self.record, self.rng = network, timeline, record, rng
        self.active = True
        self._retired: dict[str, float] = {}
        """Hosts of removed members, switched off for good, and when they may come back with an empty disk."""
        self._leaving: set[str] = set()
        """Hosts that will be switched off."""
        self._lost: set[str] = set()
        """Voters that came back with an empty disk."""
        self._removals: dict[str, tuple[Host, int]] = {}
        """Members that are being removed, and by which boot of which leader."""
        kinds: list[tuple[bool, int, Callable[[], None]]] = [
            (faults.crashes, 4, self._crash),
            (faults.torn_writes, 5, self._cut_power_in_a_write),
            (faults.partitions, 8, self._partition),
            (faults.weather, 3, self._weather),
            (faults.freezes, 2, self._freeze),
            (faults.slow_disks, 2, self._slow_disk),
            (faults.full_disks, 2, self._full_disk),
            (faults.failing_disks, 1, self._failing_disk),
            (faults.lost_disks, 3, self._lost_disk),
            (faults.membership, 6, self._membership),
            (faults.transfers, 2, self._transfer),
        ]
        if faults.lost_disks and faults.membership:  # one of them: they do not go together, see `_lost_disk`
            left_out = rng.choice([self._lost_disk, self._membership])
            kinds = [kind for kind in kinds if kind[2] != left_out]
        self._kinds = [kind for wanted, _, kind in kinds if wanted]
        self._weights = [weight for wanted, weight, _ in kinds if wanted]

    def start(self) -> None:
        """Do something in a while."""
        if self._kinds:
            self.timeline.after(self.rng.uniform(*PAUSE_S), self._strike)

    def stop(self) -> None:
        """Heal everything: links, disks and hosts."""
        self.active = False
        self.network.cut.clear()
        self.network.weather = Weather()
        for host in self.hosts.values():
            host.platter.full = host.platter.sync_fails = False
            host.platter.sync_s, host.platter.cut_after = 0.0, None
        self.start_all()

    def start_all(self) -> None:
        """Start every member that stopped, except those that were removed and switched off for good."""
        for host in self.hosts.values():
            if host.boots and host.core is None and host.setup is not None:
                host.boot()

    def _strike(self) -> None:
        if self.active:
            kind = self.rng.choices(self._kinds, self._weights)[0]
            self.record.count(kind.__name__.removeprefix("_"))
            self.timeline.tell("fault:", kind.__name__.removeprefix("_"))
            kind()
            self.start()

    # -- helpers

    def _up(self) -> list[Host]:
        return [host for host in self.hosts.values() if host.core is not None]

    def _victim(self) -> Host | None:
        """Return a host that is up, often one that leads."""
        up = self._up()
        leading = [host for host in up if host.core is not None and host.core.is_leader]
        return self.rng.choice(leading if leading and self.rng.random() < 0.4 else up) if up else None

    def _later(self, seconds: tuple[float, float], action: Callable[[], None]) -> None:
        def act() -> None:
            if self.active:
                action()

        self.timeline.after(self.rng.uniform(*seconds), act)

    def _start_again(self, host: Host) -> None:
        if host.core is None and host.setup is not None:
            host.boot()
            if host.core is None:
                self._later((0.2, 1.0), lambda: self._start_again(host))

    # -- power

    def _crash(self) -> None:
        victims = self._up() if self.rng.random() < 0.2 else [v for v in [self._victim()] if v]
        for victim in victims:
            victim.power_off()
            self._later((0.0, 2.0), partial(self._start_again, victim))

    def _cut_power_in_a_write(self) -> None:
        if victim := self._victim():
            victim.platter.cut_after = self.rng.choice([self.rng.randrange(4), self.rng.randrange(40)])
            self._later((0.2, 2.5), lambda: self._start_again(victim))

    def _freeze(self) -> None:
        if victim := self._victim():
            victim.freeze(self.rng.choice([0.2, 1.0, 2.5]))

    # -- disks

    def _slow_disk(self) -> None:
        if victim := self._victim():
            platter = victim.platter
            platter.sync_s = self.rng.choice([0.01, 0.1, 0.5])
            self._later((0.5, 3.0), lambda: setattr(platter, "sync_s", 0.0))

    def _full_disk(self) -> None:
        victims = self._up() if self.rng.random() < 0.2 else [v for v in [self._victim()] if v]
        for victim in victims:
            victim.platter.full = True
            self._later((0.5, 4.0), partial(setattr, victim.platter, "full", False))

    def _failing_disk(self) -> None:
        if victim := self._victim():
            victim.platter.sync_fails = True
            self._later((0.3, 2.0), lambda: self._start_again(victim))

    def _lost_disk(self) -> None:
        """Let one voter lose its disk for good, or let the operator do what must be done about the last one that did.

        With two of these at a time, or another voter removed meanwhile, the cluster might lose what it acknowledged.
        """
        if self._lost:
            self.repair()
        elif self._retired:
            for leader, core in self._leaders():
                self._grow(leader, core)
        else:
            self._lose_disk()

    def _lose_disk(self) -> None:
        for _, core in self._leaders():
            victim = self.hosts[self.rng.choice(sorted(core.voter_names))]
            if self._lost or len(core.voter_names) < 3 or victim.core is None or victim.setup is None:
                continue
            self._lost.add(victim.name)
            restart = partial(victim.boot, victim.setup.voters, joining=victim.setup.joining)
            victim.power_off()
            victim.replace_disk()
            self.timeline.after(self.rng.uniform(0.5, 2.0), restart)

    def repair(self) -> None:
        """Remove a voter that lost its disk, and switch it off until it may come back with an empty one."""
        for name in sorted(self._lost):
            for leader, core in self._leaders():
                if name in core.voter_names:
                    self._ask(leader, partial(self._remove_lost, name))

    def _remove_lost(self, name: str, core: RaftCore) -> None:
        def done(error: Exception | None) -> None:
            if error is None and name in self._lost:
                self._lost.discard(name)
                self.record.count("lost voters removed")
                self.timeline.after(0, lambda: self._retire(self.hosts[name]))

        if name in core.voter_names:
            core.membership.remove(name, done)

    # -- network

    def _weather(self) -> None:
        self.network.weather = Weather(
            self.rng.choice([(0.001, 0.01), (0.001, 0.2), (0.05, 0.4)]), self.rng.choice([0.0, 0.0, 0.05, 0.3])
        )

    def _partition(self) -> None:
        cut, names = self.network.cut, [host.name for host in self._up()]
        cut.clear()
        victim = self._victim()
        if victim is None or self.rng.random() < 0.3:
            return
        others = [name for name in names if name != victim.name]
        match self.rng.randrange(5):
            case 0:
                self._separate([victim.name], others)
            case 1:  # it hears nobody
                cut.update((other, victim.name) for other in others)
            case 2:  # nobody hears it
                cut.update((victim.name, other) for other in others)
            case 3:
                side = self.rng.sample(names, self.rng.randint(1, len(names)))
                self._separate(side, [name for name in names if name not in side])
            case _:  # any links, either way
                cut.update((a, b) for a in names for b in names if a != b and self.rng.random() < 0.4)

    def _separate(self, side: Sequence[str], other: Sequence[str]) -> None:
        self.network.cut.update((a, b) for a in side for b in other)
        self.network.cut.update((b, a) for a in side for b in other)

    # -- voters

    def _leaders(self) -> list[tuple[Host, RaftCore]]:
        return [(host, host.core) for host in self._up() if host.core is not None and host.core.is_leader]

    def _transfer(self) -> None:
        for host, core in self._leaders():
            to = self.rng.choice([None, *sorted(core.voter_names - {core.me})])

            def hand_over(core: RaftCore, to: str | None = to) -> None:
                core.hand_over(to)
                self.record.count("handed over")

            self._ask(host, hand_over)

    def _membership(self) -> None:
        for host, core in self._leaders():
            if self.rng.random() < 0.55:
                self._grow(host, core)
            else:
                self._shrink(host, core)

    def _grow(self, leader: Host, core: RaftCore) -> None:
        fresh = [member for name, member in sorted(self.members.items()) if name not in core.voter_names]
        if not fresh:
            return
        member = self.rng.choice(fresh)
        if not self._ready_to_join(self.hosts[member.name], (*core.voters, member)):
            return

        def done(error: Exception | None) -> None:
            self.timeline.tell(leader.name, "adding", member.name, error or "done")
            self.record.count("voters added" if error is None else "voters not added")

        self._ask(leader, lambda core: core.membership.add(member, ADD_S, done))

    def _ready_to_join(self, host: Host, voters: tuple[Member, ...]) -> bool:
        """Return whether a host runs and may be added: for the first time, after a removal, or with a new disk."""
        remover, boot = self._removals.get(host.name, (host, -1))
        if host.name in self._leaving or (remover.boots == boot and remover.core is not None):
            return False
        if not host.boots:
            host.boot(voters, joining=True)
        elif host.name in self._retired and self.timeline.now >= self._retired[host.name]:
            del self._retired[host.name]
            host.replace_disk()
            host.boot(voters, joining=True)
        return host.core is not None

    def _shrink(self, leader: Host, core: RaftCore) -> None:
        name = self.rng.choice(sorted(core.voter_names))

        def done(error: Exception | None) -> None:
            self.timeline.tell(leader.name, "removing", name, error or "done")
            del self._removals[name]
            if error is None:
                self.record.count("voters removed")
                if self.rng.random() < 0.5:  # the others go on running, and must not disturb
                    self._leaving.add(name)
                    self.timeline.after(self.rng.uniform(0.0, 1.0), lambda: self._retire(self.hosts[name]))

        def remove(core: RaftCore) -> None:
            if name in core.voter_names:  # else it would be confirmed by whoever does not know better
                core.membership.remove(name, done)
                self._removals[name] = (leader, leader.boots)

        self._ask(leader, remove)

    def _retire(self, host: Host) -> None:
        """Switch off a removed member. Only then, and when all that it said has arrived, may its name come back."""
        if host.core is not None:
            host.power_off()
        host.setup = None
        self._leaving.discard(host.name)
        self._retired[host.name] = self.timeline.now + OLD_MESSAGES_S

    def _ask(self, leader: Host, request: Callable[[RaftCore], None]) -> None:
        def asked(core: RaftCore) -> None:
            try:
                request(core)
            except ConsensusError:
                self.record.count("changes refused")

        leader.enter(asked)
        leader.request_turn()
