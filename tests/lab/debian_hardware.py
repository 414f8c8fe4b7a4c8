"""What becomes of a whole Debian's hardware, seen from the inside: it grows, and it crashes. Parts of the test that boots one."""

from collections.abc import AsyncIterator, Callable

import pytest
from gugus.agent.v1.guest_pb2 import GUEST_STATE_CRASHED
from gugus.agent.v1.resources_pb2 import END_POLICY_STOP
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_STOPPED, GuestSpec

from common.errors import GugusError
from tests.lab.conftest import Room
from tests.lab.test_22_hardware import change, pending

GROWTH_BYTES = 256 * 2**20


def can_grow_and_crash(spec: GuestSpec) -> None:
    """Leave room for what is plugged in, and for an end."""
    spec.virtual_machine.cpu.max_cpus, spec.virtual_machine.memory.max_bytes = 2, 1024 * 2**20
    spec.policies.on_crash = END_POLICY_STOP


def grows_and_uses_it(room: Room, said: Callable[..., str], eventually: Callable[..., object]) -> None:
    """A Debian leaves CPUs and memory that are plugged in alone until its agent is asked to use them."""
    assert said("nproc").strip() == "1"

    def memory_kib() -> int:
        return int(said("sed", "-n", "s/^MemTotal: *\\([0-9]*\\) kB/\\1/p", "/proc/meminfo"))

    before_kib = memory_kib()

    def grow(spec: GuestSpec) -> None:
        spec.cpus, spec.memory_bytes = 2, spec.memory_bytes + GROWTH_BYTES

    assert pending(change(room, "shop", grow)) == {}
    eventually("it to use both CPUs", lambda: said("nproc").strip() == "2")
    eventually("it to use its memory", lambda: (memory_kib() - before_kib) * 1024 > GROWTH_BYTES * 3 // 4)

    def shrink(spec: GuestSpec) -> None:
        spec.cpus = 1

    waits = change(room, "shop", shrink).status.pending
    assert [(one.field, one.reason) for one in waits] == [
        ("cpus", "an emulated CPU cannot be taken out while the guest runs")
    ]


def tells_what_is_wrong_with_files(room: Room) -> None:
    """By the names that the user gave."""

    async def nothing() -> AsyncIterator[bytes]:
        yield b""

    for path, words in (
        ("/nope/x", "/nope/x: the folder /nope does not exist; make it first"),
        ("/root", "/root: it is a folder"),
        ("/proc/nope", "failed to open file '/proc/nope'"),
    ):
        with pytest.raises(GugusError, match=words):
            room.operator.run(room.gugus.access.push("shop", path, nothing()))


def panics_and_stays_down(room: Room, said: Callable[..., str], eventually: Callable[..., object]) -> None:
    """A kernel that panics tells the device that is there for it."""
    said("modprobe", "pvpanic-mmio")
    said("sh", "-c", "echo 1 >/proc/sys/kernel/sysrq; (sleep 1; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &")
    eventually("it to be down", lambda: room.operator.guest("shop").status.phase == GUEST_PHASE_STOPPED)
    assert room.operator.guest("shop").status.observed == GUEST_STATE_CRASHED
    told = [event.message for event in room.operator.events() if event.about == "guest/shop"]
    assert "shop: it crashed and stays down by its policies" in told
