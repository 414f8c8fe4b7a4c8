"""The wire: the library's messages as protobuf frames and back, strictly (rule H10).

Invariant: decoding executes nothing, allocates no more than a small multiple of the frame, and yields only messages whose
every field has been checked; anything else is a WireError. A kind of frame that only a newer release knows is no error:
it is passed over, as is a field of a known kind (docs/decisions/0007).
"""

from typing import Any

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet
from gugus.consensus.v1 import wire_pb2

from .command import decode_command
from .journal import MAX_ENTRIES, Entry
from .library import COMMAND, NO_OP, Message
from .types import MAX_PAYLOAD_BYTES

MAX_FRAME_BYTES = 1 << 20
"""Largest frame, either way: above a full message of entries or of a snapshot piece, with room for the fields."""

_MAX_COMMAND_BYTES = MAX_PAYLOAD_BYTES + 64  # kind and protobuf tags around a payload
_MAX_REASON_CHARS = 300
_MAX_NAME_CHARS = 255  # of a DNS name (RFC 1035, section 3.1), which is the longest that an address is
_LENGTH_DELIMITED = 2  # the wire type of a message in a field (protobuf encoding)
_MAX_U63 = (1 << 63) - 1

_FIELDS: dict[str, tuple[str, ...]] = {
    "append_entries": ("term", "commit_index", "previous_index", "previous_term", "round", "quiet"),
    "next_index": ("term", "next_index", "reset", "success", "round"),
    "request_vote": ("term", "last_log_index", "last_log_term", "transfer"),
    "vote": ("term",),
    "pre_vote": ("round", "last_log_index", "last_log_term"),
    "pre_vote_granted": ("round",),
    "higher_term": ("term",),
    "snapshot_chunk": ("term", "snapshot_index", "total_bytes", "offset", "data", "round"),
    "snapshot_received": ("term", "snapshot_index", "received_bytes", "round"),
    "timeout_now": ("term",),
    "leader_hint": ("name", "host", "port", "uid"),
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


def encode_hello(hello: wire_pb2.Hello) -> bytes:
    """Return the frame's bytes for who we are."""
    return wire_pb2.Frame(hello=hello).SerializeToString()


def decode_hello(data: bytes) -> wire_pb2.Hello:
    """Return the Hello in a frame. Raises WireError."""
    frame = decode_frame(data)
    if frame.WhichOneof("body") != "hello":
        raise WireError(f"frame: {frame.WhichOneof('body')} where a hello is expected")
    return frame.hello


def encode_refusal(reason: str) -> bytes:
    """Return the frame's bytes for why a connection is refused."""
    return wire_pb2.Frame(refusal=wire_pb2.Refusal(reason=reason[:_MAX_REASON_CHARS])).SerializeToString()


def decode_refusal(data: bytes) -> str:
    """Return why a peer refused our connection, as one printable line. Raises WireError."""
    frame = decode_frame(data)
    if frame.WhichOneof("body") != "refusal":
        raise WireError(f"frame: {frame.WhichOneof('body')} where at most a refusal is expected")
    return "".join(c if c.isprintable() else "?" for c in frame.refusal.reason[:_MAX_REASON_CHARS])


def decode_message(data: bytes) -> Message | None:
    """Return the message in a frame, with the library's names; None for a kind of a newer release. Raises WireError."""
    frame = decode_frame(data)
    kind = frame.WhichOneof("body")
    if kind is None and _of_newer_kind(frame):
        return None
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
    """Return a frame. Raises WireError when it is too large or no protobuf."""
    if len(data) > MAX_FRAME_BYTES:
        raise WireError(f"frame: {len(data)} bytes, at most {MAX_FRAME_BYTES}")
    try:
        return wire_pb2.Frame.FromString(data)
    except DecodeError as error:
        raise WireError(f"frame: {error}") from error


def _of_newer_kind(frame: wire_pb2.Frame) -> bool:
    """Whether a frame without a known body is exactly one message that we do not know, as a newer release may send."""
    unknown = UnknownFieldSet(frame)
    return len(unknown) == 1 and unknown[0].wire_type == _LENGTH_DELIMITED


def _checked(kind: str, name: str, value: Any) -> Any:
    if type(value) is int and value > _MAX_U63:
        raise WireError(f"{kind}.{name}: {value} is out of range")
    if type(value) is str and len(value) > _MAX_NAME_CHARS:
        raise WireError(f"{kind}.{name}: {len(value)} characters, at most {_MAX_NAME_CHARS}")
    return value


def _entries(body: wire_pb2.AppendEntries) -> list[Entry]:
    if len(body.entries) > MAX_ENTRIES:
        raise WireError(f"append_entries: {len(body.entries)} entries, at most {MAX_ENTRIES}")
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
