"""`gugus events`: what happened, and what happens."""

from contextlib import aclosing
from typing import Annotated

import typer
from gugus.cluster.v1.event_pb2 import Event, Severity

from client.cli.output import Format, Output, show_list, write_line
from client.cli.session import run
from client.cli.words import enum_word, moment
from client.sdk import Gugus

app = typer.Typer()
"""Commands of the root."""

COLUMNS = ("at", "severity", "about", "reason", "message")


@app.command()
def events(
    ctx: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new ones until interrupted.")] = False,
    about: Annotated[str, typer.Option(metavar="KIND/NAME", help="Only about this, like guest/web or node/n1.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many past ones.")] = 100,
    output: Format = Output.TABLE,
) -> None:
    """Show what happened, oldest first. With --follow and -o json, each event is one line."""
    if not follow:
        past = run(ctx, lambda gugus: gugus.events.list(about=about, limit=limit))
        show_list(past, output, COLUMNS, _row, none="no events.")
        return

    async def work(gugus: Gugus) -> None:
        async with aclosing(gugus.events.follow(about=about, limit=limit)) as stream:
            async for event in stream:
                if output is Output.TABLE:
                    print("  ".join(_row(event)), flush=True)
                else:
                    write_line(event, output)

    run(ctx, work)


def _row(event: Event) -> tuple[str, ...]:
    severity = enum_word(Severity, event.severity, "SEVERITY_")
    return (moment(event.at), severity, event.about, event.reason, event.message)
