"""Making a container ready to start: which ids it runs with, first-boot settings, and its configuration file."""

import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent.compute import idmap
from agent.compute.definitions import Definition
from agent.compute.idmap import IdMap
from agent.compute.lxc import addresses, cgroups, checks, config, devices, image, limits, mounts, rootfs, security
from agent.compute.lxc.firstboot import FirstBootSettings, apply_first_boot
from agent.compute.lxc.launch import Files
from common.errors import GugusError, internal
from common.files import write_atomic

UNPRIVILEGED = "unprivileged"
PRIVILEGED = "privileged"

_SHARE = Path("/usr/share/lxc/config")
_PROFILES = Path("/sys/kernel/security/apparmor/profiles")
_PROFILE = "lxc-container-default-cgns"
_INITS = ("init", "systemd")  # commands that are inits themselves
_FOLDER_MODE = 0o755  # liblxc passes through it with the container's ids, too
_CONFIG_MODE = 0o600  # the environment may hold secrets


@dataclass(frozen=True, slots=True)
class Ids:
    """Which ids a container can run with on this host, found out before its start.

    `problem`: why unprivileged ones do not work here. `own` and `userns`: the range of its own and the namespace that
    translates to it; None when the host has but one range, for the reason `shared`.
    """

    problem: str = ""
    own: IdMap | None = None
    userns: Path | None = None
    shared: str = ""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the start of a container was prepared for.

    `base`: host's number of its root, 0 when privileged. `note`: why it shares its range with others, or "".
    """

    mode: str
    halt_signal: str
    command: tuple[str, ...] = ()
    base: int = 0
    note: str = ""
    interfaces: Mapping[str, str] = field(default_factory=dict)
    """Name of each interface -> name of the host's end."""
    order: str = ""
    """What the program that holds the leases of its disks is told; "" when it has none."""


@dataclass(frozen=True, slots=True)
class _Start:
    """What is found out step by step."""

    definition: Definition
    files: Files
    ids: Ids
    owner: int
    mode: str
    note: str

    @property
    def userns(self) -> Path | None:
        """Namespace that translates ids, when it is used."""
        return None if self.note or self.mode == PRIVILEGED else self.ids.userns

    @property
    def range(self) -> IdMap:
        """The range that it runs in; of no meaning when it is privileged."""
        return self.ids.own if self.userns is not None and self.ids.own is not None else idmap.IDMAP

    @property
    def base(self) -> int:
        """Host's number of the container's root."""
        return 0 if self.mode == PRIVILEGED else self.range.base


def this_host() -> config.Host:
    """Look at what the configuration depends on."""
    return config.Host(
        unified_cgroups=cgroups.unified(),
        includes=_there("common.conf"),
        userns_includes=_there("userns.conf"),
        apparmor=_has_profile(),
    )


def _has_profile() -> bool:
    """Whether the kernel has the AppArmor profile of containers; that AppArmor is on does not say so, and liblxc starts none without."""
    try:
        return any(line.startswith(f"{_PROFILE} ") for line in _PROFILES.read_text().splitlines())
    except OSError:
        return False


def prepare(
    definition: Definition, files: Files, ids: Ids, bind_mount_roots: Sequence[Path] = (), *, restored: bool = False
) -> Prepared:
    """Write everything a start needs; blocks. Raises GUEST_START_FAILED.

    restored: it goes on where it was on another host. Its files stay as they are, and its root's ids are translated before
    liblxc mounts it.
    """
    try:
        return _prepare(definition, files, ids, bind_mount_roots, restored)
    except OSError as error:
        raise _failed(definition, _words(error)) from error
    except ValueError as error:
        raise _failed(definition, str(error)) from error


def _prepare(definition: Definition, files: Files, ids: Ids, roots: Sequence[Path], restored: bool) -> Prepared:
    spec, root = definition.spec, definition.disks[0]
    if problems := checks.host_problems(spec.container, roots):
        raise _failed(definition, "; ".join(problems))
    owner = os.stat(root.path).st_uid
    mode = _mode(definition, owner, ids.problem)
    start = _Start(definition, files, ids, owner, mode, _why_shared(definition, mode, ids))
    hostname = spec.first_boot.hostname or spec.name
    if not root.read_only and not restored:
        names = [nic.name for nic in spec.nics]
        apply_first_boot(root.path, FirstBootSettings(spec.uid or spec.name, hostname, spec.first_boot, names), owner)
    interfaces = {nic.spec.name: host_interface(spec.id, number) for number, nic in enumerate(definition.nics)}
    with rootfs.Tree(root.path, owner) as tree:
        command, init = _first_process(start, tree)
        halt = _halt_signal(start, tree, command)
        nics = _nics(start, tree, interfaces)
    given = devices.make_nodes(spec.container.devices, files.devices, start.base)
    container = config.ContainerConfig(
        name=spec.name,
        hostname=hostname,
        rootfs=root.path,
        console_log=files.console,
        seccomp=files.seccomp,
        halt_signal=halt,
        spec=spec.container,
        limits=limits.essential(spec, unified=cgroups.unified(), swap=cgroups.accounts_swap()),
        idmap=() if mode == PRIVILEGED else tuple(start.range.lxc_lines()),
        userns=None if restored else start.userns,
        nics=nics,
        mounts=[*sorted(_mounts(start), key=lambda mount: mount.target), *(device.mount for device in given)],
        devices=[device.access for device in given],
        init=init,
        read_only=root.read_only or spec.container.read_only_root,
        may_start=files.may_start,
    )
    text = config.render(container, this_host())
    for old in (files.log, files.console, Path(f"{files.console}.1")):
        old.unlink(missing_ok=True)
    write_atomic(
        files.seccomp, security.seccomp_policy(spec.container.features, privileged=mode == PRIVILEGED).encode()
    )
    write_atomic(files.config, text.encode(), _CONFIG_MODE)
    files.may_start.touch()
    return Prepared(mode, halt, command, start.base, start.note, interfaces)


def make_folder(files: Files) -> None:
    """Make the container's folder and mark it as ours. Raises OSError; FileExistsError when it is somebody else's."""
    if files.folder.exists() and not files.mark.exists() and any(files.folder.iterdir()):
        raise FileExistsError(str(files.folder))
    files.folder.mkdir(mode=_FOLDER_MODE, parents=True, exist_ok=True)
    write_atomic(files.mark, b"This folder belongs to gugus-agent.\n")


def remove_folder(files: Files) -> None:
    """Remove the container's folder, if it is ours."""
    if files.mark.exists():
        shutil.rmtree(files.folder, ignore_errors=True)


def host_interface(guest_id: int, number: int) -> str:
    """Name of the host's end of a container's network interface: at most 15 characters (IFNAMSIZ)."""
    return f"gv{guest_id}-{number}"


def mounts_of(definition: Definition) -> list[config.Mount]:
    """Return what is mounted in a container beside its root: further disks, and folders of the host."""
    found = [
        config.Mount(disk.path, disk.spec.settings.mount_path, read_only=disk.read_only or disk.spec.settings.read_only)
        for disk in definition.disks[1:]
    ]
    for mount in definition.spec.container.mounts:
        source = Path(os.path.realpath(mount.source))
        found.append(config.Mount(source, mount.target, source.is_dir(), mount.read_only))
    return found


def _mounts(start: _Start) -> list[config.Mount]:
    """Return the mounts; the ids of a host's folder are translated where its file system can, which a disk's must."""
    disks = {disk.path for disk in start.definition.disks}
    found = []
    for mount in mounts_of(start.definition):
        can = start.userns is None or not mounts.idmap_problem(str(mount.source), str(start.userns))
        found.append(mount if can or mount.source in disks else _untranslated(mount))
    return found


def _untranslated(mount: config.Mount) -> config.Mount:
    return config.Mount(mount.source, mount.target, mount.is_folder, mount.read_only, idmapped=False)


def _nics(start: _Start, tree: rootfs.Tree, interfaces: Mapping[str, str]) -> list[config.Nic]:
    outside = addresses.outside(tree, start.definition.spec.first_boot)
    found = []
    for nic in start.definition.nics:
        fixed, gateways = addresses.static(outside[nic.spec.name]) if nic.spec.name in outside else ((), ())
        name, mtu = nic.spec.name, nic.spec.settings.mtu
        found.append(config.Nic(name, interfaces[name], nic.bridge, nic.spec.mac, mtu, fixed, gateways))
    return found


def _first_process(start: _Start, tree: rootfs.Tree) -> tuple[tuple[str, ...], config.Init | None]:
    """Return the command that is run instead of /sbin/init (() for that), and how."""
    spec, said = start.definition.spec.container, image.read(tree)
    command = tuple(spec.init) or said.command
    environment = dict(spec.environment)
    if not command:
        return (), config.Init(environment=environment) if environment else None
    uid, gid = image.ids_of(tree, said.user)
    defaults = {"PATH": image.DEFAULT_PATH, "HOME": image.home_of(tree, uid)}
    return command, config.Init(uid, gid, said.folder, defaults | said.environment | environment)


def _halt_signal(start: _Start, tree: rootfs.Tree, command: Sequence[str]) -> str:
    if not command:
        return rootfs.halt_signal(start.definition.disks[0].path)
    if Path(command[0]).name in _INITS:
        return rootfs.HALT_SIGNALS.get(rootfs.resolve(tree.path, command[0]).name, rootfs.DEFAULT_HALT_SIGNAL)
    wanted = image.read(tree).stop_signal
    return wanted if wanted in signal.Signals.__members__ else rootfs.APPLICATION_HALT_SIGNAL


def _mode(definition: Definition, owner: int, unprivileged_problem: str) -> str:
    """Tell how to run it. The owner of the root file system decides: a container cannot use files with other ids."""
    if owner == idmap.IDMAP.base:
        if unprivileged_problem:
            raise _failed(definition, f"its files are for an unprivileged container, but here {unprivileged_problem}")
        return UNPRIVILEGED
    if owner != 0:
        raise _failed(definition, f"its root file system belongs to uid {owner}; expected 0 or {idmap.IDMAP.base}")
    if not definition.spec.container.privileged and not unprivileged_problem:
        raise _failed(
            definition,
            "its root file system belongs to the host's root, but it is not privileged",
            remedy="Import the volume again for unprivileged use, or set container.privileged.",
        )
    return PRIVILEGED


def _why_shared(definition: Definition, mode: str, ids: Ids) -> str:
    """Tell why a container has to run in the range that others run in, too; "" when it does not."""
    if mode == PRIVILEGED:
        return ""
    if ids.own is None or ids.userns is None:
        return ids.shared
    for disk in definition.disks:
        if problem := mounts.idmap_problem(str(disk.path), str(ids.userns)):
            return f"the file system of disk {disk.spec.name} cannot translate ids ({problem})"
    return ""


def _failed(definition: Definition, why: str, *, remedy: str = "") -> GugusError:
    error = internal("GUEST_START_FAILED", f'container "{definition.spec.name}" cannot be started: {why}.')
    error.remedy = remedy
    return error


def _words(error: OSError) -> str:
    return f"{error.strerror}: {error.filename}" if error.filename else str(error)


def _there(name: str) -> tuple[Path, ...]:
    return (_SHARE / name,) if (_SHARE / name).exists() else ()


def mode_of(init_pid: int) -> str:
    """Tell how a running container runs, by its init's id map."""
    base = base_of(init_pid)
    return "" if base is None else UNPRIVILEGED if base else PRIVILEGED


def base_of(init_pid: int) -> int | None:
    """Return the host's number of a running container's root; None when there is no such process."""
    try:
        return int(Path(f"/proc/{init_pid}/uid_map").read_text().split()[1])
    except (OSError, IndexError):
        return None
