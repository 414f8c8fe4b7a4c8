"""The cgroups within a container, as they are before CRIU ends it, made the same after it has made those it knows of.

CRIU 3.17 makes the cgroups that have processes, without controllers and owned by root; systemd watches files that appear
only with a controller, keeps slices that have no process, and writes to all of them with the container's ids. cgroup v2
only. No module of the agent is imported: the helper that CRIU calls uses this, too.
"""

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from typing import TypedDict

_CONTROL = "cgroup.subtree_control"
_DEFAULT_MODE = 0o755


class Group(TypedDict):
    """A cgroup: its path below the container's, its mode and owner, its children's controllers, owners of its files."""

    path: str
    mode: int
    owner: tuple[int, int]
    controllers: list[str]
    files: dict[str, tuple[int, int, int]]


def record(top: str) -> list[Group]:
    """Return a container's cgroup and all below, parents first. Those that vanish meanwhile are left out. Raises OSError."""
    found = []
    for folder, _, _ in os.walk(top):
        try:
            found.append(_group(top, folder))
        except OSError:
            if folder == top:
                raise
    return found


def restore(top: str, groups: Sequence[Group]) -> None:
    """Make a container's cgroups what they were. Raises OSError."""
    for group in groups:
        folder = os.path.normpath(os.path.join(top, group["path"]))
        if os.path.commonpath([top, folder]) != top:
            raise OSError(f"{group['path']} leads out of the container's cgroup")
        if not os.path.isdir(folder):
            os.mkdir(folder, _DEFAULT_MODE)
        os.chown(folder, *group["owner"])
        os.chmod(folder, group["mode"])
        for name, (mode, uid, gid) in group["files"].items():
            with suppress(FileNotFoundError):  # of a controller that the parent has not been given yet, or never here
                os.chown(os.path.join(folder, os.path.basename(name)), uid, gid)
                os.chmod(os.path.join(folder, os.path.basename(name)), mode)
        for controller in group["controllers"]:
            _write(os.path.join(folder, _CONTROL), f"+{controller}")


def _group(top: str, folder: str) -> Group:
    own = os.stat(folder)
    files = {}
    for entry in os.scandir(folder):
        if entry.is_file(follow_symlinks=False):
            with suppress(FileNotFoundError):
                told = entry.stat(follow_symlinks=False)
                files[entry.name] = (stat.S_IMODE(told.st_mode), told.st_uid, told.st_gid)
    with open(os.path.join(folder, _CONTROL)) as file:
        controllers = file.read().split()
    return Group(
        path=os.path.relpath(folder, top),
        mode=stat.S_IMODE(own.st_mode),
        owner=(own.st_uid, own.st_gid),
        controllers=controllers,
        files=files,
    )


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
