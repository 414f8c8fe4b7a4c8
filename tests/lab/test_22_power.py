"""Power and keys of a real virtual machine: what its memory, its process and its shell say of each."""

from gugus.agent.v1.resources_pb2 import END_POLICY_STOP
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_HIBERNATED, GUEST_PHASE_STOPPED, GuestSpec

from lab import demo_guests
from tests.lab.conftest import Room
from tests.lab.test_22_hardware import change
from tests.lab.test_25_snapshots import boots, qemu, types

SECONDS = 30.0
KEYS = ("t", "o", "u", "c", "h", "spc", "slash", "r", "u", "n", "slash", "k", "e", "y", "s", "ret")


def test_a_machine_sleeps_wakes_is_reset_and_typed_to(room: Room) -> None:
    spec = demo_guests.vm_spec("n1", ha=False)
    spec.virtual_machine.display.model = "std"
    room.create("web", spec)
    boots(room, "web")
    do, guests = room.operator.do, room.gugus.guests
    types(room, "web", "word=KE; echo ${word}PT", "KEPT")

    types(room, "web", "setsid -c sh </dev/tty1 >/dev/tty1 2>&1 &")
    for key in KEYS:
        room.operator.run(room.gugus.access.send_keys("web", [key]))
    types(room, "web", "until ls /run/keys; do sleep 1; done; echo ${word}YS", "KEYS")

    do(guests.hibernate("web"))
    assert room.operator.guest("web").status.phase == GUEST_PHASE_HIBERNATED
    assert not room.shell("n1", "pgrep", "-f", "guest=web,", check=False)
    do(guests.start("web"))
    room.wait_running("web", "n1")
    types(room, "web", "echo ${word}LLER", "KELLER")  # the shell has its memory still

    pid = qemu(room, "web")
    do(guests.reset("web"))
    boots(room, "web")  # it has not since its console's log began, when it woke
    types(room, "web", "")
    types(room, "web", "echo GONE${word}", "GONE\r")
    assert qemu(room, "web") == pid, "in the same process"


def test_a_machine_that_dies_is_started_again_unless_it_is_to_stay_down(room: Room) -> None:
    room.create("web", demo_guests.vm_spec("n1", ha=False))
    pid = room.wait_running("web", "n1").pid
    room.shell("n1", "kill", "-KILL", qemu(room, "web"))
    room.operator.wait("another process", lambda: room.wait_running("web", "n1").pid != pid, SECONDS)

    def stays_down(spec: GuestSpec) -> None:
        spec.policies.on_crash = END_POLICY_STOP

    change(room, "web", stays_down)
    room.shell("n1", "kill", "-KILL", qemu(room, "web"))
    room.operator.wait("it to be down", lambda: room.operator.guest("web").status.phase == GUEST_PHASE_STOPPED, SECONDS)
    assert not room.shell("n1", "pgrep", "-f", "guest=web,", check=False)
