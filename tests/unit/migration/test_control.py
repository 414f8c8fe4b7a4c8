"""What is heard of libvirt's connection from a migration's source: that it is through, and nothing else."""

import socket
import struct
import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.compute.kvm import control
from agent.compute.kvm.control import CALL, FINISH, PROGRAM, Control, Messages

KEEP_ALIVE = 0x6B656570
REPLY = 1


def message(
    procedure: int = FINISH, program: int = PROGRAM, kind: int = CALL, cancelled: int = 0, cookie: bytes = b""
) -> bytes:
    """A message as libvirt frames it: length, program, version, procedure, type, serial, status, then what is said."""
    body = struct.pack(">IIIIII", program, 1, procedure, kind, 7, 0) + cookie + struct.pack(">Ii", 0, cancelled)
    return struct.pack(">I", 4 + len(body)) + body


OTHERS = (
    message(procedure=305),
    message(cancelled=1),
    message(kind=REPLY),
    message(program=KEEP_ALIVE),
    struct.pack(">IIIIIII", 28, KEEP_ALIVE, 1, 1, 2, 0, 0),
)


def heard(stream: bytes, cuts: list[int]) -> int:
    """How often a stream that comes in pieces says that its guest is sent."""
    messages, bounds = Messages(), [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return sum(messages.heard(stream[low:high]) for low, high in pairwise(bounds))


@given(st.lists(st.sampled_from(OTHERS)), st.binary(max_size=200), st.lists(st.integers(0, 5000)))
def test_the_last_call_is_heard_once_however_it_is_cut(before: list[bytes], cookie: bytes, cuts: list[int]) -> None:
    assert heard(b"".join(before), cuts) == 0
    assert heard(b"".join([*before, message(cookie=cookie), *before]), cuts) == 1


@given(st.binary(max_size=400), st.lists(st.integers(0, 400)))
def test_what_is_no_message_of_libvirt_is_only_passed_on(noise: bytes, cuts: list[int]) -> None:
    heard(noise, cuts)
    assert heard(struct.pack(">I", control.LARGEST_BYTES + 1) + message(), cuts) == 0


def joined() -> tuple[Control, socket.socket, threading.Event]:
    near, far = socket.socketpair()
    through = threading.Event()
    return Control(near, through), far, through


def test_libvirtd_sees_a_connection_end_at_once_before_the_last_call() -> None:
    connection, far, through = joined()
    with far:
        connection.send(memoryview(OTHERS[0]))
        connection.close()
        assert far.recv(4096) == OTHERS[0]
        assert (far.recv(4096), through.is_set()) == (b"", False)


def test_libvirtd_has_time_to_carry_the_last_call_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "LINGER_S", 0.5)
    connection, far, through = joined()
    with far:
        connection.send(memoryview(message()))
        assert through.is_set()
        connection.close()
        assert far.recv(4096) == message()
        far.settimeout(0.1)
        with pytest.raises(TimeoutError):
            far.recv(4096)
        far.settimeout(10)
        assert far.recv(4096) == b""
