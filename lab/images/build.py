"""Builds the two small guests of the demo from what Debian has installed, and caches them by a hash of every input.

Equal inputs give equal content. A finished image appears under its name in one rename or not at all.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from lab.images import disk, tree
from lab.images.kernel import installed_kernel, modules_tree
from lab.images.tree import Tree, busybox_tree, cpio_newc, folder, packaged_tree, symlink, tar_gz
from lab.scratch import scratch

_ZSTD_LEVEL = "-12"  # beyond it a second of building buys less than 3 % of size
_KEY_DIGITS = 16


@dataclass(frozen=True)
class Images:
    """The finished images in a cache folder, with the SHA-256 (hex) of each file."""

    vm: Path
    container: Path
    vm_sha256: str
    container_sha256: str


def build_vm_image(out: Path) -> Path:
    """Build the virtual machine's disk (qcow2, 64 MiB, boots in SeaBIOS, happy with 128 MiB of memory) at `out`.

    The machine reads a NoCloud seed, asks for an address on eth0, prints `gugus-guest: NAME ready after X s` on ttyS0,
    keeps a heartbeat on its disk and powers off on the ACPI button. It runs no SSH server: seeded keys are stored in
    memory only. Raises KernelMissing, OSError or CalledProcessError.
    """
    kernel = installed_kernel()
    initramfs = zstd(cpio_newc(_vm_tree()))
    return replace_by(out, lambda path: disk.write_disk(path, kernel.image.read_bytes(), initramfs))


def build_container_rootfs(out: Path) -> Path:
    """Build the container's root file system (tar.gz, all 0:0, no device nodes, fit for a user namespace) at `out`.

    PID 1 is busybox init: `lxc.signal.halt = SIGUSR2` powers off (SIGPWR, LXC's default, was seen to do the same with
    busybox 1.35), and `lxc.signal.reboot = SIGTERM` reboots. Either takes about 2 s, init's grace for processes.
    Raises OSError or CalledProcessError.
    """
    archive = tar_gz(_container_tree())

    def write(path: Path) -> None:
        path.write_bytes(archive)

    return replace_by(out, write)


def images(cache_dir: Path) -> Images:
    """Both images from `cache_dir`, built there first when an input changed; raises what the two builders raise."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    kernel = installed_kernel()
    vm_key = _key(
        [cpio_newc(_vm_tree()), kernel.image.read_bytes(), disk.partition_table(), disk.SYSLINUX_CFG.encode()]
    )
    container_key = _key([tar_gz(_container_tree())])
    vm = cache_dir / f"gugus-vm-{vm_key}.qcow2"
    container = cache_dir / f"gugus-container-{container_key}.tar.gz"
    if not vm.exists():
        build_vm_image(vm)
    if not container.exists():
        build_container_rootfs(container)
    return Images(vm, container, _sha256(vm), _sha256(container))


def _vm_tree() -> Tree:
    mount_points: Tree = {path: folder() for path in ("proc", "sys", "dev", "run")}
    guest = packaged_tree("common") | packaged_tree("vm") | modules_tree(installed_kernel())
    return mount_points | {"root": folder(0o700), "init": symlink("/bin/busybox")} | busybox_tree() | guest


def _container_tree() -> Tree:
    mount_points: Tree = {path: folder() for path in ("proc", "sys", "dev", "run", "var")}
    own = mount_points | {"root": folder(0o700), "tmp": folder(0o1777)}
    return own | busybox_tree() | packaged_tree("common") | packaged_tree("container")


def replace_by(out: Path, write: Callable[[Path], None]) -> Path:
    """Have `write` make the file beside `out`, then rename it into place, durably. What a killed builder left there is removed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with scratch(out.parent, ".gugus-image-") as beside:
        made = beside / out.name
        write(made)
        made.chmod(0o644)
        _fsync(made)
        made.replace(out)
    _fsync(out.parent)
    return out


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def zstd(data: bytes) -> bytes:
    """Compress as the kernel unpacks an initramfs quickly."""
    command = ["zstd", _ZSTD_LEVEL, "--quiet", "--stdout"]
    return subprocess.run(command, input=data, check=True, capture_output=True, timeout=tree.TOOL_TIMEOUT_S).stdout


def _key(parts: Iterable[bytes]) -> str:
    digests = b"".join(hashlib.sha256(part).digest() for part in parts)
    return hashlib.sha256(digests).hexdigest()[:_KEY_DIGITS]


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
