"""Makes a host the first one of a cluster that goes on from a backup.

Invariant: may be repeated after any interruption; nothing runs before all of the backup was read and proven, and the state is in force as a
whole or not at all. The manager's own code makes its state (`gugus-manager found`): this side only opens the seal.
"""

import asyncio
import sys
from pathlib import Path

from client.backup.contents import Contents
from client.backup.file import Inspection, read
from client.first_host import FirstHost, Given, Made, make
from common.config import GATEWAY_PORT
from common.errors import GugusError, precondition
from common.held_lease import held_s
from common.identity.ca import CertificateAuthority

FOUND = (sys.executable, "-P", "-m", "manager.main", "found")
LENGTH_BYTES = 4


def check(host: FirstHost, contents: Contents, *, takes_over: bool) -> None:
    """Raise a GugusError that says why the backup is not to be restored here, if it is not.

    takes_over: this host is, or replaces for good, the node of its name in the backup.
    """
    if host.node in contents.nodes and not takes_over:
        raise precondition(
            "NODE_NAME_TAKEN",
            f"the backup has a node {host.node} already ({contents.nodes[host.node]}).",
            remedy="If this host is that one, or replaces it and that one is off for good: --takes-over. Else name it otherwise by --node.",
        )
    try:
        left_s = held_s(host.run)
    except (OSError, ValueError) as error:
        raise precondition(
            "LEASE_UNKNOWN", f"whether this host's agent holds a lease cannot be told: {error}."
        ) from error
    if left_s > 0:
        raise precondition(
            "CLUSTER_LIVES",
            f"this host's agent holds a lease for {left_s:.0f} more seconds: the managers of its cluster live.",
            remedy="Restore on a host that is in no cluster.",
        )


async def restore(host: FirstHost, file: Path, passphrase: str, found: Inspection, contents: Contents) -> Made:
    """Write keys and configuration, and have the manager's state made. Raises GugusError."""
    made = make(host, _given(contents))
    header = found.header.backup
    taken_at = header.taken_at.ToDatetime()
    text = (
        f"cluster {header.cluster_name} was restored on {host.node} from a backup of revision {header.revision}, taken at "
        f"{taken_at:%Y-%m-%d %H:%M:%S} UTC; it was {header.cluster_id} and is {made.cluster_id} now"
    )
    await _found(made.manager, file, passphrase, ["--backup", found.sha256, "--event", text])
    return made


def _given(contents: Contents) -> Given:
    identity = contents.identity
    try:
        authority = CertificateAuthority.load(identity.ca_certificate, identity.ca_key)
    except ValueError as error:
        raise precondition("BACKUP_DAMAGED", f"the CA in the backup cannot be used: {error}.") from error
    gateway_port = identity.gateway_port or GATEWAY_PORT  # backups of older releases do not name it
    ports = (identity.port, identity.raft_port, identity.enrol_port, identity.metrics_port, gateway_port)
    return Given(authority, *ports)


async def _found(config: Path, file: Path, passphrase: str, words: list[str]) -> None:
    """Feed the state to the manager's code, piece by piece."""
    process = await asyncio.create_subprocess_exec(
        *FOUND, "--config", str(config), *words, stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stderr is not None
    try:
        await _feed(process.stdin, file, passphrase)
        said = (await process.stderr.read()).decode(errors="replace").strip()
        code = await process.wait()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if code != 0:
        raise _not_founded(said.removeprefix("gugus-manager: "))


async def _feed(stdin: asyncio.StreamWriter, file: Path, passphrase: str) -> None:
    try:
        for message in read(file, passphrase):
            if message.WhichOneof("content") == "state":
                stdin.write(len(message.state).to_bytes(LENGTH_BYTES, "big") + message.state)
                await stdin.drain()
        stdin.write(bytes(LENGTH_BYTES))
        await stdin.drain()
        stdin.close()
    except (BrokenPipeError, ConnectionResetError):
        return  # it says why on its standard error


def _not_founded(said: str) -> GugusError:
    return precondition(
        "NOT_RESTORED",
        said or "the manager's state could not be made.",
        remedy="Nothing is in force; it may be repeated.",
    )
