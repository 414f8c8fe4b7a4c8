"""`gugus cluster cpu`: what the CPU model "cluster" means now, and which hosts keep it from being better."""

from collections.abc import Sequence

import typer
from gugus.agent.v1.guest_pb2 import ClusterCpu
from gugus.cluster.v1.node_pb2 import NODE_STATE_ONLINE, GetClusterCpuResponse, Node, NodeState

from client.cli.output import Format, Output, plain, say, table, write
from client.cli.session import run
from client.cli.words import enum_word
from client.sdk import Gugus

COLUMNS = ("node", "state", "without it", "what to do")


def cpu(ctx: typer.Context, output: Format = Output.TABLE) -> None:
    """Tell which CPU virtual machines of the model "cluster" get, and which nodes keep it from being better."""

    async def work(gugus: Gugus) -> tuple[GetClusterCpuResponse, Sequence[Node]]:
        return await gugus.nodes.cluster_cpu(), await gugus.nodes.list()

    answer, nodes = run(ctx, work)
    if output is not Output.TABLE:
        write(plain(answer), output)
        return
    if not answer.cpu.model:
        say("no node has told of CPU models yet, or they have none in common: virtual machines get QEMU's default.")
    else:
        print(f"{answer.cpu.model}, with {', '.join(answer.cpu.features) or 'no further features'}")
    states = {node.meta.name: node.status.state for node in nodes}
    rows = []
    for limit in answer.limits:
        state = states.get(limit.node, NodeState.NODE_STATE_UNSPECIFIED)
        remedy = "" if state == NODE_STATE_ONLINE else f"if it is off for good: gugus node remove {limit.node}"
        rows.append(
            (limit.node, enum_word(NodeState, state, "NODE_STATE_"), _better(limit.without, answer.cpu), remedy)
        )
    if rows:
        print()
        table(COLUMNS, rows)


def _better(without: ClusterCpu, present: ClusterCpu) -> str:
    """Return what would be better, in words."""
    more = sorted(set(without.features) - set(present.features))
    words = [without.model] if without.model != present.model else []
    return ", ".join([*words, *(f"+{feature}" for feature in more)])
