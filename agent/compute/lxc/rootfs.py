"""A container's root file system, touched from the host: first-boot settings, and which init it has.

Invariant: nothing outside the root file system is reached, whatever links it holds. Every folder on the way is opened
from the one before and no link is followed; a tree that has a link where a folder belongs is refused.
"""

import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MARKER = "gugus-first-boot"
"""File in the container's /etc that says for which guest (its uid) the settings were applied already."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_LINKS = 40  # as the kernel: path_resolution(7)
_MARKER_BYTES = 256

HALT_SIGNALS = {"systemd": "SIGRTMIN+4", "busybox": "SIGUSR2"}
"""What asks an init to power off: systemd(1); busybox init's halt table. Others: SIGPWR, as liblxc has it."""
DEFAULT_HALT_SIGNAL = "SIGPWR"


@dataclass(frozen=True, slots=True)
class FirstBootSettings:
    """What is written into a container before its first start; `guest_uid` tells first from later ones."""

    guest_uid: str
    hostname: str
    ssh_authorized_keys: Sequence[str] = ()


def apply_first_boot(rootfs: Path, settings: FirstBootSettings, owner_id: int) -> bool:
    """Write host name and keys once; tells whether it was done now. `owner_id` is the container's root on the host.

    Raises OSError; then the marker is not written and the next start tries again.
    """
    root = os.open(rootfs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        etc = _folder(root, "etc", 0o755, owner_id)
        try:
            if _read(etc, MARKER) == settings.guest_uid:
                return False
            _write(etc, "hostname", f"{settings.hostname}\n", 0o644, owner_id)
            if settings.ssh_authorized_keys:
                _write_keys(root, settings.ssh_authorized_keys, owner_id)
            _write(etc, MARKER, settings.guest_uid, 0o644, owner_id)
        finally:
            os.close(etc)
    finally:
        os.close(root)
    return True


def halt_signal(rootfs: Path) -> str:
    """Return the name of the signal that asks this container's init to power off."""
    return HALT_SIGNALS.get(_resolve(rootfs, "sbin/init").name, DEFAULT_HALT_SIGNAL)


def _write_keys(root: int, keys: Sequence[str], owner_id: int) -> None:
    home = _folder(root, "root", 0o700, owner_id)
    try:
        ssh = _folder(home, ".ssh", 0o700, owner_id)
        try:
            _write(ssh, "authorized_keys", "".join(f"{key.strip()}\n" for key in keys), 0o600, owner_id)
        finally:
            os.close(ssh)
    finally:
        os.close(home)


def _folder(parent: int, name: str, mode: int, owner_id: int) -> int:
    """Open a folder, making it when it is missing; a link of that name is an OSError."""
    try:
        return os.open(name, _FOLDER, dir_fd=parent)
    except FileNotFoundError:
        os.mkdir(name, mode, dir_fd=parent)
        made = os.open(name, _FOLDER, dir_fd=parent)
        os.fchown(made, owner_id, owner_id)
        return made


def _read(folder: int, name: str) -> str:
    try:
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return ""
    try:
        return os.read(file, _MARKER_BYTES).decode(errors="replace")
    finally:
        os.close(file)


def _write(folder: int, name: str, text: str, mode: int, owner_id: int) -> None:
    """Replace a file in an open folder, durably; a link of that name is replaced, never followed."""
    temporary = f".{name}.{secrets.token_hex(6)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=folder), "w") as file:
            os.fchown(file.fileno(), owner_id, owner_id)
            os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
    os.fsync(folder)


def _resolve(rootfs: Path, path: str) -> Path:
    """Follow links as a process in the container would: the root is the end of every way up."""
    done: list[str] = []
    todo = path.split("/")
    links = 0
    while todo:
        part = todo.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            done = done[:-1]
            continue
        try:
            target = os.readlink(rootfs.joinpath(*done, part))
        except OSError:
            done.append(part)
            continue
        links += 1
        if links > _MOST_LINKS:
            break
        todo = target.split("/") + todo
        done = [] if target.startswith("/") else done
    return Path("/", *done)
