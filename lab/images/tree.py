"""A file tree held in memory and packed as a root file system (cpio for the kernel, tar for containers).

Everything in it belongs to 0:0, is sorted by path and carries one fixed time, so equal content gives equal bytes.
"""

from __future__ import annotations

import gzip
import io
import stat
import subprocess
import tarfile
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

FIXED_TIME_S = 1_700_000_000  # any constant Unix time: what matters is that it does not change
BUSYBOX = Path("/bin/busybox")  # Debian's busybox-static
TOOL_TIMEOUT_S = 30.0
_CPIO_ALIGN = 4  # bytes, Documentation/driver-api/early-userspace/buffer-format.rst in the kernel


@dataclass(frozen=True)
class Entry:
    """One path: `mode` has the file type and permission bits, `data` is the content or a symlink's target."""

    mode: int
    data: bytes = b""


def folder(permissions: int = 0o755) -> Entry:
    """A folder with these permission bits."""
    return Entry(stat.S_IFDIR | permissions)


def file(data: bytes, permissions: int = 0o644) -> Entry:
    """A regular file with this content."""
    return Entry(stat.S_IFREG | permissions, data)


def symlink(target: str) -> Entry:
    """A symbolic link to `target`."""
    return Entry(stat.S_IFLNK | 0o777, target.encode())


Tree = dict[str, Entry]  # relative path without a leading slash -> entry


def with_parents(tree: Tree) -> Tree:
    """The same tree, sorted, with every missing parent folder added."""
    full = dict(tree)
    for path in tree:
        for parent in list(Path(path).parents)[:-1]:
            full.setdefault(str(parent), folder())
    return dict(sorted(full.items()))


def packaged_tree(name: str) -> Tree:
    """The files under `lab/images/rootfs/NAME`; whatever starts with `#!` is executable."""
    tree: Tree = {}

    def add(node: Traversable, prefix: str) -> None:
        for child in node.iterdir():
            if child.is_dir():
                add(child, f"{prefix}{child.name}/")
            else:
                data = child.read_bytes()
                tree[prefix + child.name] = file(data, 0o755 if data.startswith(b"#!") else 0o644)

    add(files("lab.images") / "rootfs" / name, "")
    return tree


def busybox_tree() -> Tree:
    """busybox as /bin/busybox and a link for each applet where it belongs; raises OSError when it is missing."""
    result = subprocess.run(
        [BUSYBOX, "--list-full"], check=True, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S
    )
    links = (line for line in result.stdout.split() if line not in ("bin/busybox", "linuxrc"))
    return {"bin/busybox": file(BUSYBOX.read_bytes(), 0o755)} | {link: symlink("/bin/busybox") for link in links}


def cpio_newc(tree: Tree) -> bytes:
    """The tree as an uncompressed cpio archive in the kernel's `newc` format."""
    out = io.BytesIO()

    def add(number: int, path: str, entry: Entry) -> None:
        name = path.encode() + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        fields = (number, entry.mode, 0, 0, links, FIXED_TIME_S, len(entry.data), 0, 0, 0, 0, len(name), 0)
        out.write(b"070701" + b"".join(b"%08X" % field for field in fields) + name)
        out.write(bytes(-out.tell() % _CPIO_ALIGN))
        out.write(entry.data)
        out.write(bytes(-out.tell() % _CPIO_ALIGN))

    for number, (path, entry) in enumerate(with_parents(tree).items(), start=1):
        add(number, path, entry)
    add(0, "TRAILER!!!", Entry(0))
    return out.getvalue()


def tar_gz(tree: Tree) -> bytes:
    """The tree as a gzip-compressed POSIX tar archive."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, entry in with_parents(tree).items():
            info = tarfile.TarInfo(path)
            info.mode = stat.S_IMODE(entry.mode)
            info.mtime = FIXED_TIME_S
            info.uname = info.gname = "root"
            if stat.S_ISDIR(entry.mode):
                info.type = tarfile.DIRTYPE
            elif stat.S_ISLNK(entry.mode):
                info.type, info.linkname = tarfile.SYMTYPE, entry.data.decode()
            else:
                info.size = len(entry.data)
            archive.addfile(info, io.BytesIO(entry.data) if info.isreg() else None)
    return gzip.compress(raw.getvalue(), compresslevel=6, mtime=FIXED_TIME_S)
