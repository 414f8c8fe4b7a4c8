"""`gugus cluster`: the cluster itself, its voters and its join tokens."""

from typing import Annotated

import typer
from gugus.cluster.v1.cluster_pb2 import Token, Voter

from client.cli import failure
from client.cli.balance import balance
from client.cli.cluster_backup import backup
from client.cli.cluster_cpu import cpu
from client.cli.cluster_init import init
from client.cli.cluster_restore import restore
from client.cli.cluster_settings import set_, settings
from client.cli.cluster_status import role, show_status
from client.cli.confirm import Yes, confirm
from client.cli.output import Format, Output, plain, say, show_done, show_list, write
from client.cli.session import complete_node, run, run_task, timeout_of
from client.cli.words import duration, moment, yes
from client.clusters import VOTERS_TIMEOUT_S
from common.config import join_endpoint

app = typer.Typer(no_args_is_help=True, help="The cluster itself.")
token_app = typer.Typer(no_args_is_help=True, help="Tokens that let hosts join.")
app.add_typer(token_app, name="token")
ha_app = typer.Typer(no_args_is_help=True, help="HA of the whole cluster, on or off.")
app.add_typer(ha_app, name="ha")
app.command("init")(init)
app.command("cpu")(cpu)
app.command("balance")(balance)
app.command("backup")(backup)
app.command("restore")(restore)
app.command("settings")(settings)
app.command("set")(set_)

Node = Annotated[str, typer.Argument(metavar="NODE", autocompletion=complete_node)]
VOTER_COLUMNS = ("name", "address", "role", "connected", "log index")


@app.command()
def status(ctx: typer.Context, output: Format = Output.TABLE) -> None:
    """Tell how the managers are, what is wrong with them and what to do. Exits with 1 when something is wrong."""
    answer = run(ctx, lambda gugus: gugus.cluster.status())
    if output is Output.TABLE:
        show_status(answer)
    else:
        write(plain(answer), output)
    if answer.problems:
        raise typer.Exit(failure.FAILED)


@app.command()
def members(ctx: typer.Context, output: Format = Output.TABLE) -> None:
    """List the voters: the managers that hold the state."""
    show_list(run(ctx, lambda gugus: gugus.cluster.status()).voters, output, VOTER_COLUMNS, _voter_row)


@app.command()
def promote(ctx: typer.Context, node: Node, output: Format = Output.TABLE) -> None:
    """Make a node a voter; answers when it has caught up and counts. --timeout bounds how long that may take (2m)."""
    timeout_s = timeout_of(ctx) or VOTERS_TIMEOUT_S
    answer = run(ctx, lambda gugus: gugus.cluster.promote(node, timeout_s=timeout_s))
    show_done(answer, output, f"node {node} is one of {len(answer.voters)} voters.")


@app.command()
def demote(ctx: typer.Context, node: Node, yes_: Yes = False, output: Format = Output.TABLE) -> None:
    """Make a voter a plain node: its manager stops and its copy of the state is removed. A leader hands over first."""
    confirm(f"Remove the manager of {node} and its copy of the state?", yes_)
    timeout_s = timeout_of(ctx) or VOTERS_TIMEOUT_S
    answer = run(ctx, lambda gugus: gugus.cluster.demote(node, timeout_s=timeout_s))
    show_done(answer, output, f"node {node} is no voter; {len(answer.voters)} are left.")


@app.command()
def transfer(
    ctx: typer.Context,
    node: Annotated[str, typer.Argument(metavar="[NODE]", autocompletion=complete_node)] = "",
    output: Format = Output.TABLE,
) -> None:
    """Hand leadership to another voter (NODE, or the most suitable one): do it before you work on the leader's host."""
    answer = run(ctx, lambda gugus: gugus.cluster.transfer(node))
    show_done(answer, output, f"{answer.acting} leads and acts now.")


@ha_app.command("disarm")
def ha_disarm(
    ctx: typer.Context,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for others to read.")] = "",
    freeze: Annotated[bool, typer.Option("--freeze", help="Start no guest under HA meanwhile, whatever ends.")] = False,
    wait: Annotated[bool, typer.Option(help="Wait until it is done.")] = True,
    output: Format = Output.TABLE,
) -> None:
    """Switch HA off, for work on the network for example: no host is reset or kills guests, and none is given elsewhere."""
    done = "HA is disarmed: no guest is restarted elsewhere until `gugus cluster ha arm`."
    run_task(ctx, output, lambda gugus: gugus.cluster.disarm_ha(reason, freeze=freeze), done, wait=wait)


@ha_app.command("arm")
def ha_arm(
    ctx: typer.Context,
    wait: Annotated[bool, typer.Option(help="Wait until it is done.")] = True,
    output: Format = Output.TABLE,
) -> None:
    """Switch HA on again."""
    run_task(ctx, output, lambda gugus: gugus.cluster.arm_ha(), "HA is armed.", wait=wait)


@token_app.command("create")
def token_create(
    ctx: typer.Context,
    ttl: Annotated[str, typer.Option(metavar="TIME", help="How long it is valid: 1m to 7d.")] = "1h",
    node: Annotated[str, typer.Option(metavar="NAME", help="Only a host of this name may use it.")] = "",
    output: Format = Output.TABLE,
) -> None:
    """Make a token for `gugus-agent join`. It is shown this once."""
    ttl_s = duration("--ttl", ttl)
    answer = run(ctx, lambda gugus: gugus.cluster.create_token(ttl_s=ttl_s, node=node))
    if output is Output.TABLE:
        say(f"Valid until {moment(answer.expires_at)}, once. On the new host: gugus-agent join TOKEN")
        print(answer.token)
    else:
        write(plain(answer), output)


@token_app.command("list")
def token_list(ctx: typer.Context, output: Format = Output.TABLE) -> None:
    """List join tokens, without their secrets."""
    columns = ("id", "node", "expires", "used by")
    show_list(run(ctx, lambda gugus: gugus.cluster.tokens()), output, columns, _token_row, none="no tokens.")


@token_app.command("revoke")
def token_revoke(
    ctx: typer.Context, id_: Annotated[str, typer.Argument(metavar="ID")], output: Format = Output.TABLE
) -> None:
    """End a join token."""
    run(ctx, lambda gugus: gugus.cluster.revoke_token(id_))
    show_done(None, output, f"the token {id_} is of no use any more.")


def _voter_row(voter: Voter) -> tuple[str, ...]:
    return (
        voter.name,
        join_endpoint(voter.address, voter.port),
        role(voter),
        yes(voter.connected),
        str(voter.match_index or ""),
    )


def _token_row(token: Token) -> tuple[str, ...]:
    return (token.meta.name, token.node or "any", moment(token.expires_at), token.used_by)
