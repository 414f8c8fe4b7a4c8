"""Replicated commands: what an entry of the log means. One kind for the state machine, one for the voters (rule H11).

Invariant: decoding is strict and equal on all members; an entry is checked before it enters the log, so that decoding
it when it is applied cannot fail.
"""

from collections.abc import Iterable

from google.protobuf.message import DecodeError
from gugus.consensus.v1 import wire_pb2

from .types import Member


def encode_data(payload: bytes) -> bytes:
    """Return the command that hands a payload to the state machine."""
    return wire_pb2.Command(data=payload).SerializeToString()


def encode_voter_change(voters: Iterable[Member]) -> bytes:
    """Return the command that makes these the voters."""
    return wire_pb2.Command(voters=wire_pb2.Voters(voters=encode_voters(voters))).SerializeToString()


def decode_command(data: bytes) -> bytes | tuple[Member, ...]:
    """Return a payload, or the new voters. Raises ValueError."""
    try:
        command = wire_pb2.Command.FromString(data)
    except DecodeError as error:
        raise ValueError(f"command: {error}") from error
    match command.WhichOneof("body"):
        case "data":
            return command.data
        case "voters":
            return decode_voters(command.voters.voters)
        case _:
            raise ValueError("command: neither data nor voters")


def encode_voters(voters: Iterable[Member]) -> list[wire_pb2.Voter]:
    """Return voters as messages, in order of name."""
    return [wire_pb2.Voter(name=v.name, host=v.host, port=v.port) for v in sorted(voters)]


def decode_voters(messages: Iterable[wire_pb2.Voter]) -> tuple[Member, ...]:
    """Return voters from messages. Raises ValueError for a bad, doubled or missing voter."""
    voters = tuple(Member(m.name, m.host, m.port) for m in messages)
    if not voters or len({v.name for v in voters}) != len(voters):
        raise ValueError(f"voters: none, or one twice, in {[v.name for v in voters]}")
    return tuple(sorted(voters))
