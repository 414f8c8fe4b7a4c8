"""The ranges of user ids that unprivileged containers live in.

On disk there is one range, the same on all hosts: volumes move, and are shared, cloned and rolled back, so the owner of a
file must depend neither on the host nor on the guest. A container *runs* in a range of its own; the kernel translates
between the two by an idmapped mount of each volume (mount_setattr(2)). Where it cannot, the container runs in the range
on disk, which it then shares with others of its kind.
"""

import os
import shutil
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

SUBUID = Path("/etc/subuid")
SUBGID = Path("/etc/subgid")
USERMOD_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class IdMap:
    """User and group ids 0 to `size` - 1 of a container are `base` and up on the host."""

    base: int
    size: int

    def usernsexec_args(self) -> list[str]:
        """Return the arguments of lxc-usernsexec(1) that enter this range."""
        return ["-m", f"b:0:{self.base}:{self.size}"]

    def lxc_lines(self) -> tuple[str, str]:
        """Return the lines of a container's configuration (lxc.container.conf(5))."""
        return (f"lxc.idmap = u 0 {self.base} {self.size}", f"lxc.idmap = g 0 {self.base} {self.size}")

    def host_id(self, guest_id: int) -> int:
        """Return the host's number for an id of the container; ids outside the range are not mapped (ValueError)."""
        if not 0 <= guest_id < self.size:
            raise ValueError(f"id {guest_id} is outside the range of {self.size} ids")
        return self.base + guest_id

    def mount_lines(self) -> bytes:
        """Return the id map of a user namespace for mounts that show the files on disk to this range (user_namespaces(7)).

        All ids below the range on disk stay what they are, so that a host's own files can be bind-mounted.
        """
        return f"0 0 {IDMAP.base}\n{IDMAP.base} {self.base} {self.size}\n".encode()


IDMAP = IdMap(base=1_000_000_000, size=65_536)
"""Far above the ranges that useradd(8) gives to people (SUB_UID_MIN 100000, SUB_UID_MAX 600100000, login.defs(5)).
All files on disk are of this range."""

OWN_RANGES = 16_000
"""Ranges for one container each, above the one on disk. They end below 2**31, where some programs stop understanding ids,
and systemd's own ranges begin (2147352576)."""

ALL = IdMap(base=IDMAP.base, size=IDMAP.size * (OWN_RANGES + 1))
"""The range on disk and all ranges of containers."""


def own(guest_id: int, taken: Collection[int] = ()) -> IdMap | None:
    """Return the range of a guest: the one that its id names, or the next whose base is not `taken`; None when all are."""
    for step in range(OWN_RANGES):
        base = IDMAP.base + IDMAP.size * (1 + (guest_id + step) % OWN_RANGES)
        if base not in taken:
            return IdMap(base, IDMAP.size)
    return None


def available() -> str:
    """Return "" when this host can run unprivileged containers, else why not. Blocks for a moment; needs no loop.

    newuidmap(1), which liblxc calls even as root, maps only ranges that /etc/subuid and /etc/subgid allow. A missing
    entry for root is added through usermod(8), which locks those files.
    """
    limit = Path("/proc/sys/user/max_user_namespaces")
    if limit.exists() and limit.read_text().strip() == "0":
        return "user namespaces are switched off (sysctl user.max_user_namespaces is 0)"
    if os.geteuid() != 0:
        return "the agent does not run as root and so cannot map user ids"
    end = _end_of_own_ids()
    if end < IDMAP.base + IDMAP.size:
        return f"only ids below {end} exist here, {IDMAP.base + IDMAP.size} are needed (a host that is a container?)"
    for program in ("newuidmap", "newgidmap", "lxc-usernsexec"):
        if shutil.which(program) is None:
            return f"{program} is missing (Debian packages uidmap and lxc)"
    return _allow(IDMAP)


def own_available() -> str:
    """Return "" when each container can have a range of its own, else why not. Asked after `available`."""
    end = _end_of_own_ids()
    if end < ALL.base + ALL.size:
        return f"only ids below {end} exist here, {ALL.base + ALL.size} are needed for ranges of their own"
    return _allow(ALL)


def allows(text: str, idmap: IdMap, owner: str = "root") -> bool:
    """Whether the content of a subuid(5) file lets `owner` map the whole range."""
    for line in text.splitlines():
        parts = line.strip().split(":")
        if len(parts) == 3 and parts[0] in (owner, "0") and parts[1].isdigit() and parts[2].isdigit():
            first, count = int(parts[1]), int(parts[2])
            if first <= idmap.base and idmap.base + idmap.size <= first + count:
                return True
    return False


def _allow(idmap: IdMap) -> str:
    return _allow_in(SUBUID, "--add-subuids", idmap) or _allow_in(SUBGID, "--add-subgids", idmap)


def _allow_in(file: Path, option: str, idmap: IdMap) -> str:
    if file.exists() and allows(file.read_text(), idmap):
        return ""
    ids = f"{idmap.base}-{idmap.base + idmap.size - 1}"
    try:
        subprocess.run(
            ["usermod", option, ids, "root"], check=True, capture_output=True, timeout=USERMOD_TIMEOUT_S, text=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f'{file} has no line "root:{idmap.base}:{idmap.size}" and it cannot be added ({error})'
    return ""


def _end_of_own_ids() -> int:
    """Return the end of the highest id range of our own user namespace (/proc/PID/uid_map)."""
    lines = Path("/proc/self/uid_map").read_text().splitlines()
    return max((int(line.split()[0]) + int(line.split()[2]) for line in lines), default=0)
