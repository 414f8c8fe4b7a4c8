"""Single fields by their paths, and messages in a word."""

import pytest
from gugus.agent.v1.machine_pb2 import FIRMWARE_KIND_UEFI
from gugus.agent.v1.resources_pb2 import DISK_BUS_SCSI, DISK_CACHE_NONE
from gugus.cluster.v1.guest_pb2 import DiskSpec, GuestSpec, NicSpec

from client.apply.pairs import read_pairs
from client.apply.paths import set_field
from common.errors import GugusError


def _spec(*texts: str) -> GuestSpec:
    spec = GuestSpec()
    spec.disks.add(name="data", pool="local")
    for text in texts:
        set_field(spec, text)
    return spec


def test_any_field_can_be_set_by_its_path() -> None:
    spec = _spec(
        "cpus=4",
        "memory=2GiB",
        "shutdown_timeout=60",
        "notes=hello: world, [x]",
        "tags=a,b",
        "ha={enabled: true}",
        "disks[data].settings.cache=none",
        "disks[0].size=1GiB",
        "virtual_machine.firmware.kind=uefi",
        "virtual_machine.cpu.pins[3]=2-3",
        "virtual_machine.smbios[a.b=c]=x=y",
        "container.mounts=[{source: /a, target: /b.c}]",
        "container.mounts[/b.c].read_only=yes",
    )
    assert (spec.cpus, spec.memory_bytes, spec.shutdown_timeout_ms, spec.notes) == (
        4,
        2 << 30,
        60_000,
        "hello: world, [x]",
    )
    assert (list(spec.tags), spec.ha.enabled) == (["a", "b"], True)
    assert (spec.disks[0].settings.cache, spec.disks[0].size_bytes) == (DISK_CACHE_NONE, 1 << 30)
    assert spec.virtual_machine.firmware.kind == FIRMWARE_KIND_UEFI
    assert dict(spec.virtual_machine.cpu.pins) == {3: "2-3"}
    assert dict(spec.virtual_machine.smbios) == {"a.b=c": "x=y"}
    assert spec.container.mounts[0].read_only


def test_an_empty_value_is_the_default_and_takes_items_away() -> None:
    spec = _spec("cpus=4", "tags=a,b", "virtual_machine.smbios[a]=1", "container.mounts=[{source: /a, target: /b}]")
    for path in ("cpus", "tags", "virtual_machine", "container.mounts[/b]", "disks[data]"):
        set_field(spec, f"{path}=")
    assert not spec.cpus
    assert not spec.tags
    assert not spec.HasField("virtual_machine")
    assert not spec.container.mounts
    assert not spec.disks


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cpus", "is not PATH=VALUE"),
        ("cpux=1", '"cpux" is no field there; there are kind, id, cpus'),
        ("disks[x].size=1", 'there is no "x" in it; there are disks[data]'),
        ("disks.size=3", '"disks" has no fields; there are disks[data]'),
        ("cpus.x=3", '"cpus" has no fields'),
        ("tags[x]=3", "has no items with fields"),
        ("nics[eth0].mac=x", 'there is no "eth0" in it; it is empty'),
        ("template=yes", "is set by the cluster"),
        ("disks[data].base_volume=x", "is set by the cluster"),
        ("cpus=many", '"many" is not a whole number'),
        ("disks=3", "--set: disks: is not a list"),
        ("tags=[a", "--set: is not YAML: "),
        ("ha={on: true}", "--set: ha.on: there is no such field; there are enabled"),
        ("ha={", "is not YAML"),
        ("virtual_machine.cpu.pins[x]=1", '"x" is not a whole number'),
    ],
)
def test_a_wrong_path_or_value_says_what_is_there(text: str, said: str) -> None:
    with pytest.raises(GugusError) as caught:
        _spec(text)
    assert said in str(caught.value)
    assert caught.value.violations


def test_parts_are_written_in_a_word() -> None:
    disk = read_pairs(
        DiskSpec, "size=10GiB,pool=local,bus=scsi,cache=none,iothread,read-iops=100,read=5MiB/s", "--disk"
    )
    assert (disk.size_bytes, disk.pool, disk.settings.bus, disk.settings.cache) == (
        10 << 30,
        "local",
        DISK_BUS_SCSI,
        DISK_CACHE_NONE,
    )
    assert (disk.settings.io_thread, disk.settings.limits.read_iops) == (True, 100)
    assert disk.settings.limits.read_bytes_per_s == 5 << 20
    assert read_pairs(NicSpec, "network=lan,link-down=no,boot_order=2", "--nic").settings.boot_order == 2


def test_every_fault_of_a_word_is_named() -> None:
    with pytest.raises(GugusError) as caught:
        read_pairs(DiskSpec, "siz=10,pool,bus=x,base_volume=3", "--disk")
    told = [violation.message.split(";")[0] for violation in caught.value.violations]
    assert told == [
        '"siz" is not known (did you mean "size"?)',
        '"pool" has no value',
        'bus: "x" is not one of default, virtio, scsi, sata, ide.',
        '"base_volume" is not known (did you mean "volume"?)',
    ]
