"""What an application image (OCI) says of its program, kept in the root file system that is made from it.

The file lies where the container can change it, so nothing in it is trusted: it chooses what the container itself runs.
"""

import json
from dataclasses import asdict, dataclass, field

from agent.compute.lxc.rootfs import Tree

FILE = "etc/gugus-image.json"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """Its command with arguments, environment, working folder, user ("uid", "name", "user:group") and signal to stop by."""

    command: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    folder: str = ""
    user: str = ""
    stop_signal: str = ""

    def to_text(self) -> str:
        """Return the content of the file."""
        return json.dumps(asdict(self), sort_keys=True) + "\n"


def read(tree: Tree) -> ImageConfig:
    """Return what the image of a root file system said; an empty one when it was made from no such image."""
    try:
        value = json.loads(tree.read(FILE) or "{}")
        return ImageConfig(
            tuple(str(word) for word in value.get("command", ())),
            {str(name): str(text) for name, text in value.get("environment", {}).items()},
            str(value.get("folder", "")),
            str(value.get("user", "")),
            str(value.get("stop_signal", "")),
        )
    except (ValueError, TypeError, AttributeError):
        return ImageConfig()


def ids_of(tree: Tree, user: str) -> tuple[int, int]:
    """Return the user and group id that a user of an image has. Raises ValueError when it is unknown there."""
    name, _, group = user.partition(":")
    if not name:
        return 0, 0
    entry = _entry(tree, "etc/passwd", name)
    uid = int(name) if name.isdigit() else int(_known(entry, name)[2])
    if not group:
        return uid, int(entry[3]) if entry else 0
    return uid, int(group) if group.isdigit() else int(_known(_entry(tree, "etc/group", group), group)[2])


def home_of(tree: Tree, uid: int) -> str:
    """Return a user's home folder, "/" when the container does not know him."""
    entry = _entry(tree, "etc/passwd", str(uid))
    return entry[5] if entry and len(entry) > 5 else "/root" if uid == 0 else "/"


def _known(entry: list[str], name: str) -> list[str]:
    if not entry:
        raise ValueError(f'the container knows no "{name}"')
    return entry


def _entry(tree: Tree, path: str, name: str) -> list[str]:
    for line in (tree.read(path) or "").splitlines():
        fields = line.split(":")
        if len(fields) > 3 and name in (fields[0], fields[2]):
            return fields
    return []
