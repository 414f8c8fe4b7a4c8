"""First-boot settings of a container: what cloud-init does in a virtual machine, written into the root file system.

Done once for each guest (its uid) and each time that the user asks for it again; the marker is written last, so a start
that was cut short does it anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gugus.agent.v1 import boot_pb2

from agent.compute.lxc import accounts, addresses
from agent.compute.lxc.rootfs import Tree

MARKER = "etc/gugus-first-boot"
"""File in the container that says for which guest (its uid) the settings were applied already."""

_ZONES = "/usr/share/zoneinfo"


@dataclass(frozen=True, slots=True)
class FirstBootSettings:
    """What is written; `guest_uid` tells first from later starts. `nics` are the interfaces' names."""

    guest_uid: str
    hostname: str
    boot: boot_pb2.FirstBoot
    nics: Sequence[str] = ()

    @property
    def mark(self) -> str:
        """What the marker says once these are applied."""
        return f"{self.guest_uid}:{self.boot.again}" if self.boot.again else self.guest_uid


def apply_first_boot(rootfs: Path, settings: FirstBootSettings, owner_id: int) -> bool:
    """Write the settings once; tells whether it was done now. `owner_id` is the container's root on disk.

    Raises OSError; then the marker is not written and the next start tries again.
    """
    with Tree(rootfs, owner_id) as tree:
        before = tree.read(MARKER)
        if before == settings.mark:
            return False
        if (before or "").partition(":")[0] != settings.guest_uid and tree.read("etc/machine-id"):
            tree.write("etc/machine-id", "", 0o444)  # another guest's: systemd makes a new one (machine-id(5))
        _host(tree, settings)
        _zone(tree, settings.boot.timezone)
        accounts.apply(tree, settings.boot)
        addresses.apply(tree, settings.boot, settings.nics)
        tree.write(MARKER, settings.mark)
    return True


def _host(tree: Tree, settings: FirstBootSettings) -> None:
    tree.write("etc/hostname", f"{settings.hostname}\n")
    hosts = tree.read("etc/hosts") or "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
    kept = [line for line in hosts.splitlines() if not line.startswith("127.0.1.1")]
    tree.write("etc/hosts", "\n".join([*kept, f"127.0.1.1\t{settings.hostname}", ""]))


def _zone(tree: Tree, zone: str) -> None:
    if zone:
        tree.link("etc/localtime", f"{_ZONES}/{zone}")
        tree.write("etc/timezone", f"{zone}\n")
