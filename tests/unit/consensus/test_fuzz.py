"""Fuzzing what is read from the network: frames cut anyhow, bytes of any kind, and the core behind the decoder."""

import random

import pytest
from gugus.consensus.v1 import wire_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from manager.consensus.codec import (
    WireError,
    decode_hello,
    decode_message,
    decode_refusal,
    encode_message,
)
from manager.consensus.command import decode_command, encode_data, encode_raise, encode_voter_change
from manager.consensus.core import RaftCore
from manager.consensus.frames import FrameSplitter, framed
from manager.consensus.level import WrongRelease
from manager.consensus.library import virtual_clock
from manager.consensus.types import CorruptState, Member
from tests.unit.consensus.memory import memory_core

HUGE = (1 << 63) - 1
NAMES = ["n1", "n2", "n3"]
KINDS = [
    "append_entries", "append_entries", "append_entries", "next_index", "request_vote", "vote", "pre_vote",
    "pre_vote_granted", "higher_term", "snapshot_chunk", "snapshot_received", "timeout_now", "leader_hint",
]  # fmt: skip

# -- frames


@given(st.lists(st.binary(max_size=40), max_size=12), st.data())
def test_however_a_stream_is_cut_the_frames_are_the_same(frames: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(framed(frame) for frame in frames)
    splitter, found, position = FrameSplitter(40), list[bytes](), 0
    while position < len(stream):
        end = data.draw(st.integers(position + 1, len(stream)))
        found += splitter.feed(stream[position:end])
        position = end
    assert found == frames
    assert not splitter.incomplete


@given(st.lists(st.binary(max_size=60), max_size=8), st.integers(0, 50))
def test_of_a_stream_of_anything_no_more_than_a_frame_is_kept(pieces: list[bytes], limit: int) -> None:
    splitter = FrameSplitter(limit)
    try:
        for piece in pieces:
            assert all(len(frame) <= limit for frame in splitter.feed(piece))
            assert len(splitter._buffer) <= limit + 4
    except WireError:
        return


# -- messages


def checked(data: bytes) -> None:
    """Decode as a connection does: an error of the wire, or something that is the same when it is sent on."""
    for decode in (decode_hello, decode_refusal):
        try:
            decode(data)
        except WireError:
            continue
    try:
        message = decode_message(data)
    except WireError:
        return
    if message is not None:
        assert decode_message(encode_message(message)) == message


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    checked(data)


@settings(max_examples=500)
@given(st.randoms(use_true_random=False), st.data())
def test_valid_frames_with_bytes_changed_added_and_lost(rng: random.Random, data: st.DataObject) -> None:
    frame = bytearray(any_frame(rng, None))
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.integers(0, len(frame)))
        frame[start : start + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    checked(bytes(frame))


@given(st.binary(max_size=100))
def test_any_command_is_one_or_a_value_error(data: bytes) -> None:
    try:
        decode_command(data)
    except ValueError:
        return


def test_a_command_of_a_newer_release_is_refused_also_inside() -> None:
    newer_field = b"\xfa\x07\x03new"  # field 127, length-delimited
    voter = wire_pb2.Voter(name="n1", host="h", port=1).SerializeToString() + newer_field
    voters = b"\x0a" + bytes([len(voter)]) + voter
    for data in (encode_data(b"x") + newer_field, b"\x12" + bytes([len(voters)]) + voters):
        with pytest.raises(ValueError, match="does not know"):
            decode_command(data)


# -- the core


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False))
def test_whatever_decodes_never_breaks_the_core(rng: random.Random) -> None:
    """Members that lie are outside of what Raft promises; but a core that stops says why, and never by accident."""
    clock = [1.0]
    with virtual_clock(lambda: clock[0]):
        core = memory_core("n1", NAMES, lambda _, message: void(encode_message(message)), rng.getrandbits(32))
        for peer in NAMES[1:]:
            core.peer_connected(peer)
        try:
            for _ in range(60):
                clock[0] += rng.choice([0, 0, 0.1, 1.0])
                step(core, rng)
        except CorruptState as error:
            assert "would replace a committed one" in str(error)  # noqa: PT017 - the one lie that a log can notice
        except WrongRelease as error:
            assert error.level == 2  # noqa: PT017


def void(_: bytes) -> None:
    pass


def step(core: RaftCore, rng: random.Random) -> None:
    chance = rng.random()
    if chance < 0.1 and core.is_leader:
        core.propose(b"payload", lambda _: None)
    elif chance < 0.15:
        core.peer_greeted(rng.choice(NAMES[1:]), rng.choice([0, 1, 2]))
    elif chance < 0.2:
        core.introduced(Member(rng.choice(["n2", "n9"]), "memory"))
    else:
        try:
            message = decode_message(any_frame(rng, core))
        except WireError:
            return
        assert message is not None
        core.receive(rng.choice([*NAMES[1:], "n9"]), message)
    turns = 0
    while core.turn():
        turns += 1
        assert turns < 100
    core.leadership()
    core.deadline()


def any_frame(rng: random.Random, core: RaftCore | None) -> bytes:
    """Return a frame of any kind with any fields; near to what a core would believe, if one is given."""
    frame = wire_pb2.Frame()
    kind = rng.choice(KINDS)
    body = getattr(frame, kind)
    body.SetInParent()
    for field in body.DESCRIPTOR.fields:
        if field.type == field.TYPE_BOOL:
            setattr(body, field.name, rng.random() < 0.5)
        elif field.type == field.TYPE_BYTES:
            setattr(body, field.name, bytes(rng.randint(0, 5)))
        elif field.type == field.TYPE_STRING:
            setattr(body, field.name, rng.choice(["", *NAMES, "n9", "x" * rng.choice([255, 256])]))
        elif field.type == field.TYPE_UINT32:
            setattr(body, field.name, rng.choice([0, 1, 65535, 65536, (1 << 32) - 1]))
        elif field.type == field.TYPE_UINT64:
            setattr(body, field.name, HUGE if rng.random() < 0.01 else rng.randint(0, 8))
    if core is not None and rng.random() < 0.7:
        believable(body, core, rng)
    if kind == "append_entries":
        for index in range(body.previous_index + 1, body.previous_index + 1 + rng.choice([0, 0, 1, 3])):
            body.entries.add(index=index, term=max(body.previous_term, body.term), command=any_command(rng))
    return bytes(frame.SerializeToString())


def believable(body: wire_pb2.AppendEntries, core: RaftCore, rng: random.Random) -> None:
    names = [field.name for field in body.DESCRIPTOR.fields]
    if "term" in names:
        body.term = min(HUGE, core.term + rng.choice([0, 0, 1]))
    if "previous_index" in names:
        body.previous_index = max(core.journal.first_index, core.journal.last_index - rng.choice([0, 0, 1, 3]))
        body.previous_term = core.journal.term_at(body.previous_index) or 0
        body.commit_index = min(HUGE, core.commit_index + rng.choice([0, 1, 3]))


def any_command(rng: random.Random) -> bytes:
    change = encode_voter_change([Member(name, "memory") for name in NAMES[: rng.randint(1, 3)]])
    return rng.choice(
        [b"\x01", b"\x00" + encode_data(b"x"), b"\x00" + change, b"\x00" + encode_raise(rng.choice([1, 1, 2]))]
    )
