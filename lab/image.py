"""The image of a lab: /opt/gugus, which every node sees read-only, and the units and settings that every node's disk
starts from.

The image is no overlay layer of its own: the kernel refuses a lower layer inside another one, and the machine's root is
one.

Invariant: the image is built beside the old one and renamed, so it is whole or absent; it never links to a file that is
edited in place (installed packages are replaced by pip, never rewritten), and nothing in it depends on where the
checkout is.
"""

from __future__ import annotations

import compileall
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from importlib.util import find_spec
from pathlib import Path

from lab.machine import run
from lab.plan import LabError
from lab.render import ENABLED_UNITS, HIDDEN_FOLDERS, MASKED_UNITS

#: The checkout this lab runs from.
SOURCE = Path(__file__).resolve().parents[1]
#: Where the project lives on a node (docs: an installed host has the same).
HOME = Path("opt/gugus")
#: The import packages of the project; ``gugus`` holds the stubs generated from proto/.
PACKAGES = ("agent", "client", "common", "gugus", "lab", "manager", "planner", "simulator")

_MACHINE = Path("/")
_IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc")


def build(image: Path) -> None:
    """Build ``image`` in place of an old one that no node uses; raises LabError when the project is not set up."""
    new = image.with_name(image.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    for folder in ("opt", "usr/local/bin", "etc/tmpfiles.d", "etc/sysusers.d"):
        layer_folder(new, folder)
    for folder in HIDDEN_FOLDERS:
        os.setxattr(layer_folder(new, folder), "trusted.overlay.opaque", b"y")
    for name in ("passwd", "group", "shadow", "gshadow", "subuid", "subgid"):
        if (_MACHINE / "etc" / name).exists():
            copy_owned(_MACHINE / "etc" / name, new / "etc" / name)
    (new / "etc/fstab").write_text("# the disk of a lab node is mounted for it\n")
    _environment(new / HOME)
    install_packages(site_packages(new / HOME))
    shutil.copytree(SOURCE / "systemd", new / HOME / "systemd")
    run(["sh", str(new / HOME / "systemd/install.sh"), "--root", str(new)])
    _units(new / "etc/systemd/system")
    _lab_dropins(new)
    _fence_agent(new)
    shutil.rmtree(image, ignore_errors=True)
    new.rename(image)


def start_disk(image: Path, disk: Path) -> None:
    """Copy everything of ``image`` but /opt/gugus to a new, absent ``disk``, with owners and attributes."""
    disk.mkdir(mode=0o755, parents=True)
    for folder in sorted(image.iterdir()):
        if folder.name != HOME.parts[0]:
            run(["cp", "--archive", str(folder), str(disk)])


def layer_folder(layer: Path, folder: str) -> Path:
    """Make ``folder`` in a layer with the mode and owner of the machine's: in an overlay the upper one's count."""
    path = layer
    layer.mkdir(parents=True, exist_ok=True)
    for part in Path(folder).parts:
        path /= part
        if path.exists():
            continue
        path.mkdir(mode=0o755)
        machine = _MACHINE / path.relative_to(layer)
        if machine.is_dir():
            status = machine.stat()
            os.chown(path, status.st_uid, status.st_gid)
            path.chmod(status.st_mode & 0o7777)
    return path


def copy_owned(source: Path, target: Path) -> None:
    """Copy a file with its mode and owner."""
    shutil.copy2(source, target)
    status = source.stat()
    os.chown(target, status.st_uid, status.st_gid)


def site_packages(home: Path) -> Path:
    """The site-packages folder of the environment at ``home``."""
    return home / f"lib/python{sysconfig.get_python_version()}/site-packages"


def install_packages(site: Path) -> None:
    """Copy the project's own packages into ``site``, compiled, in place of the links to the checkout."""
    for link in [*site.glob("*gugus*.pth"), *site.glob("__editable__*")]:
        link.unlink()
    for name in PACKAGES:
        shutil.copytree(_package(name), site / name, ignore=_IGNORED, dirs_exist_ok=True)
        compileall.compile_dir(site / name, quiet=2, stripdir=str(site), prependdir="/" + str(site_packages(HOME)))


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise LabError(f"the Python package {name!r} is missing: run `make` in {SOURCE}")
    return Path(next(iter(spec.submodule_search_locations)))


def _environment(home: Path) -> None:
    """A relocated copy of the running environment: its libraries, and console scripts with the node's paths."""
    packages = Path(sysconfig.get_paths()["purelib"])
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    site = site_packages(home)
    site.parent.mkdir(parents=True)
    _copy_tree(packages, site)
    home.joinpath("bin").mkdir()
    home.joinpath("bin/python3").symlink_to(base)
    home.joinpath("bin/python").symlink_to("python3")
    home.joinpath("pyvenv.cfg").write_text(f"home = {base.parent}\ninclude-system-site-packages = false\n")
    scripts: dict[str, str] = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]["scripts"]
    for name, target in scripts.items():
        module, _, function = target.partition(":")
        script = home / "bin" / name
        script.write_text(
            f"#!/{HOME}/bin/python3\nimport sys\n\nfrom {module} import {function}\n\nsys.exit({function}())\n"
        )
        script.chmod(0o755)


def _copy_tree(source: Path, target: Path) -> None:
    """Copy a tree by hard links where source and target share a file system, else by content."""
    for option in ("--link", "--reflink=auto"):
        done = subprocess.run(
            ["cp", "--archive", option, str(source), str(target)], capture_output=True, timeout=300, check=False
        )
        if done.returncode == 0:
            return
        shutil.rmtree(target, ignore_errors=True)
    raise LabError(f"cannot copy {source} to {target}: {done.stderr.decode(errors='replace')[-500:]}")


def _units(system: Path) -> None:
    for name in MASKED_UNITS:
        _link(system / name, "/dev/null")
    _link(system / "default.target", "/lib/systemd/system/multi-user.target")
    for target, units in ENABLED_UNITS.items():
        (system / target).mkdir(exist_ok=True)
        for unit in units:
            _link(system / target / unit, f"/lib/systemd/system/{unit}")


def _link(path: Path, target: str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def _lab_dropins(layer: Path) -> None:
    """Settings that only a node in a container needs."""
    write(layer / "etc/tmpfiles.d/gugus-lab.conf", _LOOP_DEVICES)
    write(layer / "etc/systemd/journald.conf.d/gugus-lab.conf", _JOURNAL)
    write(layer / "etc/systemd/system/gugus-watchdog.service.d/lab.conf", _WATCHDOG)
    write(layer / "etc/systemd/system.conf.d/gugus-lab.conf", _MANAGER)


def _fence_agent(layer: Path) -> None:
    """The program with which managers in nodes speak to the lab's power switch, where those of Debian's fence-agents are."""
    program = layer_folder(layer, "usr/sbin") / "fence_gugus_lab"
    shutil.copyfile(Path(__file__).with_name("fence_gugus_lab.py"), program)
    program.chmod(0o755)


def write(path: Path, text: str) -> None:
    """Write a file, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


_LOOP_DEVICES = "# No udev in a node, so the loop devices that the kernel has are made here.\n" + "".join(
    f"b! /dev/loop{number} 0660 root disk - 7:{number}\n" for number in range(16)
)
_JOURNAL = """\
[Journal]
# A power cut must not lose the last lines: they say why.
Storage=persistent
SyncIntervalSec=1s
ReadKMsg=no
"""
_MANAGER = "[Manager]\nDefaultTimeoutStartSec=60s\nDefaultTimeoutStopSec=20s\n"
_WATCHDOG = """\
# With RT group scheduling the cgroups of containers have no real-time budget: sched_setscheduler(2) is refused.
[Service]
CPUSchedulingPolicy=other
Nice=-20
# LXC gives a container a boot id of its own by a mount below /proc/sys, which these settings would hide: the watchdog would
# take the agent's lease record for one of another boot.
ProtectKernelTunables=no
ProtectControlGroups=no
"""
