"""`gugus guest clone` and `template`."""

from typing import Annotated

import typer
from gugus.cluster.v1.clone_pb2 import (
    CLONE_MODE_FULL,
    CLONE_MODE_LINKED,
    CLONE_MODE_UNSPECIFIED,
    CloneGuestRequest,
)

from client.cli.confirm import Yes, confirm
from client.cli.guest_app import Name, Wait, app
from client.cli.output import Format, Output
from client.cli.session import complete_node, complete_pool, complete_project, run_task
from client.cli.words import size
from common.errors import invalid


@app.command()
def clone(
    ctx: typer.Context,
    source: Name,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new guest.")],
    full: Annotated[bool, typer.Option("--full", help="Copy every disk (the default, but for templates).")] = False,
    linked: Annotated[
        bool, typer.Option("--linked", help="Read from the template's disks (the default for templates).")
    ] = False,
    snapshot: Annotated[str, typer.Option("--snapshot", metavar="SNAPSHOT", help="As the source was then.")] = "",
    pool: Annotated[
        str, typer.Option(metavar="POOL", help="For its disks (those of the source).", autocompletion=complete_pool)
    ] = "",
    id_: Annotated[int, typer.Option("--id", metavar="ID", help="Numeric id (the next free one).")] = 0,
    start: Annotated[bool, typer.Option("--start", help="Start it.")] = False,
    hostname: Annotated[str, typer.Option(metavar="NAME", help="Host name of its first boot (its name).")] = "",
    notes: Annotated[str, typer.Option(metavar="TEXT", help="Notes (the source's).")] = "",
    project: Annotated[
        str, typer.Option(metavar="PROJECT", help="Its project (the source's).", autocompletion=complete_project)
    ] = "",
    node: Annotated[str, typer.Option(metavar="NODE", help="Prefer this node.", autocompletion=complete_node)] = "",
    rate: Annotated[str, typer.Option(metavar="SIZE", help="Bytes a second at most for each copy, like 50MiB.")] = "",
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Make a guest from another one, or from a template, with its own id, addresses and first boot."""
    if full and linked:
        raise invalid("--linked", "cannot be together with --full.", remedy="Choose one of the two.")
    mode = CLONE_MODE_FULL if full else CLONE_MODE_LINKED if linked else CLONE_MODE_UNSPECIFIED
    request = CloneGuestRequest(
        source=source,
        name=name,
        mode=mode,
        snapshot=snapshot,
        pool=pool,
        id=id_,
        start=start,
        hostname=hostname,
        notes=notes,
        project=project,
        preferred_node=node,
        bytes_per_s=size("--rate", rate) if rate else 0,
    )
    run_task(ctx, output, lambda gugus: gugus.clones.clone(request), f"{name} is a clone of {source}.", wait=wait)


@app.command()
def template(
    ctx: typer.Context, name: Name, sure: Yes = False, wait: Wait = True, output: Format = Output.TABLE
) -> None:
    """Make a stopped guest a template, for good: it never runs again, others are cloned from it."""
    confirm(f"{name} never runs again. Make it a template?", sure)
    run_task(ctx, output, lambda gugus: gugus.clones.template(name), f"{name} is a template.", wait=wait)
