"""`gugus guest first-boot`: what a virtual machine is told when it boots for the first time."""

from typing import Annotated

import typer
from gugus.agent.v1.guest_pb2 import GUEST_KIND_CONTAINER, GuestNic
from gugus.agent.v1.guest_pb2 import GuestSpec as AgentSpec
from gugus.cluster.v1.guest_pb2 import Guest

from client.cli.guest_app import Name, app
from client.cli.output import Format, Output, write
from client.cli.session import run
from common import nocloud
from common.errors import invalid

VEIL = "(not shown)"
"""Instead of a password's hash, which can be tried out."""


@app.command("first-boot")
def first_boot(
    ctx: typer.Context,
    name: Name,
    file: Annotated[str, typer.Argument(metavar="FILE", help="One of them alone, like user-data.")] = "",
    output: Format = Output.TABLE,
) -> None:
    """Show the files that cloud-init finds at a virtual machine's next start: user-data, network-config, meta-data, vendor-data."""
    files = seed_of(run(ctx, lambda gugus: gugus.guests.get(name)))
    if file:
        if file not in files:
            raise invalid("FILE", f'"{file}" is none of its files.', remedy=f"Choose one of {', '.join(files)}.")
        files = {file: files[file]}
    if output is not Output.TABLE:
        write(files, output)
    elif file:
        print(files[file], end="")
    else:
        print("\n".join(f"# {title}\n{content.rstrip()}\n" for title, content in files.items()), end="")


def seed_of(guest: Guest) -> dict[str, str]:
    """Return the files of a guest's seed by name, without the hash of its password. Raises INVALID_ARGUMENT for a container."""
    if guest.spec.kind == GUEST_KIND_CONTAINER:
        what = f"{guest.meta.name} is a container, whose settings are written into its files at its first start."
        raise invalid("NAME", what, remedy=f"`gugus guest show {guest.meta.name} -o yaml` has them as first_boot.")
    nics = [GuestNic(name=nic.name, mac=nic.mac) for nic in guest.spec.nics]
    spec = AgentSpec(name=guest.meta.name, uid=guest.meta.uid, first_boot=guest.spec.first_boot, nics=nics)
    if spec.first_boot.password_hash:
        spec.first_boot.password_hash = VEIL
    return nocloud.files(spec)
