"""`gugus plan`: the planner on a file, without a cluster."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from client.cli.output import Format, Output, say, table, write
from common.errors import invalid

if TYPE_CHECKING:
    from planner.plans import Cluster, Plan

app = typer.Typer(no_args_is_help=True, help="What would go where, planned from a file without a cluster.")

File = Annotated[
    str, typer.Option("--cluster", "-c", metavar="FILE", help='The cluster, in JSON or YAML; "-" is standard input.')
]
Nodes = Annotated[list[str], typer.Argument(metavar="NODE...", help="Names of nodes.")]

MOVE_COLUMNS = ("wave", "guest", "from", "to", "why")
UNPLACED_COLUMNS = ("guest", "node", "why not")
SCORE_COLUMNS = ("score", "before", "after")


@app.command()
def place(cluster: File, output: Format = Output.TABLE) -> None:
    """Give places to all guests that have none."""
    from planner.placement import plan_placement

    _plan(cluster, plan_placement, output)


@app.command()
def fail(
    cluster: File,
    nodes: Annotated[
        list[str] | None,
        typer.Argument(metavar="NODE...", help="Lost nodes; all that are not online if none is named."),
    ] = None,
    output: Format = Output.TABLE,
) -> None:
    """Lose nodes: where their guests would restart, in which waves, and which would find no place."""
    from planner.placement import plan_failure

    def lose(read: "Cluster") -> "Plan":
        lost = nodes or [node.name for node in read.nodes if not node.online]
        if not lost:
            raise invalid(
                "NODE", "is missing.", remedy="Name the nodes that are lost; all nodes of the file are online."
            )
        return plan_failure(read, _known(read, lost))

    _plan(cluster, lose, output)


@app.command()
def drain(cluster: File, nodes: Nodes, output: Format = Output.TABLE) -> None:
    """Empty nodes: where their guests would migrate, in which waves, and which could not leave."""
    from planner.placement import plan_drain

    _plan(cluster, lambda read: plan_drain(read, _known(read, nodes)), output)


@app.command()
def balance(
    cluster: File,
    max_moves: Annotated[int | None, typer.Option(min=0, metavar="N", help="Most migrations; else the file's.")] = None,
    resuming: Annotated[
        bool, typer.Option("--resuming", help="Go on with a plan that was begun: its margin was won already.")
    ] = False,
    output: Format = Output.TABLE,
) -> None:
    """Even a cluster out with few migrations."""
    from dataclasses import replace

    from planner.balance import plan_balance

    def even(read: "Cluster") -> "Plan":
        if max_moves is not None:
            limits = replace(read.settings.balance, max_moves=max_moves)
            read = replace(read, settings=replace(read.settings, balance=limits))
        return plan_balance(read, resuming=resuming)

    _plan(cluster, even, output)


@app.command()
def schema() -> None:
    """Print the JSON schema of a cluster's file."""
    from planner import document

    write(document.schema(), Output.JSON)


def _plan(file: str, make: "Callable[[Cluster], Plan]", output: Output) -> None:
    from planner.conflicts import conflicts
    from planner.document import read
    from planner.report import plain

    cluster = read(_load(file))
    plan = make(cluster)
    found = conflicts(cluster.rules, cluster.nodes, cluster.guests)
    if output is not Output.TABLE:
        write(plain(plan, found), output)
        return
    for one in found:
        say(f"conflict: {one.message} {one.remedy}")
    _show(plan)


def _show(plan: "Plan") -> None:
    if plan.moves:
        rows = [(str(m.wave), m.guest, m.from_node, m.to_node, m.reason) for m in plan.moves]
        table(MOVE_COLUMNS, rows)
        print()
    for eviction in plan.evictions:
        say(f"{eviction.guest} is stopped: {eviction.reason}")
    if plan.unplaced:
        rows_of_refusals = [
            (one.guest, refusal.node, "; ".join(refusal.reasons) or one.reason)
            for one in plan.unplaced
            for refusal in one.refusals
        ]
        table(UNPLACED_COLUMNS, rows_of_refusals or [(one.guest, "", one.reason) for one in plan.unplaced])
        print()
    parts = [(name, _figure(value), _figure(plan.after.parts[name])) for name, value in plan.before.parts.items()]
    table(SCORE_COLUMNS, [*parts, ("total", _figure(plan.before.total), _figure(plan.after.total))])
    for shortfall in plan.shortfalls:
        say(f"not safe: {shortfall.reason}")
    for note in plan.notes:
        say(note)
    if not plan.moves and not plan.unplaced:
        say("nothing is to be done.")


def _figure(value: float) -> str:
    return f"{value:.4f}"


def _known(cluster: "Cluster", names: list[str]) -> list[str]:
    nodes = {node.name for node in cluster.nodes}
    if strangers := sorted(set(names) - nodes):
        what = f"there is no node {', '.join(strangers)} in the file."
        raise invalid("NODE", what, remedy=f"It has {', '.join(sorted(nodes)[:10]) or 'none'}.")
    return names


def _load(file: str) -> Any:
    """Read a JSON or YAML document. Raises GugusError that names the line of what is no document."""
    text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if text.lstrip().startswith(("{", "[")) and file.endswith(".json"):
            what = f"{file}, line {error.lineno}: {error.msg}."
            raise invalid("--cluster", what, remedy="Correct it there.", reason="BAD_CLUSTER") from None
    try:
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506  it is a safe one
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        what = f"{file}{where}: {getattr(error, 'problem', None) or 'it is neither JSON nor YAML'}."
        raise invalid("--cluster", what, remedy="Correct it there.", reason="BAD_CLUSTER") from None
