"""`gugus cluster settings` and `gugus cluster set`: what operators decide for the whole cluster, with the defaults."""

from typing import Annotated

import typer
from gugus.cluster.v1.cluster_pb2 import PLACEMENT_POLICY_PACK, Cluster, ClusterSettings

from client.cli.output import Format, Output, plain, say, show_done, table, write
from client.cli.session import run
from client.cli.shortage import warn_of_shortage
from client.sdk import Gugus
from common.cluster_settings import Setting, Table, told
from planner.settings import Policy
from planner.weights import defaults_of

COLUMNS = ("name", "value", "accepted", "meaning")


def _complete(incomplete: str) -> list[str]:
    """Complete the name of a setting."""
    table = _table_of(ClusterSettings())
    return [f"{one.name}=" for one in table.settings if not one.fixed and one.name.startswith(incomplete)]


Changes = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME=VALUE...",
        help="Like spare.nodes=1; NAME= takes the default again.",
        autocompletion=_complete,
    ),
]


def settings(ctx: typer.Context, output: Format = Output.TABLE) -> None:
    """Show every setting with its value, whether that is the default, and what it may be."""
    cluster = run(ctx, lambda gugus: gugus.cluster.get())
    if output is Output.TABLE:
        table(COLUMNS, [_row(cluster.settings, one) for one in _table_of(cluster.settings).settings])
    else:
        write(plain(cluster.settings), output)


def set_(ctx: typer.Context, changes: Changes, output: Format = Output.TABLE) -> None:
    """Change settings, all or none: `gugus cluster set spare.nodes=1 balance.mode=automatic`. `gugus cluster settings` lists them."""
    wished, names = _table_of(ClusterSettings()).read(changes)

    async def change(gugus: Gugus) -> tuple[Cluster, Cluster]:
        before = await gugus.cluster.get()
        after = await gugus.cluster.update_settings(wished, names)
        if any(name.startswith("spare.") for name in names):
            await warn_of_shortage(gugus)
        return before, after

    before, after = run(ctx, change)
    differences = _table_of(after.settings).differences(before.settings, after.settings)
    if output is Output.TABLE and not differences:
        say("nothing to change: it was so already.")
    else:
        show_done(after, output, "\n".join(differences))


def _table_of(settings: ClusterSettings) -> Table:
    policy = Policy.PACK if settings.placement == PLACEMENT_POLICY_PACK else Policy.SPREAD
    return Table(defaults_of(policy))


def _row(settings: ClusterSettings, one: Setting) -> tuple[str, ...]:
    accepted = "(fixed)" if one.fixed else one.accepted
    return one.name, told(settings, one), accepted, one.about
