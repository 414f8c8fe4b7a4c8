"""The texts a lab is made of: container configuration, hosts file, firewall table, node identity files.

Invariant: pure. Nothing here looks at the machine; what it needs to know of it is an argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from lab.plan import LabPlan, NodePlan

#: A node that is cut from everybody is cut from this.
EVERYBODY: Final = "*"
Way = Literal["both", "out", "in"]

#: The units a node boots with, beside what Debian's systemd starts by itself; the machine's own /etc/systemd/system is
#: hidden.
ENABLED_UNITS: Final = {
    "sockets.target.wants": (
        "libvirtd.socket",
        "libvirtd-ro.socket",
        "libvirtd-admin.socket",
        "virtlogd.socket",
        "virtlockd.socket",
    ),
}

#: Units that would reach through to the machine's kernel, or that slow the boot of a node and serve nothing in it.
MASKED_UNITS: Final = (
    # These would change the one kernel that all nodes and the machine share.
    "systemd-udevd.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "systemd-udev-trigger.service",
    "systemd-udev-settle.service",
    "systemd-modules-load.service",
    "systemd-sysctl.service",
    "systemd-binfmt.service",
    "systemd-random-seed.service",
    "systemd-pstore.service",
    "systemd-remount-fs.service",
    "kmod-static-nodes.service",
    "proc-sys-fs-binfmt_misc.automount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "sys-fs-fuse-connections.mount",
    # A checkout under /tmp stays visible.
    "tmp.mount",
    # These cost time at boot.
    "console-getty.service",
    "getty.target",
    "getty-static.service",
    "lxc.service",
    "lxc-net.service",
    "lxc-monitord.service",
    "e2scrub_reap.service",
    "systemd-logind.service",
    "systemd-user-sessions.service",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-journal-flush.service",
    "systemd-tmpfiles-clean.timer",
    "systemd-resolved.service",
    "systemd-timesyncd.service",
    "systemd-firstboot.service",
    "systemd-networkd.service",
    "systemd-networkd-wait-online.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "var-lib-machines.mount",
    "ssh.service",
    "prometheus.service",
    "prometheus-node-exporter.service",
)

#: Folders of the machine that a node must not inherit: its guests, its cluster, its services.
HIDDEN_FOLDERS: Final = (
    "etc/gugus",
    "etc/libvirt/qemu",
    "etc/systemd/system",
    "var/lib/gugus",
    "var/lib/gugus-lab",
    "var/lib/libvirt/images",
    "var/lib/lxc",
    "var/log/journal",
    "var/log/libvirt",
)


def lxc_config(lab: LabPlan, node: NodePlan, *, unified_cgroups: bool) -> str:
    """Configuration of the node's container: systemd as init over an overlay of the machine's root.

    ``unified_cgroups``: the machine has cgroup v2 only. On v1, ``cgroup:mixed`` makes nested containers fail on the
    cpu/cpuacct layout, hence ``cgroup-full``. There is no /dev/kvm on purpose: libvirt probes QEMU at every start where
    it is there but of no use.
    """
    cgroups = "cgroup:rw:force" if unified_cgroups else "cgroup-full:rw:force"
    return "\n".join(
        (
            f"lxc.uts.name = {node.name}",
            f"lxc.rootfs.path = overlay:/:{node.upper}",
            "lxc.rootfs.managed = 0",
            "lxc.init.cmd = /lib/systemd/systemd",
            "lxc.signal.halt = SIGRTMIN+4",
            f"lxc.mount.auto = proc:rw sys:rw {cgroups}",
            "lxc.autodev = 1",
            "lxc.pty.max = 64",
            "lxc.tty.max = 0",
            f"lxc.console.logfile = {node.folder}/console.log",
            "lxc.console.size = 256kB",
            "lxc.apparmor.profile = unconfined",
            "lxc.cap.drop =",
            "lxc.cgroup2.devices.allow = a" if unified_cgroups else "lxc.cgroup.devices.allow = a",
            "lxc.mount.entry = /dev/net/tun dev/net/tun none bind,create=file 0 0",
            "lxc.mount.entry = /dev/fuse dev/fuse none bind,optional,create=file 0 0",
            "lxc.mount.entry = /dev/loop-control dev/loop-control none bind,optional,create=file 0 0",
            # The kernel lets a user namespace mount proc and sysfs only where whole ones are in sight (LXC's
            # nesting.conf).
            "lxc.mount.entry = proc dev/.lxc/proc proc create=dir,optional 0 0",
            "lxc.mount.entry = sys dev/.lxc/sys sysfs create=dir,optional 0 0",
            f"lxc.mount.entry = {node.watchdog} dev/watchdog none bind,create=file 0 0",
            f"lxc.mount.entry = {lab.image}/opt/gugus opt/gugus none bind,ro,create=dir 0 0",
            f"lxc.mount.entry = {lab.shared} srv/shared none bind,create=dir 0 0",
            f"lxc.mount.entry = {node.btrfs} srv/btrfs none bind,create=dir 0 0",
            "lxc.net.0.type = veth",
            "lxc.net.0.name = eth0",
            "lxc.net.0.flags = up",
            f"lxc.net.0.link = {lab.bridge}",
            f"lxc.net.0.veth.pair = {node.container}",
            f"lxc.net.0.hwaddr = {mac(node)}",
            f"lxc.net.0.ipv4.address = {node.address}/24",
            f"lxc.net.0.ipv4.gateway = {lab.gateway}",
            f"lxc.cgroup.dir.container = {node.container}",
            f"lxc.cgroup.dir.monitor = {node.container}.monitor",
            f"lxc.cgroup.dir.monitor.pivot = {node.container}.pivot",
            "",
        )
    )


def mac(node: NodePlan) -> str:
    """A locally administered hardware address that follows from the node's IPv4 address: power cuts keep it."""
    return "02:67:" + ":".join(f"{int(part):02x}" for part in node.address.split("."))


def hosts(lab: LabPlan) -> str:
    """The /etc/hosts of every node: all nodes by name."""
    lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback", f"{lab.gateway} lab-machine"]
    return "\n".join([*lines, *(f"{node.address} {node.name}" for node in lab.nodes()), ""])


def libvirtd_conf(machine_conf: str, host_uuid: str) -> str:
    """The machine's libvirtd.conf with the node's own ``host_uuid``: between equal ones live migration refuses."""
    kept = [line for line in machine_conf.splitlines() if not line.lstrip().startswith("host_uuid")]
    return "\n".join([*kept, f'host_uuid = "{host_uuid}"', ""])


@dataclass(frozen=True, slots=True, order=True)
class Cut:
    """A broken path: nothing passes between ``node`` and ``other`` (EVERYBODY: the machine and all nodes).

    ``way``: "both", or only what the node sends ("out") or what it is sent ("in") is lost.
    """

    node: str
    other: str = EVERYBODY
    way: Way = "both"

    def touches(self, name: str) -> bool:
        """Whether ``name`` is one of the two ends."""
        return name in (self.node, self.other)

    def same_path(self, other: Cut) -> bool:
        """Whether both break the same path in the same way, whichever end is named first."""
        if self.way == other.way == "both":
            return {self.node, self.other} == {other.node, other.other}
        return self == other


def cut_table(lab: LabPlan, cuts: Iterable[Cut]) -> str:
    """The nftables script that replaces the lab's table by exactly ``cuts`` in one transaction."""
    rules = [rule for cut in sorted(cuts) for rule in _rules(lab, cut)]
    head = [f"table bridge {lab.table}", f"delete table bridge {lab.table}"]
    if not rules:
        return "\n".join([*head, ""])
    chains = [_chain(name, rules) for name in ("forward", "input", "output")]
    return "\n".join([*head, f"table bridge {lab.table} {{", *chains, "}", ""])


def _chain(hook: str, rules: Sequence[str]) -> str:
    # Rules by input link mean nothing to packets the machine sends itself, and the other way round.
    useless = {"input": "oifname", "output": "iifname"}.get(hook)
    kept = [rule for rule in rules if useless is None or useless not in rule]
    body = "\n".join(f"    {rule}" for rule in kept)
    return f"  chain {hook} {{\n    type filter hook {hook} priority 0; policy accept;\n{body}\n  }}"


def _rules(lab: LabPlan, cut: Cut) -> tuple[str, ...]:
    here = lab.node(cut.node).container
    if cut.other == EVERYBODY:
        sent, received = f'iifname "{here}" drop', f'oifname "{here}" drop'
    else:
        there = lab.node(cut.other).container
        sent = f'iifname "{here}" oifname "{there}" drop'
        received = f'iifname "{there}" oifname "{here}" drop'
    return {"both": (sent, received), "out": (sent,), "in": (received,)}[cut.way]
