"""Volumes of guests: how they are named, and which ones belong to a guest."""

import hashlib
from collections.abc import Collection

from gugus.cluster.v1.guest_pb2 import Guest

NAME_CHARS = 63
"""Longest name of a volume (an RFC 1123 label)."""

_UID_CHARS = 8


def volume_name(guest: str, disk: str, uid: str, taken: Collection[str] = ()) -> str:
    """Return a name for a new disk's volume that is not in `taken`.

    It tells people whose it is, and holds a part of the guest's UUID, so that a later guest of the same name gets others. Names that are
    too long are cut, and then told apart by a digest.
    """
    tail, number = uid[:_UID_CHARS], 1
    while True:
        name = f"{guest}-{disk}-{tail}" + (f"-{number}" if number > 1 else "")
        if len(name) > NAME_CHARS:
            digest = hashlib.sha256(name.encode()).hexdigest()[:_UID_CHARS]
            room = NAME_CHARS - len(tail) - len(digest) - 2
            name = f"{name[:room].rstrip('-')}-{digest}-{tail}"
        if name not in taken:
            return name
        number += 1


def volumes_of(guest: Guest) -> list[tuple[str, str]]:
    """Return pool and name of every volume that may be there because of a guest."""
    spec, status = guest.spec, guest.status
    disks = [*spec.disks, *status.unused_disks, *status.leaving_disks]
    found = [(disk.pool, disk.volume) for disk in disks if disk.volume]
    if status.hibernation_volume:
        found.append((status.hibernation_pool, status.hibernation_volume))
    return found


def volume_names(guest: Guest) -> set[str]:
    """Return the names of a guest's volumes, whatever pool they are in."""
    return {name for _, name in volumes_of(guest)}
