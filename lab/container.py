"""One real node: a system container of LXC whose power, clock and disk the lab controls as a machine room would.

Invariant: the node's state is read from the kernel (cgroups, links), never remembered, so every operation can be
repeated from any half-way state; whatever it waits for is bounded in time.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

from lab import machine, render
from lab.image import layer_folder, start_disk
from lab.plan import LabError, LabPlan, NodePlan

#: Seconds from power-on until systemd in the node has started everything; measured 4 to 10 on 2 cores with three nodes.
BOOT_SECONDS = 90.0
#: The states of systemd that mean: everything that could start has started.
READY = ("running", "degraded")
#: Size of the btrfs file system that each node has at /srv/btrfs: a sparse file, so it costs what is written.
BTRFS_BYTES = 2 * 2**30
#: What a command in a node finds as its environment.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}

_MACHINE_LIBVIRTD = Path("/etc/libvirt/libvirtd.conf")


class Container:
    """The container of ``node`` in ``lab``."""

    def __init__(self, lab: LabPlan, node: NodePlan) -> None:
        self.lab = lab
        self.node = node

    def create(self) -> None:
        """Make the node's disk with its own identity, if there is none, and write its configuration anew."""
        node = self.node
        if not node.upper.exists():
            new = node.upper.with_name(node.upper.name + ".new")
            shutil.rmtree(new, ignore_errors=True)
            start_disk(self.lab.image, new)
            self._identity(new)
            new.rename(node.upper)
        layer_folder(node.upper, "etc").joinpath("hosts").write_text(render.hosts(self.lab))
        if not node.watchdog.is_fifo():
            node.watchdog.unlink(missing_ok=True)
            os.mkfifo(node.watchdog, 0o600)
        config = self.lab.lxcpath / node.container / "config"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(render.lxc_config(self.lab, node, unified_cgroups=machine.unified_cgroups()))

    def _identity(self, disk: Path) -> None:
        etc = layer_folder(disk, "etc")
        etc.joinpath("hostname").write_text(f"{self.node.name}\n")
        etc.joinpath("machine-id").write_text(f"{uuid.uuid4().hex}\n")
        conf = _MACHINE_LIBVIRTD.read_text() if _MACHINE_LIBVIRTD.exists() else ""
        layer_folder(disk, "etc/libvirt").joinpath("libvirtd.conf").write_text(
            render.libvirtd_conf(conf, str(uuid.uuid4()))
        )
        (layer_folder(disk, "etc/iscsi") / "initiatorname.iscsi").write_text(
            f"InitiatorName=iqn.1993-08.org.debian:01:{secrets.token_hex(6)}\n"
        )

    @property
    def on(self) -> bool:
        """Whether anything runs in the node."""
        return bool(machine.cgroup_pids(self.node.container))

    @property
    def frozen(self) -> bool:
        """Whether the node hangs."""
        return machine.is_frozen(self.node.container)

    @property
    def boots(self) -> int:
        """How often the node was powered on."""
        try:
            return int(self.node.boots.read_text())
        except (OSError, ValueError):
            return 0

    def power_on(self) -> bool:
        """Switch the node on and return when its systemd was started; tells whether it was off."""
        if self.on:
            return False
        self._clear()
        machine.mount_btrfs(self.node.btrfs.with_suffix(".img"), self.node.btrfs, BTRFS_BYTES)
        self.node.boots.write_text(f"{self.boots + 1}\n")
        command = ["lxc-start", "-P", str(self.lab.lxcpath), "-n", self.node.container, "-d"]
        log = self.node.folder / "lxc.log"
        log.unlink(missing_ok=True)
        try:
            machine.run([*command, "-o", str(log), "-l", "WARN"], seconds=30)
        except LabError as error:
            text = log.read_text(errors="replace")[-3000:] if log.exists() else ""
            raise LabError(f"node {self.node.name} did not start: {error}\n{text}") from None
        return True

    def power_off(self) -> bool:
        """Cut the node's power: all of its memory is gone at once, its disk stays; tells whether it was on."""
        was_on = self.on
        machine.kill_cgroup(self.node.container)
        self._clear()
        return was_on

    def _clear(self) -> None:
        """Remove what a stopped container left: normally its monitor does that within milliseconds."""
        node = self.node
        monitor = f"{node.container}.monitor"
        if not machine.wait_for(lambda: not machine.cgroup_pids(monitor), 5.0):
            machine.kill_cgroup(monitor)
        for name in (node.container, monitor, f"{node.container}.pivot"):
            machine.remove_cgroup(name)
        machine.remove_link(node.container)

    def freeze(self) -> None:
        """Hang the node: nothing in it runs, its network link stays up."""
        machine.set_frozen(self.node.container, True)

    def thaw(self) -> None:
        """Let a hung node go on."""
        machine.set_frozen(self.node.container, False)

    def command(self, words: Sequence[str]) -> list[str]:
        """The command of the machine that runs ``words`` in the node as root."""
        settings = [word for key, value in ENVIRONMENT.items() for word in ("-v", f"{key}={value}")]
        attach = ["lxc-attach", "-P", str(self.lab.lxcpath), "-n", self.node.container, "--clear-env", *settings]
        return [*attach, "--", *words]

    def system_state(self) -> str:
        """What systemd says of the node ("starting", "running", "degraded", ...), "off", or "frozen"."""
        if not self.on:
            return "off"
        if self.frozen:
            return "frozen"
        with contextlib.suppress(subprocess.TimeoutExpired, OSError):
            done = subprocess.run(
                self.command(["systemctl", "is-system-running"]), capture_output=True, text=True, timeout=5, check=False
            )
            state = done.stdout.strip()
            return state if state and state != "offline" else "starting"
        return "unknown"

    def wait_ready(self, seconds: float = BOOT_SECONDS) -> None:
        """Wait until the node has booted; raises LabError that says what it hangs on."""
        if machine.wait_for(lambda: self.system_state() in READY, seconds, poll=0.25):
            return
        jobs = f"see {self.node.folder}/console.log"
        with contextlib.suppress(LabError):
            jobs = "it waits for:\n" + machine.run(self.command(["systemctl", "list-jobs", "--no-pager"]), seconds=5)
        raise LabError(f"node {self.node.name} did not boot within {seconds:g} s; {jobs}")

    def destroy(self) -> None:
        """Cut the power and remove the node with its disk."""
        self.power_off()
        machine.unmount_under(self.node.folder)
        shutil.rmtree(self.lab.lxcpath / self.node.container, ignore_errors=True)
        shutil.rmtree(self.node.folder)
