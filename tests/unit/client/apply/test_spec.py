"""Specs as YAML: everything comes back as it was, people's words are understood, and every fault is named at once."""

from typing import Any

import pytest
import yaml
from gugus.agent.v1.container_pb2 import ContainerDevice, ContainerSpec
from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER, GUEST_KIND_VIRTUAL_MACHINE
from gugus.agent.v1.machine_pb2 import HUGE_PAGES_2M, VirtualMachineSpec
from gugus.agent.v1.network_pb2 import NetworkSpec
from gugus.agent.v1.resources_pb2 import DISK_BUS_SCSI, DISK_CACHE_NONE
from gugus.agent.v1.volume_pb2 import PoolSpec
from gugus.cluster.v1.guest_pb2 import POWER_OFF, POWER_ON, GuestSpec
from hypothesis import HealthCheck, given, settings

from client.apply.fields import fields_of, writable
from client.apply.spec import from_yaml, to_yaml
from common.errors import GugusError
from tests.unit.client.apply.specs import messages

_MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@_MANY
@given(messages(GuestSpec))
def test_any_spec_comes_back_from_yaml_as_it_was(spec: GuestSpec) -> None:
    assert from_yaml(to_yaml(spec), GuestSpec) == spec


@settings(max_examples=60, deadline=None)
@given(messages(PoolSpec), messages(NetworkSpec))
def test_pools_and_networks_do_as_well(pool: PoolSpec, network: NetworkSpec) -> None:
    assert from_yaml(to_yaml(pool), PoolSpec) == pool
    assert from_yaml(to_yaml(network), NetworkSpec) == network


SPEC = """
kind: vm
cpus: 2
cpu_limit: 1.5
memory: 2GiB
power: on
shutdown_timeout: 90s
disks:
  - name: data
    pool: local
    size: 10GiB
    settings: {bus: SCSI, cache: none, limits: {read: 10MiB/s, read_iops: 100, burst: 2s}}
nics: [{network: lan, settings: {rate: 5MiB/s}}]
virtual_machine:
  memory: {huge_pages: 2m, max: 4GiB}
  cpu: {pins: {0: "1"}, flags: [+aes]}
notes: |
  two
  lines
"""


def test_people_s_words_are_understood() -> None:
    spec = from_yaml(SPEC, GuestSpec)
    assert (spec.kind, spec.cpus, spec.cpu_limit_milli, spec.memory_bytes) == (
        GUEST_KIND_VIRTUAL_MACHINE,
        2,
        1500,
        2 << 30,
    )
    assert (spec.power, spec.shutdown_timeout_ms, spec.notes) == (POWER_ON, 90_000, "two\nlines\n")
    disk = spec.disks[0]
    assert (disk.size_bytes, disk.settings.bus, disk.settings.cache) == (10 << 30, DISK_BUS_SCSI, DISK_CACHE_NONE)
    assert (disk.settings.limits.read_bytes_per_s, disk.settings.limits.read_iops) == (10 << 20, 100)
    assert (disk.settings.limits.burst_s, spec.nics[0].settings.rate_bytes_per_s) == (2, 5 << 20)
    machine = spec.virtual_machine
    assert (machine.memory.huge_pages, machine.memory.max_bytes, dict(machine.cpu.pins)) == (
        HUGE_PAGES_2M,
        4 << 30,
        {0: "1"},
    )


def test_what_is_written_is_what_people_write() -> None:
    assert yaml.safe_load(to_yaml(from_yaml(SPEC, GuestSpec))) == {
        "kind": "vm",
        "cpus": 2,
        "cpu_limit": "1.5",
        "memory": "2GiB",
        "disks": [
            {
                "name": "data",
                "pool": "local",
                "size": "10GiB",
                "settings": {
                    "bus": "scsi",
                    "cache": "none",
                    "limits": {"read": "10MiB/s", "read_iops": 100, "burst": "2s"},
                },
            }
        ],
        "nics": [{"network": "lan", "settings": {"rate": "5MiB/s"}}],
        "power": "on",
        "virtual_machine": {
            "cpu": {"flags": ["+aes"], "pins": {0: "1"}},
            "memory": {"huge_pages": "2m", "max": "4GiB"},
        },
        "notes": "two\nlines\n",
        "shutdown_timeout": "90s",
    }
    assert "notes: |\n  two\n  lines\n" in to_yaml(from_yaml(SPEC, GuestSpec))


def test_the_api_s_own_names_and_values_are_understood_too() -> None:
    text = 'kind: GUEST_KIND_CONTAINER\nmemory_bytes: "1048576"\nshutdown_timeout_ms: 500\ncpu_limit_milli: 250\npower: off'
    spec = from_yaml(text, GuestSpec)
    assert (spec.kind, spec.memory_bytes, spec.shutdown_timeout_ms) == (GUEST_KIND_CONTAINER, 1 << 20, 500)
    assert (spec.cpu_limit_milli, spec.power) == (250, POWER_OFF)


def test_modes_are_octal() -> None:
    assert from_yaml("mode: 0640", ContainerDevice).mode == 0o640
    with pytest.raises(GugusError, match="like 0660"):
        from_yaml("mode: 640", ContainerDevice)


def test_merge_keys_and_anchors_save_repetition() -> None:
    text = """
disks:
  - &disk {pool: local, size: 1GiB}
  - <<: *disk
    size: 2GiB
"""
    spec = from_yaml(text, GuestSpec)
    assert [(disk.pool, disk.size_bytes >> 30) for disk in spec.disks] == [("local", 1), ("local", 2)]


def test_all_faults_are_named_at_once_with_line_field_and_what_is_right() -> None:
    text = """kind: vn
cpus: many
memroy: 1GiB
disks:
  - pool: local
    size: 10GB
    settings: {bus: nvme}
  - small
tags: web
ha: {enabled: perhaps}
cpus: 3
power: [on]
"""
    with pytest.raises(GugusError) as caught:
        from_yaml(text, GuestSpec, source="web.yaml")
    assert [(v.field, v.message) for v in caught.value.violations] == [
        ("web.yaml:1: kind", '"vn" is not one of default, vm, container (did you mean "vm"?).'),
        ("web.yaml:2: cpus", '"many" is not a whole number.'),
        (
            "web.yaml:3: memroy",
            f'there is no such field (did you mean "memory"?); there are {", ".join(writable(GuestSpec.DESCRIPTOR))}.',
        ),
        ("web.yaml:6: disks[0].size", '"10GB" is ambiguous: write "GiB" for the binary unit.'),
        ("web.yaml:7: disks[0].settings.bus", '"nvme" is not one of default, virtio, scsi, sata, ide.'),
        ("web.yaml:8: disks[1]", "is not a mapping (names with values)."),
        ("web.yaml:9: tags", "is not a list."),
        ("web.yaml:10: ha.enabled", '"perhaps" is neither true nor false.'),
        ("web.yaml:11: cpus", "is there twice."),
        ("web.yaml:12: power", "is not a single value."),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: b: c", "t.yaml:1: is not YAML: mapping values are not allowed here"),
        ("cpus: 1\n---\ncpus: 2", "t.yaml:3: is a second document"),
        ("- cpus", "is not a mapping"),
        ("cpus: 5000000000", "5000000000 is out of range; 0 to 4294967295"),
        ("cpus: -1", "out of range"),
        ("cpu_limit: 0.0001", "more than three decimals"),
        ("cpu_limit: nan", "is not a number of CPUs like 2 or 0.5"),
        ("shutdown_timeout: soon", 'is not a duration like "10s"'),
        ("virtual_machine: {display: {memory: 100KiB}}", "whole number of MiB"),
        ("virtual_machine: {cpu: {pins: {x: 1}}}", '"x" is not a whole number'),
        ("cpus: 1\ncpus: 2", "cpus: is there twice"),
        ("cpus: \x07", "t.yaml: is not YAML"),
    ],
)
def test_a_fault_says_what_is_right(text: str, said: str) -> None:
    with pytest.raises(GugusError) as caught:
        from_yaml(text, GuestSpec, source="t.yaml")
    assert said in str(caught.value)


def test_null_means_the_default() -> None:
    assert from_yaml("cpus:\nnotes: ~\nha: null", GuestSpec) == GuestSpec()


def test_short_names_are_never_those_of_two_fields() -> None:
    seen = set[str]()

    def walk(descriptor: Any) -> None:
        if descriptor.full_name in seen:
            return
        seen.add(descriptor.full_name)
        fields = fields_of(descriptor)
        assert len({field.name for field in fields.values()}) == len(fields) == len(descriptor.fields)
        for field in fields.values():
            if field.descriptor.message_type is not None:
                walk(field.descriptor.message_type)

    for kind in (GuestSpec, VirtualMachineSpec, ContainerSpec, PoolSpec, NetworkSpec):
        walk(kind.DESCRIPTOR)
