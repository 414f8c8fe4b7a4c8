"""HA's table of a guest: complete, reachable, the one in the docs; and what its account says after whatever may happen."""

from pathlib import Path

import pytest
from gugus.cluster.v1.guest_pb2 import (
    HA_STATE_DISABLED,
    HA_STATE_ERROR,
    HA_STATE_FENCE,
    HA_STATE_RECOVERY,
    HA_STATE_RELOCATE,
    HA_STATE_STARTED,
    HA_STATE_STOPPED,
    HA_STATE_UNSPECIFIED,
    POWER_OFF,
    POWER_ON,
    Guest,
    GuestSpec,
    HaSpec,
    HaState,
)
from hypothesis import given
from hypothesis import strategies as st

from manager.ha import account
from manager.ha.guest_machine import TABLE, UNMOVED, Action, Event, Guard
from manager.store.kinds import new

STATES = HaState.values()
DOCS = Path(__file__).parents[3] / "docs" / "ha.md"


def guest(node: str = "n1", **ha: int) -> Guest:
    one = new(Guest, "web")
    one.spec.CopyFrom(GuestSpec(power=POWER_ON, ha=HaSpec(enabled=True, **ha)))  # type: ignore[arg-type]
    one.status.node = node
    account.follow(one)
    return one


def fail(one: Guest, *, elsewhere: bool = True) -> Action | None:
    return account.happen(one, Event.FAIL, "it failed.", elsewhere=elsewhere)


# The table


@pytest.mark.parametrize("state", STATES, ids=HaState.Name)
@pytest.mark.parametrize("event", Event, ids=lambda event: event.name)
def test_every_state_has_one_answer_to_every_event(state: HaState.ValueType, event: Event) -> None:
    rows = [row for row in TABLE if (row.state, row.event) == (state, event)]
    assert bool(rows) != ((state, event) in UNMOVED)
    assert [row.guard for row in rows].count(Guard.ALWAYS) == bool(rows)
    assert not rows or rows[-1].guard is Guard.ALWAYS  # whatever holds, one row is taken
    assert len({row.guard for row in rows}) == len(rows)


def test_every_state_is_reached_from_a_guest_that_is_not_under_ha() -> None:
    reached, before = {HA_STATE_UNSPECIFIED}, set[int]()
    while reached != before:
        before = set(reached)
        reached |= {row.next for row in TABLE if row.state in reached}
    assert reached == set(STATES)


def test_every_state_is_left_again() -> None:
    assert {row.state for row in TABLE if row.next != row.state} == set(STATES)


def test_the_docs_have_the_table() -> None:
    def word(state: HaState.ValueType) -> str:
        return HaState.Name(state).removeprefix("HA_STATE_").replace("UNSPECIFIED", "not under HA")

    lines = [
        f"| {word(row.state)} | {row.event.value} | {row.guard.value} | {word(row.next)} | {row.action.value} |"
        for row in TABLE
    ]
    assert "\n".join(lines) in DOCS.read_text()


# The account


def test_a_guest_that_fails_is_restarted_then_moved_then_given_up() -> None:
    web = guest(max_restart=2, max_relocate=1)
    assert [fail(web), fail(web)] == [Action.RESTART, Action.RESTART]
    assert fail(web) is Action.RELOCATE
    assert (web.status.ha.state, list(web.status.ha.failed_nodes)) == (HA_STATE_RELOCATE, ["n1"])
    web.status.node = "n2"
    account.happen(web, Event.MOVE, "")
    assert (web.status.ha.state, web.status.ha.restarts) == (HA_STATE_STARTED, 0)
    assert [fail(web), fail(web)] == [Action.RESTART, Action.RESTART]
    assert fail(web) is Action.GIVE_UP
    assert (web.status.ha.state, list(web.status.ha.failed_nodes)) == (HA_STATE_ERROR, ["n1", "n2"])


def test_without_another_node_it_is_given_up_where_it_is() -> None:
    web = guest(max_restart=0)
    assert fail(web, elsewhere=False) is Action.GIVE_UP


def test_zero_is_not_the_default() -> None:
    assert account.limits(guest(max_restart=0, max_relocate=0)) == (0, 0)
    assert account.limits(guest()) == (3, 1)


def test_failures_are_forgotten_after_a_minute() -> None:
    web = guest()
    fail(web)
    assert not account.steady(web, 59.9)
    assert account.steady(web, 60.0)
    account.happen(web, Event.STEADY, "")
    assert not account.steady(web, 3600.0)
    assert (web.status.ha.restarts, web.status.failures) == (0, 0)


def test_the_ways_out_of_error() -> None:
    def lost() -> Guest:
        web = guest(max_restart=0, max_relocate=0)
        fail(web)
        assert web.status.ha.state == HA_STATE_ERROR
        assert not account.follow(web)  # it was asked to run before, and still is
        return web

    started, changed, stopped, disabled, ignored = (lost() for _ in range(5))
    account.happen(started, Event.START, "")
    assert started.status.ha.state == HA_STATE_STARTED
    changed.spec_number += 1
    assert account.changed(changed)
    account.happen(changed, Event.CHANGE, "")
    assert (changed.status.ha.state, account.changed(changed)) == (HA_STATE_STARTED, False)
    stopped.spec.power = POWER_OFF
    assert account.follow(stopped)
    assert stopped.status.ha.state == HA_STATE_STOPPED
    disabled.spec.ha.disabled = True
    assert account.follow(disabled)
    assert disabled.status.ha.state == HA_STATE_DISABLED
    ignored.spec.ha.enabled = False
    assert account.follow(ignored)
    assert not ignored.status.HasField("ha")
    assert not any(list(one.status.ha.failed_nodes) for one in (started, changed, stopped, disabled, ignored))


def test_a_lost_guest_comes_back_as_it_was_asked_to_be_by_then() -> None:
    web = guest()
    account.happen(web, Event.LOSE, "")
    assert web.status.ha.state == HA_STATE_FENCE
    web.spec.power = POWER_OFF
    assert not account.follow(web)
    account.happen(web, Event.PROVE, "")
    assert web.status.ha.state == HA_STATE_RECOVERY
    assert account.happen(web, Event.PLACE, "") is Action.GIVE
    assert web.status.ha.state == HA_STATE_STOPPED


@given(st.lists(st.tuples(st.sampled_from(Event), st.booleans(), st.sampled_from(["n1", "n2", "n3"])), max_size=60))
def test_counters_stay_within_their_limits(happenings: list[tuple[Event, bool, str]]) -> None:
    web = guest(max_restart=2, max_relocate=2)
    for event, elsewhere, node in happenings:
        web.status.node = node
        account.happen(web, event, "", elsewhere=elsewhere)
        ha = web.status.ha
        assert ha.restarts <= 2
        assert ha.relocations <= 2
        assert len(set(ha.failed_nodes)) == len(ha.failed_nodes) <= 3
        assert bool(ha.task) <= (ha.state == HA_STATE_RELOCATE)
