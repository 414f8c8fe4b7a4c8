"""A Debian with systemd, cloud-init and the QEMU guest agent, as a user would import one: for tests that need a real first boot.

Made by mmdebstrap from the packages that this machine's apt knows, with the machine's own kernel; boots in SeaBIOS by syslinux, its
root is an ext4 file system on the second partition. Needs root.
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
import time
from pathlib import Path

from lab.images import disk
from lab.images.build import replace_by, zstd
from lab.images.kernel import installed_kernel, modules_tree
from lab.images.tree import Tree, busybox_tree, cpio_newc, file, folder, symlink
from lab.machine import bound_to_us

PACKAGES = (
    "systemd-sysv", "systemd-resolved", "dbus", "udev", "kmod",
    "cloud-init", "qemu-guest-agent", "iproute2", "iputils-ping", "sudo", "e2fsprogs",
)  # fmt: skip
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")

BOOT_BYTES = 64 * 2**20
DISK_BYTES = 1024 * 2**20
BUILD_TIMEOUT_S = 600.0

#: Kernel modules beside those of the small guest: the root file system, the guest agent's channel, UEFI's variables, watchdog, panic.
MODULES = ("ext4", "virtio_console", "crc32c_generic", "efivarfs", "i6300esb", "pvpanic-mmio")

KEPT_S = 7 * 86_400.0
"""An image older than this is built anew: its packages are those of the day on which it was made."""

COMMAND_LINE = (
    "root=/dev/vda2 rootfstype=ext4 rw console=tty0 console=ttyS0 quiet loglevel=3 net.ifnames=0 nokaslr mitigations=off "
    "no_timer_check cryptomgr.notests tsc=reliable random.trust_cpu=on systemd.show_status=no"
)
_SYSLINUX = (
    f"DEFAULT debian\nPROMPT 0\nTIMEOUT 0\nLABEL debian\nLINUX vmlinuz\nINITRD initrd.img\nAPPEND {COMMAND_LINE}\n"
)

#: What mmdebstrap mounts and starts is in namespaces that the kernel takes down with it, and with us.
_ALONE = bound_to_us(["unshare", "--mount", "--pid", "--fork", "--kill-child"])

_INIT = """#!/bin/sh
# Loads what the root file system needs, and hands over to the init there.
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
while read -r module; do modprobe "$module" 2>/dev/null; done < /etc/modules
root=$(sed -n 's/.*root=\\([^ ]*\\).*/\\1/p' /proc/cmdline)
part=${root##*[a-z]}
while :; do
    # The bus decides on the name: virtio, SCSI, SATA and IDE disks all boot.
    for disk in vda sda hda; do [ -b "/dev/$disk$part" ] && break 2; done
    sleep 0.1
done
mount -t ext4 -o rw "/dev/$disk$part" /root || exec sh
umount /proc /sys; mount --move /dev /root/dev
exec switch_root /root /sbin/init
"""


#: What the packages chosen here cannot do is not asked of them: there is no SSH server and no second locale.
_CLOUD_CFG = "datasource_list: [NoCloud, None]\nlocale: false\nssh_genkeytypes: []\nssh_deletekeys: false\n"


def debian_image(cache_dir: Path) -> Path:
    """Return the image (qcow2, 1 GiB), built when there is none of this week and recipe in the cache. Takes about a minute then.

    Raises OSError, KernelMissing, or CalledProcessError when a package cannot be had.
    """
    recipe = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    image = cache_dir / f"gugus-debian-{recipe}.qcow2"
    if not image.exists() or time.time() - image.stat().st_mtime > KEPT_S:
        replace_by(image, _write)
        for old in set(cache_dir.glob("gugus-debian*.qcow2")) - {image}:
            old.unlink()
    return image


def _write(out: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="gugus-debian-", dir=out.parent) as scratch:
        root = Path(scratch) / "root"
        _bootstrap(root)
        raw = Path(scratch) / "disk.raw"
        with raw.open("wb") as opened:
            opened.truncate(DISK_BYTES)
            opened.write(disk.table(BOOT_BYTES, DISK_BYTES))
        kernel = installed_kernel()
        contents = {
            "vmlinuz": kernel.image.read_bytes(),
            "initrd.img": zstd(cpio_newc(_initramfs())),
            "syslinux.cfg": _SYSLINUX.encode(),
        }
        disk.make_boot_partition(raw, disk.FIRST_BYTES, BOOT_BYTES, contents, Path(scratch))
        _make_root(raw, root)
        _run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", str(raw), str(out))


def _bootstrap(root: Path) -> None:
    paths = [f"--dpkgopt=path-exclude={path}" for path in LEFT_OUT]
    _run(
        *_ALONE, "mmdebstrap", "--mode=root", "--variant=minbase", "--quiet", *paths, "--aptopt=APT::Install-Recommends false",
        f"--include={','.join(PACKAGES)}", "bookworm", str(root), *_sources(),
    )  # fmt: skip
    (root / "etc/fstab").write_text("")
    (root / "etc/machine-id").write_text("")  # each guest makes its own
    (root / "etc/cloud/cloud.cfg.d/90-gugus.cfg").write_text(_CLOUD_CFG)
    _run("systemctl", f"--root={root}", "enable", "systemd-networkd.service", "systemd-resolved.service")
    for path, entry in modules_tree(installed_kernel(), MODULES).items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(entry.data)
    _run("depmod", "-b", str(root), installed_kernel().release)


def _sources() -> list[str]:
    """Where this machine's apt gets its packages from, as files that mmdebstrap reads."""
    folder_ = Path("/etc/apt")
    files = [folder_ / "sources.list", *sorted((folder_ / "sources.list.d").glob("*.sources"))]
    return [str(path) for path in files if path.is_file() and path.stat().st_size]


def _initramfs() -> Tree:
    points: Tree = {path: folder() for path in ("proc", "sys", "dev", "root", "run")}
    own: Tree = {"init": file(_INIT.encode(), 0o755), "sbin/modprobe": symlink("/bin/busybox")}
    return points | busybox_tree() | modules_tree(installed_kernel(), MODULES) | own


def _make_root(raw: Path, root: Path) -> None:
    """Write the root file system into the second partition, without mounting anything."""
    start = disk.FIRST_BYTES + BOOT_BYTES
    blocks = (DISK_BYTES - start) // 4096
    offset = f"offset={start}"
    _run("mkfs.ext4", "-q", "-F", "-b", "4096", "-E", offset, "-d", str(root), "-L", "root", str(raw), str(blocks))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=BUILD_TIMEOUT_S)
