"""`gugus guest disk move` and `flatten`."""

from typing import Annotated

import typer

from client.cli.guest_app import Name, Wait, disk_app
from client.cli.output import Format, Output
from client.cli.session import complete_pool, run_task
from client.cli.words import size

Disk = Annotated[str, typer.Argument(metavar="DISK", help="Its name within the guest.")]
Rate = Annotated[str, typer.Option(metavar="SIZE", help="Bytes a second at most, like 50MiB.")]
RunningRate = Annotated[
    str, typer.Option(metavar="SIZE", help="Bytes a second at most while the guest runs, like 50MiB.")
]


@disk_app.command()
def move(
    ctx: typer.Context,
    name: Name,
    disk: Disk,
    pool: Annotated[str, typer.Argument(metavar="POOL", autocompletion=complete_pool)],
    rate: Rate = "",
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Move a disk to another pool, while the guest runs if it does."""
    bytes_per_s = size("--rate", rate) if rate else 0
    done = f"disk {disk} of {name} is in pool {pool}."
    run_task(
        ctx,
        output,
        lambda gugus: gugus.clones.move_disk(name, disk, pool, bytes_per_s=bytes_per_s),
        done,
        wait=wait,
    )


@disk_app.command()
def flatten(
    ctx: typer.Context, name: Name, disk: Disk, rate: RunningRate = "", wait: Wait = True, output: Format = Output.TABLE
) -> None:
    """Have a linked disk stand alone: what it reads from its base is copied into it."""
    bytes_per_s = size("--rate", rate) if rate else 0
    done = f"disk {disk} of {name} stands alone."
    run_task(ctx, output, lambda gugus: gugus.clones.flatten_disk(name, disk, bytes_per_s=bytes_per_s), done, wait=wait)
