"""The Debian kernel on this machine and the closure of the modules that a virtio guest needs.

Modules come from /lib/modules of exactly the kernel that is booted, with every dependency that modules.dep names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.images.tree import Tree, file

BOOT = Path("/boot")
MODULES = Path("/lib/modules")

# What a guest may meet under libvirt: the disk on virtio-blk, virtio-scsi, SATA or IDE; the seed as a disk or a CD-ROM,
# in iso9660 or vfat (with its default code page and character set); the ACPI power button as an input device.
GUEST_MODULES = (
    "virtio_pci", "virtio_blk", "virtio_scsi", "virtio_net", "virtio-rng", "virtio_balloon",
    "sd_mod", "sr_mod", "ahci", "ata_piix",
    "isofs", "vfat", "nls_cp437", "nls_ascii", "nls_utf8",
    "button", "evdev",
)  # fmt: skip


class KernelMissing(Exception):
    """No bootable kernel with its modules is installed; the message names the package that brings one."""


@dataclass(frozen=True)
class Kernel:
    """A kernel image and the folder of its modules."""

    release: str
    image: Path
    modules: Path


def installed_kernel(boot: Path = BOOT, modules: Path = MODULES) -> Kernel:
    """The newest installed kernel image that has its modules beside it; raises KernelMissing."""
    images = sorted(boot.glob("vmlinuz-*"), key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
    for image in images:
        release = image.name.removeprefix("vmlinuz-")
        if (modules / release / "modules.dep").is_file():
            return Kernel(release, image, modules / release)
    raise KernelMissing(
        f"no {boot}/vmlinuz-RELEASE with {modules}/RELEASE/modules.dep: install the Debian package linux-image-amd64"
    )


def parse_modules_dep(text: str) -> dict[str, tuple[str, ...]]:
    """modules.dep as module path -> paths of all its dependencies, direct and indirect (depmod lists them in full)."""
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {module.strip(): tuple(needs.split()) for module, needs in pairs}


def closure(wanted: Iterable[str], dependencies: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Paths of the wanted modules (`-` and `_` alike) and of all they need; raises KernelMissing for unknown ones."""
    by_name = {_name(path): path for path in dependencies}
    paths: set[str] = set()
    for name in wanted:
        path = by_name.get(_name(name))
        if path is None:
            raise KernelMissing(f"kernel module {name!r} is not in modules.dep: install the full linux-image-amd64")
        paths |= {path, *dependencies[path]}
    return tuple(sorted(paths))


def modules_tree(kernel: Kernel, more: Iterable[str] = ()) -> Tree:
    """/lib/modules/RELEASE cut down to what the guest needs, and /etc/modules with the names to load."""
    names = (*GUEST_MODULES, *more)
    dependencies = parse_modules_dep((kernel.modules / "modules.dep").read_text())
    paths = closure(names, dependencies)
    root = f"lib/modules/{kernel.release}"
    tree = {f"{root}/{path}": file((kernel.modules / path).read_bytes()) for path in paths}
    dep = "".join(f"{path}: {' '.join(dependencies[path])}\n" for path in paths)
    tree[f"{root}/modules.dep"] = file(dep.encode())
    tree["etc/modules"] = file("".join(f"{name}\n" for name in names).encode())
    return tree


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1].split(".ko", 1)[0].replace("-", "_")
