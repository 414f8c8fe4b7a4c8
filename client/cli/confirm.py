"""Destructive commands ask first; where nobody can be asked, they want --yes."""

import sys
from typing import Annotated

import typer

from client.cli.output import say
from common.errors import invalid

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def confirm(question: str, yes: bool) -> None:
    """Return when it may be done. Raises GugusError (usage) without a terminal, and exits with 1 on "no"."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise invalid("--yes", f"{question} There is no terminal to ask on.", remedy="Repeat the command with --yes.")
    if not typer.confirm(question, err=True):
        say("nothing was changed.")
        raise typer.Exit(1)
