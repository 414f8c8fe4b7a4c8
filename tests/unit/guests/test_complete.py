"""Defaults: what is left out is filled in, once, and so that it never collides with what other guests have."""

import pytest
from gugus.agent.v1.machine_pb2 import VirtualMachineSpec
from gugus.cluster.v1.guest_pb2 import (
    POWER_HIBERNATED,
    POWER_ON,
    CreateGuestRequest,
    DiskSpec,
    Guest,
    GuestSpec,
    HaSpec,
    NicSpec,
)
from hypothesis import given
from hypothesis import strategies as st

from common.errors import GugusError
from manager.guests.complete import complete, fill, without_output
from manager.guests.volumes import NAME_CHARS, volume_name
from tests.unit.guests.world import GIB, MIB, container, guest, known, vm


def test_defaults_are_filled_in() -> None:
    spec = vm(nics=[NicSpec(network="lan")], disks=[DiskSpec(pool="shared", size_bytes=GIB)])
    spec.ClearField("cpus")
    spec.ClearField("memory_bytes")
    made = guest(spec, known())
    assert (made.spec.id, made.spec.cpus, made.spec.memory_bytes, made.spec.power) == (100, 1, 512 * MIB, POWER_ON)
    assert [disk.name for disk in made.spec.disks] == ["root", "disk0"]
    assert made.spec.disks[0].size_bytes == 2 * GIB, "the image's"
    assert [nic.name for nic in made.spec.nics] == ["eth0", "eth1"]
    assert made.spec.virtual_machine.machine == "pc-q35-7.2", "the newest that all nodes have, for good"
    assert made.spec_number == 1
    assert made.meta.generation == 0


def test_container_gets_less_memory_and_no_machine() -> None:
    made = guest(container(), known())
    assert made.spec.memory_bytes == 256 * MIB
    assert not made.spec.HasField("virtual_machine")


def test_ids_and_addresses_are_nobody_elses() -> None:
    first = guest(vm(id=100), known(), "one")
    second = guest(vm(), known(first), "two")
    assert second.spec.id == 101
    assert second.spec.nics[0].mac != first.spec.nics[0].mac
    taken = vm(id=100)
    taken.nics[0].mac = first.spec.nics[0].mac.upper()
    with pytest.raises(GugusError) as caught:
        guest(taken, known(first), "three")
    assert {violation.field for violation in caught.value.violations} == {"spec.id", "spec.nics[0].mac"}
    assert "one" in caught.value.message


def test_what_only_managers_write_is_not_taken_from_users() -> None:
    spec = vm(template=True)
    spec.disks[0].volume = spec.disks[0].base_volume = "of-another"
    clean = without_output(spec)
    assert not clean.template
    assert (clean.disks[0].volume, clean.disks[0].base_volume) == ("", "")
    assert spec.template, "the request is left as it is"


def test_new_guest_cannot_be_hibernated() -> None:
    with pytest.raises(GugusError) as caught:
        guest(vm(power=POWER_HIBERNATED), known())
    assert caught.value.field == "spec.power"


def test_ha_needs_shared_disks() -> None:
    spec = vm(ha=HaSpec(enabled=True))
    guest(spec, known())
    spec.disks.add(name="data", pool="local", size_bytes=GIB)
    with pytest.raises(GugusError) as caught:
        guest(spec, known())
    assert caught.value.reason == "POOL_NOT_SHARED"
    assert "local" in caught.value.message


def test_guest_is_pinned_where_its_local_image_is() -> None:
    world = known()
    world.images["local.debian"].node = "n2"
    spec = vm()
    spec.disks[0].pool = "local"
    assert guest(spec, world).spec.pinned_node == "n2"
    spec.pinned_node = "n1"
    with pytest.raises(GugusError) as caught:
        guest(spec, world)
    assert caught.value.reason == "IMAGE_ELSEWHERE"


@given(
    disks=st.lists(st.sampled_from(["", "a", "b", "disk0"]), min_size=1, max_size=4),
    nics=st.lists(st.sampled_from(["", "eth1", "x"]), max_size=4),
    machine=st.sampled_from(["", "q35", "pc", "pc-q35-7.1"]),
)
def test_filling_in_twice_changes_nothing(disks: list[str], nics: list[str], machine: str) -> None:
    spec = vm(virtual_machine=VirtualMachineSpec(machine=machine))
    del spec.disks[:], spec.nics[:]
    spec.disks.extend(DiskSpec(name=name, pool="shared", size_bytes=GIB) for name in disks)
    spec.nics.extend(NicSpec(name=name, network="lan") for name in nics)
    made = Guest(spec=spec)
    made.meta.name, made.meta.uid = "web", "0f5cf1ba-0000-4000-8000-000000000000"
    fill(made, known())
    once = GuestSpec()
    once.CopyFrom(made.spec)
    fill(made, known())
    assert made.spec == once
    assert len({nic.mac for nic in once.nics}) == len(nics)
    assert len({disk.volume for disk in once.disks}) == len(disks)


def test_completed_spec_is_complete() -> None:
    made = guest(vm(), known())
    again = complete(CreateGuestRequest(name="web", spec=made.spec), known())
    assert again.spec == made.spec


@given(
    name=st.from_regex(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True),
    disk=st.from_regex(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True),
    taken=st.integers(0, 3),
)
def test_volume_names_are_names_and_free(name: str, disk: str, taken: int) -> None:
    used: set[str] = set()
    for _ in range(taken + 1):
        made = volume_name(name, disk, "0f5cf1ba-0000-4000-8000-000000000000", used)
        assert made not in used
        assert len(made) <= NAME_CHARS
        assert made[-1] != "-"
        used.add(made)
