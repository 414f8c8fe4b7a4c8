"""The XML with which a domain appears on another host."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from gugus.agent.v1 import guest_pb2, volume_pb2

from agent.compute.definitions import Definition
from agent.compute.hypervisor import AttachedDisk, AttachedNic
from agent.compute.kvm.destination import Moved, host_bound, places_of, rewritten, small_files, targets_of
from agent.compute.kvm.xml.mark import NAMESPACE, Mark, element, read_mark
from agent.compute.kvm.xml.ownership import settled_files

HERE = Definition(
    guest_pb2.GuestSpec(
        name="web",
        uid="u",
        disks=[guest_pb2.GuestDisk(name="root")],
        nics=[guest_pb2.GuestNic(name="eth0", mac="52:54:00:00:00:01")],
    ),
    (AttachedDisk(guest_pb2.GuestDisk(name="root"), Path("/a/pool/root.qcow2"), volume_pb2.VOLUME_FORMAT_QCOW2),),
    (AttachedNic(guest_pb2.GuestNic(name="eth0", mac="52:54:00:00:00:01"), "br-a"),),
)
DOMAIN = f"""<domain type='kvm'><name>web</name><metadata>{{mark}}</metadata>
<os><nvram>/a/pool/root.machine/vars.fd</nvram></os>
<seclabel type='dynamic'/>
<devices>
<disk><source file='/a/pool/root.qcow2'/><backingStore type='file'><source file='/a/pool/base'/></backingStore><target dev='vda'/></disk>
<disk><source file='/a/state/kvm/seeds/web/1.iso'/><target dev='vdb'/><readonly/></disk>
<interface type='bridge'><mac address='52:54:00:00:00:01'/><source bridge='br-a'/></interface>
<serial><log file='/a/state/kvm/console/web.log'/></serial>
<emulator>/usr/bin/qemu</emulator>
</devices></domain>"""  # noqa: F541


def domain(mark: bool = True) -> str:
    made = ET.tostring(element(Mark("u", 4, "kvm", HERE)), encoding="unicode") if mark else ""
    return DOMAIN.replace("{mark}", made)


def moved() -> tuple[str, Moved]:
    here = {**places_of(HERE, Path("/a/state/kvm")), "machine": "/a/pool/root.machine"}
    there = {"driver": "/b/kvm", "disk/root": "/b/r.qcow2", "machine": "/b/r.machine"}
    both = Moved(here, there)
    return rewritten(domain(), 5, both, {"52:54:00:00:00:01": "br-b"}, monitor="/run/r.web"), both


def test_paths_bridges_and_the_mark_are_the_targets() -> None:
    text, _ = moved()
    made = ET.fromstring(text)
    assert [s.get("file") for s in made.iter("source") if s.get("file")] == ["/b/r.qcow2", "/b/kvm/seeds/web/1.iso"]
    assert made.findtext("os/nvram") == "/b/r.machine/vars.fd"
    assert [log.get("file") for log in made.iter("log")] == ["/b/kvm/console/web.log"]
    assert made.findtext("devices/emulator") == "/usr/bin/qemu"
    assert [s.get("bridge") for s in made.iter("source") if s.get("bridge")] == ["br-b"]
    assert not list(made.iter("backingStore"))
    assert made.find("seclabel") is None
    assert settled_files(made) == [Path("/b/r.qcow2")], "only what it writes to"
    mark = read_mark(ET.tostring(made.find(f"metadata/{{{NAMESPACE}}}guest"), encoding="unicode"))  # type: ignore[arg-type]
    assert (mark.uid, mark.generation) == ("u", 5)
    assert mark.running is not None
    assert str(mark.running.disks[0].path) == "/b/r.qcow2"
    assert mark.running.nics[0].bridge == "br-b"


def test_a_path_that_only_begins_like_another_stays() -> None:
    _, both = moved()
    assert both.path("/a/pool/root.qcow2.old") == "/a/pool/root.qcow2.old"
    assert both.path("/elsewhere") == "/elsewhere"


def test_a_domain_of_somebody_else_is_refused() -> None:
    with pytest.raises(ValueError, match="no mark"):
        rewritten(domain(mark=False), 5, Moved({}, {}), {}, monitor="/run/r.web")


def test_what_is_found_in_a_domain() -> None:
    assert targets_of(domain(), ["/a/pool/root.qcow2"]) == ["vda"]
    with pytest.raises(ValueError, match="no disk"):
        targets_of(domain(), ["/x"])
    assert small_files(domain(), "/a/state/kvm") == ["/a/state/kvm/seeds/web/1.iso"]
    assert not host_bound(domain())
    assert host_bound("<domain><devices><hostdev type='pci'/></devices></domain>") == ["a pci device of the host"]
