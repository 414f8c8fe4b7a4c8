"""A person's mistake: a host that runs, and cannot be heard, is said to be off. The storage keeps its guests from running twice."""

from gugus.cluster.v1.node_pb2 import NODE_STATE_SUSPECT

from agent.leases.refusals import IN_USE
from tests.lab.conftest import Room

GUESTS = ("web", "db")


def proves(room: Room) -> bool:
    """Whether each node sees locks of others in the shared pool."""
    nodes = room.operator.run(room.gugus.pools.get("shared")).status.nodes
    return all(here.writer_proof.proven for here in nodes.values())


def test_guests_of_a_host_that_is_wrongly_said_to_be_off_start_elsewhere_only_once_they_have_ended_there(
    room: Room,
) -> None:
    room.operator.wait("the pool to prove who writes", lambda: proves(room), 90)
    victim = room.other_than(room.acting)
    room.run_both(victim)
    room.lab.cut(victim)
    node = room.operator.wait(
        f"{victim} to be silent",
        lambda: now if (now := room.operator.node(victim)).status.state == NODE_STATE_SUSPECT else None,
        20,
    )
    room.operator.run(room.gugus.nodes.confirm_off(node, victim))
    for name in GUESTS:
        room.operator.wait(f"{name} to be given away", lambda name=name: room.is_elsewhere(name, victim), 10)  # type: ignore[misc]
        room.operator.wait(
            f"{name} to wait for its disk",
            lambda name=name: IN_USE in {e.reason for e in room.operator.events() if e.about == f"guest/{name}"},  # type: ignore[misc]
            10,
        )
        waiting = room.operator.guest(name)
        assert victim in waiting.status.reason, waiting.status
        assert {copy.node for copy in room.judge.now.of(name)} == {victim}
    for name in GUESTS:
        assert room.wait_running(name).node != victim
        guest = room.operator.guest(name)
        assert (guest.status.ha.restarts, guest.status.ha.relocations, guest.status.failures) == (0, 0, 0)
    room.lab.heal(victim)
    room.wait_online(victim)
    for name in GUESTS:
        room.assert_one_writer(name)
