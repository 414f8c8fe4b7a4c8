"""A program that does one thing with the file system of a running container, from within it, and ends.

    python -m agent.compute.lxc.inside PID ACTION [WORDS...]

PID is the container's init. It takes the container's mounts and, where it has such, its user ids: what it cannot reach
from there, it cannot reach, whatever links there are. It stays outside of the container's other namespaces, where nothing
in the container can see or touch it. Before it goes in, everything it needs is loaded and nothing can be loaded any more,
for what is found inside is the container's.

Actions (a failure is one line on standard error and exit code 1; the container's own errors are told by their names):
    put PATH MODE UID GID        replace a file by pieces of standard input, each after its length in 4 bytes, big-endian; the
                                 length 0 ends it, and makes it take the file's place ("-": keep what is there, else the
                                 default); one line "SIZE MODE UID GID"
    get PATH                     one line "SIZE MODE UID GID", then the content
    attach TARGET folder|file HANDLE   attach the detached mount of this descriptor, making the place
    detach TARGET                unmount
    reset                        reboot(2), in a process of the container's: all of its processes end at once
"""

import ctypes
import errno
import os
import stat
import sys
from collections.abc import Callable, Sequence

from agent.compute.lxc import mounts

DEFAULT_MODE = 0o644
CHUNK_BYTES = 256 * 1024

_NEWNS, _NEWUSER, _NEWPID = 0x00020000, 0x10000000, 0x20000000  # sched.h
_RESTART = 0x01234567  # linux/reboot.h
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC  # a pipe or terminal of that name must not hold us
_WORDS = {number: os.strerror(number) for number in errno.errorcode}
_libc = ctypes.CDLL(None, use_errno=True)


def enter(pid: int) -> None:
    """Take the mounts and ids of a process. Raises OSError."""
    same_user = os.readlink(f"/proc/{pid}/ns/user") == os.readlink("/proc/self/ns/user")
    user, space = (os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in ("user", "mnt"))
    for places in (sys.path, sys.meta_path, sys.path_hooks):
        places.clear()
    sys.path_importer_cache.clear()
    if not same_user:
        _enter(user, _NEWUSER)
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    _enter(space, _NEWNS)
    os.chdir("/")
    os.umask(0)


def _enter(handle: int, kind: int) -> None:
    if _libc.setns(handle, kind):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    os.close(handle)


def put(path: str, mode: str, uid: str, gid: str) -> None:
    """Replace a file as a whole; see the module."""
    path = os.path.realpath(path)  # a link to a file leads to that file, as for every program
    before = _stat(path)
    if before is not None and stat.S_ISDIR(before.st_mode):
        raise OSError(errno.EISDIR, 'it is a folder; end it with "/" to put the file into it')
    if before is not None and not stat.S_ISREG(before.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    temporary = f"{path}.gugus-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileNotFoundError as error:
        raise OSError(error.errno, f"the folder {os.path.dirname(path)} does not exist; make it first") from None
    try:
        _fill(handle)
        kept = (before.st_uid, before.st_gid, stat.S_IMODE(before.st_mode)) if before else (0, 0, DEFAULT_MODE)
        os.fchown(handle, kept[0] if uid == "-" else int(uid), kept[1] if gid == "-" else int(gid))
        os.fchmod(handle, kept[2] if mode == "-" else int(mode))
        os.fsync(handle)
        told = _told(os.fstat(handle))
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(handle)
    _say(told)


def get(path: str) -> None:
    """Write what a file is, and its content."""
    handle = os.open(path, _READ)
    found = os.fstat(handle)
    if stat.S_ISDIR(found.st_mode):
        raise OSError(errno.EISDIR, "it is a folder; name a file in it")
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")
    _say(_told(found))
    while chunk := os.read(handle, CHUNK_BYTES):
        _write(1, chunk)


def attach(target: str, kind: str, handle: str) -> None:
    """Attach a detached mount."""
    if kind == "folder":
        os.makedirs(target, 0o755, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC, 0o644))
    place = os.open(target, os.O_PATH | os.O_CLOEXEC)
    mounts.attach(int(handle), place)


def detach(target: str) -> None:
    """Unmount what is at a path; nothing happens when nothing is."""
    try:
        mounts.unmount(os.path.realpath(target))
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):  # not mounted
            raise


def reset(pid: int) -> None:
    """End all processes of a container as a reboot from within does; its monitor then starts it again.

    Outside of a pid namespace, reboot(2) would end the host: it is called only by a process that has checked where it is.
    """
    wanted, own = (os.readlink(f"/proc/{number}/ns/pid") for number in (str(pid), "self"))
    if wanted == own:
        raise OSError(errno.EINVAL, "the process has no pid namespace of its own")
    spaces = [os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in ("pid", "user")]
    same_user = os.readlink(f"/proc/{pid}/ns/user") == os.readlink("/proc/self/ns/user")
    _enter(spaces[0], _NEWPID)
    if not same_user:
        _enter(spaces[1], _NEWUSER)
    child = os.fork()  # only children are in a pid namespace that was entered
    if child == 0:
        if os.readlink("/proc/self/ns/pid") == wanted != own:
            _libc.reboot(_RESTART)  # ends this process, too
        os._exit(1)
    os.waitpid(child, 0)


ACTIONS: dict[str, Callable[..., None]] = {"put": put, "get": get, "attach": attach, "detach": detach}


def _fill(handle: int) -> None:
    while size := int.from_bytes(_exactly(4), "big"):
        _write(handle, _exactly(size))


def _exactly(size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = os.read(0, size - len(data))
        if not chunk:
            raise OSError(errno.EPIPE, "the content ended early")
        data += chunk
    return data


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _told(found: os.stat_result) -> str:
    return f"{found.st_size} {stat.S_IMODE(found.st_mode)} {found.st_uid} {found.st_gid}\n"


def _say(text: str) -> None:
    _write(1, text.encode())


def _write(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def main(words: Sequence[str]) -> int:
    """Do it; return the exit code."""
    pid, action, *rest = words
    try:
        if action == "reset":
            reset(int(pid))
        else:
            enter(int(pid))
            ACTIONS[action](*rest)
    except OSError as error:
        text = _WORDS.get(error.errno or 0, "") if error.filename else str(error.strerror or error)
        known = action in ("put", "get")  # the caller says of which path; a work file's name means nothing to anybody
        where = f": {error.filename}" if isinstance(error.filename, str) and not known else ""
        os.write(2, f"{text}{where}\n".encode(errors="replace"))
        return 1
    return 0


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # nothing is run at exit that might want to load something
