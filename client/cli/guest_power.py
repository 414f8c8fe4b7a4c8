"""`gugus guest start`, `stop` and their like: of one guest, or of many that are named or selected."""

import asyncio
from enum import StrEnum
from typing import Annotated

import typer
from gugus.cluster.v1.guest_pb2 import Guest, GuestPhase

from client.cli.guest_app import Name, app
from client.cli.many import PARALLEL, Names, Parallel, Wait, run_many
from client.cli.output import Format, Output, show_done
from client.cli.selectors import Filters, with_filters
from client.cli.session import complete_pool, run, run_task, timeout_of
from client.cli.words import duration
from client.sdk import Gugus
from common.errors import deadline_exceeded, invalid

_LOOK_S = 0.5


class End(StrEnum):
    """What can be waited for."""

    STOPPED = "stopped"
    RUNNING = "running"


_PHASES = {
    End.STOPPED: (GuestPhase.GUEST_PHASE_STOPPED, GuestPhase.GUEST_PHASE_HIBERNATED),
    End.RUNNING: (GuestPhase.GUEST_PHASE_RUNNING,),
}

Timeout = Annotated[
    str, typer.Option(metavar="TIME", help="How long it may take before it is killed (its own setting, or 60s).")
]


@app.command()
@with_filters
def start(
    ctx: typer.Context,
    names: Names = None,
    *,
    filters: Filters,
    parallel: Parallel = PARALLEL,
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Start guests, several in their boot order."""
    chosen = filters.selection(names)
    run_many(
        ctx,
        output,
        chosen,
        lambda gugus, name: gugus.guests.start(name),
        "guest {} runs.",
        parallel=parallel,
        wait=wait,
        boot_order=True,
    )


@app.command()
@with_filters
def stop(
    ctx: typer.Context,
    names: Names = None,
    *,
    filters: Filters,
    timeout: Timeout = "",
    force: Annotated[bool, typer.Option("--force", help="Kill it at once.")] = False,
    parallel: Parallel = PARALLEL,
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Shut guests down, several against their boot order."""
    timeout_s = _timeout(timeout, "To kill the guest at once, use --force.")
    run_many(
        ctx,
        output,
        filters.selection(names),
        lambda gugus, name: gugus.guests.stop(name, timeout_s=timeout_s, force=force),
        "guest {} is stopped.",
        parallel=parallel,
        wait=wait,
        boot_order=False,
    )


@app.command()
@with_filters
def reboot(
    ctx: typer.Context,
    names: Names = None,
    *,
    filters: Filters,
    timeout: Timeout = "",
    parallel: Parallel = PARALLEL,
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Shut guests down and start them again; pending changes then hold."""
    timeout_s = _timeout(timeout, "To press the reset button, use `gugus guest reset`.")
    run_many(
        ctx,
        output,
        filters.selection(names),
        lambda gugus, name: gugus.guests.reboot(name, timeout_s=timeout_s),
        "guest {} was rebooted.",
        parallel=parallel,
        wait=wait,
    )


@app.command()
@with_filters
def suspend(
    ctx: typer.Context,
    names: Names = None,
    *,
    filters: Filters,
    parallel: Parallel = PARALLEL,
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Hold guests' CPUs; they stay in memory."""
    run_many(
        ctx,
        output,
        filters.selection(names),
        lambda gugus, name: gugus.guests.suspend(name),
        "guest {} is held.",
        parallel=parallel,
        wait=wait,
    )


@app.command()
@with_filters
def resume(
    ctx: typer.Context,
    names: Names = None,
    *,
    filters: Filters,
    parallel: Parallel = PARALLEL,
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Let guests go on that are held."""
    run_many(
        ctx,
        output,
        filters.selection(names),
        lambda gugus, name: gugus.guests.resume(name),
        "guest {} goes on.",
        parallel=parallel,
        wait=wait,
    )


@app.command()
def reset(ctx: typer.Context, name: Name, wait: Wait = True, output: Format = Output.TABLE) -> None:
    """Press a guest's reset button: it boots again at once; what was not written is lost."""
    run_task(ctx, output, lambda gugus: gugus.guests.reset(name), f"guest {name} was reset.", wait=wait)


@app.command()
def hibernate(
    ctx: typer.Context,
    name: Name,
    pool: Annotated[
        str, typer.Option(metavar="POOL", help="For its memory (that of its first disk).", autocompletion=complete_pool)
    ] = "",
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Write a guest's memory to disk and end it; `start` takes it up there."""
    done = f"guest {name} is hibernated."
    run_task(ctx, output, lambda gugus: gugus.guests.hibernate(name, pool=pool), done, wait=wait)


@app.command("wait")
def wait_(
    ctx: typer.Context,
    name: Name,
    for_: Annotated[End, typer.Option("--for", help="What to wait for.")] = End.STOPPED,
    output: Format = Output.TABLE,
) -> None:
    """Wait until a guest is stopped, by whom ever, or runs; `--timeout` before the command limits it."""
    timeout_s = timeout_of(ctx)

    async def work(gugus: Gugus) -> Guest:
        try:
            async with asyncio.timeout(timeout_s):
                while (guest := await gugus.guests.get(name)).status.phase not in _PHASES[for_]:  # noqa: ASYNC110
                    await asyncio.sleep(_LOOK_S)
        except TimeoutError:
            raise deadline_exceeded("GUEST_NOT_SO", f"guest {name} is not {for_} after {timeout_s:g} s.") from None
        return guest

    show_done(run(ctx, work), output, f"guest {name} is {for_}.")


def _timeout(text: str, otherwise: str) -> float:
    timeout_s = duration("--timeout", text) if text else 0.0
    if text and timeout_s <= 0:
        raise invalid("--timeout", "must be more than 0.", remedy=otherwise)
    return timeout_s
