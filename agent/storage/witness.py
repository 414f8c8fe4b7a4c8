"""Whether a lock of this host is seen by the others that use a shared pool: nothing else tells it of every kind of mount.

Each host keeps a file of its own in the pool locked for as long as its agent lives, and looks whether it sees those of others
locked. Seeing one is the proof: that lock was made by another host's agent, and came here through the storage. It holds as long as
the same file system is mounted, also while no other host is there to be seen.
"""

import os
import socket
import weakref
from pathlib import Path

from gugus.agent.v1.volume_pb2 import WriterProof

from agent.leases import lease
from common.logs import get_logger

_log = get_logger("storage")


class Witness:
    """The file of this host in a pool's folder of hosts, and a look at those of others."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own = socket.gethostname()
        self._handle = -1
        self._device = 0
        self._seen: set[str] = set()

    def look(self) -> WriterProof:
        """Tell whether locks come through. Blocks; never raises for what cannot be locked."""
        try:
            self._hold()
            self._seen |= {path.name for path in self._folder.iterdir() if path.name != self._own and _is_held(path)}
        except OSError as error:
            return WriterProof(reason=f"locks cannot be tried: {error}.")
        if self._seen:
            return WriterProof(proven=True, reason=f"locks of {', '.join(sorted(self._seen))} were seen here")
        return WriterProof(
            reason="no lock of another host is seen here: either no other host has the pool now, or its file system carries no locks "
            "(NFS: mount version 4, without `nolock`)."
        )

    def _hold(self) -> None:
        """Keep the file of this host locked: anew when the server forgot the lock, or another file system is there. Raises OSError."""
        device = self._folder.stat().st_dev
        if device != self._device:
            self._device, self._seen = device, set()
            path = self._folder / self._own
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            if self._handle < 0:
                self._handle = handle
                weakref.finalize(self, os.close, handle)
            else:
                os.dup2(handle, self._handle, inheritable=False)
                os.close(handle)
        if not lease.lock(self._handle):
            _log.warning("another host goes by this one's name in a pool", folder=str(self._folder), host=self._own)


def _is_held(path: Path) -> bool:
    try:
        return lease.is_held(str(path))
    except FileNotFoundError:
        return False
