"""Devices of the host in a container: nodes of the container's own, made outside, with the owner and mode it is to see."""

import os
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gugus.agent.v1 import container_pb2

from agent.compute.lxc.config import Mount
from agent.compute.lxc.security import DeviceAccess

DEFAULT_MODE = 0o660


@dataclass(frozen=True, slots=True)
class Device:
    """A node that was made, where it is mounted, and what the device controller allows."""

    mount: Mount
    access: DeviceAccess


def make_nodes(devices: Iterable[container_pb2.ContainerDevice], folder: Path, base: int) -> list[Device]:
    """Make the nodes of a container in a folder that only its root may enter; those of the run before go.

    `base`: the host's number of the container's root. Raises OSError.
    """
    shutil.rmtree(folder, ignore_errors=True)
    wanted = list(devices)
    if not wanted:
        return []
    folder.mkdir(mode=0o700)
    if os.statvfs(folder).f_flag & os.ST_NODEV:
        raise OSError(f"devices cannot be used from {folder}: its file system is mounted nodev")
    os.chown(folder, base, base)
    return [_make(device, folder / str(number), base) for number, device in enumerate(wanted)]


def _make(device: container_pb2.ContainerDevice, node: Path, base: int) -> Device:
    found = os.stat(os.path.realpath(device.path))
    kind = "b" if stat.S_ISBLK(found.st_mode) else "c"
    os.mknod(node, stat.S_IFMT(found.st_mode) | 0o600, found.st_rdev)
    os.chown(node, base + device.uid, base + device.gid)
    os.chmod(node, device.mode or DEFAULT_MODE)
    mount = Mount(node, device.path, is_folder=False, device=True, idmapped=False)
    return Device(mount, DeviceAccess(kind, os.major(found.st_rdev), os.minor(found.st_rdev), device.read_only))
