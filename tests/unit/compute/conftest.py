"""Guests for the driver tests."""

from collections.abc import Callable
from pathlib import Path

import pytest
from gugus.agent.v1 import guest_pb2, volume_pb2

from agent.compute.definitions import Definition
from agent.compute.hypervisor import AttachedDisk, AttachedNic

UID = "6b1f3d6e-7f2b-4b8e-9a3c-1d2e3f405060"


@pytest.fixture
def make_guest(tmp_path: Path) -> Callable[..., Definition]:
    """Return a maker of definitions of a guest with one disk and one network interface."""

    def make(name: str = "web", **fields: object) -> Definition:
        spec = guest_pb2.GuestSpec(
            name=name, id=100, uid=UID, kind=guest_pb2.GUEST_KIND_VIRTUAL_MACHINE, cpus=2, memory_bytes=256 << 20
        )
        for field, value in fields.items():
            setattr(spec, field, value)
        spec.disks.add(name="root", pool="local", volume=name)
        spec.nics.add(name="eth0", network="lan", mac="52:54:00:00:00:01")
        disk = AttachedDisk(spec.disks[0], tmp_path / "root.qcow2", volume_pb2.VOLUME_FORMAT_QCOW2)
        return Definition(spec, (disk,), (AttachedNic(spec.nics[0], "br-lan"),))

    return make
