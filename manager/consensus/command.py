"""Replicated commands: what an entry of the log means. For the state machine, for the voters, or a raise of the level (rule H11).

Invariant: decoding is strict and equal on all members; an entry is checked before it enters the log, so that decoding
it when it is applied cannot fail. A field that this release does not know is refused, not passed over: applying without it
would be another thing than what the other members do.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from google.protobuf.message import DecodeError
from gugus.consensus.v1 import wire_pb2

from .types import Member


@dataclass(frozen=True, slots=True)
class RaiseLevel:
    """The cluster's level from this entry on."""

    level: int


def encode_data(payload: bytes) -> bytes:
    """Return the command that hands a payload to the state machine."""
    return wire_pb2.Command(data=payload).SerializeToString()


def encode_voter_change(voters: Iterable[Member]) -> bytes:
    """Return the command that makes these the voters."""
    return wire_pb2.Command(voters=wire_pb2.Voters(voters=encode_voters(voters))).SerializeToString()


def encode_raise(level: int) -> bytes:
    """Return the command that raises the cluster's level."""
    return wire_pb2.Command(level=level).SerializeToString()


def decode_command(data: bytes) -> bytes | tuple[Member, ...] | RaiseLevel:
    """Return a payload, the new voters, or a raise of the level. Raises ValueError."""
    try:
        command = wire_pb2.Command.FromString(data)
    except DecodeError as error:
        raise ValueError(f"command: {error}") from error
    size = command.ByteSize()
    command.DiscardUnknownFields()
    if command.ByteSize() != size:
        raise ValueError("command: it has fields that this release does not know")
    match command.WhichOneof("body"):
        case "data":
            return command.data
        case "voters":
            return decode_voters(command.voters.voters)
        case "level" if command.level:
            return RaiseLevel(command.level)
        case _:
            raise ValueError("command: neither data nor voters nor a level")


def encode_voters(voters: Iterable[Member]) -> list[wire_pb2.Voter]:
    """Return voters as messages, in order of name."""
    return [wire_pb2.Voter(name=v.name, host=v.host, port=v.port, uid=v.uid) for v in sorted(voters)]


def decode_voters(messages: Iterable[wire_pb2.Voter]) -> tuple[Member, ...]:
    """Return voters from messages. Raises ValueError for a bad, doubled or missing voter."""
    voters = tuple(Member(m.name, m.host, m.port, m.uid) for m in messages)
    if not voters or len({v.name for v in voters}) != len(voters):
        raise ValueError(f"voters: none, or one twice, in {[v.name for v in voters]}")
    return tuple(sorted(voters))
