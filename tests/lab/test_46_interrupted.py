"""Deeds on guests, and a process that is killed in the middle of each: the task says how it ended, the guest is what it seems, no volume is
left, and the same can be done again.

Which process dies, and when, is drawn from a seed; `GUGUS_INTERRUPT_ROUNDS` does more than the sample (each about 15 s).
"""

import itertools
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable

import pytest
from gugus.agent.v1.task_pb2 import TASK_STATE_FAILED, TASK_STATE_SUCCEEDED
from gugus.cluster.v1.clone_pb2 import CLONE_MODE_FULL, CloneGuestRequest
from gugus.cluster.v1.guest_pb2 import (
    GUEST_PHASE_HIBERNATED,
    GUEST_PHASE_RUNNING,
    GUEST_PHASE_STOPPED,
    POWER_ON,
    DiskSpec,
    GuestSpec,
)
from gugus.cluster.v1.task_pb2 import Task

from client.sdk import Gugus
from lab import demo_guests
from tests.lab.conftest import Room

ROUNDS = int(os.environ.get("GUGUS_INTERRUPT_ROUNDS", "8"))
SEED = int(os.environ.get("GUGUS_INTERRUPT_SEED", "4"))
MOST_DELAY_S = 1.0
"""Most deeds of the small guest take between 0.3 and 3 s."""

END_SECONDS = 150.0
CALM_PHASES = (GUEST_PHASE_RUNNING, GUEST_PHASE_STOPPED, GUEST_PHASE_HIBERNATED)

Deed = Callable[[Gugus, int], Awaitable[Task | None]]


def add_disk(spec: GuestSpec) -> None:
    spec.disks.append(DiskSpec(name="data", pool=demo_guests.POOL, size_bytes=16 << 20))


def clone(number: int) -> CloneGuestRequest:
    return CloneGuestRequest(source="web", name=f"copy{number}", mode=CLONE_MODE_FULL)


DEEDS: dict[str, Deed] = {
    "snapshot": lambda gugus, n: gugus.snapshots.create("web", f"s{n}", memory=True),
    "rollback": lambda gugus, _: gugus.snapshots.rollback("web", "base"),
    "clone": lambda gugus, n: gugus.clones.clone(clone(n)),
    "migrate": lambda gugus, _: gugus.migrations.migrate("web"),
    "hibernate": lambda gugus, _: gugus.guests.hibernate("web"),
    "hotplug": lambda gugus, _: gugus.guests.change("web", add_disk),
    "reboot": lambda gugus, _: gugus.guests.reboot("web", timeout_s=1),
    "create": lambda gugus, n: gugus.guests.create(f"new{n}", demo_guests.vm_spec("n2", ha=False)),
}


def strike(room: Room, victim: str) -> None:
    """Kill a process that has to do with the guest `web`, as the kernel's lack of memory does."""
    node = room.operator.guest("web").status.node
    if victim == "qemu":
        for copy in room.judge.now.of("web"):
            os.kill(copy.pid, signal.SIGKILL)
        return
    where = room.acting if victim == "gugus-manager" else node
    room.shell(where, "systemctl", "kill", "--signal=KILL", victim, check=False)


def begin(room: Room, deed: str, number: int) -> Task | None:
    """Ask for a deed; the SDK asks again while no manager answers, under the same key."""
    return room.operator.run(DEEDS[deed](room.gugus, number))  # type: ignore[arg-type]


def ended(room: Room, task: Task) -> Task:
    def look() -> Task | None:
        found = room.operator.run(room.gugus.tasks.get(task.meta.name))
        return found if found.state in (TASK_STATE_SUCCEEDED, TASK_STATE_FAILED) else None

    return room.operator.wait(f"{task.kind} to end", look, END_SECONDS)


def calm(room: Room) -> None:
    """Wait until `web` is in a phase that lasts, and the world says the same."""

    def agrees() -> bool:
        guest = room.operator.guest("web")
        if guest.status.phase not in CALM_PHASES or guest.status.HasField("lock") or guest.status.HasField("migration"):
            return False
        copies = room.judge.now.of("web")
        if guest.status.phase != GUEST_PHASE_RUNNING:
            return not copies
        return [copy.node for copy in copies] == [guest.status.node]

    room.operator.wait("web to be what it seems", agrees, END_SECONDS)


def restore(room: Room, number: int) -> None:
    """Bring everything back to where the next round begins."""
    guest = room.operator.guest("web")
    if guest.spec.power != POWER_ON:
        room.operator.do(room.gugus.guests.start("web"))
    spec = room.operator.guest("web").spec
    if len(spec.disks) > 1:
        room.operator.do(
            room.gugus.guests.change("web", lambda s: s.disks.pop() and None, delete_removed_disks=True)  # type: ignore[arg-type]
        )
    for snapshot in room.operator.run(room.gugus.snapshots.list("web")):
        if snapshot.name != "base":
            room.operator.do(room.gugus.snapshots.delete("web", snapshot.name))
    there = {guest.meta.name for guest in room.operator.guests()}
    for name in {f"copy{number}", f"new{number}"} & there:
        room.operator.do(room.gugus.guests.delete(name, force=True))
    room.wait_running("web")


def test_a_killed_process_leaves_no_deed_half_done(room: Room) -> None:
    room.create("web", demo_guests.vm_spec("n1", ha=False))
    room.wait_running("web")
    room.operator.do(room.gugus.snapshots.create("web", "base", memory=True))
    draw = random.Random(SEED)
    cases = list(itertools.product(DEEDS, ("gugus-agent", "gugus-manager", "libvirtd", "qemu")))
    draw.shuffle(cases)
    # Each deed once before any comes again.
    cases.sort(key=lambda case, seen={}: seen.setdefault(case[0], []).append(case) or len(seen[case[0]]))  # type: ignore[misc]
    for number, (deed, victim) in enumerate(itertools.islice(itertools.cycle(cases), ROUNDS)):
        delay_s = draw.uniform(0, MOST_DELAY_S)
        what = f"round {number} of seed {SEED}: {deed}, {victim} killed after {delay_s:.2f} s"
        print(what)
        task = begin(room, deed, number)
        time.sleep(delay_s)
        strike(room, victim)
        if task is not None:
            said = ended(room, task)
            assert said.state == TASK_STATE_SUCCEEDED or said.error.message, what
        calm(room)
        room.made += [f"copy{number}", f"new{number}"]
        restore(room, number)
        again = begin(room, deed, number)
        if again is not None:
            done = ended(room, again)
            assert done.state == TASK_STATE_SUCCEEDED, f"{what}; again: {done.error.message}"
        calm(room)
        restore(room, number)
        found = room.operator.run(room.gugus.pools.check(demo_guests.POOL))
        assert not [stray.volume.name for stray in found.orphans], what
        assert not [stray.volume.name for stray in found.missing], what


@pytest.fixture(autouse=True)
def libvirtd_rests(room: Room) -> None:
    """systemd refuses a unit that starts too often; the test may kill it many times."""
    for node in room.lab.plan.nodes():
        room.shell(node.name, "systemctl", "reset-failed", check=False)
