"""The wire decoder: strict, total, and deaf to pickles."""

import os
import pickle
from pathlib import Path
from typing import Any

import pysyncobj.pickle
import pytest
from gugus.consensus.v1 import wire_pb2

from manager.consensus.codec import (
    MAX_FRAME_BYTES,
    WireError,
    decode_message,
    decode_refusal,
    encode_message,
    encode_refusal,
)
from manager.consensus.command import encode_data
from manager.consensus.library import PickleForbidden

ENTRY = (b"\x00" + encode_data(b"hello"), 8, 3)
APPEND = {
    "type": "append_entries",
    "term": 3,
    "commit_index": 7,
    "prevLogIdx": 7,
    "prevLogTerm": 2,
    "round": 4,
    "quiet": True,
}
MESSAGES: list[dict[str, Any]] = [
    {**APPEND, "entries": [ENTRY, (b"\x01", 9, 3)]},
    {"type": "next_node_idx", "term": 3, "next_node_idx": 9, "reset": False, "success": True, "round": 4},
    {"type": "request_vote", "term": 4, "last_log_index": 8, "last_log_term": 3, "transfer": True},
    {"type": "response_vote", "term": 4},
    {"type": "pre_vote", "round": 1, "last_log_index": 8, "last_log_term": 3},
    {"type": "pre_vote_granted", "round": 1},
    {"type": "higher_term", "term": 9},
    {
        "type": "snapshot_chunk",
        "term": 1,
        "snapshot_index": 5,
        "total_bytes": 9,
        "offset": 4,
        "data": b"abc",
        "round": 0,
    },
    {"type": "snapshot_received", "term": 1, "snapshot_index": 5, "received_bytes": 7, "round": 0},
    {"type": "timeout_now", "term": 2},
]


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: m["type"])
def test_every_message_comes_back_as_it_was(message: dict[str, Any]) -> None:
    assert decode_message(encode_message(message)) == message


def test_a_hostile_pickle_is_refused_on_the_wire_and_in_the_library(tmp_path: Path) -> None:
    hostile = pickle.dumps(Bomb(tmp_path / "owned"))
    with pytest.raises(WireError):
        decode_message(hostile)
    with pytest.raises(WireError):
        decode_message(encode_message({**APPEND, "entries": [(b"\x00" + hostile, 8, 3)]}))
    with pytest.raises(PickleForbidden):
        pysyncobj.pickle.loads(hostile)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "entry",
    [
        (ENTRY[0], 9, 3),
        (ENTRY[0], 8, 1),
        (ENTRY[0], 8, 4),
        (b"\x02", 8, 3),
        (b"", 8, 3),
        (b"\x00" + bytes(60000), 8, 3),
    ],
    ids=["gap", "older term", "term beyond the leader's", "membership of the library", "empty", "too large"],
)
def test_an_entry_that_no_leader_sends_is_refused(entry: tuple[bytes, int, int]) -> None:
    with pytest.raises(WireError):
        decode_message(encode_message({**APPEND, "entries": [entry]}))


def test_a_frame_beyond_the_limit_is_refused() -> None:
    with pytest.raises(WireError, match="at most"):
        decode_message(bytes(MAX_FRAME_BYTES + 1))


def test_what_an_older_release_does_not_know_is_passed_over() -> None:
    newer_field = b"\xfa\x07\x03new"  # field 127, length-delimited
    vote = wire_pb2.Vote(term=4).SerializeToString() + newer_field
    assert decode_message(b"\x2a" + bytes([len(vote)]) + vote + newer_field) == {"type": "response_vote", "term": 4}
    assert decode_message(newer_field) is None
    for nonsense in (newer_field + newer_field, b"\xf8\x07\x01", b""):
        with pytest.raises(WireError):
            decode_message(nonsense)


def test_a_refusal_is_one_line_of_bounded_length() -> None:
    reason = decode_refusal(encode_refusal("no\nroom\x1b[31m" + "x" * 1_000))
    assert reason.startswith("no?room?[31mxxx")
    assert len(reason) == 300
    with pytest.raises(WireError, match="at most a refusal"):
        decode_refusal(encode_message(MESSAGES[3]))
