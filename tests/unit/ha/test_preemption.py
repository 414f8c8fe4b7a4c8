"""Who gives way to whom: never to one of the same or a lower priority, and never more than is needed."""

from dataclasses import replace

from gugus.agent.v1.guest_pb2 import GUEST_KIND_VIRTUAL_MACHINE
from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_CREATING,
    GUEST_PHASE_ERROR,
    GUEST_PHASE_RECOVERING,
    GUEST_PHASE_RUNNING,
    GUEST_PHASE_STOPPED,
    GUEST_PHASE_STOPPING,
    Guest,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from manager.ha.preemption import UNTOUCHABLE, can_give_way, giving_way, in_words, preemptions, waits_for
from manager.ha.recovery import GuestView
from manager.scheduler import Decision, GuestRequest, NodeView
from manager.scheduler.views import holds_room
from planner.filters import fits
from planner.fleet import MEMORY, Fleet

KIND = GUEST_KIND_VIRTUAL_MACHINE
NOWHERE = Decision("", (), "no node fits")


def node(name: str, size: int = 10) -> NodeView:
    return NodeView(name, online=True, cpus=100, memory_bytes=size, kinds=frozenset({KIND}))


def there(name: str, where: str, size: int, priority: int = 0, *, idle: bool = False) -> GuestRequest:
    return GuestRequest(name, KIND, 1, size, node=where, priority=priority, idle=idle)


def lost(name: str, size: int, priority: int) -> tuple[GuestView, Decision]:
    request = GuestRequest(name, KIND, 1, size, node="gone", priority=priority)
    view = GuestView(
        name, "gone", 4, GUEST_PHASE_RECOVERING, ha=True, power_on=True, request=request, priority=priority
    )
    return view, NOWHERE


def fleet(*guests: GuestRequest, nodes: tuple[str, ...] = ("n1", "n2")) -> Fleet:
    return Fleet([node(name) for name in nodes], guests)


def test_the_least_important_that_are_enough_give_way() -> None:
    crowd = fleet(there("a", "n1", 6, 1), there("b", "n1", 4, 0), there("c", "n2", 9, 5))
    (found,) = preemptions([lost("db", 4, 10)], crowd)
    assert (found.to_node, found.gives_way, found.generation) == ("n1", ("b",), 5)
    assert found.decision.node == "n1"
    assert "gone was fenced" in found.reason
    assert "b gave way on n1" in found.reason


def test_what_does_not_run_gives_way_before_an_equal_that_does() -> None:
    crowd = fleet(
        there("runs", "n1", 5), there("off", "n1", 5, idle=True), there("more", "n2", 5), there("too", "n2", 5)
    )
    (found,) = preemptions([lost("db", 4, 1)], crowd)
    assert found.gives_way == ("off",)


def test_nobody_gives_way_to_an_equal_nor_who_cannot_nor_where_some_do_already() -> None:
    assert preemptions([lost("db", 4, 5)], fleet(there("a", "n1", 9, 5), there("b", "n2", 9, 6))) == []
    busy = fleet(there("a", "n1", 9, UNTOUCHABLE), nodes=("n1",))
    assert preemptions([lost("db", 4, 1_000)], busy) == []
    crowd = fleet(there("a", "n1", 9), there("b", "n2", 9))
    (found,) = preemptions([lost("db", 4, 1)], crowd, frozenset({"n1"}))
    assert found.to_node == "n2"


def test_who_is_needed_does_not_give_way() -> None:
    view, decision = lost("web", 4, 5)
    needs_db = replace(view, request=replace(view.request, after=("db",)))
    (found,) = preemptions([(needs_db, decision)], fleet(there("db", "n1", 8), there("dev", "n2", 9, 4)))
    assert found.gives_way == ("dev",)
    assert preemptions([(needs_db, decision)], fleet(there("db", "n1", 8), nodes=("n1",))) == []


def test_the_important_ones_first_and_each_sees_what_those_before_it_got() -> None:
    crowd = fleet(there("a", "n1", 10), nodes=("n1",))
    (found,) = preemptions([lost("low", 6, 1), lost("high", 6, 2)], crowd)
    assert found.guest == "high"


def stored(phase: int, *, to: str = "", where: str = "n1") -> Guest:
    guest = Guest()
    guest.meta.name = "dev"
    guest.status.phase, guest.status.node, guest.status.volumes_ready = phase, where, True  # type: ignore[assignment]
    if to:
        guest.status.preempted.by, guest.status.preempted.priority = to, 10
    return guest


def test_room_is_held_until_a_guest_that_gave_way_is_down() -> None:
    assert holds_room(stored(GUEST_PHASE_STOPPED))
    assert holds_room(stored(GUEST_PHASE_STOPPING, to="db"))
    assert not holds_room(stored(GUEST_PHASE_STOPPED, to="db"))
    assert not holds_room(
        stored(GUEST_PHASE_RECOVERING, to="db")
    )  # its host was lost, and is back: it surely runs nowhere
    assert waits_for(stored(GUEST_PHASE_CREATING), [stored(GUEST_PHASE_RECOVERING, to="db")]) == ""
    assert giving_way([stored(GUEST_PHASE_STOPPING, to="db"), stored(GUEST_PHASE_STOPPED, to="db", where="n2")]) == {
        "n1"
    }
    db = stored(GUEST_PHASE_CREATING)
    assert waits_for(db, [stored(GUEST_PHASE_RUNNING, to="db")]) == "waits until dev on n1 is stopped"
    assert waits_for(db, [stored(GUEST_PHASE_STOPPED, to="db"), stored(GUEST_PHASE_RUNNING, to="db", where="n2")]) == ""
    assert waits_for(stored(GUEST_PHASE_RUNNING), [stored(GUEST_PHASE_RUNNING, to="db")]) == ""
    assert "gave way to db (priority 10, its own is 0)" in in_words(stored(GUEST_PHASE_STOPPED, to="db"))
    assert in_words(stored(GUEST_PHASE_STOPPED)) == ""


def test_who_is_worked_on_does_not_give_way() -> None:
    assert can_give_way(stored(GUEST_PHASE_RUNNING))
    assert can_give_way(stored(GUEST_PHASE_ERROR))
    assert not can_give_way(stored(GUEST_PHASE_RUNNING, to="db"))
    assert not can_give_way(stored(GUEST_PHASE_CREATING))
    for change in ("lock", "migration"):
        guest = stored(GUEST_PHASE_RUNNING)
        getattr(guest.status, change).task = "t"
        assert not can_give_way(guest)
    guest = stored(GUEST_PHASE_RUNNING)
    guest.meta.deleting = True
    assert not can_give_way(guest)


CROWDS = st.lists(
    st.tuples(st.sampled_from(["n1", "n2", "n3"]), st.integers(1, 6), st.sampled_from([0, 1, 5, UNTOUCHABLE]), st.booleans()),
    max_size=12,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(CROWDS, st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6)), min_size=1, max_size=4))
def test_only_the_lesser_give_way_and_then_all_have_room(
    crowd: list[tuple[str, int, int, bool]], waiting: list[tuple[int, int]]
) -> None:
    full = Fleet([node(name) for name in ("n1", "n2", "n3")])
    guests = []
    for number, (where, size, priority, idle) in enumerate(crowd):
        guest = there(f"g{number}", where, size, priority, idle=idle)
        if fits(full, guest)[full.index[where]]:
            full.guests[guest.name] = guest
            full.put(guest, full.index[where])
            guests.append(guest)
    homeless = [lost(f"w{number}", size, priority) for number, (size, priority) in enumerate(waiting)]
    nowhere = [one for one in homeless if not fits(full, one[0].request).any()]
    after = Fleet(full.nodes, guests)
    found = preemptions(nowhere, after)
    by_name = {guest.name: guest for guest in guests}
    priorities = {view.name: view.priority for view, _ in nowhere}
    gone = [name for one in found for name in one.gives_way]
    assert len(gone) == len(set(gone))
    for one in found:
        assert one.gives_way
        assert all(by_name[name].priority < priorities[one.guest] for name in one.gives_way)
        assert all(by_name[name].node == one.to_node for name in one.gives_way)
        assert after.where[one.guest] == after.index[one.to_node]
    assert (after.free[MEMORY] >= 0).all()
    for name in gone:  # nobody who gave way could be started again into that room
        assert not fits(after, by_name[name])[after.index[by_name[name].node]]
