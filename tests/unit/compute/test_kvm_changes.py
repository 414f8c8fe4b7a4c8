"""What of a changed definition goes into a running machine, and what waits."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from gugus.agent.v1 import guest_pb2

from agent.compute.definitions import Definition
from agent.compute.differences import ABSENT, PRESENT, Difference, differences, transfer
from agent.compute.kvm import changes
from agent.compute.kvm.changes import Way
from agent.compute.kvm.live import _resolved
from agent.compute.simulated import SimulatedHypervisor

MakeGuest = Callable[..., Definition]


def spec_of(words: str) -> guest_pb2.GuestSpec:
    spec = guest_pb2.GuestSpec()
    text_format.Parse(words, spec)
    return spec


def merged(guest: Definition, words: str) -> Definition:
    spec = guest_pb2.GuestSpec.FromString(guest.spec.SerializeToString())
    spec.MergeFrom(spec_of(words))
    return replace(guest, spec=spec)


def test_differences_are_named_as_in_the_spec() -> None:
    before = spec_of(
        'cpus: 1 disks { name: "a" } disks { name: "b" } virtual_machine { cpu { pins { key: 0 value: "1" } } }'
    )
    after = spec_of('cpus: 2 disks { name: "b" settings { bus: DISK_BUS_SCSI } } disks { name: "c" }')
    found = {each.field: (each.present, each.wanted) for each in differences(before, after)}
    assert found == {
        "cpus": ("1", "2"),
        "disks[a]": (PRESENT, ABSENT),
        "disks[b].settings.bus": ("default", "DISK_BUS_SCSI"),
        "disks[c]": (ABSENT, PRESENT),
        "virtual_machine.cpu.pins[0]": ("1", ABSENT),
    }


def test_each_difference_can_be_brought_over() -> None:
    before = spec_of(
        'cpus: 1 disks { name: "a" } disks { name: "b" } virtual_machine { cpu { flags: "+x" pins { key: 0 value: "1" } } }'
    )
    after = spec_of(
        'disks { name: "b" volume: "v" } disks { name: "c" } virtual_machine { cpu { pins { key: 2 value: "3" } } tpm: true }'
    )
    for each in differences(before, after):
        transfer(each, after, before)
    assert before == after
    with pytest.raises(ValueError, match="no field"):
        transfer(Difference("nonsense", "", ""), after, before)


def test_secrets_are_not_told() -> None:
    before, after = spec_of(""), spec_of('first_boot { password_hash: "$6$abc" user_data: "secret" }')
    assert {(each.present, each.wanted) for each in differences(before, after)} == {("default", "set")}


@pytest.mark.parametrize(
    ("words", "field", "way"),
    [
        ("cpus: 3", "cpus", Way.CPUS),
        ("cpu_limit_milli: 500", "cpu_limit_milli", Way.CPU_SHARE),
        ('resources { cpuset: "0" }', "resources.cpuset", Way.CPU_PINS),
        ("memory_bytes: 1073741824", "memory_bytes", Way.MEMORY),
        ('disks { name: "data" volume: "d" }', "disks[data]", Way.DISK),
        ('nics { name: "eth1" }', "nics[eth1]", Way.NIC),
        ("ha: true", "ha", Way.NOTE),
        ('cluster_cpu { model: "EPYC" }', "cluster_cpu.model", Way.NOTE),
        ('virtual_machine { machine: "pc" }', "virtual_machine.machine", None),
        ("virtual_machine { tpm: true }", "virtual_machine.tpm", None),
        ('virtual_machine { cpu { model: "host" } }', "virtual_machine.cpu.model", None),
        ('virtual_machine { cdroms { name: "cd0" } }', "virtual_machine.cdroms[cd0]", None),
    ],
)
def test_each_field_goes_its_way(make_guest: MakeGuest, words: str, field: str, way: Way | None) -> None:
    guest = make_guest()
    plan = changes.plan(guest, merged(guest, words))
    assert [(change.difference.field, change.way) for change in plan] == [(field, way)]
    waits = changes.pending(plan, {field: "the guest keeps it"})
    expected = {None: changes.FIXED, Way.NOTE: None}.get(way, "the guest keeps it")
    assert [each.reason for each in waits] == ([] if expected is None else [expected])


def test_a_guest_without_hotplug_waits_with_everything(make_guest: MakeGuest) -> None:
    guest = make_guest()
    plan = changes.plan(guest, merged(guest, "cpus: 3 virtual_machine { no_hotplug: true }"))
    assert [each.reason for each in changes.pending(plan, {})] == [changes.UNPLUGGED]


def test_what_runs_keeps_its_paths_unless_the_item_was_changed(make_guest: MakeGuest, tmp_path: Path) -> None:
    guest = make_guest()
    moved = replace(guest, disks=(replace(guest.disks[0], path=tmp_path / "elsewhere"),))
    assert _resolved(guest.spec, guest, moved, {"eth0"}).disks[0].path == guest.disks[0].path
    assert _resolved(guest.spec, guest, moved, {"root"}).disks[0].path == tmp_path / "elsewhere"


async def test_a_simulated_guest_keeps_what_waits_and_what_is_held(make_guest: MakeGuest, tmp_path: Path) -> None:
    guest = make_guest()
    driver = SimulatedHypervisor(tmp_path / "state", tmp_path / "run")
    await driver.define(guest.spec, guest.disks, guest.nics)
    await driver.start("web", 1)
    await driver.suspend("web")
    other = merged(guest, "cpus: 3 virtual_machine { tpm: true }")
    await driver.define(other.spec, guest.disks, guest.nics)
    assert [change.field for change in await driver.apply("web")] == ["virtual_machine.tpm"]
    again = SimulatedHypervisor(tmp_path / "state", tmp_path / "run")
    seen = await again.observe("web")
    assert seen is not None
    assert [change.field for change in seen.pending] == ["virtual_machine.tpm"]
    assert seen.state == guest_pb2.GUEST_STATE_PAUSED
    await again.resume("web")
    await again.hibernate("web", tmp_path / "memory", lambda _part, _words: None)
    await again.hibernate("web", tmp_path / "memory", lambda _part, _words: None)
    seen = await again.observe("web")
    assert seen is not None
    assert not seen.running
    await again.start("web", 2)
    seen = await again.observe("web")
    assert seen is not None
    assert not seen.pending
