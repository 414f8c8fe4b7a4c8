"""Plays a scenario: lets its commands happen one after another, and tells what became of nodes and guests."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gugus.cluster.v1.guest_pb2 import HA_STATE_UNSPECIFIED, Guest, GuestPhase, HaState
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, NodeState

from manager.ha.stored import give
from simulator.clockwork import MS, S
from simulator.commands import Command, Expected, NodeWord
from simulator.operator import Operator
from simulator.scenario import AFTERWARDS_S, Scenario
from simulator.state import copy_of
from simulator.world import World

PRELUDE_S = 60
"""Before the beginning a cluster has at most so long until its managers act and its nodes are online."""

GLANCE_S = 0.1
"""While something is expected that is not so yet, it is looked at so often."""


@dataclass(frozen=True, slots=True)
class Step:
    """How things are once a command was carried out."""

    at_s: float
    command: str
    nodes: Mapping[str, Mapping[str, Any]]
    guests: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the log; commands are lines about "command"."""

    at_s: float
    about: str
    text: str


@dataclass(slots=True)
class Played:
    """What came of a scenario. unmet: what was expected and was not so. broken: guests that ran twice, disks with two writers."""

    log: list[Line] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    unmet: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether all that was expected was so, and no guest ran twice or had a disk written to twice."""
        return not self.unmet and not self.broken


def play(scenario: Scenario, seed: int | None = None) -> Played:
    """Play a scenario to its end. seed: another one than its own. The same scenario and seed give the same answer."""
    return _Player(scenario, scenario.seed if seed is None else seed).play()


class _Player:
    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario = scenario
        self.world = World(_begun(scenario), seed)
        self.world.strict = False
        self.operator = Operator(self.world)
        self.played = Played()

    def play(self) -> Played:
        world = self.world
        self._prelude()
        self.began = world.queue.now
        world.log.clear()
        world.give_guests()
        self._note("begin")
        for command in self.scenario.commands:
            self._carry_out(command)
        left_s = AFTERWARDS_S
        if self.scenario.seconds is not None:
            left_s = max(0.0, self.scenario.seconds - self._now_s())
        world.run(left_s)
        self._note("end")
        self.played.broken = world.broken
        self.played.seconds = self._now_s()
        self.played.log += [Line((one.at_ns - self.began) / S, one.about, one.text) for one in world.log]
        self.played.log.sort(key=lambda line: line.at_s)
        return self.played

    def _prelude(self) -> None:
        """Let the cluster find itself before anything begins."""
        there = [n for n in self.world.names if n not in self.scenario.setup.off | self.scenario.setup.cut]
        for _ in range(PRELUDE_S * 10):
            self.world.run(0.1)
            nodes = self.world.committed.nodes
            if all(nodes[name].status.state == NODE_STATE_ONLINE for name in there):
                return

    def _carry_out(self, command: Command) -> None:
        if isinstance(command.value, Expected):
            self._expect(command.value)
            return
        self.played.log.append(Line(self._now_s(), "command", command.text))
        if command.words == "wait":
            self.world.run(float(command.args["SECONDS"].removesuffix("s")))
        else:
            self.operator.carry_out(command)
        self._note(command.text)

    def _expect(self, expected: Expected) -> None:
        """Wait until it is so, for as long as it may take."""
        end = self.world.queue.now + round(expected.within_s * S)
        while (missing := self._missing(expected)) and self.world.queue.now < end:
            self.world.run(min(GLANCE_S, (end - self.world.queue.now) / S))
        if missing:
            within = f" within {expected.within_s:g} s" if expected.within_s else ""
            self.played.unmet += [f"at {self._now_s():.1f} s: {one}{within}" for one in missing]
            self.played.log += [Line(self._now_s(), "expected", one) for one in missing]

    def _missing(self, expected: Expected) -> list[str]:
        missing = []
        state = self.world.committed
        for name, wanted in expected.guests.items():
            if name not in state.guests:
                missing.append(f"guest {name} is not there")
                continue
            found = self._guest(state.guests[name])
            for word, value in wanted.items():
                if word == "not_node" and found["node"] == value:
                    missing.append(f"guest {name}: node is {value}")
                elif word == "reason" and value not in found[word]:
                    missing.append(f'guest {name}: its reason is "{found[word]}", and has no "{value}"')
                elif word not in ("not_node", "reason") and found[word] != value:
                    missing.append(f"guest {name}: {word} is {found[word]}, not {value}")
        for name, node_word in expected.nodes.items():
            now = self._node_word(name)
            if now != node_word:
                missing.append(f"node {name} is {now}, not {node_word}")
        lines = [f"{one.about}: {one.text}" for one in self.world.log]
        missing += [
            f'no line of the log has "{text}"' for text in expected.log if not any(text in line for line in lines)
        ]
        missing += [f'the log has "{text}"' for text in expected.not_log if any(text in line for line in lines)]
        return missing

    def _note(self, command: str) -> None:
        state = self.world.committed
        nodes = {
            name: {
                "state": str(self._node_word(name)),
                "power": "on" if host.powered else "off",
                "network": "off" if name in self.world.isolated else "on",
            }
            for name, host in self.world.hosts.items()
        }
        guests = {name: self._guest(guest) for name, guest in sorted(state.guests.items())}
        self.played.steps.append(Step(self._now_s(), command, nodes, guests))

    def _guest(self, guest: Guest) -> dict[str, Any]:
        ha, runs_on = guest.status.ha, self.world.copies(guest.meta.name)
        word = (
            "ignored" if ha.state == HA_STATE_UNSPECIFIED else HaState.Name(ha.state).removeprefix("HA_STATE_").lower()
        )
        return {
            "state": word,
            "phase": GuestPhase.Name(guest.status.phase).removeprefix("GUEST_PHASE_").lower(),
            "node": guest.status.node or None,
            "runs_on": runs_on,
            "runs": runs_on == [guest.status.node],
            "recoveries": guest.status.recoveries,
            "restarts": ha.restarts,
            "relocations": ha.relocations,
            "reason": guest.status.reason,
        }

    def _node_word(self, name: str) -> NodeWord:
        state = self.world.committed.nodes[name].status.state
        return NodeWord(NodeState.Name(state).removeprefix("NODE_STATE_").lower())

    def _now_s(self) -> float:
        return round((self.world.queue.now - self.began) / MS) / 1000


def _begun(scenario: Scenario) -> Any:
    """Return the beginning of a scenario with its guests given to the nodes that they name."""
    from dataclasses import replace

    guests = []
    for stored in scenario.setup.guests:
        guest = copy_of(stored)
        if guest.status.node:
            give(guest, guest.status.node, disarmed=False)
        guests.append(guest)
    return replace(scenario.setup, guests=guests)
