"""Guests that go to another cluster: a machine while it runs, what is killed on the way, and one that is stopped for it."""

from collections.abc import Iterator

import pytest

from lab import demo_guests
from lab.images import Heartbeat, two_copies
from tests.lab.abroad import Judge, Side, command, ended, other_cluster
from tests.lab.conftest import BOOT_SECONDS, Room

END_SECONDS = 60.0
SLOW = ("--bandwidth", "16MiB", "--no-auto-converge")
"""So slow that a fault comes in the middle."""


@pytest.fixture(scope="module")
def berlin(session_room: Room) -> Iterator[Side]:
    """The other cluster."""
    with other_cluster(session_room.lab) as side:
        yield side


@pytest.fixture
def there(berlin: Side) -> Iterator[Side]:
    """The other cluster, without guests before and after."""
    yield berlin
    demo_guests.remove_guests(berlin.operator, ("web",))


@pytest.fixture
def here(room: Room) -> Side:
    """The room's cluster, with a machine that writes to its disk."""
    side = Side(room.lab, room.operator)
    room.create("web", demo_guests.vm_spec("n1", ha=False))
    room.operator.wait("web to write to its disk", lambda: side.beats("web"), BOOT_SECONDS)
    return side


def writes_on(there: Side, count: int) -> set[str]:
    """Wait until the guest has written more than so often; return the boots that wrote."""

    def more() -> tuple[Heartbeat, ...] | None:
        found = there.beats("web")
        return found if len(found) > count + 2 else None

    beats = there.operator.wait("web to go on writing there", more, BOOT_SECONDS)
    assert not two_copies(beats)
    return {beat.boot_id for beat in beats}


def test_a_machine_goes_to_another_cluster_while_it_runs(here: Side, there: Side) -> None:
    guest, count = here.guest("web"), len(here.beats("web"))
    assert guest is not None
    with Judge("web", here, there) as judge:
        code, words = ended(command(here, there, "web"))
        assert code == 0, words
        assert len(writes_on(there, count)) == 1
    moved = there.guest("web")
    assert moved is not None
    assert (here.guest("web"), moved.meta.uid, list(moved.status.pending)) == (None, guest.meta.uid, [])
    assert not judge.twice


@pytest.mark.parametrize("killed", ["agent here", "agent there", "command"])
def test_what_is_killed_half_way_leaves_one_and_the_same_command_goes_on(here: Side, there: Side, killed: str) -> None:
    count = len(here.beats("web"))
    with Judge("web", here, there) as judge:
        moving = command(here, there, "web", *SLOW)
        here.operator.wait("it to be under way", lambda: here.sent_percent("web") > 20, END_SECONDS)
        if killed == "command":
            moving.kill()
        else:
            side = here if killed == "agent here" else there
            side.lab.exec("n1", ["systemctl", "kill", "-s", "KILL", "gugus-agent.service"], check=True)
        ended(moving)
        here.operator.wait(
            "the same command to bring it there", lambda: ended(command(here, there, "web"))[0] == 0, END_SECONDS
        )
        assert len(writes_on(there, count)) == 1
    assert here.guest("web") is None
    assert not judge.twice


def test_a_machine_is_stopped_carried_through_this_one_and_started_there(here: Side, there: Side) -> None:
    count = len(here.beats("web"))
    with Judge("web", here, there) as judge:
        code, words = ended(command(here, there, "web", "--stop"))
        assert code == 0, words
        assert len(writes_on(there, count)) == 2
    assert here.guest("web") is None
    assert not judge.twice
