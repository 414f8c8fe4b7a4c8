"""The wire: the library's messages as protobuf frames and back, strictly (rule H10).

Invariant: decoding executes nothing, allocates no more than the frame, and yields only messages whose every field has
been checked; anything else is a WireError.
"""

from typing import Any

from google.protobuf.message import DecodeError
from gugus.consensus.v1 import wire_pb2

from .command import decode_command
from .journal import Entry
from .library import COMMAND, NO_OP, Message
from .types import MAX_PAYLOAD_BYTES

MAX_FRAME_BYTES = 1 << 20
"""Largest frame, either way: above a full message of entries or of a snapshot piece, with room for the fields."""

_MAX_COMMAND_BYTES = MAX_PAYLOAD_BYTES + 64  # kind and protobuf tags around a payload
_MAX_U63 = (1 << 63) - 1

_FIELDS: dict[str, tuple[str, ...]] = {
    "append_entries": ("term", "commit_index", "previous_index", "previous_term", "round"),
    "next_index": ("term", "next_index", "reset", "success", "round"),
    "request_vote": ("term", "last_log_index", "last_log_term", "transfer"),
    "vote": ("term",),
    "pre_vote": ("round", "last_log_index", "last_log_term"),
    "pre_vote_granted": ("round",),
    "higher_term": ("term",),
    "snapshot_chunk": ("term", "snapshot_index", "total_bytes", "offset", "data", "round"),
    "snapshot_received": ("term", "snapshot_index", "received_bytes", "round"),
    "timeout_now": ("term",),
}

_LIBRARY_NAMES = {"next_node_idx": "next_index", "response_vote": "vote", "prevLogIdx": "previous_index",
                  "prevLogTerm": "previous_term"}  # fmt: skip
"""The library's own names for types and fields where ours are plainer."""
_LIBRARY_TYPES = {"next_index": "next_node_idx", "vote": "response_vote"}
_LIBRARY_FIELDS = {"next_index": "next_node_idx", "previous_index": "prevLogIdx", "previous_term": "prevLogTerm"}


class WireError(ValueError):
    """A frame that no honest peer sends."""


def encode_message(message: Message) -> bytes:
    """Return the frame's bytes for a message of the library or of ours."""
    kind = str(_LIBRARY_NAMES.get(message["type"], message["type"]))
    frame = wire_pb2.Frame()
    body = getattr(frame, kind)
    body.SetInParent()
    for name in _FIELDS[kind]:
        value = message.get(_LIBRARY_FIELDS.get(name, name))
        if value is not None:
            setattr(body, name, value)
    if kind == "append_entries":
        body.entries.extend(wire_pb2.Entry(index=i, term=t, command=c) for c, i, t in message["entries"])
    return frame.SerializeToString()


def decode_message(data: bytes) -> Message:
    """Return the message in a frame, with the library's names. Raises WireError."""
    frame = decode_frame(data)
    kind = str(frame.WhichOneof("body"))
    if kind not in _FIELDS:
        raise WireError(f"frame: {kind} where a message is expected")
    body = getattr(frame, kind)
    message: Message = {"type": _LIBRARY_TYPES.get(kind, kind)}
    for name in _FIELDS[kind]:
        message[_LIBRARY_FIELDS.get(name, name)] = _checked(kind, name, getattr(body, name))
    if kind == "append_entries":
        message["entries"] = _entries(body)
    if kind == "snapshot_chunk" and body.offset + len(body.data) > body.total_bytes:
        raise WireError("snapshot_chunk: data beyond total_bytes")
    return message


def decode_frame(data: bytes) -> wire_pb2.Frame:
    """Return a frame. Raises WireError when it is too large, no protobuf, or has fields that we do not know."""
    if len(data) > MAX_FRAME_BYTES:
        raise WireError(f"frame: {len(data)} bytes, at most {MAX_FRAME_BYTES}")
    try:
        return wire_pb2.Frame.FromString(data)
    except DecodeError as error:
        raise WireError(f"frame: {error}") from error


def _checked(kind: str, name: str, value: Any) -> Any:
    if type(value) is int and value > _MAX_U63:
        raise WireError(f"{kind}.{name}: {value} is out of range")
    return value


def _entries(body: wire_pb2.AppendEntries) -> list[Entry]:
    expected, term, entries = body.previous_index, body.previous_term, list[Entry]()
    for entry in body.entries:
        expected += 1
        if entry.index != expected or not term <= entry.term <= body.term:
            raise WireError(f"append_entries: entry {entry.index} of term {entry.term} where {expected} was due")
        term = entry.term
        entries.append((_command(entry.command), entry.index, entry.term))
    return entries


def _command(command: bytes) -> bytes:
    if command == bytes([NO_OP]):
        return command
    if not command or command[0] != COMMAND or len(command) > _MAX_COMMAND_BYTES:
        raise WireError(f"append_entries: a command of {len(command)} bytes that is neither a no-op nor ours")
    try:
        decode_command(command[1:])
    except ValueError as error:
        raise WireError(f"append_entries: {error}") from error
    return command
