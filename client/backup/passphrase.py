"""Passphrases come from a file or a terminal, never from the command line, where every user of the host could read them."""

import getpass
import sys
from pathlib import Path
from typing import Annotated

import typer

from client.cli.output import say
from client.local_files import unreadable
from common.errors import invalid

LEAST_CHARS = 12
"""For new backups. scrypt makes guessing slow, not a short passphrase long."""

OTHERS_MAY_READ = 0o077

PassphraseFile = Annotated[
    str,
    typer.Option(
        metavar="FILE", help='File that holds the passphrase; "-" reads standard input (asked for at the terminal).'
    ),
]


def new_passphrase(file: str) -> str:
    """Return the passphrase for a new backup, typed twice. Raises GugusError."""
    chosen = _read(file) if file else _ask("Passphrase for the backup: ")
    if len(chosen) < LEAST_CHARS:
        raise invalid(
            "--passphrase-file",
            f"the passphrase has {len(chosen)} characters; a backup holds the keys of the cluster and wants at least {LEAST_CHARS}.",
        )
    if not file and _ask("The same again: ") != chosen:
        raise invalid("--passphrase-file", "the two were not the same.", remedy="Nothing was written; try again.")
    return chosen


def known_passphrase(file: str) -> str:
    """Return the passphrase of an existing backup. Raises GugusError."""
    return _read(file) if file else _ask("Passphrase of the backup: ")


def _read(file: str) -> str:
    try:
        if file == "-":
            return sys.stdin.readline().rstrip("\r\n")
        path = Path(file)
        if path.stat().st_mode & OTHERS_MAY_READ:
            say(f"warning: others on this host can read {path}; `chmod 600 {path}`.")
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable("--passphrase-file", file, error) from None
    if not lines or not lines[0]:
        raise invalid("--passphrase-file", f"{file} is empty; the passphrase is its first line.")
    return lines[0]


def _ask(question: str) -> str:
    if not sys.stdin.isatty():
        raise invalid("--passphrase-file", "is missing, and there is no terminal to ask on.")
    return getpass.getpass(question)
