"""The tree of snapshots, and the spec that a rollback leaves, by their rules alone."""

import pytest
from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER, GUEST_KIND_VIRTUAL_MACHINE
from gugus.agent.v1.machine_pb2 import PciDevice, VirtualMachineSpec
from gugus.agent.v1.resources_pb2 import DiskSettings
from gugus.cluster.v1.guest_pb2 import POWER_OFF, POWER_ON, BootSpec, DiskSpec, Guest, GuestSpec, HaSpec
from gugus.cluster.v1.snapshot_pb2 import SNAPSHOT_STATE_CREATING, SNAPSHOT_STATE_READY, Snapshot
from hypothesis import given
from hypothesis import strategies as st

from common.errors import GugusError
from manager.guests import snapshots as rules


def snap(name: str, parent: str = "", at: int = 0, disks: tuple[DiskSpec, ...] = ()) -> Snapshot:
    made = Snapshot(name=name, parent=parent, guest_uid="u1", state=SNAPSHOT_STATE_READY, disks=disks)
    made.meta.created_at.FromNanoseconds(at)
    return made


def disk(name: str, volume: str = "", **settings: object) -> DiskSpec:
    return DiskSpec(name=name, pool="local", volume=volume or name, settings=DiskSettings(**settings))  # type: ignore[arg-type]


def guest(*disks: DiskSpec, **spec: object) -> Guest:
    made = Guest(spec=GuestSpec(kind=GUEST_KIND_VIRTUAL_MACHINE, disks=disks, **spec))  # type: ignore[arg-type]
    made.meta.name, made.meta.uid = "web", "u1"
    return made


@st.composite
def forests(draw: st.DrawFn) -> list[Snapshot]:
    """Snapshots whose parents are older ones, gone ones, or none."""
    count = draw(st.integers(0, 12))
    return [
        snap(f"s{i}", draw(st.sampled_from(["", "gone", *(f"s{j}" for j in range(i))])), draw(st.integers(0, 5)))
        for i in range(count)
    ]


@given(forests())
def test_tree_has_every_snapshot_once_and_each_after_its_parent(forest: list[Snapshot]) -> None:
    found = rules.tree(reversed(forest))
    names = [snapshot.name for _, snapshot in found]
    assert sorted(names) == sorted(snapshot.name for snapshot in forest)
    depths = {snapshot.name: depth for depth, snapshot in found}
    for place, (depth, snapshot) in enumerate(found):
        assert depth == (depths[snapshot.parent] + 1 if snapshot.parent in depths else 0)
        if snapshot.parent in depths:
            assert names.index(snapshot.parent) < place


@given(st.lists(st.sampled_from("abcde"), max_size=5), st.lists(st.sampled_from("abcde"), max_size=5))
def test_no_tree_of_any_parents_loops(names: list[str], parents: list[str]) -> None:
    forest = [snap(name, parent) for name, parent in zip(names, parents, strict=False)]
    assert len(rules.tree(forest)) <= len({one.name for one in forest})


@given(forests(), st.data())
def test_deletion_in_any_order_keeps_who_descends_from_whom(forest: list[Snapshot], data: st.DataObject) -> None:
    def ancestors(of: Snapshot, among: dict[str, Snapshot]) -> set[str]:
        found: set[str] = set()
        while (parent := among.get(of.parent)) is not None and parent.name not in found:
            found.add(parent.name)
            of = parent
        return found

    left = {snapshot.name: snapshot for snapshot in forest}
    before = {name: ancestors(snapshot, left) for name, snapshot in left.items()}
    for name in data.draw(st.permutations(sorted(left))):
        gone = left[name]
        for child in rules.orphans(left.values(), gone):
            left[child.name] = child
        del left[name]
        for other, snapshot in left.items():
            assert ancestors(snapshot, left) == before[other] & left.keys()


def test_siblings_are_shown_by_age() -> None:
    assert [s.name for _, s in rules.tree([snap("b", at=2), snap("a", at=3), snap("c", "b", at=1)])] == ["b", "c", "a"]


def test_disks_that_are_left_out_or_never_written_are_not_held() -> None:
    spec = guest(disk("root"), disk("scratch", no_snapshot=True), disk("cd", read_only=True)).spec
    assert [held.name for held in rules.held_disks(spec)] == ["root"]


def test_memory_of_what_the_host_lends_is_refused_naming_each() -> None:
    machine = VirtualMachineSpec(pci_devices=[PciDevice(address="0000:01:00.0"), PciDevice(address="0000:02:00.0")])
    with pytest.raises(GugusError) as caught:
        rules.check_new(guest(disk("root"), virtual_machine=machine), [], "a", memory=True)
    assert caught.value.reason == "SNAPSHOT_UNSUPPORTED"
    assert "0000:01:00.0" in caught.value.message
    assert "0000:02:00.0" in caught.value.message
    rules.check_new(guest(disk("root"), virtual_machine=machine), [], "a", memory=False)


def test_new_snapshot_is_refused_for_a_container_s_memory_a_taken_name_a_template_and_too_many() -> None:
    container = guest(disk("root"))
    container.spec.kind = GUEST_KIND_CONTAINER
    many = [snap(f"s{i}") for i in range(rules.MAX_SNAPSHOTS)]
    template = guest(disk("root"), template=True)
    for reason, arguments in (
        ("SNAPSHOT_UNSUPPORTED", (container, [], True)),
        ("SNAPSHOT_UNSUPPORTED", (guest(disk("root", no_snapshot=True)), [], False)),
        ("SNAPSHOT_ALREADY_EXISTS", (guest(disk("root")), [snap("a")], False)),
        ("TOO_MANY_SNAPSHOTS", (guest(disk("root")), many, False)),
        ("GUEST_IS_TEMPLATE", (template, [], False)),
    ):
        of, present, memory = arguments
        with pytest.raises(GugusError) as caught:
            rules.check_new(of, present, "a", memory=memory)
        assert caught.value.reason == reason


def test_every_fault_of_a_name_and_description_is_named_at_once() -> None:
    found = rules.faults("Not A Name", "x" * 2000)
    assert [fault.field for fault in found] == ["name", "description"]
    assert rules.faults("x" * 41, "")[0].field == "name"
    assert not rules.faults("before-upgrade", "")


def test_rollback_needs_whole_snapshots_unprotected_guests_and_all_disks() -> None:
    whole = snap("a", disks=(disk("root"), disk("data")))
    half = snap("b", disks=(disk("root"),))
    half.state = SNAPSHOT_STATE_CREATING
    awake = snap("c", disks=(disk("root"),))
    awake.memory = True
    gave_way = guest(disk("root"))
    gave_way.status.preempted.by = "db"
    for reason, of, to in (
        ("GUEST_PREEMPTED", gave_way, awake),
        ("GUEST_PROTECTED", guest(disk("root"), disk("data"), protected=True), whole),
        ("SNAPSHOT_NOT_READY", guest(disk("root")), half),
        ("SNAPSHOT_DISK_MISSING", guest(disk("root"), disk("data", "another")), whole),
    ):
        with pytest.raises(GugusError) as caught:
            rules.check_rollback(of, to)
        assert caught.value.reason == reason
        assert reason != "GUEST_PROTECTED" or "guest protect" in caught.value.remedy
    put_aside = guest(disk("root"))
    put_aside.status.unused_disks.append(disk("data"))
    rules.check_rollback(put_aside, whole)


def test_rollback_restores_hardware_and_leaves_wishes() -> None:
    then = guest(disk("root"), cpus=1, memory_bytes=1 << 28, notes="old", tags=["old"], id=100)
    taken = snap("a", disks=(disk("root"),))
    taken.spec.CopyFrom(rules.kept_spec(then.spec))
    now = guest(
        disk("root"), cpus=4, memory_bytes=1 << 30, notes="new", tags=["new"], id=100, ha=HaSpec(enabled=True),
        pinned_node="n2", boot=BootSpec(order=3),
    )  # fmt: skip
    now.spec.first_boot.hostname = "web"
    spec = rules.restored(now, taken, POWER_OFF)
    assert (spec.cpus, spec.memory_bytes, spec.power, spec.id) == (1, 1 << 28, POWER_OFF, 100)
    assert (spec.notes, list(spec.tags), spec.ha.enabled, spec.pinned_node) == ("new", ["new"], True, "n2")
    assert (spec.boot.order, spec.first_boot.hostname) == (3, "web")
    assert rules.restored(now, taken, POWER_ON).power == POWER_ON


def test_rollback_keeps_disks_that_the_snapshot_does_not_hold() -> None:
    then = guest(disk("root"), disk("scratch", no_snapshot=True), disk("old"))
    taken = snap("a", disks=tuple(rules.held_disks(then.spec)))
    taken.spec.CopyFrom(rules.kept_spec(then.spec))
    now = guest(disk("root"), disk("scratch", "scratch-2", no_snapshot=True), disk("new"))
    now.status.unused_disks.append(disk("old"))
    spec = rules.restored(now, taken, POWER_OFF)
    assert [(d.name, d.volume) for d in spec.disks] == [
        ("root", "root"), ("scratch", "scratch-2"), ("old", "old"), ("new", "new")
    ]  # fmt: skip
    assert not rules.unused_after(now, spec)


def test_disk_whose_name_went_to_another_volume_is_kept_aside() -> None:
    then = guest(disk("root"), disk("data", "data-1"))
    taken = snap("a", disks=tuple(then.spec.disks))
    taken.spec.CopyFrom(rules.kept_spec(then.spec))
    now = guest(disk("root"), disk("data", "data-2"))
    now.status.unused_disks.append(disk("data", "data-1"))
    spec = rules.restored(now, taken, POWER_OFF)
    assert [d.volume for d in spec.disks] == ["root", "data-1"]
    assert [d.volume for d in rules.unused_after(now, spec)] == ["data-2"]


def test_snapshots_that_hold_a_disk_are_named() -> None:
    found = [snap("b", disks=(disk("root"),)), snap("a", disks=(disk("root"), disk("data")))]
    assert rules.holding(found, "u1", "root") == ["a", "b"]
    assert rules.holding(found, "u1", "data") == ["a"]
    assert not rules.holding(found, "u2", "root")
