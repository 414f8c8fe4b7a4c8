"""`gugus what-if`: what would happen, from the cluster's state as it is now. Nothing is changed."""

from typing import Annotated

import typer
from gugus.cluster.v1.guest_pb2 import GuestSpec
from gugus.cluster.v1.plan_pb2 import AddNodes, EmptyNodes, EvenOut, LoseNodes, MakeGuests, WhatIf, WhatIfRequest

from client.cli.output import Format, Output, plain, say, table, write
from client.cli.session import complete_node, run
from client.cli.words import MAX_UINT32, size
from common.errors import invalid
from common.units import format_duration

app = typer.Typer(no_args_is_help=True, help="What would happen, from the cluster as it is now.")

Nodes = Annotated[list[str], typer.Argument(metavar="NODE...", autocompletion=complete_node)]
MOVES = ("wave", "guest", "from", "to", "why")
UNPLACED = ("guest", "node", "why not")


@app.command()
def fail(ctx: typer.Context, nodes: Nodes, output: Format = Output.TABLE) -> None:
    """Lose nodes together: where their guests would start, and which would find no place."""
    ask(ctx, WhatIfRequest(lose=LoseNodes(nodes=nodes)), output)


@app.command()
def drain(ctx: typer.Context, nodes: Nodes, output: Format = Output.TABLE) -> None:
    """Empty nodes: where their guests would move, and which could not leave."""
    ask(ctx, WhatIfRequest(empty=EmptyNodes(nodes=nodes)), output)


@app.command()
def add(
    ctx: typer.Context,
    like: Annotated[
        str, typer.Argument(metavar="[NODE]", help="The new ones are like this one.", autocompletion=complete_node)
    ] = "",
    count: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 1,
    cpus: Annotated[int, typer.Option(min=0, max=MAX_UINT32, help="CPUs of each; 0: as NODE has.")] = 0,
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Memory for guests of each; else as NODE has.")] = "",
    output: Format = Output.TABLE,
) -> None:
    """Add nodes: who of those that wait would get a place, and who would move there."""
    memory_bytes = size("--memory", memory) if memory else 0
    ask(ctx, WhatIfRequest(add=AddNodes(like=like, count=count, cpus=cpus, memory_bytes=memory_bytes)), output)


@app.command()
def guest(
    ctx: typer.Context,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help='A guest\'s document, as for `apply`; "-" is standard input.')
    ],
    count: Annotated[int, typer.Option(min=1, max=1000, help="How many of it.")] = 1,
    output: Format = Output.TABLE,
) -> None:
    """Make guests: where they would run, or why they could not."""
    ask(ctx, WhatIfRequest(make=MakeGuests(spec=_spec(file), count=count)), output)


@app.command()
def balance(
    ctx: typer.Context,
    max_moves: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="Most migrations.")] = 10,
    output: Format = Output.TABLE,
) -> None:
    """Even the cluster out with few migrations."""
    ask(ctx, WhatIfRequest(even=EvenOut(max_moves=max_moves)), output)


def _spec(file: str) -> GuestSpec:
    from client.apply.documents import load  # here: the other questions need no documents
    from client.apply.plan import GUEST, wanted_spec

    documents = [document for document in load([file]) if document.kind == GUEST]
    if len(documents) != 1:
        what = f"has {len(documents)} guests; one is asked about at a time."
        raise invalid("FILE", what, remedy="Name a file with one.")
    spec: GuestSpec = wanted_spec(documents[0], None)
    return spec


def ask(ctx: typer.Context, request: WhatIfRequest, output: Output) -> None:
    """Ask, and write the answer. Raises GugusError."""
    answer = run(ctx, lambda gugus: gugus.plans.what_if(request))
    if output is Output.TABLE:
        show(answer)
    else:
        write(plain(answer), output)


def show(answer: WhatIf) -> None:
    """Write an answer for people."""
    if answer.moves:
        table(MOVES, [(str(m.wave), m.guest, getattr(m, "from"), m.to, m.reason) for m in answer.moves])
        print()
    if answer.unplaced:
        rows = [(one.guest, v.node, "; ".join(v.refusals)) for one in answer.unplaced for v in one.verdicts]
        table(UNPLACED, rows or [(one.guest, "", one.reason) for one in answer.unplaced])
        print()
    for one in answer.gives_way:
        say(f"{one.guest} on {one.node} would be stopped: {one.reason}")
    for left in answer.left:
        say(f"{left.guest} stays as it is: {left.reason}.")
    if answer.moves and answer.score_after < answer.score_before:
        say(f"The score falls from {answer.score_before:.4f} to {answer.score_after:.4f}; 0 is best.")
    for note in answer.notes:
        say(note)
    if answer.takes_ms:
        say(f"It would take about {format_duration(answer.takes_ms / 1000)}: {answer.takes_why}")
    if answer.short:
        say(f"afterwards, {answer.short}.")
    if not answer.moves and not answer.unplaced:
        say("nothing would be done.")
