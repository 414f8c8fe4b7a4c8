"""The real lab: containers on a bridge of the machine, with an image, cuts in the firewall and watchdogs that reset.

Invariant: ``up`` and ``down`` reach the same end from any half-way state; after ``down`` the machine has no process,
cgroup, mount, link, table or folder of the lab.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab import events, image, machine, render, supervisor
from lab.container import ENVIRONMENT, READY, Container
from lab.plan import LabError, LabPlan, NodePlan
from lab.status import LabStatus, NodeStatus, Power, cut_from, lab_state

#: What a machine needs; the Debian package that has it.
PROGRAMS = {"lxc-start": "lxc", "nft": "nftables", "ip": "iproute2", "systemctl": "systemd", "virsh": "libvirt-clients"}
#: liblxc keeps its locks of a container in a folder named like its path.
_LXC_LOCKS = Path("/run/lxc/lock")


def why_not() -> str | None:
    """Why this machine cannot have a real lab, or None when it can."""
    if sys.platform != "linux":
        return "a real lab needs Linux"
    if os.geteuid() != 0:
        return "a real lab needs root"
    missing = [f"{program} (package {package})" for program, package in PROGRAMS.items() if not shutil.which(program)]
    if missing:
        return f"a real lab needs {', '.join(missing)}"
    if not Path("/dev/net/tun").exists():
        return "a real lab needs /dev/net/tun"
    if (
        "overlay" not in Path("/proc/filesystems").read_text()
        and subprocess.run(["modprobe", "overlay"], check=False).returncode
    ):
        return "a real lab needs the overlay file system in the kernel"
    return None


class RealLab:
    """The lab that ``plan`` describes, on this machine."""

    def __init__(self, plan: LabPlan) -> None:
        self.plan = plan
        self._cuts_file = plan.state / "cuts.json"
        self._supervisor = supervisor.Supervisor("lab.hardware", plan.name, plan.state)
        self._switch = supervisor.Supervisor("lab.powerswitch", plan.name, plan.state)

    def up(self) -> None:
        """Bring every node up: existing, switched on, booted, thawed and connected."""
        reason = why_not()
        if reason:
            raise LabError(f"{reason}; `gugus-lab up --simulated` needs nothing")
        plan = self.plan
        for folder in (plan.shared, plan.lxcpath, plan.state / "nodes"):
            folder.mkdir(parents=True, exist_ok=True)
        containers = [self._container(node) for node in plan.nodes()]
        if not plan.image.exists() or not any(container.on for container in containers):
            image.build(plan.image)
        machine.make_bridge(plan.bridge, f"{plan.gateway}/24")
        self._set_cuts(())
        for container in containers:
            container.node.folder.mkdir(parents=True, exist_ok=True)
            if not container.on:
                container.create()
        self._supervisor.start()
        self._switch.start()
        with ThreadPoolExecutor(len(containers)) as pool:
            list(pool.map(self._bring_up, containers))

    def _bring_up(self, container: Container) -> None:
        with self._lock(container.node):
            container.thaw()
            if container.power_on():
                events.append(self.plan.log, container.node.name, "power-on", boot=container.boots)
        container.wait_ready()

    def down(self) -> None:
        """Take everything of the lab away, also what a crash left half-made."""
        plan = self.plan
        self._switch.stop()
        self._supervisor.stop()
        known = {path.name for path in (plan.state / "nodes").glob("n*")} if plan.state.exists() else set()
        nodes = [node for node in plan.nodes() if node.name in known or machine.cgroup_folders(node.container)]
        if nodes:
            with ThreadPoolExecutor(len(nodes)) as pool:
                list(pool.map(lambda node: self._container(node).destroy(), nodes))
        with contextlib.suppress(LabError):
            machine.remove_table(plan.table)
        machine.remove_link(plan.bridge)
        machine.unmount_under(plan.state)
        shutil.rmtree(_LXC_LOCKS / str(plan.lxcpath).lstrip("/"), ignore_errors=True)
        _remove_empty(_LXC_LOCKS / str(plan.state).lstrip("/"), _LXC_LOCKS)
        if plan.state.exists():
            shutil.rmtree(plan.state)

    def status(self) -> LabStatus:
        """The lab at this moment."""
        with ThreadPoolExecutor(self.plan.count) as pool:
            nodes = tuple(pool.map(self.node_status, self.plan.nodes()))
        plan = self.plan
        running = self._supervisor.running
        return LabStatus(
            plan.name, plan.kind, lab_state(nodes), f"{plan.network}.0/24", running, str(plan.state), nodes
        )

    def node_status(self, node: NodePlan) -> NodeStatus:
        """One node at this moment."""
        container = self._container(node)
        system = container.system_state()
        cut = cut_from(node.name, self._cuts())
        power: Power = "off" if system == "off" else "on"
        return NodeStatus(node.name, node.address, power, container.frozen, cut, container.boots, system)

    def power_off(self, node: NodePlan) -> None:
        """Cut the power of ``node``."""
        with self._lock(node):
            # Logged before it happens: a timeline must not count the cut itself as survival.
            if self._container(node).on:
                events.append(self.plan.log, node.name, "power-off")
            self._container(node).power_off()

    def power_on(self, node: NodePlan) -> None:
        """Switch ``node`` on and wait until it has booted."""
        self._supervisor.start()
        container = self._container(node)
        with self._lock(node):
            if container.power_on():
                events.append(self.plan.log, node.name, "power-on", boot=container.boots)
        if not container.frozen:
            container.wait_ready()

    def freeze(self, node: NodePlan) -> None:
        """Hang ``node``."""
        self._set_frozen(node, True)

    def thaw(self, node: NodePlan) -> None:
        """Let ``node`` go on."""
        self._set_frozen(node, False)

    def _set_frozen(self, node: NodePlan, frozen: bool) -> None:
        container = self._container(node)
        with self._lock(node):
            if frozen and not container.on:
                raise LabError(f"node {node.name} is off: nothing to freeze (gugus-lab power-on {node.name})")
            if container.frozen != frozen:
                (container.freeze if frozen else container.thaw)()
                events.append(self.plan.log, node.name, "freeze" if frozen else "thaw")

    def cut(self, node: NodePlan, other: NodePlan | None, way: render.Way) -> None:
        """Cut ``node`` from ``other``, or from the machine and every node. The shared folder is no network: stays."""
        cut = render.Cut(node.name, other.name if other else render.EVERYBODY, way)
        with machine.locked(self.plan.state / "cuts.lock"):
            cuts = self._cuts()
            if not any(cut.same_path(known) for known in cuts):
                self._set_cuts([*cuts, cut])
                events.append(self.plan.log, node.name, "cut", other=cut.other, way=way)

    def heal(self, node: NodePlan) -> None:
        """Mend every cut that ``node`` is an end of."""
        with machine.locked(self.plan.state / "cuts.lock"):
            cuts = self._cuts()
            kept = [cut for cut in cuts if not cut.touches(node.name)]
            if len(kept) != len(cuts):
                self._set_cuts(kept)
                events.append(self.plan.log, node.name, "heal")

    def command(self, node: NodePlan, words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """The command, with environment, that runs ``words`` in ``node``; raises LabError if that is off or hangs."""
        container = self._container(node)
        if not container.on:
            raise LabError(f"node {node.name} is off (gugus-lab power-on {node.name})")
        if container.frozen:
            raise LabError(f"node {node.name} hangs (gugus-lab thaw {node.name})")
        return container.command(words), ENVIRONMENT

    def refresh(self) -> None:
        """Bring the checkout's code and units to every running node, and restart the daemons there.

        One after the other, as on real hosts: in one transaction systemd would keep the agent down until the others are up
        again, which an armed host with HA guests may not live to see.
        """
        home = self.plan.image / image.HOME
        image.install_packages(image.site_packages(home))
        shutil.copytree(image.SOURCE / "systemd", home / "systemd", dirs_exist_ok=True)
        units = ["gugus-watchdog.service", "gugus-agent.service", "gugus-manager.service"]
        for container in (self._container(node) for node in self.plan.nodes()):
            if container.system_state() in READY:
                machine.run(container.command(["sh", f"/{image.HOME}/systemd/install.sh"]), seconds=60)
                for unit in units:
                    machine.run(container.command(["systemctl", "try-restart", unit]), seconds=90)

    def _container(self, node: NodePlan) -> Container:
        return Container(self.plan, node)

    def _lock(self, node: NodePlan) -> contextlib.AbstractContextManager[None]:
        return machine.locked(node.folder / "lock")

    def _cuts(self) -> list[render.Cut]:
        try:
            return [render.Cut(*cut) for cut in json.loads(self._cuts_file.read_text())]
        except FileNotFoundError:
            return []

    def _set_cuts(self, cuts: Iterable[render.Cut]) -> None:
        cuts = list(cuts)
        machine.load_table(render.cut_table(self.plan, cuts))
        self._cuts_file.write_text(json.dumps([[cut.node, cut.other, cut.way] for cut in cuts]))


def _remove_empty(folder: Path, top: Path) -> None:
    """Remove ``folder`` and those above it up to ``top`` as far as they are empty."""
    while folder != top and top in folder.parents:
        with contextlib.suppress(OSError):
            folder.rmdir()
        folder = folder.parent
