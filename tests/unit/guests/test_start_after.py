"""Guests that start after others: what is refused, who waits for whom, and in which groups many are begun."""

import pytest
from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_CREATING,
    GUEST_PHASE_ERROR,
    GUEST_PHASE_RECOVERING,
    GUEST_PHASE_RUNNING,
    GUEST_PHASE_STARTING,
    GUEST_PHASE_STOPPED,
    GUEST_PHASE_UNKNOWN,
    HA_STATE_ERROR,
    HA_STATE_STARTED,
    POWER_OFF,
    POWER_ON,
    Guest,
)
from gugus.cluster.v1.node_pb2 import NODE_STATE_FENCED, NODE_STATE_ONLINE, Node
from hypothesis import given
from hypothesis import strategies as st

from common.waves import circle, waves
from manager.controllers.guest_retries import Waits
from manager.guests import start_after
from manager.guests.known import Known
from manager.store.kinds import new


def guest(name: str, *after: str, phase: int = GUEST_PHASE_RUNNING, delay_s: int = 0) -> Guest:
    made = new(Guest, name)
    made.spec.power = POWER_ON
    made.spec.boot.after.extend(after)
    made.spec.boot.delay_s = delay_s
    made.status.node, made.status.boot_id = "n1", "b1"
    made.status.phase = phase  # type: ignore[assignment]
    return made


def online(state: int = NODE_STATE_ONLINE) -> Node:
    made = new(Node, "n1")
    made.status.state = state  # type: ignore[assignment]
    made.status.boot_id = "b1"
    return made


def awaited(db: Guest | None, *, node: Node | None = None, ran_s: float = 100.0) -> str:
    web = guest("web", "db", phase=GUEST_PHASE_CREATING)
    guests = {"web": web} | ({"db": db} if db is not None else {})
    return start_after.awaited(web, guests, {"n1": node or online()}, {"db": ran_s})


@pytest.mark.parametrize("phase", [GUEST_PHASE_CREATING, GUEST_PHASE_STARTING, GUEST_PHASE_RECOVERING])
def test_who_is_on_its_way_is_waited_for(phase: int) -> None:
    assert "db" in awaited(guest("db", phase=phase))


def test_who_runs_is_waited_for_until_it_has_run_for_its_delay() -> None:
    assert not awaited(guest("db"))
    assert "20 s" in awaited(guest("db", delay_s=20), ran_s=19.9)
    assert not awaited(guest("db", delay_s=20), ran_s=20.0)


def test_what_is_stored_of_a_host_that_is_silent_or_booted_since_is_old() -> None:
    assert awaited(guest("db"), node=online(NODE_STATE_FENCED))
    booted = online()
    booted.status.boot_id = "b2"
    assert awaited(guest("db"), node=booted)


def test_who_does_not_come_up_by_itself_holds_up_nobody() -> None:
    off, gone, template, locked, given_up, gave_way = (guest("db", phase=GUEST_PHASE_STOPPED) for _ in range(6))
    off.spec.power = POWER_OFF
    gone.meta.deleting = True
    template.spec.template = True
    locked.status.lock.task = "t"
    given_up.status.ha.state = HA_STATE_ERROR
    gave_way.status.preempted.by = "other"
    for db in (None, off, gone, template, locked, given_up, gave_way, guest("db", phase=GUEST_PHASE_UNKNOWN)):
        assert not awaited(db)


def test_who_failed_is_waited_for_only_while_ha_tries_it_again() -> None:
    failed = guest("db", phase=GUEST_PHASE_ERROR)
    assert not awaited(failed)
    failed.status.ha.state = HA_STATE_STARTED
    assert awaited(failed)


def test_nobody_waits_for_ever() -> None:
    now = [0.0]
    waits = Waits(lambda: now[0])
    assert waits.bounded("web", "for db") == "for db"
    now[0] = start_after.WAIT_LIMIT_S - 1
    assert waits.bounded("web", "for db") == "for db"
    assert not waits.over("web")
    now[0] += 1
    assert not waits.bounded("web", "for db")
    assert waits.over("web") == "for db"
    waits.forget("web")
    assert waits.bounded("web", "for db")
    assert not waits.bounded("web", "")


def faults(changed: Guest, *others: Guest) -> list[str]:
    known = Known([*others], {}, {}, {}, {})
    return [str(fault) for fault in start_after.faults(changed, known)]


def test_circles_are_refused_by_name() -> None:
    others = guest("app", "db"), guest("db", "web")
    [told] = faults(guest("web", "app"), *others)
    assert "web after app after db after web" in told
    assert "web after web" in faults(guest("web", "web"))[0]
    assert not faults(guest("web", "app"), guest("app", "db"), guest("db"))


def test_nonsense_is_refused_and_a_name_that_no_guest_has_is_none() -> None:
    assert not faults(guest("web", "not-yet"))
    assert "twice" in faults(guest("web", "db", "db"))[0]
    assert "after[0]" in faults(guest("web", "No Name"))[0]
    assert "at most 32" in faults(guest("web", *(f"g{n}" for n in range(33))))[0]


def test_a_dependency_counts_more_than_the_order() -> None:
    assert start_after.follows(guest("a", "b"), guest("c"), {"b": guest("b", "c"), "c": guest("c")})
    assert not start_after.follows(guest("c"), guest("a"), {"a": guest("a", "b"), "b": guest("b", "c")})
    assert waves({"web": ["db"]}, {"web": 1, "db": 7, "mail": 2}) == [["mail"], ["db"], ["web"]]
    assert waves({"web": ["db"], "db": ["away"]}, {"web": 1, "db": 1}) == [["db"], ["web"]]


NAMES = st.sampled_from("abcdef")


@given(st.dictionaries(NAMES, st.sets(NAMES)), st.dictionaries(NAMES, st.integers(0, 3)))
def test_each_is_begun_once_and_after_what_it_needs(after: dict[str, set[str]], rank: dict[str, int]) -> None:
    groups = waves(after, rank)
    assert sorted(name for group in groups for name in group) == sorted(rank)
    place = {name: number for number, group in enumerate(groups) for name in group}
    if not any(circle(name, after) for name in after):
        for name, needed in after.items():
            assert all(place[other] < place[name] for other in needed if other in place and name in place)
