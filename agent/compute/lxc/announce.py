"""Telling the network where a container is now, as QEMU tells it of virtual machines (net/announce.c).

A container that was started on another host keeps its MAC addresses, and the switches between send what is for them to its
old place until they hear from it: one that only answers would not be found for minutes. The frames are RARP requests of its
own addresses, sent from within, so that the host's bridge learns them, too. They say nothing of IP addresses, which have
not changed hands.
"""

import asyncio
import ctypes
import os
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress

from agent.compute.hypervisor import AttachedNic

ROUNDS_S = (0.0, 0.05, 0.15, 0.25, 0.35)
"""Pauses before each round, in seconds: QEMU's (migration parameters announce-*). The first may come before the bridge forwards."""

_RARP = 0x8035  # linux/if_ether.h
_REQUEST = bytes.fromhex("0001 0800 06 04 0003")  # Ethernet, IPv4, lengths of addresses, request reverse (RFC 903)
_LEAST_BYTES = 60
_NEWNET = 0x40000000  # sched.h
_libc = ctypes.CDLL(None, use_errno=True)


def frame(mac: str) -> bytes:
    """Return the frame that announces a MAC address."""
    own = bytes.fromhex(mac.replace(":", ""))
    whole = b"\xff" * 6 + own + _RARP.to_bytes(2, "big") + _REQUEST + own + bytes(4) + own + bytes(4)
    return whole.ljust(_LEAST_BYTES, b"\0")


async def announce(init_pid: int, nics: Sequence[AttachedNic]) -> None:
    """Announce a container's interfaces. One that is down, or gone, is left out; never raises."""
    sockets = await asyncio.to_thread(_within, init_pid, [nic for nic in nics if not nic.spec.settings.link_down])
    try:
        for pause_s in ROUNDS_S:
            await asyncio.sleep(pause_s)
            for sender, message in sockets:
                with suppress(OSError):
                    sender.send(message)
    finally:
        for sender, _ in sockets:
            sender.close()


def _within(init_pid: int, nics: Sequence[AttachedNic]) -> list[tuple[socket.socket, bytes]]:
    """Open a socket at each interface. Only a thread of its own enters the container's network, and ends there."""
    found: list[tuple[socket.socket, bytes]] = []

    def enter() -> None:
        with suppress(OSError):
            handle = os.open(f"/proc/{init_pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                if _libc.setns(handle, _NEWNET):
                    return
            finally:
                os.close(handle)
            found.extend(_sockets(nics))

    if nics:
        thread = threading.Thread(target=enter, name="announce", daemon=True)
        thread.start()
        thread.join()
    return found


def _sockets(nics: Sequence[AttachedNic]) -> list[tuple[socket.socket, bytes]]:
    found = []
    for nic in nics:
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
        try:
            opened.bind((nic.spec.name, 0))
        except OSError:
            opened.close()
        else:
            found.append((opened, frame(nic.spec.mac)))
    return found
