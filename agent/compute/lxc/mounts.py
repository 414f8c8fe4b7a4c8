"""The kernel's mount calls that Python has no names for: mounts that translate user ids. Needs root.

Numbers and structures: linux/mount.h, asm-generic/unistd.h (the same on all architectures since Linux 5.1). Calls block;
everything raises OSError. No module of the agent is imported: the helper inside of containers uses this, too.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_AT_FDCWD, _AT_EMPTY_PATH, _AT_SYMLINK_NOFOLLOW = -100, 0x1000, 0x100
_CLONE, _CLOEXEC = 1, os.O_CLOEXEC
_ATTR_RDONLY, _ATTR_NODEV, _ATTR_IDMAP = 0x1, 0x4, 0x00100000
_FROM_EMPTY, _TO_EMPTY = 0x4, 0x40
_DETACH, _NOFOLLOW = 2, 8  # umount2(2)
_NEWNS, _SLAVE, _REC = 0x00020000, 1 << 19, 1 << 14  # sched.h, mount(2)

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


@contextmanager
def detached(
    path: str, userns: str = "", *, read_only: bool = False, nodev: bool = False, follow: bool = False
) -> Iterator[int]:
    """Give a mount of the file or folder at `path` that is nowhere yet; it goes with the handle.

    A link is an error unless `follow`. `userns`: file of the namespace that translates its ids (IdMap.mount_lines), ""
    for none; EINVAL then means that the file system cannot do that.
    """
    flags = _CLONE | _CLOEXEC | (0 if follow else _AT_SYMLINK_NOFOLLOW)
    handle = _call(_OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags)
    try:
        attr = _MountAttr(attr_set=(_ATTR_RDONLY if read_only else 0) | (_ATTR_NODEV if nodev else 0))
        namespace = os.open(userns, os.O_RDONLY | os.O_CLOEXEC) if userns else -1
        try:
            if namespace >= 0:
                attr.attr_set |= _ATTR_IDMAP
                attr.userns_fd = namespace
            if attr.attr_set:
                _call(_MOUNT_SETATTR, handle, b"", _AT_EMPTY_PATH, ctypes.byref(attr), ctypes.sizeof(attr))
        finally:
            if namespace >= 0:
                os.close(namespace)
        yield handle
    finally:
        os.close(handle)


def attach(handle: int, folder_or_file: int) -> None:
    """Attach a detached mount onto an opened (O_PATH) folder or file of this process's mount namespace."""
    _call(_MOVE_MOUNT, handle, b"", folder_or_file, b"", _FROM_EMPTY | _TO_EMPTY)


def bind(source: str, target: str) -> None:
    """Bind-mount one file, which may be behind a link of /proc, onto another that exists."""
    with detached(source, follow=True) as handle:
        opened = os.open(target, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            attach(handle, opened)
        finally:
            os.close(opened)


def unshare() -> None:
    """Give this process mounts of its own; what the host mounts and unmounts is still followed."""
    if _libc.unshare(_NEWNS) or _libc.mount(None, b"/", None, _SLAVE | _REC, None):
        raise _error()


def unmount(path: str, *, lazily: bool = False) -> None:
    """Unmount what is mounted at a path, which may not be a link. EBUSY while it is in use, unless `lazily`."""
    if _libc.umount2(os.fsencode(path), _NOFOLLOW | (_DETACH if lazily else 0)):
        raise _error()


def idmap_problem(path: str, userns: str) -> str:
    """Return "" when the file system at `path` can have its ids translated, else why not."""
    try:
        with detached(path, userns):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        raise _error()
    return result


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
