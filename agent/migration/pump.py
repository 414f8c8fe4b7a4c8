"""The pump: joins a plain socket of this host with a TLS connection to another agent, both ways, in one thread.

On the wire each piece has its length before it (4 bytes, big-endian); the length 0 ends a direction. So an end is told
apart from a connection that broke, and each direction can end alone, which TLS in Python does not offer.

One thread serves both directions, because an OpenSSL connection must not be used by two at once. What costs time here,
copying and ciphers, runs without the interpreter's lock.
"""

import os
import select
import socket
import ssl
import struct
from contextlib import suppress
from dataclasses import dataclass

PIECE_BYTES = 256 * 1024
"""Read and passed on at once. Measured on loopback: 64 KiB costs a tenth of the speed, 1 MiB gains nothing."""

SOCKET_BUFFER_BYTES = 512 * 1024
"""Asked for on local sockets: less has both sides wait for each other, more is late when a guest stands still (`wire.narrow`)."""

_GONE = select.POLLHUP | select.POLLERR
_HEAD = struct.Struct(">I")
_EMPTY = memoryview(b"")


class Broken(Exception):
    """The connection ended before the other side had said that it was through."""


class Stop:
    """Ends pumps from another thread. Its descriptors go back when the last who has it, such as a pump, lets go of it."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def set(self) -> None:
        """End every pump that has this. May be called often, and after `close`."""
        with suppress(OSError):
            os.write(self._writer, b"\0")

    def close(self) -> None:
        """Give the descriptors back; nobody may wait on it any more."""
        reader, writer, self.reader, self._writer = self.reader, self._writer, -1, -1
        for fd in (reader, writer):
            if fd >= 0:
                os.close(fd)

    def __del__(self) -> None:
        self.close()


@dataclass(slots=True)
class Moved:
    """Bytes that a pump moved: from the plain socket to the peer, and the other way."""

    sent: int = 0
    received: int = 0


def pump(plain: socket.socket, tls: ssl.SSLSocket, stop: Stop, moved: Moved | None = None) -> Moved:
    """Join the two sockets until both directions have ended or `stop` is set; closes neither.

    Raises Broken when the peer is gone before its end, and OSError when the plain socket fails.
    """
    return _Pump(plain, tls, stop, moved if moved is not None else Moved()).run()


class _Pump:
    def __init__(self, plain: socket.socket, tls: ssl.SSLSocket, stop: Stop, moved: Moved) -> None:
        self._plain, self._tls, self._stop, self.moved = plain, tls, stop, moved
        for sock in (plain, tls):
            sock.setblocking(False)
        self._out_buffer = memoryview(bytearray(_HEAD.size + PIECE_BYTES))
        self._out = _EMPTY  # framed, not yet sent to the peer
        self._in_buffer = memoryview(bytearray(PIECE_BYTES))
        self._in = _EMPTY  # received, not yet parsed
        self._head = b""  # part of a length that was cut in two
        self._left = 0  # bytes of the present piece that are still to come
        self._plain_ended = self._peer_ended = False
        self._tls_wants = 0  # what the last try on the TLS connection waited for

    def run(self) -> Moved:
        poll = select.poll()
        poll.register(self._stop.reader, select.POLLIN)
        plain = self._plain.fileno()
        masks = {plain: -1, self._tls.fileno(): -1}
        while True:
            self._tls_wants = 0
            while self._send() | self._receive():
                pass
            if self._plain_ended and self._peer_ended and not self._out and not self._in:
                return self.moved
            for fd, wanted in ((plain, self._plain_wants()), (self._tls.fileno(), self._tls_wants)):
                if masks[fd] != wanted:
                    poll.register(fd, wanted)
                    masks[fd] = wanted
            for fd, events in poll.poll():
                if fd == self._stop.reader:
                    raise Broken("stopped")
                if fd == plain and events & _GONE and self._plain_ended and not self._peer_ended:
                    raise Broken(
                        "the program here is gone"
                    )  # it takes nothing any more, and would be told of again and again

    def _plain_wants(self) -> int:
        reads = select.POLLIN if not self._out and not self._plain_ended else 0
        return reads | (select.POLLOUT if self._in else 0)

    def _send(self) -> bool:
        """Move one piece towards the peer; return whether anything moved."""
        moved = False
        if not self._out and not self._plain_ended:
            moved = self._fill()
        while self._out:
            try:
                count = self._tls.send(self._out)
            except ssl.SSLWantWriteError:
                self._tls_wants |= select.POLLOUT
                break
            except ssl.SSLWantReadError:
                self._tls_wants |= select.POLLIN
                break
            except OSError as error:
                raise Broken(str(error)) from error
            self._out = self._out[count:]
            moved = True
        return moved

    def _fill(self) -> bool:
        try:
            count = self._plain.recv_into(self._out_buffer[_HEAD.size :])
        except BlockingIOError:
            return False
        self._plain_ended = count == 0
        self.moved.sent += count
        _HEAD.pack_into(self._out_buffer, 0, count)
        self._out = self._out_buffer[: _HEAD.size + count]
        return True

    def _receive(self) -> bool:
        """Move what the peer sent to the plain socket; return whether anything moved."""
        moved = False
        if not self._in and not self._peer_ended:
            moved = self._take()
        while self._in:
            if not self._left:
                self._parse()
                continue
            try:
                count = self._plain.send(self._in[: self._left])
            except BlockingIOError:
                break
            self.moved.received += count
            self._left -= count
            self._in = self._in[count:]
            moved = True
        return moved

    def _take(self) -> bool:
        """Read from the peer until the buffer is full or nothing more has come: a TLS record alone is 16 KiB."""
        end = 0
        while end < PIECE_BYTES:
            try:
                count = self._tls.recv_into(self._in_buffer[end:])
            except ssl.SSLWantReadError:
                self._tls_wants |= select.POLLIN
                break
            except ssl.SSLWantWriteError:
                self._tls_wants |= select.POLLOUT
                break
            except OSError as error:
                if end:  # what came before it counts; the next read fails again
                    break
                raise Broken(str(error)) from error
            if count == 0:
                if end:
                    break
                raise Broken("the peer closed the connection")
            end += count
        self._in = self._in_buffer[:end]
        return end > 0

    def _parse(self) -> None:
        """Read the length of the next piece; of one that is cut in two, keep what there is."""
        wanted = _HEAD.size - len(self._head)
        self._head += bytes(self._in[:wanted])
        self._in = self._in[wanted:]
        if len(self._head) < _HEAD.size:
            return
        (self._left,) = _HEAD.unpack(self._head)
        self._head = b""
        if self._peer_ended or self._left > PIECE_BYTES:
            raise Broken("the peer sent what no peer sends")
        if not self._left:
            self._peer_ended = True
            with suppress(OSError):
                self._plain.shutdown(socket.SHUT_WR)
            if self._in:
                raise Broken("the peer went on after its end")
