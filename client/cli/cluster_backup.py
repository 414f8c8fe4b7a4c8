"""`gugus cluster backup`: takes a backup of the cluster, or tells of one that is there."""

from pathlib import Path
from typing import Annotated

import typer
from gugus.cluster.v1.backup_pb2 import BackupHeader

from client.backup.passphrase import PassphraseFile, known_passphrase, new_passphrase
from client.cli.output import Format, Output, plain, say, write
from client.cli.session import run
from client.cli.words import moment
from common.errors import invalid
from common.units import format_size


def backup(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    passphrase_file: PassphraseFile = "",
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it is there.")] = False,
    inspect: Annotated[
        bool, typer.Option("--inspect", help="Tell what FILE is of; needs no passphrase and no cluster.")
    ] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all of FILE; needs the passphrase, but no cluster.")
    ] = False,
    output: Format = Output.TABLE,
) -> None:
    """Write the whole state of the cluster, with its CA, to an encrypted file. Disks of guests are not in it."""
    if inspect and verify:
        raise invalid("--verify", "--inspect is a part of it: give one of the two.")
    if inspect or verify:
        _tell(file, passphrase_file, verify, output)
        return
    from client.backup.take import take  # here: every other command starts faster without it

    passphrase = new_passphrase(passphrase_file)
    taken = run(ctx, lambda gugus: take(gugus, file.absolute(), passphrase, force=force))
    say(f"{file}: {sentence(taken.header)}; {format_size(file.stat().st_size)}, read back and found whole.")
    say("It holds the keys of the cluster. Keep a copy off its hosts, and the passphrase apart from it.")
    if output is not Output.TABLE:
        write({"file": str(file), "backup": plain(taken.header), "state_bytes": taken.end.bytes}, output)


def sentence(header: BackupHeader) -> str:
    """Return what a backup is of."""
    return (
        f"cluster {header.cluster_name} ({header.cluster_id}) at revision {header.revision}, taken at {moment(header.taken_at)} "
        f"from {header.manager} (Gugus {header.version})"
    )


def _tell(file: Path, passphrase_file: str, verify: bool, output: Output) -> None:
    from client.backup.file import inspect, read

    found = inspect(file)
    if verify:
        passphrase = known_passphrase(passphrase_file)
        for _ in read(file, passphrase):
            pass
    proof = "all of it can be read" if verify else "it is whole; --verify reads it with the passphrase"
    say(f"{file}: {sentence(found.header.backup)}; {format_size(found.size_bytes)}, {proof}.")
    if output is not Output.TABLE:
        write(
            {"file": str(file), "backup": plain(found.header.backup), "sha256": found.sha256, "verified": verify},
            output,
        )
