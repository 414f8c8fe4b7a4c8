"""`gugus node`: the hosts of the cluster."""

from typing import Annotated

import typer
from gugus.agent.v1.node_pb2 import HypervisorFacts
from gugus.cluster.v1.node_pb2 import Node, NodeState

from client.cli.confirm import Yes, confirm
from client.cli.output import Format, Output, show, show_done, show_list
from client.cli.session import complete_node, run
from client.cli.words import enum_word, moment, short, yes
from client.sdk import Gugus
from common.units import format_size

app = typer.Typer(no_args_is_help=True, help="Hosts of the cluster.")

Name = Annotated[str, typer.Argument(metavar="NODE", autocompletion=complete_node)]
COLUMNS = ("name", "state", "address", "guests", "cpus", "memory", "mode", "voter", "reason")


@app.command("list")
def list_(ctx: typer.Context, output: Format = Output.TABLE) -> None:
    """List all nodes."""

    async def work(gugus: Gugus) -> tuple[list[Node], list[str]]:
        placed = [guest.status.node for guest in await gugus.guests.list()] if output is Output.TABLE else []
        return list(await gugus.nodes.list()), placed

    nodes, placed = run(ctx, work)
    show_list(nodes, output, COLUMNS, lambda node: _row(node, placed.count(node.meta.name)))


@app.command("show")
def show_(ctx: typer.Context, name: Name, output: Format = Output.TABLE) -> None:
    """Show a node."""
    show(run(ctx, lambda gugus: gugus.nodes.get(name)), output, _fields)


@app.command()
def cordon(ctx: typer.Context, name: Name, output: Format = Output.TABLE) -> None:
    """Let no new guests onto a node."""
    show_done(run(ctx, lambda gugus: gugus.nodes.cordon(name)), output, f"node {name} gets no new guests.")


@app.command()
def uncordon(ctx: typer.Context, name: Name, output: Format = Output.TABLE) -> None:
    """Let new guests onto a node again."""
    node = run(ctx, lambda gugus: gugus.nodes.cordon(name, False))
    show_done(node, output, f"node {name} takes new guests.")


@app.command()
def remove(
    ctx: typer.Context,
    name: Name,
    off: Annotated[
        bool,
        typer.Option(
            "--off", help="Of a node from before a recovery: I have seen to it that the host is off for good."
        ),
    ] = False,
    yes_: Yes = False,
    output: Format = Output.TABLE,
) -> None:
    """Remove a node that is off for ever from the cluster."""
    risk = (
        " If it is on, its guests will run twice and destroy their disks. Have you seen that it is off?" if off else ""
    )
    confirm(f"Remove the node {name} from the cluster?{risk}", yes_)
    run(ctx, lambda gugus: gugus.nodes.remove(name, off=off))
    show_done(None, output, f"node {name} is removed.")


def _row(node: Node, guests: int) -> tuple[str, ...]:
    facts = node.status.facts
    return (
        node.meta.name,
        _state(node),
        node.spec.address,
        str(guests),
        str(facts.cpus or ""),
        format_size(facts.memory_bytes) if facts.memory_bytes else "",
        ", ".join(hypervisor.mode for hypervisor in facts.hypervisors if hypervisor.ready),
        yes(node.status.voter),
        short(node.status.reason),
    )


def _fields(node: Node) -> list[tuple[str, str]]:
    facts = node.status.facts
    return [
        ("name", node.meta.name),
        ("state", _state(node)),
        ("reason", node.status.reason),
        ("address", f"{node.spec.address} (agent port {node.spec.agent_port})"),
        ("voter", yes(node.status.voter)),
        ("cpus", f"{facts.cpus} {facts.cpu_model}".strip() if facts.cpus else ""),
        ("memory", f"{format_size(facts.memory_bytes)}, {format_size(facts.memory_allocatable_bytes)} for guests"),
        ("kernel", facts.kernel),
        ("agent", facts.agent_version),
        ("hypervisors", "\n".join(_hypervisor(item) for item in facts.hypervisors)),
        (
            "watchdog",
            (yes(facts.watchdog) + f" ({facts.watchdog_reason})") if facts.watchdog_reason else yes(facts.watchdog),
        ),
        ("pools", ", ".join(facts.pools)),
        ("networks", ", ".join(facts.networks)),
        ("conditions", "\n".join(f"{c.type}: {yes(c.holds)} {c.message}".strip() for c in node.status.conditions)),
        ("boot id", node.status.boot_id),
        ("joined", moment(node.meta.created_at)),
    ]


def _state(node: Node) -> str:
    state = enum_word(NodeState, node.status.state, "NODE_STATE_")
    return state + (", former" if node.status.former else "") + (", cordoned" if node.spec.cordoned else "")


def _hypervisor(item: HypervisorFacts) -> str:
    words = f"{item.driver}: {item.mode}" if item.ready else f"{item.driver}: not ready"
    words += f" ({item.reason})" if item.reason else ""
    if item.criu_version:
        words += f"\nlive migration of containers: yes (CRIU {item.criu_version})"
    elif item.criu_problem:
        words += f"\nlive migration of containers: no ({item.criu_problem})"
    return words
