"""The simulated lab: every node the daemons as plain processes of one user on an address of 127.0.0.0/8; no root, no
packages.

Invariant: a node is the processes that carry its mark and one folder; power and clock act on all of them. Its network
cannot be cut, and it has no watchdog: it says so rather than pretend.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from lab import events, machine
from lab.plan import LabError, LabPlan, NodePlan
from lab.render import Way
from lab.status import LabStatus, NodeStatus, Power, lab_state
from lab.supervisor import Supervisor

#: The folders of a node: configuration, keys, durable state, runtime files (lost with the power), logs.
FOLDERS = ("etc", "etc/pki", "lib/agent", "lib/manager", "run", "log")


class SimulatedLab:
    """The lab that ``plan`` describes, as processes of this user."""

    def __init__(self, plan: LabPlan) -> None:
        self.plan = plan

    def up(self) -> None:
        """Bring every node up: its folders, its init, and the daemons that are configured."""
        self.plan.shared.mkdir(parents=True, exist_ok=True)
        for node in self.plan.nodes():
            for folder in FOLDERS:
                (node.folder / folder).mkdir(parents=True, exist_ok=True, mode=0o700)
            self.thaw(node)
            self.power_on(node)

    def down(self) -> None:
        """End every process of the lab and remove its folder."""
        for node in self.plan.nodes():
            if node.folder.exists():
                self.power_off(node)
        shutil.rmtree(self.plan.state)

    def status(self) -> LabStatus:
        """The lab at this moment."""
        plan = self.plan
        nodes = tuple(self.node_status(node) for node in plan.nodes())
        return LabStatus(plan.name, plan.kind, lab_state(nodes), f"{plan.network}.0/24", False, str(plan.state), nodes)

    def node_status(self, node: NodePlan) -> NodeStatus:
        """One node at this moment."""
        pids = self._pids(node)
        frozen = bool(pids) and all(_stopped(pid) for pid in pids)
        power: Power = "on" if pids else "off"
        system = "frozen" if frozen else "running" if pids else "off"
        return NodeStatus(node.name, node.address, power, frozen, (), self._boots(node), system)

    def power_off(self, node: NodePlan) -> None:
        """End all processes of ``node`` at once and wipe its runtime folder."""
        pids = self._pids(node)
        if pids:
            events.append(self.plan.log, node.name, "power-off")
        # Held first, so that nothing sees another process die or starts it again.
        self._signal(node, signal.SIGSTOP)
        self._signal(node, signal.SIGKILL)
        if not machine.wait_for(lambda: not self._signal(node, signal.SIGKILL), machine.COMMAND_SECONDS):
            raise LabError(f"processes of {node.name} survive SIGKILL: {sorted(self._pids(node))}")
        shutil.rmtree(node.folder / "run", ignore_errors=True)
        (node.folder / "run").mkdir(parents=True, mode=0o700)

    def power_on(self, node: NodePlan) -> None:
        """Start the init of ``node``, which starts the daemons that are configured."""
        if self._pids(node):
            return
        node.boots.write_text(f"{self._boots(node) + 1}\n")
        self._init(node).start()
        events.append(self.plan.log, node.name, "power-on", boot=self._boots(node))

    def freeze(self, node: NodePlan) -> None:
        """Hang ``node``: every process of it is stopped."""
        if not self._signal(node, signal.SIGSTOP):
            raise LabError(f"node {node.name} is off: nothing to freeze (gugus-lab power-on {node.name})")
        machine.wait_for(lambda: all(map(_stopped, self._pids(node))), 5.0)
        events.append(self.plan.log, node.name, "freeze")

    def thaw(self, node: NodePlan) -> None:
        """Let ``node`` go on."""
        if any(map(_stopped, self._pids(node))):
            self._signal(node, signal.SIGCONT)
            events.append(self.plan.log, node.name, "thaw")

    def cut(self, node: NodePlan, other: NodePlan | None, _way: Way) -> None:
        """Always raises LabError: all simulated nodes share the user's loopback."""
        ends = f"{node.name} from {other.name if other else 'everybody'}"
        raise LabError(f"cannot cut {ends}: simulated nodes share one loopback; a real lab can (gugus-lab up, as root)")

    def heal(self, node: NodePlan) -> None:
        """Nothing of ``node`` is ever cut, so all is mended."""

    def command(self, node: NodePlan, words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """The command ``words`` with the environment that leads the project's programs to the node's files."""
        status = self.node_status(node)
        if status.power == "off" or status.frozen:
            what, remedy = ("hangs", "thaw") if status.frozen else ("is off", "power-on")
            raise LabError(f"node {node.name} {what} (gugus-lab {remedy} {node.name})")
        etc = node.folder / "etc"
        return list(words), os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
            "GUGUS_NODE": node.name,
            "GUGUS_NODE_ADDRESS": node.address,
            "GUGUS_NODE_FOLDER": str(node.folder),
            "GUGUS_AGENT_CONFIG": str(etc / "agent.yaml"),
            "GUGUS_MANAGER_CONFIG": str(etc / "manager.yaml"),
        }

    def refresh(self) -> None:
        """Start every daemon again, which runs from the checkout anyway."""
        for node in self.plan.nodes():
            if self._pids(node):
                self.power_off(node)
                self.power_on(node)

    def _init(self, node: NodePlan) -> Supervisor:
        return Supervisor("lab.simnode", self.plan.name, self.plan.state, node.name, (self._mark(node),))

    def _boots(self, node: NodePlan) -> int:
        try:
            return int(node.boots.read_text())
        except (OSError, ValueError):
            return 0

    def _pids(self, node: NodePlan) -> set[int]:
        """The live processes of the node: whatever inherited its mark, in any session."""
        mark = os.fsencode(self._mark(node)) + b"\0"
        found = set()
        for folder in Path("/proc").glob("[0-9]*"):
            # Other users' processes cannot be read, and are none of the node's.
            with contextlib.suppress(OSError):
                if mark in (folder / "environ").read_bytes() and machine.process_runs(int(folder.name)):
                    found.add(int(folder.name))
        return found

    def _mark(self, node: NodePlan) -> str:
        return f"GUGUS_NODE_FOLDER={node.folder}"

    def _signal(self, node: NodePlan, number: signal.Signals) -> bool:
        """Send a signal to every process of the node; tells whether there was one."""
        pids = self._pids(node)
        for pid in pids:
            machine.send_signal(pid, number)
        return bool(pids)


def _stopped(pid: int) -> bool:
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    return False
