"""Users of a container, in the files of its root file system: passwd(5), shadow(5), group(5), sudoers(5)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gugus.agent.v1 import boot_pb2

from agent.compute.lxc.rootfs import Tree

FIRST_UID, LAST_UID = 1000, 59_999  # login.defs(5), UID_MIN and the end of Debian's range for users
_ROOT_LINE = "root:x:0:0:root:/root:/bin/sh"
_SHELLS = ("bin/bash", "usr/bin/bash")
_SUDO_GROUPS = ("sudo", "wheel")
_NO_PASSWORD = "*"  # noqa: S105  (shadow(5): none fits; unlike "!" it does not lock the account for keys)


@dataclass(frozen=True, slots=True)
class User:
    """An account."""

    name: str
    uid: int
    gid: int
    home: str


def apply(tree: Tree, boot: boot_pb2.FirstBoot) -> None:
    """Make the user that is asked for, and give it keys and password; root when no user is named. Raises OSError."""
    user = _user(tree, boot.user) if boot.user else User("root", 0, 0, _home(tree, "root") or "/root")
    if boot.password_hash:
        _set_password(tree, user.name, boot.password_hash)
    if boot.ssh_authorized_keys:
        home = user.home.strip("/")
        tree.folder(f"{home}/.ssh", 0o700, user.uid, user.gid)
        keys = "".join(f"{key.strip()}\n" for key in boot.ssh_authorized_keys)
        tree.write(f"{home}/.ssh/authorized_keys", keys, 0o600, user.uid, user.gid)


def _user(tree: Tree, name: str) -> User:
    """Return a user, made with a home and sudo rights if there is none of that name."""
    lines = _lines(tree, "etc/passwd") or [_ROOT_LINE]
    if (known := _fields(lines, name)) is not None and len(known) >= 6:
        user = User(name, int(known[2]), int(known[3]), known[5])
    else:
        number = _free_id(lines, _lines(tree, "etc/group"))
        user = User(name, number, number, f"/home/{name}")
        shell = next((f"/{path}" for path in _SHELLS if tree.has(path)), "/bin/sh")
        _put(tree, "etc/passwd", [*lines, f"{name}:x:{number}:{number}::{user.home}:{shell}"])
        _put(tree, "etc/group", [*_lines(tree, "etc/group"), f"{name}:x:{number}:"])
        _put(tree, "etc/shadow", [*_lines(tree, "etc/shadow"), f"{name}:{_NO_PASSWORD}::0:99999:7:::"], 0o640)
    tree.folder(user.home.strip("/"), 0o755, user.uid, user.gid)
    _give_sudo(tree, name)
    return user


def _give_sudo(tree: Tree, name: str) -> None:
    groups = _lines(tree, "etc/group")
    changed = [_with_member(line, name) if line.split(":")[0] in _SUDO_GROUPS else line for line in groups]
    if changed != groups:
        _put(tree, "etc/group", changed)
    if tree.has("etc/sudoers.d"):
        tree.write("etc/sudoers.d/90-gugus", f"{name} ALL=(ALL) NOPASSWD:ALL\n", 0o440)


def _with_member(line: str, name: str) -> str:
    head, _, members = line.rpartition(":")
    names = [member for member in members.split(",") if member]
    return line if name in names else f"{head}:{','.join([*names, name])}"


def _set_password(tree: Tree, name: str, hashed: str) -> None:
    lines = _lines(tree, "etc/shadow")
    fields = _fields(lines, name) or [name, "", "", "0", "99999", "7", "", "", ""]
    fields[1] = hashed
    kept = [line for line in lines if line.split(":")[0] != name]
    _put(tree, "etc/shadow", [*kept, ":".join(fields)], 0o640)


def _home(tree: Tree, name: str) -> str:
    fields = _fields(_lines(tree, "etc/passwd"), name)
    return fields[5] if fields is not None and len(fields) > 5 else ""


def _free_id(*files: Iterable[str]) -> int:
    used = {parts[2] for lines in files for line in lines if len(parts := line.split(":")) > 2}
    return next(number for number in range(FIRST_UID, LAST_UID) if str(number) not in used)


def _fields(lines: Iterable[str], name: str) -> list[str] | None:
    return next((line.split(":") for line in lines if line.split(":")[0] == name), None)


def _lines(tree: Tree, path: str) -> list[str]:
    return [line for line in (tree.read(path) or "").splitlines() if line]


def _put(tree: Tree, path: str, lines: Sequence[str], mode: int = 0o644) -> None:
    tree.write(path, "".join(f"{line}\n" for line in lines), mode)
