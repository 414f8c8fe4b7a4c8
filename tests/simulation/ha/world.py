"""A small cluster under a storm of faults, by a seed."""

from collections.abc import Sequence

from gugus.agent.v1.guest_pb2 import GUEST_KIND_VIRTUAL_MACHINE
from gugus.cluster.v1.cluster_pb2 import PLACEMENT_POLICY_PACK, PLACEMENT_POLICY_SPREAD, Cluster
from gugus.cluster.v1.guest_pb2 import POWER_ON, QUORUM_LOSS_KEEP, QUORUM_LOSS_STOP, Guest
from gugus.cluster.v1.node_pb2 import HOST_EXIT_REBOOT, NODE_STATE_JOINING, Node
from gugus.cluster.v1.rule_pb2 import Rule

from common.leases import DRIFT_PPM
from manager.ha.stored import give
from simulator import world
from simulator.clockwork import MS, S
from simulator.commands import ALL, Command
from simulator.host import Host
from simulator.operator import Operator
from simulator.rules import Rules
from simulator.state import Move, Txn
from simulator.storage import Locks, Pool
from simulator.world import Setup

MANY = 1_000
"""Most cuts of the power of one node: a storm is one long flap, and the damper would leave everything to the leases."""


def node(name: str, *, devices: bool, pools: Sequence[str] = ()) -> Node:
    """A host with room for all guests."""
    made = Node()
    made.meta.name = name
    made.status.state = NODE_STATE_JOINING
    facts = made.status.facts
    facts.cpus, facts.memory_allocatable_bytes = 4, 9 << 30
    facts.hypervisors.add(ready=True, kinds=[GUEST_KIND_VIRTUAL_MACHINE])
    facts.pools.extend(pools)
    for level, device in ((1, "a"), (2, "b"), (2, "c")) if devices else ():
        made.spec.fence.devices.add(name=device, level=level)
    return made


SHARED = (Pool("san", Locks.HOST), Pool("nfs", Locks.LEASE, 20 * S))
"""Pools with guests' disks: one whose locks end with their host, one whose server keeps them until a silent host was reset."""


def guest(name: str, home: str, pool: str = "", *, ends_early: bool = False) -> Guest:
    """A guest under HA that is to run on a host. pool: where its disk is, "" when it has none. ends_early: before a lease does."""
    made = Guest()
    made.meta.name = made.meta.uid = name
    made.spec.kind, made.spec.cpus, made.spec.memory_bytes = GUEST_KIND_VIRTUAL_MACHINE, 1, 1 << 30
    made.spec.power, made.spec.ha.enabled = POWER_ON, True
    made.spec.ha.quorum_loss = QUORUM_LOSS_STOP if ends_early else QUORUM_LOSS_KEEP
    if pool:
        made.spec.disks.add(name="disk", pool=pool)
    made.status.volumes_ready = True
    give(made, home, disarmed=False)
    return made


def apart(*guests: str) -> Rule:
    """A strict rule that keeps guests apart."""
    made = Rule()
    made.meta.name = "apart"
    made.spec.guests.extend(guests)
    made.spec.apart.SetInParent()
    return made


class World(world.World):
    """Three hosts with a manager each and two guests, and what befalls them."""

    def __init__(
        self,
        seed: int,
        *,
        rules: Rules | None = None,
        drift_ppm: int = DRIFT_PPM,
        calm: bool = False,
        nodes: int = 3,
        devices: bool = False,
        moving: float = 0.0,
        placement_rules: Sequence[Rule] = (),
        homes: Sequence[str] = ("n1", "n1"),
        packs: bool = False,
        lies: bool = False,
        end_early: Sequence[str] = (),
        witness: bool = False,
    ) -> None:
        """Let the cluster begin.

        devices: every host has fence devices, and people who confirm what they saw. moving: chance, five times a second, that someone asks
        for the migration of a guest. homes: where the guests are. packs: they are put together where they may. lies: people say of hosts
        that are on that they are off; only the storage, on which each guest has a disk then, knows better. end_early: guests that want to
        end before a lease does. witness: the last node is one.
        """
        self.lies = lies
        self.with_devices, self.moving = devices, moving
        names = [f"n{number}" for number in range(1, nodes + 1)]
        pools = [pool.name for pool in SHARED] if lies else [""]
        cluster = Cluster()
        cluster.settings.fencing.max_cuts = MANY
        cluster.settings.placement = PLACEMENT_POLICY_PACK if packs else PLACEMENT_POLICY_SPREAD
        setup = Setup(
            nodes=[node(name, devices=devices, pools=pools if lies else ()) for name in names],
            voters=names,
            guests=[
                guest(f"g{i}", home, pools[i % len(pools)], ends_early=f"g{i}" in end_early)
                for i, home in enumerate(homes)
            ],
            pools=SHARED,
            rules=placement_rules,
            cluster=cluster,
        )
        setup.nodes[-1].spec.witness = witness
        super().__init__(setup, seed, rules=rules, drift_ppm=drift_ppm, calm=calm)
        self.operator = Operator(self)
        self.give_guests()
        if moving:
            self.queue.after(200 * MS, self._someone_moves)

    def some_fault(self, host: Host | None = None) -> None:
        host = host or self.hosts[self.rng.choice(self.names)]
        lasts = self.rng.choice([S, 4 * S, 9 * S, 13 * S, 20 * S])
        if self.lies and self.rng.random() < 0.5:
            self._someone_looks(host, mistaken=True)
        match self.rng.randrange(8):
            case 0:
                host.power_off()
                self.queue.after(lasts + self.setup.boot_ns, host.power_on)
                if self.with_devices and self.rng.random() < 0.8:
                    self.queue.after(
                        self.rng.randrange(S, min(lasts, 6 * S) + self.setup.boot_ns), lambda: self._someone_looks(host)
                    )
            case 1 | 2:
                host.freeze()
                self.queue.after(lasts + self.rng.randrange(S), host.thaw)
            case 3:
                self._partition({frozenset((host.name, other)) for other in self.names if other != host.name}, lasts)
            case 4:
                self._partition({frozenset(self.rng.sample(self.names, 2))}, lasts)
            case 5:
                self.tell(f"node/{host.name}", "its agent is restarted")
                host.agent.ends.restarted()
            case 6:
                self.tell(f"node/{host.name}", "its agent hangs")
                host.agent.hang(hangs=True)
                self.queue.after(lasts, lambda: host.agent.hang(hangs=False))
            case _:
                for name in sorted(host.agent.running):
                    host.agent.crash(name)

    def _someone_looks(self, host: Host, *, mistaken: bool = False) -> None:
        """A person who sees a host off says so, later, to whichever manager; what was seen is told with it.

        mistaken: it was another one.
        """
        seen = self.committed.nodes[host.name].status
        if host.powered and not mistaken:
            return
        incarnation = (seen.boot_id, seen.lapse_number)
        for other in self.hosts.values():
            told = lambda o=other: o.do(lambda: o.manager.told_off(host.name, incarnation))  # noqa: E731
            self.queue.after(self.rng.randrange(self.rng.choice([4 * S, 30 * S])), told)

    def _someone_moves(self) -> None:
        """Now and then, someone asks for a migration."""
        if not self.moving:
            return
        asked = {move.guest for move in self.committed.open_moves()}
        for name in self.committed.guests:
            if name not in asked and self.rng.random() < self.moving:
                home = self.committed.guests[name].status.node
                target = self.rng.choice([other for other in self.names if other != home])
                move = Move(f"move-{self.queue.now}-{name}", name, target, "person", at_ns=self.queue.now)
                self.commit(Txn({}, {f"move/{move.name}": move}))
        self.queue.after(200 * MS, self._someone_moves)

    def _partition(self, links: set[frozenset[str]], lasts: int) -> None:
        self.tell("network", f"cut {sorted(map(sorted, links))}")
        self.links |= links
        self.queue.after(lasts, lambda: self.links.difference_update(links))

    def fair_weather(self, faults: int) -> None:
        """One fault after another, each given the time to be over with, some starts that fail, and rolling reboots amid it."""
        for _ in range(faults):
            self.run(self.rng.uniform(20, 60))
            if self.rng.random() < 0.3:
                guest = self.rng.choice(sorted(self.committed.guests))
                self.fail_starts[guest] = [("", self.rng.randrange(1, 4))]
            word = self.rng.random()
            if word < 0.1:
                self.operator.carry_out(Command("nodes reboot", "nodes reboot all", {"NODES": ALL}))
            elif word < 0.25:
                self.reboot(self.hosts[self.rng.choice(self.names)])
            else:
                self.some_fault()
        self.run(200)

    def reboot(self, host: Host) -> None:
        """A host goes down in order, and boots again."""

        def down() -> None:
            host.power_off()
            host.boot()

        if host.powered and not host.frozen and not host.agent.hung:
            self.tell(f"node/{host.name}", "goes down in order")
            host.agent.leave(HOST_EXIT_REBOOT, down)

    def storm(self, seconds: int) -> None:
        """Faults every few seconds, then calm with everything on and healed."""
        end = self.queue.now + seconds * S
        while self.queue.now < end:
            self.run(self.rng.uniform(0.5, 9))
            self.some_fault()
        self.run(25)
        self.calm = True
        self.links.clear()
        for host in self.hosts.values():
            host.agent.hang(hangs=False)
            host.thaw()
            host.power_on()
