"""Two of three managers are lost for ever: the cluster is recovered on the third, and no guest runs twice on the way.

n2 loses power with two HA guests; n3 lives, with a guest outside HA, but the copy of the state there is lost.
"""

import time

from gugus.cluster.v1.node_pb2 import NODE_STATE_JOINING

from client.config import load
from client.sdk import Gugus
from lab import cluster as clusters
from lab import demo_guests
from tests.lab.conftest import BOOT_SECONDS, HEAL_SECONDS, NAME, Room

SURELY_FENCED_SECONDS = 16.0
"""Longer than a default lease, the kill budget and the margin (12.3 s): by time alone n2 would be fenced by then."""

OLD_MEMBER_SECONDS = 8.0
RECOVER = ("gugus-manager", "recover", "--cluster", NAME, "--yes")


def recover(room: Room, node: str) -> None:
    """Recover as soon as that is not refused any more: while the host holds its lease, somebody may have just renewed it."""

    def done() -> bool:
        result = room.lab.exec(node, RECOVER, timeout=clusters.COMMAND_SECONDS)
        assert result.returncode == 0 or "lease" in result.stderr, result.stderr
        return result.returncode == 0

    room.operator.wait("the cluster to be recovered", done, HEAL_SECONDS)


def meet_again(room: Room, node: str) -> None:
    """Have the machine's operator speak with the new cluster, with the certificate that the recovery made."""
    plan, operator = room.lab.plan, room.operator
    clusters._fetch_operator(clusters._Host(room.lab, plan.node(node)), plan)
    operator.run(operator.gugus.close())
    operator.gugus = Gugus.connect(load(clusters.operator_config(plan)))
    operator.wait("a manager to act", lambda: operator.status().acting == node, HEAL_SECONDS)


def rejoin(room: Room, first: str, node: str) -> None:
    token = room.shell(first, "gugus", "cluster", "token", "create", "--node", node).strip()
    room.shell(node, "gugus-agent", "join", "--rejoin", "--token-file", "-", text=token)
    room.wait_online(node)


def is_former(room: Room, node: str) -> bool:
    return room.operator.node(node).status.former


def test_cluster_is_recovered_on_the_last_of_its_managers(room: Room) -> None:
    first, dead, alive = "n1", "n2", "n3"
    room.run_both(dead)
    own = demo_guests.container_spec(alive)
    own.ha.enabled = False
    room.create("own", own)
    running = room.wait_running("own", alive)
    beats = {name: room.beats(name) for name in ("web", "db")}

    room.lab.power_off(dead)
    room.shell(alive, "systemctl", "disable", "--now", "gugus-manager")
    room.shell(alive, "rm", "-rf", "/var/lib/gugus/manager/raft")
    room.shell(first, "systemctl", "stop", "gugus-manager")
    recover(room, first)
    meet_again(room, first)
    room.wait_online(first)
    epoch = room.operator.status().epoch
    assert epoch > 1_000_000_000

    time.sleep(SURELY_FENCED_SECONDS)
    assert {copy.guest for copy in room.judge.now.copies} == {"own"}, "nobody has proven that n2 is off"
    for name in ("web", "db"):
        assert room.operator.guest(name).status.node == dead
    assert room.operator.node(dead).status.state == NODE_STATE_JOINING
    assert running in room.judge.now.copies

    rejoin(room, first, alive)
    room.operator.wait("n3 to be taken in", lambda: not is_former(room, alive), HEAL_SECONDS)
    assert room.wait_running("own", alive) == running, "it was adopted as it ran"
    assert {copy.guest for copy in room.judge.now.copies} == {"own"}

    assert "--off" in room.lab.exec(first, ["gugus", "node", "remove", dead, "--yes"]).stderr
    room.shell(first, "gugus", "node", "remove", dead, "--off", "--yes")
    for name in ("web", "db"):
        assert room.wait_running(name).node != dead
        room.operator.wait(f"{name} to write again", lambda n=name: room.beats(n) > beats[n], BOOT_SECONDS)  # type: ignore[misc]

    room.lab.power_on(dead)
    time.sleep(OLD_MEMBER_SECONDS)
    assert not [copy for copy in room.judge.now.copies if copy.node == dead]
    assert [voter.name for voter in room.operator.status().voters] == [first]
    rejoin(room, first, dead)
    for node in (alive, dead):
        room.shell(first, "gugus", "cluster", "promote", node)
    clusters._fetch_operator(clusters._Host(room.lab, room.lab.plan.node(first)), room.lab.plan)
    for name in ("web", "db"):
        room.assert_one_writer(name)
    backup_is_taken_and_verified(room, first)


def backup_is_taken_and_verified(room: Room, node: str) -> None:
    words = ["gugus", "cluster", "backup", "/root/cluster.backup", "--passphrase-file", "-"]
    room.shell(node, *words, text="correct horse battery\n")
    assert room.shell(node, "stat", "--format=%a", "/root/cluster.backup").strip() == "600"
    room.shell(node, *words, "--verify", text="correct horse battery\n")
    assert room.lab.exec(node, [*words, "--verify"], text="another one\n").returncode != 0
