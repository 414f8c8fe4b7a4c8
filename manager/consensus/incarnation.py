"""Which life of a member a data folder is: a member that lost its disk is another one, though its name is the same.

Invariant: a uid is made with the folder and never changes. What an earlier life promised binds only the earlier one; what
a list of voters says of it is not said of this one. Without this a voter that is added again with an empty folder could,
while it catches up, take an old list for the present one and lead alone, or give an old leader a majority that it has no
more. etcd's member ids are there for the same reason.
"""

import random
from contextlib import closing

from .disk import Disk
from .types import CorruptState

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


def required_uid(disk: Disk) -> str:
    """Return the uid of a folder that a member has used. Raises CorruptState."""
    uid = stored_uid(disk)
    if uid is None:
        raise CorruptState(
            f"{UID_FILE}: missing or damaged; remove this voter from the cluster and add it again with an empty data folder"
        )
    return uid
