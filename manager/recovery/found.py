"""`gugus-manager found`, the part of `gugus cluster restore` that is a manager's: its state, made of a state on standard input.

Standard input: frames, each its length (4 bytes, big endian) and a piece of the state; a length of 0 ends it. What ends earlier is refused.
Invariant: nothing is in force before all of it was read; repeated with the same backup it does nothing.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from common.config import AGENT_PORT, ManagerConfig, load_agent, load_manager
from common.errors import precondition
from common.files import write_atomic
from common.identity.store import Pki
from manager.consensus import Member
from manager.events import WARNING, event
from manager.recovery.folders import MAKING, RAFT, give_to_owner, make_state, put_in_force
from manager.recovery.identity import node_key_sha256
from manager.recovery.lock import only_user
from manager.recovery.rebirth import NewLife, reborn

MARK = "founded-from"
"""File with the backup's SHA-256 that the state was made of."""

LENGTH_BYTES = 4
MAX_PIECE_BYTES = 16 * 1024 * 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the sub-command."""
    parser.add_argument("--backup", metavar="SHA256", required=True, help="what the state is of")
    parser.add_argument("--event", metavar="TEXT", required=True, help="what is written down of it")


def command(arguments: argparse.Namespace) -> None:
    """Run the sub-command. Raises GugusError, OSError."""
    config = load_manager(arguments.config)
    with only_user(config.state_dir):
        if not _done(config.state_dir, arguments.backup):
            _found(config, arguments)


def _found(config: ManagerConfig, arguments: argparse.Namespace) -> None:
    agent: Path = arguments.config.with_name("agent.yaml")
    life = NewLife(
        cluster_name=config.cluster_name,
        cluster_id=config.cluster_id,
        node=config.name,
        address=config.address,
        agent_port=load_agent(agent).port if agent.exists() else AGENT_PORT,
        key_sha256=node_key_sha256(Pki(config.pki_dir)),
        event=event(f"cluster/{config.cluster_name}", "CLUSTER_RESTORED", arguments.event, WARNING),
    )
    me = Member(config.name, config.address, config.raft_port)
    make_state(config.state_dir, me, reborn(pieces(sys.stdin.buffer), life))
    write_atomic(config.state_dir / MARK, arguments.backup.encode())
    give_to_owner(config.state_dir / MARK, config.state_dir)
    put_in_force(config.state_dir, kept=RAFT)


def _done(state_dir: Path, backup: str) -> bool:
    """Return whether this was done before. Raises GugusError STATE_EXISTS when the host holds another state."""
    if not (state_dir / RAFT).exists():
        return False
    mark = state_dir / MARK
    if mark.exists() and mark.read_text() == backup and not (state_dir / MAKING).exists():
        return True
    raise precondition(
        "STATE_EXISTS",
        f"{state_dir / RAFT} exists: this host holds the state of a cluster.",
        remedy="Restore on a host that holds none, or move that folder away.",
        subject=str(state_dir),
    )


def pieces(source: BinaryIO) -> Iterator[bytes]:
    """Yield the frames of a stream. Raises GugusError INPUT_CUT."""
    while length := int.from_bytes(_exactly(source, LENGTH_BYTES), "big"):
        if length > MAX_PIECE_BYTES:
            raise _cut(f"a piece of {length} bytes")
        yield _exactly(source, length)


def _exactly(source: BinaryIO, length: int) -> bytes:
    data = source.read(length)
    if len(data) != length:
        raise _cut("it ends in the middle")
    return data


def _cut(why: str) -> Exception:
    return precondition(
        "INPUT_CUT", f"the state on standard input is not whole: {why}.", remedy="`gugus cluster restore` again."
    )
