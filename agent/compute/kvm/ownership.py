"""Gives QEMU's user the files of disks whose owners libvirt leaves alone; see `agent.compute.kvm.xml.ownership` for why.

Functions run in a thread of libvirt's pool.
"""

import os
import stat
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from agent.compute.kvm.xml.ownership import MODEL
from common.logs import get_logger

CONNECTIONS = 3
"""As many as `kvm.domains` has: libvirtd looks at its whole host each time that it is asked for its capabilities."""

_log = get_logger("kvm.ownership")


def give(connection: Any, paths: Iterable[Path]) -> None:
    """Give files to QEMU's user; what is no file, or not there, is left alone.

    One that cannot be given may be QEMU's all the same (an NFS server that lets root do nothing); if it is not, QEMU says so.
    """
    user = qemu_user(connection)
    for path in paths:
        with suppress(FileNotFoundError):
            _give(path, user)


def _give(path: Path, user: tuple[int, int]) -> None:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) or (found.st_uid, found.st_gid) == user:
        return
    try:
        os.chown(path, *user)
    except OSError as error:
        _log.warning("a disk cannot be given to QEMU's user", path=str(path), error=str(error))


@lru_cache(maxsize=CONNECTIONS)
def qemu_user(connection: Any) -> tuple[int, int]:
    """Return user and group of QEMU's processes, as libvirt's security driver "dac" labels them: "+64055:+64055".

    They last as long as the connection: libvirtd reads its configuration when it starts.
    """
    capabilities = ET.fromstring(connection.getCapabilities())  # noqa: S314  (libvirt's own output)
    for model in capabilities.iter("secmodel"):
        label = model.find("baselabel")
        if model.findtext("model") == MODEL and label is not None and label.text:
            user, _, group = label.text.partition(":")
            return int(user), int(group)
    return 0, 0
