"""`gugus node reboot`: hosts, one after another, without anything on them going down."""

from typing import Annotated

import typer
from gugus.cluster.v1.task_pb2 import Task

from client.cli.confirm import Yes, confirm
from client.cli.output import Format, Output
from client.cli.session import complete_node, run_task
from client.cli.words import duration
from client.sdk import Gugus
from common.errors import invalid


def reboot(
    ctx: typer.Context,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NODE...", autocompletion=complete_node, show_default=False)
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="All nodes of the cluster.")] = False,
    parallel: Annotated[
        int, typer.Option(min=1, max=8, help="So many hosts at a time; of managers' hosts never more than one.")
    ] = 1,
    budget: Annotated[
        str, typer.Option(metavar="DURATION", help="Stop when emptying one takes longer, for example 10m.")
    ] = "",
    back_within: Annotated[
        str, typer.Option(metavar="DURATION", help="Stop when one is not back and well so long after its reboot.")
    ] = "15m",
    if_required: Annotated[
        bool, typer.Option("--if-required", help="Leave out hosts whose packages want no reboot.")
    ] = False,
    anew: Annotated[
        bool, typer.Option("--anew", help="Also those that an earlier one, which was broken off, has done.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is done.")] = True,
    yes: Yes = False,
    output: Format = Output.TABLE,
) -> None:
    """Reboot hosts one after another: each is emptied, rebooted, waited for, and gets its guests back before the next one's turn.

    It stops at the first one that the others cannot do without, or that fails, which stays in maintenance; the same command goes on from
    there. `gugus task cancel` ends it between two steps.
    """
    nodes = names or []
    if bool(nodes) == all_:
        raise invalid("NODE", "name the nodes, or say --all.")
    budget_s = duration("--budget", budget) if budget else 0.0
    within_s = duration("--back-within", back_within)
    confirm(f"Reboot {'all hosts' if all_ else ', '.join(nodes)}, one after another?", yes)

    async def begin(gugus: Gugus) -> Task:
        return await gugus.nodes.reboot(
            nodes,
            parallel=parallel,
            drain_budget_s=budget_s,
            back_within_s=within_s,
            if_required=if_required,
            anew=anew,
        )

    run_task(ctx, output, begin, "the hosts were rebooted.", wait=wait)
