"""`gugus simulate`: a scenario on a virtual clock, with the code that decides in a cluster, and without one."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.cli.failure import FAILED
from client.cli.output import Format, Output, say, write
from common.errors import invalid

if TYPE_CHECKING:
    from simulator.play import Played

app = typer.Typer()


@app.command()
def simulate(
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help='The scenario, in YAML or JSON; "-" is standard input.')
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Of what is left to chance, instead of the file's.")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of a scenario instead.")] = False,
    output: Format = Output.TABLE,
) -> None:
    """Play a scenario of failures on a cluster that is not there, and tell what happens.

    Exit code 1 when something that the scenario expects was not so, a guest under HA ran twice, or two hosts wrote to one disk.
    """
    from simulator import scenario
    from simulator.play import play

    if schema:
        write(scenario.schema(), Output.JSON)
        return
    if file is None:
        raise invalid("FILE", "is missing.", remedy="Name a scenario's file; docs/simulation.md has examples.")
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise invalid("FILE", f"{file}: {why}.", remedy="Name a scenario's file.") from None
    played = play(scenario.load(text, file), seed)
    if output is Output.TABLE:
        _show(played)
    else:
        write({**asdict(played), "ok": played.ok}, output)
    if not played.ok:
        raise typer.Exit(FAILED)


def _show(played: "Played") -> None:
    width = max((len(line.about) for line in played.log), default=0)
    for line in played.log:
        mark = "> " if line.about == "command" else "! " if line.about == "expected" else "  "
        print(f"{line.at_s:10.3f}  {mark}{line.about:<{width}}  {line.text}")
    for promise in played.broken:
        say(f"BROKEN: {promise}")
    for one in played.unmet:
        say(f"not as expected: {one}")
    say(f"{played.seconds:g} s of the cluster's time; {'as expected' if played.ok else 'not as expected'}.")
