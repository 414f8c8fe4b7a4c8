"""Where a guest is after an interrupted migration, and what keeps one from moving: pure."""

import itertools

import pytest
from gugus.agent.v1.guest_pb2 import (
    GUEST_KIND_CONTAINER,
    GUEST_KIND_VIRTUAL_MACHINE,
    GUEST_STATE_PAUSED,
    GUEST_STATE_RUNNING,
    GUEST_STATE_STOPPED,
)
from gugus.agent.v1.machine_pb2 import PciDevice, VirtualMachineSpec
from gugus.agent.v1.migration_pb2 import (
    MIGRATION_MODE_CHECKPOINT,
    MIGRATION_MODE_LIVE,
    MIGRATION_MODE_OFFLINE,
    MIGRATION_MODE_RESTART,
)
from gugus.agent.v1.volume_pb2 import DirPool, PoolSpec
from gugus.cluster.v1.guest_pb2 import GUEST_PHASE_RECOVERING, DiskSpec, Guest, GuestSpec, GuestStatus
from gugus.cluster.v1.meta_pb2 import Meta
from gugus.cluster.v1.node_pb2 import NODE_STATE_FENCED, NODE_STATE_ONLINE
from gugus.cluster.v1.pool_pb2 import Pool

from manager.ha.migration import Verdict, Word, copied_disks, mode_of, obstacles, settle, words_of
from manager.ha.recovery import CopyReport, GuestView, Wait, recover, stale_copies
from manager.scheduler import GuestRequest, NodeView

LETS_GO = (Word.ABSENT, Word.GONE)


def test_a_guest_that_its_source_keeps_stays_whatever_the_target_says() -> None:
    for source, target in itertools.product((Word.RUNNING, Word.STOPPED), Word):
        assert settle(source, target) is Verdict.STAYS


def test_a_guest_that_runs_at_the_target_has_moved() -> None:
    for source in (*LETS_GO, Word.UNKNOWN):
        assert settle(source, Word.RUNNING) is Verdict.MOVED


def test_nothing_is_done_while_an_end_is_unknown() -> None:
    for word in set(Word) - {Word.RUNNING, Word.STOPPED}:
        assert settle(word, Word.UNKNOWN) is Verdict.WAIT
    for word in set(Word) - {Word.RUNNING}:
        assert settle(Word.UNKNOWN, word) is Verdict.WAIT


@pytest.mark.parametrize("source", LETS_GO)
def test_a_complete_copy_is_taken_over_once_the_source_is_gone(source: Word) -> None:
    assert settle(source, Word.WAITING) is Verdict.TAKE_OVER
    assert settle(source, Word.STOPPED) is Verdict.MOVED


@pytest.mark.parametrize(("source", "target"), list(itertools.product(LETS_GO, (Word.COMING, Word.ABSENT, Word.GONE))))
def test_a_guest_that_is_nowhere_is_lost(source: Word, target: Word) -> None:
    assert settle(source, target) is Verdict.LOST


def view(**changed: object) -> GuestView:
    values = {"phase": GUEST_PHASE_RECOVERING, "ha": True, "power_on": True, "migration_target": "n2"}
    return GuestView("web", "n1", 1, request=GuestRequest("web", 1, 1, 1), **{**values, **changed})  # type: ignore[arg-type]


@pytest.mark.parametrize("target", [NODE_STATE_FENCED, NODE_STATE_ONLINE])
def test_recovery_moves_no_guest_that_was_migrating(target: int) -> None:
    states = {"n1": NODE_STATE_FENCED, "n2": target}
    rooms = [NodeView("n3", True, cpus=4, memory_bytes=9, kinds=frozenset({1}))]
    (outcome,) = recover([view()], states, rooms)  # type: ignore[arg-type]
    assert isinstance(outcome, Wait)
    assert "n2" in outcome.reason


def test_what_is_made_ready_at_a_target_is_no_stale_copy() -> None:
    old = [CopyReport("web", 1, False)]
    assert not stale_copies("n2", old, {"web": view()})
    assert stale_copies("n2", old, {"web": view(migration_target="")})
    assert stale_copies("n3", old, {"web": view()})


POOLS = {
    "shared": Pool(spec=PoolSpec(name="shared", dir=DirPool(path="/s", shared=True))),
    "local": Pool(spec=PoolSpec(name="local", dir=DirPool(path="/l"))),
}


def guest(*pools: str, **status: object) -> Guest:
    disks = [DiskSpec(name=f"disk{index}", pool=pool, volume=f"v{index}") for index, pool in enumerate(pools)]
    spec = GuestSpec(kind=GUEST_KIND_VIRTUAL_MACHINE, disks=disks)
    return Guest(meta=Meta(name="web"), spec=spec, status=GuestStatus(node="n1", **status))  # type: ignore[arg-type]


def reasons(subject: Guest, node: NodeView, state: int = GUEST_STATE_RUNNING, **changed: object) -> set[str]:
    pools = frozenset(disk.pool for disk in subject.spec.disks)
    values = {"name": "web", "kind": 1, "cpus": 1, "memory_bytes": 1, "pools": pools, **changed}
    request = GuestRequest(**values)  # type: ignore[arg-type]
    snapshots = ["before"] if "snapshots" in subject.meta.labels else []
    return {one.reason for one in obstacles(subject, state, node, request, POOLS, snapshots)}  # type: ignore[arg-type]


FIT = NodeView("n2", True, cpus=4, memory_bytes=9, kinds=frozenset({1}), pools=frozenset({"shared", "local"}))


def test_nothing_is_in_the_way_of_a_guest_that_fits() -> None:
    assert not reasons(guest("shared", "local"), FIT)


def test_all_obstacles_are_named_at_once() -> None:
    bad = guest("shared", "local", hibernation_volume="m", hibernation_pool="local")
    bad.meta.deleting = True
    bad.meta.labels["snapshots"] = "yes"
    bad.status.unused_disks.add(name="old", pool="local", volume="o")
    bad.spec.virtual_machine.CopyFrom(VirtualMachineSpec(pci_devices=[PciDevice(address="0000:01:00.0")]))
    node = NodeView("n1", False, cordoned=True, offline_reason="it is off")
    found = reasons(bad, node, networks=frozenset({"lan"}))
    assert found >= {
        "ALREADY_THERE",
        "GUEST_DELETING",
        "NODE_ONLINE",
        "NODE_CORDONED",
        "NODE_HYPERVISOR",
        "NODE_POOLS",
        "NODE_NETWORKS",
        "NODE_MEMORY_SIZE",
        "GUEST_HAS_SNAPSHOTS",
        "GUEST_HIBERNATED",
        "UNUSED_DISK",
        "HOST_DEVICE",
    }


def test_a_pin_binds_a_guest_whose_disks_all_nodes_reach() -> None:
    assert "NODE_PINNED" in reasons(guest("shared"), FIT, pinned="n1")
    assert not reasons(guest("local"), FIT, pinned="n1")
    assert "NODE_PINNED" in reasons(guest("local"), FIT, pinned="n3")


def test_a_pin_is_told_once_and_with_the_command_that_takes_it_away() -> None:
    request = GuestRequest(name="web", kind=1, cpus=1, memory_bytes=1, pools=frozenset({"shared"}), pinned="n1")
    found = obstacles(guest("shared"), GUEST_STATE_RUNNING, FIT, request, POOLS, [])
    text = words_of(found)
    assert text.startswith("The guest runs only on n1.")
    assert text.endswith("`gugus guest set web --node ''` lets it run anywhere.")


def test_how_a_guest_moves() -> None:
    machine, container = guest("shared"), guest("shared")
    container.spec.kind = GUEST_KIND_CONTAINER
    assert mode_of(machine, GUEST_STATE_PAUSED) == MIGRATION_MODE_LIVE
    assert mode_of(container, GUEST_STATE_RUNNING) == MIGRATION_MODE_RESTART
    assert mode_of(container, GUEST_STATE_RUNNING, checkpoint=True) == MIGRATION_MODE_CHECKPOINT
    assert mode_of(container, GUEST_STATE_STOPPED, checkpoint=True) == MIGRATION_MODE_OFFLINE
    assert mode_of(machine, GUEST_STATE_RUNNING, checkpoint=True) == MIGRATION_MODE_LIVE
    assert mode_of(machine, GUEST_STATE_STOPPED) == MIGRATION_MODE_OFFLINE
    assert [disk.name for disk in copied_disks(guest("shared", "local", "gone"), POOLS)] == ["disk1", "disk2"]
    assert "NODE_" not in words_of([])
