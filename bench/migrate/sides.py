"""The two sides: the guest as Gugus runs and moves it, and its twin as virsh does."""

from __future__ import annotations

import re
import time
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass

from gugus.agent.v1.volume_pb2 import DirPool, PoolSpec
from gugus.cluster.v1.guest_pb2 import DiskSpec, GuestSpec
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE

from bench.migrate.pings import Guest, Pings
from lab import demo_guests
from lab.api import Lab, LabError
from lab.operator import Operator

SOURCE, TARGET, BRIDGE = "n1", "n2", "gg-lan"
GUEST, TWIN = "mover", "mover-twin"
TWIN_MAC = "52:54:00:6d:76:72"
LOCAL_POOL, LOCAL_PATH = "bench-local", "/var/lib/gugus-bench"
SHARED_PATH = "/srv/shared/pool/gugus"
MEMORY_BYTES = 512 * 2**20
DISK_BYTES = 2**30
SEED_BYTES = 368 * 1024
"""As large as the guest's own seed; the twin's is empty, and its image needs none."""

WAIT_SECONDS = 90.0

#: In the guest: 96 MiB of memory in use, of which 24 MiB are rewritten over and over, with a rest between two MiB: a steady rate.
LOAD = (
    "mount -t tmpfs -o size=200m t /mnt 2>/dev/null || mkdir -p /mnt && mount -t tmpfs -o size=200m t /mnt;"
    " head -c 1048576 /dev/urandom >/mnt/m; i=0; while [ $i -lt 96 ]; do cp /mnt/m /mnt/$i; i=$((i+1)); done;"
    " (while :; do i=0; while [ $i -lt 24 ]; do cp /mnt/m /mnt/$i; sleep 0.05; i=$((i+1)); done; done) &"
)
LOAD_SECONDS = 6.0


@dataclass(frozen=True, slots=True)
class Round:
    """One migration: time in all, time without an answer to pings, what the side itself tells of its downtime, pings lost elsewhere."""

    total_s: float
    silence_ms: float
    told_ms: float
    lost: int


def prepare(lab: Lab, operator: Operator) -> None:
    """Make the network and the pools, and have libvirtd of the second host listen for virsh."""
    demo_guests.make_network(operator)
    demo_guests.make_pool(operator, lab.plan)
    for source in demo_guests.place_images(lab.plan):
        demo_guests.import_image(operator, source)
    demo_guests.remove_guests(operator, (GUEST,))
    sdk = operator.gugus.pools
    if LOCAL_POOL not in {pool.meta.name for pool in operator.run(sdk.list())}:
        operator.run(sdk.create(PoolSpec(name=LOCAL_POOL, dir=DirPool(path=LOCAL_PATH))))
    listen = 'grep -q "^auth_tcp" /etc/libvirt/libvirtd.conf || echo \'auth_tcp = "none"\' >>/etc/libvirt/libvirtd.conf'
    for node in (SOURCE, TARGET):
        lab.exec(node, ["sh", "-c", listen], check=True)
        sockets = [f"libvirtd{kind}.socket" for kind in ("", "-ro", "-admin")]
        lab.exec(node, ["systemctl", "stop", "gugus-agent.service", "libvirtd.service", *sockets])
        lab.exec(node, ["systemctl", "start", "libvirtd-tcp.socket", *sockets, "gugus-agent.service"], check=True)
    operator.wait("both nodes to be back", lambda: not _offline(operator), WAIT_SECONDS)


def _offline(operator: Operator) -> list[str]:
    return [node.meta.name for node in operator.nodes() if node.status.state != NODE_STATE_ONLINE]


class Ours:
    """A guest of the cluster."""

    def __init__(self, lab: Lab, operator: Operator, *, disk: bool) -> None:
        self._lab, self._operator, self._disk = lab, operator, disk

    def round(self) -> Round:
        """Start it, load it, move it, remove it."""
        operator, sdk = self._operator, self._operator.gugus
        operator.do(sdk.guests.create(GUEST, self._spec()))
        try:
            guest = load(self._lab, GUEST)
            with Pings(self._lab, [SOURCE, TARGET], BRIDGE, guest) as pings:
                time.sleep(1.0)
                began = time.monotonic()
                task = operator.do(sdk.migrations.migrate(GUEST, TARGET))
                total = time.monotonic() - began
                time.sleep(1.5)
            told_ms = _figure(r"stood still for (\d+) ms", task.log[-1].text)
            silence = pings.silence()
            return Round(round(total, 3), silence.longest_ms, told_ms, silence.lost_elsewhere)
        finally:
            demo_guests.remove_guests(operator, (GUEST,))

    def domain(self) -> str:
        """Return the XML that libvirt has of it while it runs."""
        self._operator.do(self._operator.gugus.guests.create(GUEST, self._spec()))
        try:
            return self._lab.exec(SOURCE, ["virsh", "dumpxml", "--migratable", GUEST], check=True).stdout
        finally:
            demo_guests.remove_guests(self._operator, (GUEST,))

    def _spec(self) -> GuestSpec:
        spec = demo_guests.vm_spec(SOURCE, ha=False)
        spec.memory_bytes = MEMORY_BYTES
        if self._disk:
            spec.disks.append(DiskSpec(name="data", pool=LOCAL_POOL, size_bytes=DISK_BYTES))
        return spec


class Virsh:
    """The same domain without the cluster. domain: the XML that libvirt has of the cluster's guest while it runs."""

    def __init__(self, lab: Lab, domain: str, *, disk: bool) -> None:
        self._lab, self._domain, self._disk = lab, domain, disk

    def round(self) -> Round:
        """Start it, load it, move it, remove it."""
        lab = self._lab
        root, data, seed = f"{SHARED_PATH}/{TWIN}.qcow2", f"{LOCAL_PATH}/{TWIN}.qcow2", f"{LOCAL_PATH}/{TWIN}.iso"
        for node in (SOURCE, TARGET):
            lab.exec(node, ["mkdir", "-p", LOCAL_PATH], check=True)
            lab.exec(node, ["qemu-img", "create", "-q", "-f", "qcow2", data, str(DISK_BYTES)], check=True)
            lab.exec(node, ["truncate", "-s", str(SEED_BYTES), seed], check=True)
        image = f"{SHARED_PATH}/images/{demo_guests.VM_IMAGE}.qcow2"
        made = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", image, root]
        lab.exec(SOURCE, made, check=True)
        try:
            xml = twin(self._domain, {"vda": root, "vdb": data, "vdz": seed}, f"{LOCAL_PATH}/{TWIN}.log")
            lab.exec(SOURCE, ["tee", "/run/twin.xml"], text=xml, check=True)
            lab.exec(SOURCE, ["virsh", "create", "/run/twin.xml"], check=True)
            guest = load(lab, TWIN)
            move = ["virsh", "--timing", "migrate", "--live", "--p2p", "--unsafe"]
            move += ["--copy-storage-all", "--migrate-disks", "vdb"] if self._disk else []
            with Pings(lab, [SOURCE, TARGET], BRIDGE, guest) as pings:
                time.sleep(1.0)
                said = lab.exec(SOURCE, [*move, TWIN, f"qemu+tcp://{TARGET}/system"], timeout=120, check=True).stdout
                time.sleep(1.5)
            told = lab.exec(TARGET, ["virsh", "domjobinfo", TWIN, "--completed"]).stdout
            silence = pings.silence()
            total_s = _figure(r"Time: ([\d.]+) ms", said) / 1000
            downtime_ms = _figure(r"Total downtime:\s+(\d+)\s+ms", told)
            return Round(round(total_s, 3), silence.longest_ms, downtime_ms, silence.lost_elsewhere)
        finally:
            for node in (SOURCE, TARGET):
                lab.exec(node, ["virsh", "destroy", TWIN])
                lab.exec(node, ["rm", "-f", data, seed])
            lab.exec(SOURCE, ["rm", "-f", root])


def twin(domain: str, disks: Mapping[str, str], log: str, name: str = TWIN) -> str:
    """Return the XML of a guest of the cluster as that of its twin: all is the same but for its names and its files.

    disks: the twin's files, by the names of disks in the guest. log: where its serial console is kept.
    """
    root = ET.fromstring(domain)
    for tag, text in (("name", name), ("uuid", str(uuid.uuid4()))):
        _of(root, tag).text = text
    for tag in ("metadata", "genid"):  # the cluster's mark: its agents would take the twin for theirs
        if (found := root.find(tag)) is not None:
            root.remove(found)
    for disk in root.findall("devices/disk"):
        source = _of(disk, "source")
        source.set("file", disks[_of(disk, "target").get("dev", "")])
        for label in source.findall("seclabel"):  # whose its files are is libvirt's to see to, as it is by default
            source.remove(label)
    for file in root.findall("devices/*/log"):
        file.set("file", log)
    for nic in root.findall("devices/interface"):
        _of(nic, "mac").set("address", TWIN_MAC)
        if (target := nic.find("target")) is not None:
            nic.remove(target)
    return ET.tostring(root, encoding="unicode")


def _of(parent: ET.Element, tag: str) -> ET.Element:
    if (found := parent.find(tag)) is None:
        raise LabError(f"the guest's XML has no <{tag}> in <{parent.tag}>")
    return found


def _figure(pattern: str, text: str) -> float:
    """Return the number that a pattern finds. Raises LabError when there is none."""
    if (found := re.search(pattern, text)) is None:
        raise LabError(f"no {pattern!r} in {text!r}")
    return float(found[1])


def load(lab: Lab, name: str) -> Guest:
    """Wait until a guest on the source has booted, begin its load through its serial console, and return where it is."""
    end = time.monotonic() + WAIT_SECONDS
    while (guest := _look(lab, name)) is None:
        if time.monotonic() > end:
            raise LabError(f"{name} has no address after {WAIT_SECONDS:g} s")
        time.sleep(0.5)
    pty = lab.exec(SOURCE, ["virsh", "ttyconsole", name], check=True).stdout.strip()
    lab.exec(SOURCE, ["tee", pty], text=f"\n{LOAD}\n", check=True)
    time.sleep(LOAD_SECONDS)
    return guest


def _look(lab: Lab, name: str) -> Guest | None:
    """Return a guest of the source whose address is known there."""
    mac = re.search(r"<mac address='([0-9a-f:]+)'", lab.exec(SOURCE, ["virsh", "dumpxml", name]).stdout)
    if mac is None:
        return None
    neighbours = lab.exec(SOURCE, ["ip", "-4", "neighbour", "show", "dev", BRIDGE]).stdout
    known = re.search(rf"^(\S+) .*lladdr {mac[1]}", neighbours, re.MULTILINE)
    return Guest(known[1], mac[1]) if known else None
