"""Pacemaker and Corosync of Debian with the same guest and the same fault, in a lab of their own: hosts without anything of ours.

The guest is a resource of ocf:heartbeat:VirtualDomain with the very XML that libvirt had of ours. Two ways of fencing, as ours has two:
`watchdog`, the watchdog of each host by sbd without a disk (a lost host is held for dead when `stonith-watchdog-timeout` has passed), and
`device`, the lab's power switch through the same fence agent. What is not said here is Debian's default.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bench.failover.figures import Limits, Round, Turns, summary
from bench.migrate.sides import twin
from lab import demo_guests
from lab.api import Lab, LabError
from lab.images import NoHeartbeat, read_history, two_copies, writers
from lab.judge import Judge
from lab.powerswitch import secret

T = TypeVar("T")

LAB, NODES = "pcmk", 3
GUEST, FENCE = "twin", "power"
PACKAGES = ("pacemaker", "corosync", "pacemaker-cli-utils", "resource-agents", "sbd")
BRIDGE = "gg-lan"

INSTALL_SECONDS = 300.0
WAIT_SECONDS = 120.0
POLL_SECONDS = 0.25

WATCHDOG_SECONDS = 5
"""SBD_WATCHDOG_TIMEOUT, sbd's default; `stonith-watchdog-timeout` is to be twice as long (sbd(8))."""

#: In each node at its boot: the bridge that the guest's XML names; sbd arms the lab's watchdog as its pipe wants it.
_UNIT = f"""\
[Unit]
Before=corosync.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/sbin/ip link add {BRIDGE} type bridge
ExecStart=/sbin/ip link set {BRIDGE} up
[Install]
WantedBy=multi-user.target
"""
_SBD = f"""\
SBD_PACEMAKER=yes
SBD_STARTMODE=always
SBD_DELAY_START=no
SBD_WATCHDOG_DEV=/dev/watchdog
SBD_WATCHDOG_TIMEOUT={WATCHDOG_SECONDS}
SBD_TIMEOUT_ACTION=flush,reboot
SBD_MOVE_TO_ROOT_CGROUP=no
SBD_OPTS=-T
"""
_ARM = f"[Service]\nExecStartPre=/bin/sh -c 'echo timeout {WATCHDOG_SECONDS} >/dev/watchdog'\n"


def measure(domain: str, rounds: int, result: dict[str, Any]) -> None:
    """Play rounds of both sections, and put their figures into `result`; what cannot run says why. domain: libvirt's XML of our guest."""
    lab = Lab(LAB)
    result["why"] = {}
    try:
        lab.down()
        lab.up(NODES)
        side = Pacemaker(lab, domain)
        side.install()
        with Judge(lab) as judge:
            for section, begin in (("device", side.use_device), ("watchdog", side.use_watchdog)):
                try:
                    begin()
                except (LabError, TimeoutError) as error:
                    result["why"][section] = str(error)
                    print(f"pacemaker {section}: cannot run: {error}", file=sys.stderr, flush=True)
                    continue
                _section(side, judge, section, rounds, result)
    except LabError as error:
        result["why"]["pacemaker"] = str(error)
        print(f"pacemaker: cannot run: {error}", file=sys.stderr, flush=True)
    finally:
        lab.down()


def _section(side: Pacemaker, judge: Judge, section: str, rounds: int, result: dict[str, Any]) -> None:
    found: list[Round] = []
    failed: list[str] = []
    turns = Turns()
    for number in range(rounds):
        try:
            found.append(side.play(judge, turns))
            print(f"pacemaker {section} {number + 1}/{rounds}: {found[-1]}", file=sys.stderr, flush=True)
        except (LabError, TimeoutError) as error:
            failed.append(f"round {number + 1}: {error}")
            print(f"pacemaker {section} {failed[-1]}", file=sys.stderr, flush=True)
            side.mend()
        figures = summary(found, failed, Limits())
        result[section] = {key: figures[key] for key in ("rounds", "failed", "p50_s", "max_s", "max_copies", "each_s")}


@dataclass(frozen=True, slots=True)
class State:
    """What the cluster says: who decides, who is online, where the guest runs."""

    decides: str
    online: frozenset[str]
    runs: str


class Pacemaker:
    """The cluster in a lab that is up."""

    def __init__(self, lab: Lab, domain: str) -> None:
        self._lab = lab
        self._names = [node.name for node in lab.plan.nodes()]
        self._folder = lab.plan.shared / "pacemaker"
        self._disk = self._folder / "twin.qcow2"
        self._domain = domain

    def install(self) -> None:
        """Install the packages in each node, and start the cluster without fencing. Raises LabError when they cannot be had."""
        self._folder.mkdir()
        fetch(self._folder / "packages")
        self._make_guest()
        (self._folder / "corosync.conf").write_text(corosync_conf({n.name: n.address for n in self._lab.plan.nodes()}))
        (self._folder / "bench-bridge.service").write_text(_UNIT)
        (self._folder / "sbd").write_text(_SBD)
        (self._folder / "sbd.conf").write_text(_ARM)
        for name in self._names:
            print(f"pacemaker: installing in {name}", file=sys.stderr, flush=True)
            self._install(name)
        self._all("systemctl", "start", "bench-bridge", "corosync", "pacemaker")
        self._wait("all nodes to be online", self._whole)
        self._set("rsc_defaults", "resource-stickiness", "1000")

    def use_device(self) -> None:
        """Fence by the lab's power switch."""
        parameters = {
            "ip": self._lab.plan.gateway,
            "password": secret(self._lab.plan),
            "pcmk_host_list": " ".join(self._names),
            "pcmk_host_check": "static-list",
            "pcmk_host_argument": "plug",
        }
        self._create(
            _primitive(FENCE, {"class": "stonith", "type": "fence_gugus_lab"}, parameters, (("monitor", 60, 20),))
        )
        self._set("crm_config", "stonith-action", "off")
        self._begin()

    def use_watchdog(self) -> None:
        """Fence by the hosts' own watchdogs alone. Raises LabError when sbd does not run."""
        self._stop_guest()
        if self._any("cibadmin", "--query", "--xpath", f"//primitive[@id='{FENCE}']", check=False):
            self._any("cibadmin", "--delete", "--xpath", f"//primitive[@id='{FENCE}']")
        self._all("systemctl", "stop", "pacemaker", "corosync")
        self._all("cp", f"{self._seen}/sbd", "/etc/default/sbd")
        self._all("mkdir", "-p", "/etc/systemd/system/sbd.service.d")
        self._all("cp", f"{self._seen}/sbd.conf", "/etc/systemd/system/sbd.service.d/bench.conf")
        self._all("systemctl", "enable", "sbd")
        self._all("systemctl", "start", "corosync", "pacemaker")
        self._wait("all nodes to be online", self._whole)
        self._all("systemctl", "is-active", "sbd")
        self._set("crm_config", "stonith-watchdog-timeout", f"{2 * WATCHDOG_SECONDS}s")
        self._begin()

    def play(self, judge: Judge, turns: Turns) -> Round:
        """Play one round: the guest runs on a host that does not decide for the cluster, and this host loses its power."""
        began_s = time.time()
        self._wait("all nodes to be online", self._whole)
        state = self._state()
        victim = turns.next([name for name in self._names if name != state.decides])
        if state.runs != victim:
            self._any("crm_resource", "--resource", GUEST, "--move", "--node", victim)
        self._wait(f"{GUEST} to run on {victim}", lambda: self._runs_on(judge, victim))
        self._any("crm_resource", "--resource", GUEST, "--clear")
        since = time.time()
        self._wait(f"{GUEST} to write to its disk", lambda: any(b.unix_time_s > since for b in self._writes()))
        before = len(writers(self._writes()))
        cut_s = time.time()
        self._lab.power_off(victim)
        others = [name for name in self._names if name != victim]
        with ThreadPoolExecutor(1) as background:
            back: Future[object] | None = None
            try:
                came_s = self._wait(f"{GUEST} to run elsewhere", lambda: _appeared(judge, others, cut_s))
                back = background.submit(self._lab.power_on, victim)
                self._wait(f"{GUEST} to write again", lambda: len(writers(self._writes())) > before)
            finally:
                (back or background.submit(self._lab.power_on, victim)).result()
        ran = max((len(look.of(GUEST)) for look in judge.looks if look.at_s >= began_s), default=0)
        copies = max(ran, 2 if two_copies(self._writes()) else 0)
        return Round(victim, None, None, round(came_s - cut_s, 2), copies)

    def mend(self) -> None:
        """After a round that went wrong: every host on and in the cluster."""
        self._lab.up()
        self._any("crm_resource", "--resource", GUEST, "--clear", check=False)
        self._any("crm_resource", "--cleanup", check=False)

    @property
    def _seen(self) -> str:
        """The folder as nodes see it."""
        return "/srv/shared/pacemaker"

    def _install(self, name: str) -> None:
        lab, seen = self._lab, self._seen
        units = ["gugus-agent", "gugus-manager", "gugus-watchdog"]
        lab.exec(name, ["systemctl", "disable", "--now", *units])
        words = ["env", "DEBIAN_FRONTEND=noninteractive", *_apt(f"{seen}/packages"), "--no-download", *PACKAGES]
        lab.exec(name, words, timeout=INSTALL_SECONDS, check=True)
        lab.exec(name, ["systemctl", "disable", "sbd"])
        lab.exec(name, ["cp", f"{seen}/corosync.conf", "/etc/corosync/corosync.conf"], check=True)
        lab.exec(name, ["cp", f"{seen}/bench-bridge.service", "/etc/systemd/system/"], check=True)
        lab.exec(name, ["systemctl", "enable", "bench-bridge", "corosync", "pacemaker"], check=True)

    def _make_guest(self) -> None:
        """Make the twin's disk from the same image, and its XML."""
        demo_guests.place_images(self._lab.plan)
        image = next((self._lab.plan.shared / "images").glob("*.qcow2"))
        made = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", f"../images/{image.name}"]
        self._lab.exec(self._names[0], [*made, f"{self._seen}/{self._disk.name}"], check=True)
        (self._folder / "seed.iso").write_bytes(bytes(368 * 1024))
        disks = {"vda": f"{self._seen}/{self._disk.name}", "vdz": f"{self._seen}/seed.iso"}
        (self._folder / "twin.xml").write_text(twin(self._domain, disks, "/run/twin.log", GUEST))

    def _begin(self) -> None:
        """Switch fencing on and start the guest."""
        self._set("crm_config", "stonith-enabled", "true")
        if not self._any("cibadmin", "--query", "--xpath", f"//primitive[@id='{GUEST}']", check=False):
            kind = {"class": "ocf", "provider": "heartbeat", "type": "VirtualDomain"}
            parameters = {"config": f"{self._seen}/twin.xml", "hypervisor": "qemu:///system", "force_stop": "true"}
            operations = (("monitor", 10, 30), ("start", 0, 90), ("stop", 0, 90))
            self._create(_primitive(GUEST, kind, parameters, operations))
        self._any(
            "crm_resource",
            "--resource",
            GUEST,
            "--meta",
            "--set-parameter",
            "target-role",
            "--parameter-value",
            "Started",
        )
        self._wait(f"{GUEST} to run", lambda: self._state().runs)

    def _stop_guest(self) -> None:
        self._wait("all nodes to be online", self._whole)
        self._any(
            "crm_resource",
            "--resource",
            GUEST,
            "--meta",
            "--set-parameter",
            "target-role",
            "--parameter-value",
            "Stopped",
        )
        self._wait(f"{GUEST} to stop", lambda: not self._state().runs)
        self._set("crm_config", "stonith-enabled", "false")

    def _runs_on(self, judge: Judge, node: str) -> bool:
        return self._state().runs == node and {copy.node for copy in judge.now.of(GUEST)} == {node}

    def _writes(self) -> Sequence[Any]:
        try:
            return read_history(self._disk)
        except (NoHeartbeat, subprocess.SubprocessError):
            return ()

    def _whole(self) -> bool:
        state = self._state()
        return state.online == {*self._names} and bool(state.decides)

    def _state(self) -> State:
        return read_state(self._any("crm_mon", "--one-shot", "--output-as=xml", check=False))

    def _set(self, section: str, name: str, value: str) -> None:
        self._any("crm_attribute", "--type", section, "--name", name, "--update", value)

    def _create(self, primitive: ET.Element) -> None:
        self._any(
            "cibadmin", "--create", "--scope", "resources", "--xml-text", ET.tostring(primitive, encoding="unicode")
        )

    def _any(self, *words: str, check: bool = True) -> str:
        """Run a command of the cluster in a node that is on; without `check`, return "" when it fails."""
        for name in self._names:
            if self._lab.node_status(name).power == "on":
                done = self._lab.exec(name, words, check=check)
                return done.stdout if done.returncode == 0 else ""
        raise LabError("all nodes are off")

    def _all(self, *words: str) -> None:
        """Run a command in all nodes at once."""
        with ThreadPoolExecutor(len(self._names)) as pool:
            list(pool.map(lambda name: self._lab.exec(name, words, timeout=WAIT_SECONDS, check=True), self._names))

    def _wait(self, what: str, condition: Callable[[], T | None]) -> T:
        end = time.monotonic() + WAIT_SECONDS
        while not (found := condition()):
            if time.monotonic() > end:
                raise TimeoutError(f"waited {WAIT_SECONDS:g} s in vain: {what}")
            time.sleep(POLL_SECONDS)
        return found


def fetch(folder: Path) -> None:
    """Download the packages and what they need into a folder. Raises LabError when they cannot be had."""
    (folder / "partial").mkdir(parents=True)
    if shutil.which("apt-get") is None:
        raise LabError("no apt-get: Pacemaker is taken from Debian's packages")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    words = [*_apt(str(folder)), "--download-only", *PACKAGES]
    for before in ([], ["apt-get", "update"]):
        if before:
            subprocess.run(before, env=environment, capture_output=True, timeout=INSTALL_SECONDS, check=False)
        done = subprocess.run(
            words, env=environment, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
        if done.returncode == 0:
            return
    raise LabError(f"Debian's packages cannot be downloaded: {done.stderr.strip()[-500:]}")


def _apt(archives: str) -> list[str]:
    options = ["-o", "Dpkg::Options::=--force-confold", "-o", f"Dir::Cache::archives={archives}"]
    return ["apt-get", "install", "--yes", "--no-install-recommends", *options]


def corosync_conf(addresses: dict[str, str]) -> str:
    """Return the configuration of a cluster of these nodes, with the default times.

    No real-time scheduling: containers get none where the kernel has RT group scheduling, and ours has none there either.
    """
    nodes = "".join(
        f"    node {{\n        name: {name}\n        nodeid: {number}\n        ring0_addr: {address}\n    }}\n"
        for number, (name, address) in enumerate(addresses.items(), 1)
    )
    totem = "totem {\n    version: 2\n    cluster_name: bench\n    transport: knet\n    crypto_cipher: none\n    crypto_hash: none\n}\n"
    rest = "logging {\n    to_syslog: yes\n}\nsystem {\n    sched_rr: no\n}\nquorum {\n    provider: corosync_votequorum\n}\n"
    return f"{totem}{rest}nodelist {{\n{nodes}}}\n"


def read_state(text: str) -> State:
    """Return what `crm_mon --output-as=xml` says; nobody and nothing when it says nothing."""
    try:
        root = ET.fromstring(text)
    except ET.ParseError:
        return State("", frozenset(), "")
    decides = root.find("summary/current_dc")
    online = frozenset(
        node.get("name", "")
        for node in root.findall("nodes/node")
        if node.get("online") == "true" and node.get("unclean") == "false" and node.get("pending") == "false"
    )
    runs = next((node.get("name", "") for node in root.findall(f".//resource[@id='{GUEST}']/node")), "")
    return State(decides.get("name", "") if decides is not None else "", online, runs)


def _primitive(
    name: str, kind: dict[str, str], parameters: dict[str, str], operations: Sequence[tuple[str, int, int]]
) -> ET.Element:
    """Return a resource. operations: name, interval and timeout in seconds."""
    root = ET.Element("primitive", {"id": name, **kind})
    attributes = ET.SubElement(root, "instance_attributes", {"id": f"{name}-parameters"})
    for key, value in parameters.items():
        ET.SubElement(attributes, "nvpair", {"id": f"{name}-{key}", "name": key, "value": value})
    under = ET.SubElement(root, "operations")
    for operation, interval, timeout in operations:
        about = {"id": f"{name}-{operation}", "name": operation, "interval": f"{interval}s", "timeout": f"{timeout}s"}
        ET.SubElement(under, "op", about)
    return root


def _appeared(judge: Judge, nodes: Sequence[str], after_s: float) -> float | None:
    return min((s for node in nodes if (s := judge.appeared(GUEST, node, after_s)) is not None), default=None)
