"""`gugus guest ha`: what HA does with a guest."""

from collections.abc import Callable
from typing import Annotated

import typer
from gugus.cluster.v1.guest_pb2 import Guest, HaSpec

from client.cli.guest_app import Name, ha_app
from client.cli.output import Format, Output, show_done
from client.cli.session import run
from client.sdk import Gugus


@ha_app.command("on")
def on(
    ctx: typer.Context,
    name: Name,
    max_restart: Annotated[
        int | None,
        typer.Option(min=0, max=100, metavar="N", help="Restarts on one node before another is tried (3)."),
    ] = None,
    max_relocate: Annotated[
        int | None,
        typer.Option(min=0, max=100, metavar="N", help="Other nodes that it is tried on before it is given up (1)."),
    ] = None,
    priority: Annotated[
        int | None, typer.Option(min=0, max=1000, metavar="N", help="Who gets a node first, higher first (0).")
    ] = None,
    output: Format = Output.TABLE,
) -> None:
    """Restart a guest when it fails, and elsewhere when its host is lost."""

    def change(ha: HaSpec) -> None:
        ha.enabled, ha.disabled = True, False
        if max_restart is not None:
            ha.max_restart = max_restart
        if max_relocate is not None:
            ha.max_relocate = max_relocate
        if priority is not None:
            ha.priority = priority

    show_done(_set(ctx, name, change), output, f"guest {name} is under HA.")


@ha_app.command("off")
def off(ctx: typer.Context, name: Name, output: Format = Output.TABLE) -> None:
    """Leave a guest where it is when its host is lost."""

    def change(ha: HaSpec) -> None:
        ha.enabled = ha.disabled = False

    show_done(_set(ctx, name, change), output, f"guest {name} is not under HA.")


@ha_app.command("disable")
def disable(ctx: typer.Context, name: Name, output: Format = Output.TABLE) -> None:
    """Put a guest out of use: it is stopped, and not given to another node when its own is lost. `on` ends it."""

    def change(ha: HaSpec) -> None:
        ha.enabled = ha.disabled = True

    show_done(_set(ctx, name, change), output, f"guest {name} is out of use; it is stopped.")


def _set(ctx: typer.Context, name: str, change: Callable[[HaSpec], None]) -> Guest:
    async def work(gugus: Gugus) -> Guest:
        ha = HaSpec()
        ha.CopyFrom((await gugus.guests.get(name)).spec.ha)
        change(ha)
        return await gugus.guests.set_ha(name, ha)

    return run(ctx, work)
