"""`gugus node`: the hosts of the cluster."""

from typing import Annotated

import typer
from gugus.agent.v1.node_pb2 import HypervisorFacts
from gugus.cluster.v1.node_pb2 import Node, NodeState
from gugus.cluster.v1.task_pb2 import Task

from client.cli import node_fence, node_reboot
from client.cli.confirm import Yes, confirm
from client.cli.node_fence import device_words
from client.cli.output import Format, Output, show, show_done, show_list
from client.cli.session import run, run_task
from client.cli.words import duration, enum_word, labels, moment, short, yes
from client.sdk import Gugus
from common.units import format_size

app = typer.Typer(no_args_is_help=True, help="Hosts of the cluster.")
maintenance_app = typer.Typer(no_args_is_help=True, help="Empty a node for a while.")
app.add_typer(maintenance_app, name="maintenance")

app.command("reboot")(node_reboot.reboot)
app.command("fence")(node_fence.fence)
app.command("confirm-off")(node_fence.confirm_off)
app.command("fence-test")(node_fence.fence_test)
app.add_typer(node_fence.devices, name="fence-device")

Name = node_fence.Name
Budget = Annotated[str, typer.Option(metavar="DURATION", help="Give up after so long, for example 10m.")]
Parallel = Annotated[int, typer.Option(min=1, max=16, help="So many guests at a time.")]
Wait = Annotated[bool, typer.Option(help="Wait until it is done.")]
DEFAULT_PARALLEL = 2
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
def label(
    ctx: typer.Context,
    name: Name,
    words: Annotated[list[str], typer.Argument(metavar="KEY=VALUE|KEY-...", help="Set a label; KEY- takes it away.")],
    output: Format = Output.TABLE,
) -> None:
    """Label a node: where it stands, what it has, whatever rules are to go by.

    gugus node label n1 rack=a site=north gpu-
    """
    removed = [word[:-1] for word in words if word.endswith("-") and "=" not in word]
    wanted = labels([word for word in words if "=" in word or not word.endswith("-")])
    node = run(ctx, lambda gugus: gugus.nodes.label(name, wanted, removed))
    show_done(node, output, f"node {name} has the labels {_labels(node) or 'none'}.")


@app.command()
def drain(
    ctx: typer.Context,
    name: Name,
    budget: Budget = "",
    parallel: Parallel = DEFAULT_PARALLEL,
    force: Annotated[
        bool, typer.Option("--force", help="Also when too little room is left to survive a loss.")
    ] = False,
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Move all guests off a node, under HA or not, and let no new ones onto it; `uncordon` ends that.

    What cannot be moved is named with its reason, and stays. `maintenance on` does the same and remembers who is to come back.
    """
    _drain(ctx, name, budget, parallel, wait=wait, output=output, force=force)


@maintenance_app.command("on")
def maintenance_on(
    ctx: typer.Context,
    name: Name,
    budget: Budget = "",
    parallel: Parallel = DEFAULT_PARALLEL,
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Move all guests off a node until its maintenance is over; it gets no new ones meanwhile."""
    _drain(ctx, name, budget, parallel, wait=wait, output=output, maintenance=True)


@maintenance_app.command("off")
def maintenance_off(
    ctx: typer.Context,
    name: Name,
    leave: Annotated[bool, typer.Option("--leave", help="Leave the guests where they are now.")] = False,
    parallel: Parallel = DEFAULT_PARALLEL,
    wait: Wait = True,
    output: Format = Output.TABLE,
) -> None:
    """Let a node take guests again, and bring those back that left it for its maintenance."""
    done = f"node {name} takes guests again" + ("." if leave else ", and has those that left it.")
    run_task(ctx, output, lambda gugus: gugus.nodes.restore(name, leave=leave, parallel=parallel), done, wait=wait)


def _drain(
    ctx: typer.Context,
    name: str,
    budget: str,
    parallel: int,
    *,
    wait: bool,
    output: Output,
    maintenance: bool = False,
    force: bool = False,
) -> None:
    budget_s = duration("--budget", budget) if budget else 0.0

    async def begin(gugus: Gugus) -> Task:
        return await gugus.nodes.drain(name, maintenance=maintenance, budget_s=budget_s, parallel=parallel, force=force)

    run_task(ctx, output, begin, f"node {name} has no guests, and gets none.", wait=wait)


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
        " If it is on, its guests may run twice and destroy their disks. Have you seen that it is off?" if off else ""
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
        ("certificate", f"ends {moment(facts.certificate_ends_at)}" if facts.certificate_ends_at.seconds else ""),
        ("hypervisors", "\n".join(_hypervisor(item) for item in facts.hypervisors)),
        (
            "watchdog",
            (yes(facts.watchdog) + f" ({facts.watchdog_reason})") if facts.watchdog_reason else yes(facts.watchdog),
        ),
        ("pools", ", ".join(facts.pools)),
        ("networks", ", ".join(facts.networks)),
        ("reboot required", "yes, by packages that were installed" if facts.reboot_required else ""),
        ("conditions", "\n".join(f"{c.type}: {yes(c.holds)} {c.message}".strip() for c in node.status.conditions)),
        ("fence devices", "\n".join(device_words(device) for device in node.spec.fence.devices)),
        ("boot id", node.status.boot_id),
        ("labels", _labels(node)),
        ("joined", moment(node.meta.created_at)),
    ]


def _labels(node: Node) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(node.meta.labels.items()))


def _state(node: Node) -> str:
    state = enum_word(NodeState, node.status.state, "NODE_STATE_")
    return (
        state
        + (", witness" if node.spec.witness else "")
        + (", former" if node.status.former else "")
        + (", going down" if _goes_down(node) else "")
        + (", in maintenance" if node.spec.maintenance else ", cordoned" if node.spec.cordoned else "")
    )


def _goes_down(node: Node) -> bool:
    """Return whether the node's host said that it goes down, and is not back."""
    return bool(node.status.departure.boot_id) and node.status.departure.boot_id == node.status.boot_id


def _hypervisor(item: HypervisorFacts) -> str:
    words = f"{item.driver}: {item.mode}" if item.ready else f"{item.driver}: not ready"
    words += f" ({item.reason})" if item.reason else ""
    if item.criu_version:
        words += f"\nlive migration of containers: yes (CRIU {item.criu_version})"
    elif item.criu_problem:
        words += f"\nlive migration of containers: no ({item.criu_problem})"
    return words
