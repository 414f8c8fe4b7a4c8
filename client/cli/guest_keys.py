"""`gugus guest send-key` and `passwd`: small things done inside of a guest."""

import getpass
import sys
from typing import Annotated

import typer

from client.cli.guest_app import Name, app
from client.cli.output import say
from client.cli.session import run
from common.errors import invalid


@app.command("send-key")
def send_key(
    ctx: typer.Context,
    name: Name,
    keys: Annotated[str, typer.Argument(metavar="KEYS", help="QEMU's names joined by -, pressed at once.")],
) -> None:
    """Press keys of a virtual machine's keyboard.

    gugus guest send-key web ctrl-alt-delete
    """
    run(ctx, lambda gugus: gugus.access.send_keys(name, keys.split("-")))
    say(f"{name}: pressed {keys}.")


@app.command()
def passwd(
    ctx: typer.Context,
    name: Name,
    user: Annotated[str, typer.Argument(metavar="USER", help="A user of the guest.")] = "root",
) -> None:
    """Set a user's password in a guest, which is read from the terminal or from standard input, never an argument."""
    password = _password(user)
    run(ctx, lambda gugus: gugus.access.set_password(name, user, password))
    say(f"{name}: the password of {user} is set.")


def _password(user: str) -> str:
    if not sys.stdin.isatty():
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        password = getpass.getpass(f"New password of {user}: ")
        if getpass.getpass("Again: ") != password:
            raise invalid("password", "was typed differently the second time; nothing was changed.")
    if not password:
        raise invalid("password", "is empty; nothing was changed.")
    return password
