"""Messages between two agents on a TLS connection: JSON objects, each with its length (4 bytes, big-endian) before it.

A channel is used by one thread and half-duplex: who has asked waits for the answer.
"""

import json
import secrets
import socket
import ssl
import struct
from contextlib import suppress
from typing import Any

from agent.migration.pump import Broken

MESSAGE_BYTES = 16 * 1024
"""Longest message; ours stay under 1 KiB."""

SECRET_BYTES = 32

SILENCE_S = 10
"""A peer whose host does not acknowledge for so long is gone: the guest must not wait longer for a dead target."""

UNSENT_BYTES = 128 * 1024
LEAST_WINDOW_BYTES = 512 * 1024
MOST_WINDOW_BYTES = 8 * 1024 * 1024
FASTEST_BYTES_PER_S = 1_250_000_000
"""10 Gbit/s, twice of what two agents carry."""

LARGEST_SEGMENT_BYTES = 16 * 1024
"""See `narrow` for these five."""

_HEAD = struct.Struct(">I")
_PATH = struct.Struct("84xI60xI")
"""The largest segment that comes in, in bytes, and the shortest round trip that was seen, in microseconds: tcpi_advmss and tcpi_min_rtt
in struct tcp_info (linux/tcp.h, since Linux 4.6)."""


def arrival_name(migration: str) -> str:
    """Return the server name (SNI) that a source in another cluster asks for: it picks whom the target lets in, and is no secret."""
    return f"{migration}.arrival.gugus"


def new_secret() -> str:
    """Return a fresh secret (256 random bits, hexadecimal)."""
    return secrets.token_hex(SECRET_BYTES)


class Channel:
    """Messages on one TLS connection. Methods raise Broken when the peer is gone, says nonsense, or is too slow."""

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self.tls = tls

    def send(self, **message: Any) -> None:
        """Send one message."""
        data = json.dumps(message, separators=(",", ":")).encode()
        try:
            self.tls.sendall(_HEAD.pack(len(data)) + data)
        except OSError as error:
            raise Broken(f"the peer takes no message: {error}") from error

    def receive(self, timeout_s: float) -> dict[str, Any]:
        """Wait for one message."""
        try:
            self.tls.settimeout(timeout_s)
            (length,) = _HEAD.unpack(self._exactly(_HEAD.size))
            if not 0 < length <= MESSAGE_BYTES:
                raise Broken(f"the peer sent a message of {length} bytes")
            message = json.loads(self._exactly(length))
        except TimeoutError:
            raise Broken(f"the peer has said nothing for {timeout_s:g} s") from None
        except (OSError, ValueError, RecursionError) as error:
            raise Broken(f"the peer cannot be understood: {error}") from error
        if not isinstance(message, dict):
            raise Broken("the peer sent something that is no message")
        return message

    def close(self) -> None:
        """Close the connection."""
        close(self.tls)

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.tls.recv(count - len(data))
            if not piece:
                raise Broken("the peer closed the connection")
            data += piece
        return data


def tune(connection: socket.socket) -> None:
    """Set up a TCP connection between agents: nothing waits for more to send, and a dead peer is noticed."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENCE_S // 2)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, SILENCE_S // 5))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_S * 1000)


def narrow(connection: socket.socket) -> None:
    """Have a TCP connection over which a peer was greeted hold what fills it, its delay times its rate, and no more.

    What a QEMU has sent counts for it as arrived, and is not taken from the time that its guest may stand still: all that is on its way
    when the guest stops comes on top of that. By itself the kernel lets that grow to many MiB where the receiving end is the slower one.
    A long path (another site) is left to it; so are segments that fill such a buffer by a few (loopback has them): the kernel drops those
    for which it finds no room in the end, and they come again after 200 ms.
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    segment, rtt_us = _PATH.unpack(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _PATH.size))
    window = rtt_us * FASTEST_BYTES_PER_S // 1_000_000
    if window <= MOST_WINDOW_BYTES and segment <= LARGEST_SEGMENT_BYTES:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, max(LEAST_WINDOW_BYTES, window))


def close(connection: socket.socket) -> None:
    """Close a socket whatever state it is in; who waits in it in another thread comes back."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    with suppress(OSError):
        connection.close()
