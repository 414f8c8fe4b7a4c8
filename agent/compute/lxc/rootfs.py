"""A container's root file system, touched from the host.

Invariant: nothing outside the root file system is reached, whatever links it holds. Every folder on the way is opened
from the one before and no link is followed; a tree that has a link where a folder belongs is refused. Only questions
("is there an sbin/init?") follow links, as a process in the container would: the root is the end of every way up.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MOST_LINKS = 40  # as the kernel: path_resolution(7)
_MOST_BYTES = 1024 * 1024
"""Longest file that is read: accounts, settings, markers."""

HALT_SIGNALS = {"systemd": "SIGRTMIN+4", "busybox": "SIGUSR2"}
"""What asks an init to power off: systemd(1); busybox init's halt table. Others: SIGPWR, as liblxc has it."""
DEFAULT_HALT_SIGNAL = "SIGPWR"
APPLICATION_HALT_SIGNAL = "SIGTERM"
"""What asks a program that is no init to end."""


class Tree:
    """An opened root file system. `owner` is the container's root on disk. Everything raises OSError."""

    def __init__(self, root: Path, owner: int) -> None:
        self.path = root
        self._owner = owner
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        """Use it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let go of it."""
        os.close(self._root)

    def read(self, path: str) -> str | None:
        """Return a file's text; None when there is no such file, or a link of that name."""
        try:
            with self._parent(path) as (folder, name):
                file = os.open(name, _FILE, dir_fd=folder)
        except OSError:
            return None
        try:
            return os.read(file, _MOST_BYTES).decode(errors="surrogateescape")
        except OSError:
            return None
        finally:
            os.close(file)

    def write(self, path: str, text: str, mode: int = 0o644, uid: int = 0, gid: int = 0) -> None:
        """Replace a file durably, making missing folders; a link of that name is replaced, never followed.

        `uid` and `gid` as the container sees them, of the file alone.
        """
        with self._parent(path, make=True) as (folder, name), _replacing(folder, name) as temporary:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=folder), "wb") as file:
                os.fchown(file.fileno(), self._owner + uid, self._owner + gid)
                os.fchmod(file.fileno(), mode)
                file.write(text.encode(errors="surrogateescape"))
                file.flush()
                os.fsync(file.fileno())

    def link(self, path: str, target: str) -> None:
        """Make a symbolic link in place of whatever file has that name."""
        with self._parent(path, make=True) as (folder, name), _replacing(folder, name) as temporary:
            os.symlink(target, temporary, dir_fd=folder)
            os.chown(temporary, self._owner, self._owner, dir_fd=folder, follow_symlinks=False)

    def folder(self, path: str, mode: int, uid: int = 0, gid: int = 0) -> None:
        """Make a folder for somebody, if there is none."""
        with self._parent(f"{path}/.", make=True) as (folder, _), self._parent(path) as (above, name):
            found = os.stat(name, dir_fd=above, follow_symlinks=False)
            if found.st_uid == self._owner:  # just made, or root's
                os.fchown(folder, self._owner + uid, self._owner + gid)
                os.fchmod(folder, mode)

    def has(self, path: str) -> bool:
        """Whether the container sees something at this path."""
        return os.path.lexists(self.path / resolve(self.path, path).relative_to("/"))

    def has_folder(self, path: str) -> bool:
        """Whether the container sees a folder at this path."""
        return os.path.isdir(self.path / resolve(self.path, path).relative_to("/"))

    def is_link(self, path: str) -> bool:
        """Whether there is a symbolic link at this path."""
        with suppress(OSError), self._parent(path) as (folder, name):
            return bool(os.readlink(name, dir_fd=folder))
        return False

    @contextmanager
    def _parent(self, path: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        """Open the folder that a path is in; give it and the last name."""
        *folders, name = [part for part in path.split("/") if part]
        opened = os.dup(self._root)
        try:
            for part in folders:
                if part in (".", ".."):
                    raise OSError(f"{path} is no plain path")
                inner = self._open(opened, part, make=make)
                os.close(opened)
                opened = inner
            yield opened, name
        finally:
            os.close(opened)

    def _open(self, parent: int, name: str, *, make: bool) -> int:
        try:
            return os.open(name, _FOLDER, dir_fd=parent)
        except FileNotFoundError:
            if not make:
                raise
            os.mkdir(name, 0o700 if name in ("root", ".ssh") else 0o755, dir_fd=parent)
            made = os.open(name, _FOLDER, dir_fd=parent)
            os.fchown(made, self._owner, self._owner)
            return made


@contextmanager
def _replacing(folder: int, name: str) -> Iterator[str]:
    """Give a name beside a file; what is made there takes the file's place, or goes when that fails."""
    temporary = f".{name}.{secrets.token_hex(6)}"
    try:
        yield temporary
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary, dir_fd=folder)
        raise
    os.fsync(folder)


def halt_signal(rootfs: Path) -> str:
    """Return the name of the signal that asks this container's init to power off."""
    return HALT_SIGNALS.get(resolve(rootfs, "sbin/init").name, DEFAULT_HALT_SIGNAL)


def resolve(rootfs: Path, path: str) -> Path:
    """Follow links as a process in the container would; return the path there."""
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
