"""The ``gugus-lab`` command line: a cluster's machine room on one machine.

Invariant: thin; every command is one call of lab.api.Lab, may be repeated, and ends with 0 only when it reached what it
says.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lab.api import Lab
from lab.plan import LabError
from lab.status import LabStatus, NodeStatus

app = typer.Typer(
    help="Real nodes (or simulated ones) on this machine, whose power, network and clock you control.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Output(StrEnum):
    """How a result is written."""

    TABLE = "table"
    JSON = "json"


class CutWay(StrEnum):
    """What a cut loses."""

    BOTH = "both"
    OUT = "out"
    IN = "in"


Name = Annotated[str, typer.Option("--name", metavar="LAB", help="Which lab.", envvar="GUGUS_LAB")]
State = Annotated[
    Path | None, typer.Option("--state-dir", metavar="FOLDER", help="Where labs are kept.", envvar="GUGUS_LAB_STATE")
]
Format = Annotated[Output, typer.Option("--output", "-o", help="For people or for programs.")]
Node = Annotated[str, typer.Argument(metavar="NODE", help="Such as n1.")]


@app.command()
def up(
    nodes: Annotated[int | None, typer.Option(min=1, help="How many nodes [default: 3, or what the lab has].")] = None,
    simulated: Annotated[
        bool, typer.Option("--simulated", help="Plain processes on 127.0.x.y, no root needed.")
    ] = False,
    name: Name = "gugus",
    state_dir: State = None,
    output: Format = Output.TABLE,
) -> None:
    """Bring every node up: on, booted, thawed and connected."""
    _print(Lab(name, state_dir=state_dir).up(nodes, simulated=simulated), output)


@app.command()
def down(name: Name = "gugus", state_dir: State = None, output: Format = Output.TABLE) -> None:
    """Take the lab and everything it made away."""
    lab = Lab(name, state_dir=state_dir)
    lab.down()
    _print(lab.status(), output)


@app.command()
def status(name: Name = "gugus", state_dir: State = None, output: Format = Output.TABLE) -> None:
    """Show every node: power, cuts, boots and what its systemd says."""
    _print(Lab(name, state_dir=state_dir).status(), output)


@app.command()
def power_off(node: Node, name: Name = "gugus", state_dir: State = None, output: Format = Output.TABLE) -> None:
    """Cut the power of a node: its memory is gone at once, its disk stays."""
    _print(Lab(name, state_dir=state_dir).power_off(node), output)


@app.command()
def power_on(node: Node, name: Name = "gugus", state_dir: State = None, output: Format = Output.TABLE) -> None:
    """Switch a node on and wait until it has booted."""
    _print(Lab(name, state_dir=state_dir).power_on(node), output)


@app.command()
def freeze(node: Node, name: Name = "gugus", state_dir: State = None, output: Format = Output.TABLE) -> None:
    """Hang a node: nothing in it runs, its network link stays up."""
    _print(Lab(name, state_dir=state_dir).freeze(node), output)


@app.command()
def thaw(node: Node, name: Name = "gugus", state_dir: State = None, output: Format = Output.TABLE) -> None:
    """Let a hung node go on."""
    _print(Lab(name, state_dir=state_dir).thaw(node), output)


@app.command()
def cut(
    node: Node,
    other: Annotated[str | None, typer.Option("--from", metavar="OTHER", help="Only between the two nodes.")] = None,
    way: Annotated[CutWay, typer.Option(help="Lose only what the node sends, or only what it is sent.")] = CutWay.BOTH,
    name: Name = "gugus",
    state_dir: State = None,
    output: Format = Output.TABLE,
) -> None:
    """Drop all network traffic of a node; the shared folder /srv/shared is no network and stays."""
    _print(Lab(name, state_dir=state_dir).cut(node, other, way.value), output)


@app.command()
def heal(node: Node, name: Name = "gugus", state_dir: State = None, output: Format = Output.TABLE) -> None:
    """Mend every cut of a node."""
    _print(Lab(name, state_dir=state_dir).heal(node), output)


@app.command()
def refresh(name: Name = "gugus", state_dir: State = None, output: Format = Output.TABLE) -> None:
    """Bring the checkout's code into running nodes and restart the daemons there."""
    lab = Lab(name, state_dir=state_dir)
    lab.refresh()
    _print(lab.status(), output)


@app.command()
def events(name: Name = "gugus", state_dir: State = None, output: Format = Output.TABLE) -> None:
    """Show what was done to the hardware since up."""
    entries = Lab(name, state_dir=state_dir).events()
    if output is Output.JSON:
        typer.echo(json.dumps(entries))
        return
    rows = [[f"{e['monotonic']:.3f}", e["node"], e["event"], _details(e)] for e in entries]
    _table(["SECONDS", "NODE", "EVENT", "DETAILS"], rows)


@app.command(name="exec", context_settings={"ignore_unknown_options": True})
def exec_(
    node: Node,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="What to run as root in the node.")],
    name: Name = "gugus",
    state_dir: State = None,
    output: Format = Output.TABLE,
) -> None:
    """Run a command in a node; input, output and exit code pass through (-o json: captured into one object)."""
    lab = Lab(name, state_dir=state_dir)
    if output is Output.JSON:
        done = lab.exec(node, command, timeout=3600)
        typer.echo(
            json.dumps({"node": node, "exit_code": done.returncode, "stdout": done.stdout, "stderr": done.stderr})
        )
        raise typer.Exit(done.returncode)
    words, environment = lab.command(node, command)
    environment |= {"TERM": os.environ.get("TERM", "dumb")}
    os.execvpe(words[0], words, environment)  # noqa: S606 - a list, and this process becomes it


def _details(event: dict[str, Any]) -> str:
    return " ".join(
        f"{key}={value}" for key, value in event.items() if key not in ("time", "monotonic", "node", "event")
    )


def _print(result: LabStatus | NodeStatus, output: Output) -> None:
    nodes = result.nodes if isinstance(result, LabStatus) else (result,)
    if output is Output.JSON:
        typer.echo(json.dumps(result.plain()))
        return
    if isinstance(result, LabStatus):
        typer.echo(
            f"lab {result.name} ({result.kind}) is {result.state}"
            + (f", network {result.network}" if result.network else "")
        )
    if nodes:
        rows = [
            [n.name, n.address, n.power, "yes" if n.frozen else "no", ", ".join(n.cut) or "-", str(n.boots), n.system]
            for n in nodes
        ]
        _table(["NODE", "ADDRESS", "POWER", "FROZEN", "CUT FROM", "BOOTS", "SYSTEM"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in head:
        table.add_column(title, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(soft_wrap=True).print(table)


def main() -> None:
    """Entry point of ``gugus-lab``: 0 done, 1 not possible (the reason is on standard error), 2 wrong use."""
    try:
        app()
    except LabError as error:
        typer.echo(f"gugus-lab: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
