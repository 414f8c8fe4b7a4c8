"""A cluster on virtual time that evens itself out: the production decision, driven as `manager.controllers.self_balance` drives it."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from gugus.agent.v1.guest_pb2 import GUEST_KIND_VIRTUAL_MACHINE, GUEST_STATE_RUNNING
from gugus.agent.v1.node_pb2 import HypervisorFacts
from gugus.cluster.v1.cluster_pb2 import BALANCE_MODE_AUTOMATIC, BalanceSettings, ClusterSettings
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RUNNING, POWER_ON, Guest
from gugus.cluster.v1.heartbeat_pb2 import GuestReport
from gugus.cluster.v1.migration_pb2 import MigrateGuestRequest
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, Node
from gugus.cluster.v1.pool_pb2 import Pool
from gugus.cluster.v1.rule_pb2 import Rule
from gugus.cluster.v1.task_pb2 import Task

from common.leases import LeaseTimes
from manager.operations.registry import MIGRATE
from manager.scheduler import balancing
from manager.scheduler.balancing import ACTOR, Conclusion, Held
from manager.scheduler.load import Load, Loads, enough_ns
from manager.scheduler.settings import planner_settings
from manager.scheduler.views import cpus_of, memory_of
from manager.scheduler.what_if import Stored

GIB = 1 << 30
NS = 1_000_000_000
Use = Callable[[str, float], float]
"""Part of its CPUs that a guest keeps busy at a time in seconds."""


def node(name: str, cpus: int = 16, memory_gib: int = 128) -> Node:
    made = Node()
    made.meta.name = name
    made.status.state = NODE_STATE_ONLINE
    made.status.facts.cpus, made.status.facts.memory_allocatable_bytes = cpus, memory_gib * GIB
    made.status.facts.hypervisors.append(HypervisorFacts(driver="kvm", kinds=[GUEST_KIND_VIRTUAL_MACHINE], ready=True))
    made.status.facts.pools.append("shared")
    return made


def guest(name: str, on: str, cpus: int = 2, memory_gib: int = 4) -> Guest:
    made = Guest()
    made.meta.name, made.meta.uid = name, f"uid-{name}"
    made.spec.kind, made.spec.power = GUEST_KIND_VIRTUAL_MACHINE, POWER_ON
    made.spec.cpus, made.spec.memory_bytes = cpus, memory_gib * GIB
    made.status.node, made.status.phase = on, GUEST_PHASE_RUNNING
    made.meta.generation = 1
    return made


def pool() -> Pool:
    made = Pool()
    made.meta.name = "shared"
    made.spec.dir.shared = True
    return made


@dataclass
class Evening:
    """Nodes, guests and what they use; time goes on by `run`."""

    nodes: list[Node]
    guests: list[Guest]
    use: Use
    settings: BalanceSettings = field(default_factory=lambda: BalanceSettings(mode=BALANCE_MODE_AUTOMATIC))
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    rules: list[Rule] = field(default_factory=list)
    now_s: float = 0.0
    sample_s: float = 15.0
    """Time between two looks at what is used."""
    hindrance: str = ""
    held: Held | None = None
    moves: list[Task] = field(default_factory=list)
    conclusions: list[Conclusion] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.loads = Loads()
        self.cluster.balance.CopyFrom(self.settings)
        self._used_ns = dict.fromkeys((guest.meta.uid for guest in self.guests), 0)
        self.policy = balancing.policy_of(self.settings)

    def run(self, seconds: float, look_s: float = 60) -> None:
        """Let time go on: nodes tell what is used, and every so often it is looked how even they are."""
        end_s = self.now_s + seconds
        next_s = self.now_s + look_s
        while self.now_s < end_s:
            self.now_s += self.sample_s
            self._hear()
            if self.now_s >= next_s:
                next_s += look_s
                self.look()

    def stored(self) -> Stored:
        settings = planner_settings(self.cluster)
        return Stored(self.nodes, self.guests, self.rules, settings, LeaseTimes(), pools=[pool()], load_of=self.load_of)

    def load_of(self, guest: Guest) -> Load:
        return self.loads.of(guest, cpus_of(guest.spec), memory_of(guest.spec))

    def look(self) -> Conclusion:
        recent = balancing.recent(self.moves, self.now_s)
        settled = self.now_s * NS >= max(balancing.SETTLING_NS, enough_ns(self.policy.smoothing_ns))
        hindrance = self.hindrance or ("" if settled else "the manager has just taken over")
        now_ns = round(self.now_s * NS)
        found = balancing.conclude(self.stored(), self.policy, recent, hindrance, self.held, now_ns)
        self.held = None if found.begins else found.held
        self.conclusions.append(found)
        if found.begins:
            for move in found.plan.moves:
                self._move(move.guest, move.to_node)
        return found

    def busy(self) -> dict[str, float]:
        """Return which part of its CPUs each node's guests keep busy, smoothed."""
        taken = {
            node.meta.name: sum(
                self.load_of(g).cpu * g.spec.cpus for g in self.guests if g.status.node == node.meta.name
            )
            for node in self.nodes
        }
        return {node.meta.name: taken[node.meta.name] / node.status.facts.cpus for node in self.nodes}

    def _move(self, name: str, to: str) -> None:
        moved = next(guest for guest in self.guests if guest.meta.name == name)
        moved.status.node = to
        moved.meta.generation += 1
        task = Task(kind=MIGRATE, target=f"guest/{name}", actor=ACTOR)
        task.request = MigrateGuestRequest(name=name, target=to).SerializeToString()
        task.meta.created_at.FromNanoseconds(round(self.now_s * NS))
        self.moves.append(task)

    def _hear(self) -> None:
        at_ns = round(self.now_s * NS)
        for node in self.nodes:
            reports = [self._report(guest) for guest in self.guests if guest.status.node == node.meta.name]
            self.loads.heard(node.meta.name, reports, at_ns, self.policy.smoothing_ns)

    def _report(self, guest: Guest) -> GuestReport:
        used = self.use(guest.meta.name, self.now_s) * guest.spec.cpus
        self._used_ns[guest.meta.uid] += round(used * self.sample_s * NS)
        return GuestReport(
            name=guest.meta.name,
            uid=guest.meta.uid,
            state=GUEST_STATE_RUNNING,
            generation=guest.meta.generation,
            cpu_time_ns=self._used_ns[guest.meta.uid],
            memory_used_bytes=guest.spec.memory_bytes // 2,
        )


def a_days_use(seed: int, names: list[str]) -> Use:
    """Return a noisy day: each guest has its level, its hours, jitter from look to look, and now and then a spike."""
    dice = random.Random(seed)
    level = {name: dice.choice((0.03, 0.1, 0.2, 0.5)) for name in names}
    phase = {name: dice.uniform(-3600, 3600) for name in names}

    def use(name: str, at_s: float) -> float:
        hours = 1 + 0.6 * math.sin(2 * math.pi * (at_s + phase[name]) / 86_400)
        value = level[name] * hours * dice.uniform(0.5, 1.5)
        return 1.0 if dice.random() < 0.02 else min(1.0, value)

    return use


def crowded(seed: int, nodes: int = 10, guests: int = 100, **settings: int) -> Evening:
    """Return a cluster whose first nodes have most of the guests, on a noisy day. settings: of balancing."""
    dice = random.Random(seed)
    names = [f"g{number}" for number in range(guests)]
    homes = [f"n{min(dice.randrange(nodes), dice.randrange(nodes))}" for _ in names]
    made = [guest(n, on, dice.choice((1, 2, 4)), dice.choice((2, 4, 8))) for n, on in zip(names, homes, strict=True)]
    wanted = BalanceSettings(mode=BALANCE_MODE_AUTOMATIC)
    for name, value in settings.items():
        setattr(wanted, name, value)
    return Evening([node(f"n{number}") for number in range(nodes)], made, a_days_use(seed, names), wanted)
