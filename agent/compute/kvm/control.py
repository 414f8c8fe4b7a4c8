"""libvirt's control connection at the target of a migration, listened in on for one thing: that the source's libvirt is through.

A guest's process at the source may be ended only when the libvirt there has no more to do with it than to wait for the target's:
one whose QEMU ends before that calls the migration off, and the target's libvirt then ends the guest that came. What it says when it is
through is the call "finish" (REMOTE_PROC_DOMAIN_MIGRATE_FINISH3_PARAMS of src/remote/remote_protocol.x; framing: virnetprotocol.x). Were
that ever to change, it would not be heard here, and libvirt's own end of the migration be waited for, some 10 ms longer.
"""

import os
import socket
import struct
import threading

PROGRAM = 0x20008086
FINISH = 306
CALL = 0

LARGEST_BYTES = 32 * 1024 * 1024
"""Longest message of libvirt (VIR_NET_MESSAGE_MAX); it stops listening to what claims to be longer."""

LINGER_S = 5.0
"""How long libvirtd keeps a connection that broke after the last call, to carry that out: one that ends earlier ends the guest."""

_LENGTH = struct.Struct(">I")
_HEAD = struct.Struct(">IIIII")
_RESULT = struct.Struct(">i")
SHORTEST_BYTES = _LENGTH.size + _HEAD.size + 2 * _RESULT.size


class Control(socket.socket):
    """A connection to this host's libvirtd. through: set once a libvirt has said over it that its guest is all here."""

    def __init__(self, plain: socket.socket, through: threading.Event) -> None:
        super().__init__(fileno=plain.detach())
        self._messages, self._through = Messages(), through

    def send(self, data: memoryview, flags: int = 0) -> int:  # type: ignore[override]  # the pump sends nothing else
        """Send what the other host's libvirt says, and listen."""
        count = super().send(data, flags)
        if self._messages.heard(data[:count]):
            self._through.set()
        return count

    def close(self) -> None:
        """Close it; after the last call libvirtd sees that a while later."""
        if self._through.is_set() and self.fileno() >= 0:
            end = threading.Timer(LINGER_S, os.close, (os.dup(self.fileno()),))
            end.daemon = True
            end.start()
        super().close()


class Messages:
    """What went over one direction of a connection of libvirt's, in pieces of any size."""

    def __init__(self) -> None:
        self._part = bytearray()
        self._lost = False

    def heard(self, data: memoryview | bytes) -> bool:
        """Take a piece; whether it ended a message that says that a guest is all sent."""
        if self._lost:
            return False
        self._part += data
        said = False
        while len(self._part) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._part)
            if not _LENGTH.size < length <= LARGEST_BYTES:
                self._lost = True
                self._part.clear()
                break
            if len(self._part) < length:
                break
            said |= _is_finish(memoryview(self._part)[:length])
            del self._part[:length]
        return said


def _is_finish(message: memoryview) -> bool:
    """Whether a message is the call that ends a migration well: its last word, `cancelled`, is 0."""
    if len(message) < SHORTEST_BYTES:
        return False
    program, _, procedure, kind, _ = _HEAD.unpack_from(message, _LENGTH.size)
    (cancelled,) = _RESULT.unpack_from(message, len(message) - _RESULT.size)
    return (program, procedure, kind, cancelled) == (PROGRAM, FINISH, CALL, 0)
