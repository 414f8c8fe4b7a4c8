"""`gugus guest ha`: what HA does with a guest."""

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated

import typer
from gugus.cluster.v1.guest_pb2 import Guest, HaSpec, QuorumLoss

from client.cli.guest_app import Name, ha_app
from client.cli.output import Format, Output, show_done
from client.cli.session import run
from client.cli.shortage import warn_of_shortage
from client.sdk import Gugus
from client.tasks import check


class OnQuorumLoss(StrEnum):
    """What a guest does while its host does not reach the acting manager."""

    KEEP = "keep"
    STOP = "stop"


_QUORUM_LOSS = {OnQuorumLoss.KEEP: QuorumLoss.QUORUM_LOSS_KEEP, OnQuorumLoss.STOP: QuorumLoss.QUORUM_LOSS_STOP}


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
    after: Annotated[
        list[str] | None,
        typer.Option(metavar="GUEST", help='A guest that starts before it; may be repeated, all are named. "": none.'),
    ] = None,
    on_quorum_loss: Annotated[
        OnQuorumLoss | None,
        typer.Option(
            help="When its host cannot renew its lease: run until the lease ends (keep), or shut down before."
        ),
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
        if on_quorum_loss is not None:
            ha.quorum_loss = _QUORUM_LOSS[on_quorum_loss]

    if after is not None:
        _start_after(ctx, name, [other for other in after if other])
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


def _start_after(ctx: typer.Context, name: str, after: list[str]) -> None:
    async def work(gugus: Gugus) -> None:
        guest = await gugus.guests.get(name)
        if list(guest.spec.boot.after) != after:
            guest.spec.boot.after[:] = after
            check(await gugus.tasks.wait(await gugus.guests.update(name, guest.spec, spec_number=guest.spec_number)))

    run(ctx, work)


def _set(ctx: typer.Context, name: str, change: Callable[[HaSpec], None]) -> Guest:
    async def work(gugus: Gugus) -> Guest:
        ha = HaSpec()
        ha.CopyFrom((await gugus.guests.get(name)).spec.ha)
        change(ha)
        guest = await gugus.guests.set_ha(name, ha)
        if guest.spec.ha.enabled and not guest.spec.ha.disabled:
            await warn_of_shortage(gugus)
        return guest

    return run(ctx, work)
