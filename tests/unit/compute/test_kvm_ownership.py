"""Whose the files of disks are: QEMU's user's for good, as libvirt is told."""

import os
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agent.compute.definitions import Definition
from agent.compute.kvm import ownership
from agent.compute.kvm.disks import _copy_xml
from agent.compute.kvm.driver import KvmHypervisor
from agent.compute.kvm.ownership import give, qemu_user
from agent.compute.kvm.snapshots import settled
from agent.compute.kvm.xml.domain import build
from agent.compute.kvm.xml.ownership import settled_files
from agent.compute.kvm.xml.run import Firmware, Run
from tests.unit.compute.test_kvm import refusal, tcg

MakeGuest = Callable[..., Definition]
QEMU, OTHER = (64055, 64056), (0, 0)
CAPABILITIES = """<capabilities><host>
<secmodel><model>apparmor</model><doi>0</doi></secmodel>
<secmodel><model>dac</model><baselabel type='kvm'>+64055:+64056</baselabel><baselabel type='qemu'>+64055:+64056</baselabel></secmodel>
</host></capabilities>"""


class Connection:
    """A libvirtd that tells how it is set up."""

    def __init__(self, capabilities: str = CAPABILITIES) -> None:
        self._capabilities = capabilities

    def getCapabilities(self) -> str:
        return self._capabilities


def owner(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_uid, found.st_gid


def run_of(tmp_path: Path) -> Run:
    uefi = Firmware(code=tmp_path / "code", template=tmp_path / "template", variables=tmp_path / "vars.fd")
    return Run(
        generation=1, mode="tcg", domain_type="qemu", seed=tmp_path / "seed", console=tmp_path / "log", firmware=uefi
    )


def test_libvirt_leaves_what_a_guest_writes_to_alone_and_nothing_else(make_guest: MakeGuest, tmp_path: Path) -> None:
    guest = make_guest()
    made = ET.fromstring(xml := build(guest, run_of(tmp_path)))
    assert settled_files(made) == [tmp_path / "vars.fd", tmp_path / "root.qcow2"]
    assert "XML document failed to validate" not in refusal(xml)
    assert settled_files(ET.fromstring(settled(xml))) == settled_files(made), "a machine that is kept keeps it"
    assert settled_files(ET.fromstring(_copy_xml(tmp_path / "copy", "raw"))) == [tmp_path / "copy"]
    read_only = replace(guest, disks=(replace(guest.disks[0], read_only=True),))
    assert settled_files(ET.fromstring(build(read_only, run_of(tmp_path)))) == [tmp_path / "vars.fd"]
    device = replace(guest, disks=(replace(guest.disks[0], path=Path("/dev/pool/root")),))
    assert settled_files(ET.fromstring(build(device, run_of(tmp_path)))) == [tmp_path / "vars.fd"]


def test_files_are_given_to_qemus_user_and_what_is_none_is_left_alone(tmp_path: Path) -> None:
    (disk := tmp_path / "disk").touch()
    (folder := tmp_path / "folder").mkdir()
    (foreign := tmp_path / "foreign").touch()
    give(Connection(), [disk, folder, tmp_path / "none"])
    give(Connection(), [disk])
    assert [owner(path) for path in (disk, folder, foreign)] == [QEMU, OTHER, OTHER]
    assert qemu_user(Connection("<capabilities/>")) == (0, 0)


def test_a_file_that_cannot_be_given_is_left_to_qemu_to_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (disk := tmp_path / "disk").touch()

    def refuse(*_: object) -> None:
        raise PermissionError("root is nobody there")

    monkeypatch.setattr(os, "chown", refuse)
    give(Connection(), [disk])
    assert owner(disk) == OTHER


async def test_a_disk_is_qemus_before_its_guest_starts_and_after_it_ended(
    make_guest: MakeGuest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "qemu_user", lambda _: QEMU)
    driver = KvmHypervisor("test:///default", tmp_path / "state", tmp_path / "run", tcg)
    await driver.open()
    try:
        guest = make_guest("owned", uid=str(uuid.uuid4()))  # that hypervisor is one for all tests of a process
        guest.disks[0].path.touch()
        await driver.define(guest.spec, guest.disks, guest.nics)
        await driver.start("owned", 1)
        assert owner(guest.disks[0].path) == QEMU
        await driver.kill("owned")
        assert owner(guest.disks[0].path) == QEMU
    finally:
        await driver.close()
