"""`gugus cluster`: the cluster itself, its voters and its join tokens."""

from typing import Annotated

import typer
from gugus.cluster.v1.cluster_pb2 import ClusterStatus, Token, Voter

from client.cli.cluster_init import init
from client.cli.confirm import Yes, confirm
from client.cli.output import Format, Output, plain, say, show_done, show_list, table, write
from client.cli.session import complete_node, run, timeout_of
from client.cli.words import duration, moment, yes
from client.sdk import VOTERS_TIMEOUT_S
from common.config import join_endpoint

app = typer.Typer(no_args_is_help=True, help="The cluster itself.")
token_app = typer.Typer(no_args_is_help=True, help="Tokens that let hosts join.")
app.add_typer(token_app, name="token")
app.command("init")(init)

Node = Annotated[str, typer.Argument(metavar="NODE", autocompletion=complete_node)]
VOTER_COLUMNS = ("name", "address", "role", "connected", "log index")


@app.command()
def status(ctx: typer.Context, output: Format = Output.TABLE) -> None:
    """Tell how the cluster is, and what is wrong with it."""
    answer = run(ctx, lambda gugus: gugus.cluster.status())
    if output is not Output.TABLE:
        write(plain(answer), output)
        return
    print(_sentence(answer))
    print("\n".join(f"problem: {problem}" for problem in answer.problems) or "Nothing is wrong.")
    print()
    table(VOTER_COLUMNS, [_voter_row(voter) for voter in answer.voters])


@app.command()
def members(ctx: typer.Context, output: Format = Output.TABLE) -> None:
    """List the voters: the managers that hold the state."""
    show_list(run(ctx, lambda gugus: gugus.cluster.status()).voters, output, VOTER_COLUMNS, _voter_row)


@app.command()
def promote(ctx: typer.Context, node: Node, output: Format = Output.TABLE) -> None:
    """Make a node a voter; answers when it counts."""
    timeout_s = timeout_of(ctx) or VOTERS_TIMEOUT_S
    answer = run(ctx, lambda gugus: gugus.cluster.promote(node, timeout_s=timeout_s))
    show_done(answer, output, f"node {node} is one of {len(answer.voters)} voters.")


@app.command()
def demote(ctx: typer.Context, node: Node, yes_: Yes = False, output: Format = Output.TABLE) -> None:
    """Make a voter a plain node: its manager stops and its copy of the state is removed."""
    confirm(f"Remove the manager of {node} and its copy of the state?", yes_)
    timeout_s = timeout_of(ctx) or VOTERS_TIMEOUT_S
    answer = run(ctx, lambda gugus: gugus.cluster.demote(node, timeout_s=timeout_s))
    show_done(answer, output, f"node {node} is no voter; {len(answer.voters)} are left.")


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


def _sentence(answer: ClusterStatus) -> str:
    connected = sum(voter.connected or voter.name == answer.answered_by for voter in answer.voters)
    leads = f"{answer.leader} leads (term {answer.term})" if answer.leader else "nobody leads"
    acts = f"{answer.acting} acts (epoch {answer.epoch})" if answer.acting else "nobody acts"
    return (
        f"Cluster {answer.name} ({answer.cluster_id}), as {answer.answered_by} sees it: {connected} of "
        f"{len(answer.voters)} voters are there, {leads}, {acts}, revision {answer.revision}."
    )


def _voter_row(voter: Voter) -> tuple[str, ...]:
    role = "leader" if voter.leader else "follower"
    return (
        voter.name,
        join_endpoint(voter.address, voter.port),
        role,
        yes(voter.connected),
        str(voter.match_index or ""),
    )


def _token_row(token: Token) -> tuple[str, ...]:
    return (token.meta.name, token.node or "any", moment(token.expires_at), token.used_by)
