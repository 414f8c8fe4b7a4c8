"""Which life of a member a data folder is: a member that lost its disk is another one, though its name is the same.

Invariant: a uid is made with the folder and never changes. What an earlier life promised binds only the earlier one; what
a list of voters says of it is not said of this one. Without this a voter that is added again with an empty folder could,
while it catches up, take an old list for the present one and lead alone, or give an old leader a majority that it has no
more. etcd's member ids are there for the same reason.
"""

import random
from contextlib import closing
from dataclasses import replace

from .disk import Disk
from .segment import REMEDY
from .types import CorruptState, Member

UID_FILE = "member"

_CHARS = 16


def new_uid(rng: random.Random) -> str:
    """Return a uid that no other folder has."""
    return f"{rng.getrandbits(4 * _CHARS):0{_CHARS}x}"


def stored_uid(disk: Disk) -> str | None:
    """Return the uid of a folder, None when it has none, or a crash left half of one. Raises OSError."""
    reader = disk.open(UID_FILE)
    if reader is None:
        return None
    with closing(reader):
        text = reader.read(0, reader.size).decode(errors="replace")
    return text if len(text) == _CHARS and text.isalnum() else None


def store_uid(disk: Disk, uid: str) -> None:
    """Give a folder its uid, durably. Raises OSError, and ValueError for what is none."""
    if len(uid) != _CHARS or not uid.isalnum():
        raise ValueError(f"uid {uid!r}: {_CHARS} letters or digits")
    disk.write(UID_FILE, 0, uid.encode())
    disk.sync(UID_FILE)


def open_uid(disk: Disk, wanted: str, rng: random.Random, *, first_start: bool) -> str:
    """Return the uid of a folder; at a first start, which may be repeated after a crash, give it one: `wanted`, or a new one.

    Raises OSError, and CorruptState when a folder that was used has lost it.
    """
    uid = stored_uid(disk)
    if first_start:
        uid = wanted or uid or new_uid(rng)
        store_uid(disk, uid)
    if uid is None:
        raise CorruptState(f"{UID_FILE}: missing or damaged; {REMEDY}")
    return uid


def founders(voters: tuple[Member, ...], me: str, uid: str, *, joining: bool) -> tuple[Member, ...]:
    """Return the voters to begin with: without us when we are to be added to a cluster that is there already."""
    if joining:
        return tuple(voter for voter in voters if voter.name != me)
    return tuple(replace(voter, uid=uid) if voter.name == me and not voter.uid else voter for voter in voters)
