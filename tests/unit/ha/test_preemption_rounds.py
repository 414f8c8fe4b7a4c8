"""Preemption and the way back, round after round by the production's decisions, while nodes are lost and come back.

Whatever happens, no node's room is given away twice, nobody gives way to a lesser one, and it comes to rest: nothing swings.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from gugus.agent.v1.guest_pb2 import GUEST_KIND_VIRTUAL_MACHINE
from gugus.agent.v1.node_pb2 import HypervisorFacts
from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_RECOVERING,
    GUEST_PHASE_RUNNING,
    GUEST_PHASE_STOPPED,
    POWER_ON,
    Guest,
)
from gugus.cluster.v1.node_pb2 import NODE_STATE_FENCED, NODE_STATE_ONLINE, Node
from hypothesis import example, given, settings
from hypothesis import strategies as st

from manager.ha.preemption import contested, giving_way, may_preempt, preemptions, way_back
from manager.ha.recovery import Lost, Move, Wait, recover
from manager.ha.stored import view_of
from manager.scheduler import Decision, GuestRequest, NodeView, Terms, place
from manager.scheduler.views import guest_request, holds_room, node_views
from planner.settings import Settings

ROOM = 10
NAMES = ("n1", "n2", "n3")


def make_node(name: str) -> Node:
    node = Node()
    node.meta.name = name
    node.status.state = NODE_STATE_ONLINE
    node.status.facts.cpus, node.status.facts.memory_allocatable_bytes = 100, ROOM
    node.status.facts.hypervisors.append(HypervisorFacts(ready=True, kinds=[GUEST_KIND_VIRTUAL_MACHINE]))
    return node


def make_guest(name: str, node: str, size: int, priority: int, *, ha: bool) -> Guest:
    guest = Guest()
    guest.meta.name = name
    guest.spec.kind, guest.spec.memory_bytes, guest.spec.power = GUEST_KIND_VIRTUAL_MACHINE, size, POWER_ON
    guest.spec.ha.enabled, guest.spec.ha.priority = ha, priority
    guest.status.node, guest.status.phase, guest.status.ha_armed = node, GUEST_PHASE_RUNNING, ha
    guest.status.volumes_ready = True
    return guest


@dataclass
class World:
    """Nodes and guests as they are stored; hosts do at once what they are told, but for a shutdown, which takes a round."""

    nodes: dict[str, Node]
    guests: dict[str, Guest]
    gave_way: list[tuple[int, int]] = field(default_factory=list)

    def round(self) -> bool:
        """Let everybody act once; return whether anything was done."""
        return self._recover() | self._let_back() | self._hosts()

    def _recover(self) -> bool:
        states = {name: node.status.state for name, node in self.nodes.items()}
        lost = [
            guest
            for guest in self.guests.values()
            if guest.status.phase == GUEST_PHASE_RECOVERING or states[guest.status.node] in Lost
        ]
        outcomes = recover([view_of(guest) for guest in lost], states, self._views(), terms=Terms())
        moves = [outcome for outcome in outcomes if isinstance(outcome, Move)]
        for move in moves:
            self._give(self.guests[move.guest], move.to_node)
        homeless = {o.guest: o.decision for o in outcomes if isinstance(o, Wait) and o.decision}
        for name in homeless:
            self.guests[name].status.phase = GUEST_PHASE_RECOVERING
        return bool(moves) or self._make_room(homeless)

    def _make_room(self, homeless: dict[str, Decision]) -> bool:
        views = [view_of(self.guests[name]) for name in homeless]
        waiting = [(view, homeless[view.name]) for view in views if may_preempt(view)]
        others = [guest for guest in self.guests.values() if guest.meta.name not in homeless]
        fleet = contested(list(self.nodes.values()), others, (), Settings())
        found = preemptions(waiting, fleet, giving_way(self.guests.values()))
        for one in found:
            winner = self.guests[one.guest]
            for name in one.gives_way:
                loser = self.guests[name]
                loser.status.preempted.by = one.guest
                self.gave_way.append((loser.spec.ha.priority, winner.spec.ha.priority))
            self._give(winner, one.to_node)
        return bool(found)

    def _let_back(self) -> bool:
        done = False
        for guest in sorted(self.guests.values(), key=lambda g: (-g.spec.ha.priority, g.meta.name)):
            online = self.nodes[guest.status.node].status.state == NODE_STATE_ONLINE
            down = guest.status.phase == GUEST_PHASE_STOPPED
            if guest.status.HasField("preempted") and down and online:
                node = way_back(guest_request(guest), guest.status.node, self._chooser(guest), may_move=True)
                if node:
                    self._give(guest, node)
                    done = True
        return done

    def _hosts(self) -> bool:
        done = False
        for guest in self.guests.values():
            online = self.nodes[guest.status.node].status.state == NODE_STATE_ONLINE
            if guest.status.HasField("preempted") and holds_room(guest) and online:
                guest.status.phase = GUEST_PHASE_STOPPED
                done = True
        return done

    def _give(self, guest: Guest, node: str) -> None:
        guest.status.node, guest.status.phase = node, GUEST_PHASE_RUNNING
        guest.status.ClearField("preempted")

    def _views(self, ignoring: str = "") -> list[NodeView]:
        return list(node_views(self.nodes.values(), self.guests.values(), ignoring=ignoring))

    def _chooser(self, guest: Guest) -> Callable[[GuestRequest], Decision]:
        def choose(request: GuestRequest) -> Decision:
            return place(request, self._views(guest.meta.name), Terms())

        return choose

    def _left(self, node: str, guests: Iterable[Guest]) -> int:
        return ROOM - sum(guest.spec.memory_bytes for guest in guests if guest.status.node == node)

    def check(self) -> None:
        """See that what is online is not given away twice, and that nobody waits who would fit.

        The room of a guest that waits to be recovered is kept for it on its node, should that be back.
        """
        runs = [g for g in self.guests.values() if g.status.phase == GUEST_PHASE_RUNNING]
        keeps = [g for g in self.guests.values() if not g.status.HasField("preempted")]
        online = [name for name, node in self.nodes.items() if node.status.state == NODE_STATE_ONLINE]
        assert all(self._left(name, runs) >= 0 for name in online)
        free = {name: self._left(name, keeps) for name in online}
        for guest in self.guests.values():
            if guest.status.HasField("preempted") and guest.status.node in online:
                assert not holds_room(guest)
                assert all(left < guest.spec.memory_bytes for left in free.values())
        assert all(loser < winner for loser, winner in self.gave_way)


CROWD = st.lists(
    st.tuples(st.sampled_from(NAMES), st.integers(1, 6), st.sampled_from([0, 0, 1, 5, 9]), st.booleans()), min_size=1, max_size=10
)  # fmt: skip


@settings(max_examples=120, deadline=None)
@given(CROWD, st.lists(st.sampled_from(NAMES), max_size=6))
@example(
    crowd=[
        ("n1", 1, 1, True), ("n1", 2, 0, True), ("n1", 6, 0, True), ("n2", 3, 0, True),
        ("n3", 1, 0, False), ("n3", 3, 1, False), ("n3", 3, 1, False), ("n3", 3, 1, False),
    ],
    switched=["n1", "n2", "n1"],
)  # fmt: skip
def test_it_comes_to_rest_and_no_room_is_given_twice(
    crowd: list[tuple[str, int, int, bool]], switched: list[str]
) -> None:
    left = dict.fromkeys(NAMES, ROOM)
    guests = {}
    for number, (home, size, priority, ha) in enumerate(crowd):
        if size <= left[home]:
            left[home] -= size
            guests[f"g{number}"] = make_guest(f"g{number}", home, size, priority, ha=ha)
    world = World({name: make_node(name) for name in NAMES}, guests)
    for name in switched:
        node = world.nodes[name]
        back = node.status.state == NODE_STATE_FENCED
        node.status.state = NODE_STATE_ONLINE if back else NODE_STATE_FENCED
        for _ in range(6 * len(crowd) + 6):
            if not world.round():
                break
        else:
            raise AssertionError("it swings")
        world.check()
