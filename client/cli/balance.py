"""`gugus cluster balance`, and what `gugus cluster status` says of the nodes' evenness."""

from typing import Annotated

import typer
from gugus.cluster.v1.cluster_pb2 import BALANCE_MODE_UNSPECIFIED, BalanceMode, BalanceStatus
from gugus.cluster.v1.plan_pb2 import EvenOut, WhatIfRequest

from client.cli.output import Format, Output
from client.cli.session import run, run_task
from client.cli.what_if import ask, show
from client.cli.words import enum_word, moment


def balance(
    ctx: typer.Context,
    max_moves: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="Most migrations.")] = 10,
    plan: Annotated[
        bool, typer.Option("--plan", help="Only show what would be done, as `what-if balance` does.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Wait until it is done.")] = True,
    output: Format = Output.TABLE,
) -> None:
    """Even the cluster out with few live migrations, never against a rule. The plan is shown before it runs."""
    question = WhatIfRequest(even=EvenOut(max_moves=max_moves))
    if plan:
        ask(ctx, question, output)
        return
    if output is Output.TABLE:
        answer = run(ctx, lambda gugus: gugus.plans.what_if(question))
        show(answer)
        if not answer.moves:
            return
    run_task(ctx, output, lambda gugus: gugus.plans.balance(max_moves), "the cluster is even.", wait=wait)


def show_balance(told: BalanceStatus) -> None:
    """Write for people how even the nodes are, what would be moved, and what came of the last balance."""
    if told.mode == BALANCE_MODE_UNSPECIFIED:
        return
    print(_sentence(told))
    for move in told.moves:
        print(f"  wave {move.wave}: {move.guest} from {getattr(move, 'from')} to {move.to}")
    if told.last:
        print(f"  last balance ({moment(told.last_at)}): {told.last}")


def _sentence(told: BalanceStatus) -> str:
    mode = f"Balancing is {enum_word(BalanceMode, told.mode, 'BALANCE_MODE_')}"
    if not told.moves:
        even = f"{mode}: nothing is worth moving (score {told.score:.4f}, 0 is best)" if told.hold_ms else mode
        return f"{even}; {told.why}" if told.why else f"{even}."
    count = f"{len(told.moves)} migration{'s' if len(told.moves) != 1 else ''}"
    gain = f"{count} would lower the score from {told.score:.4f} to {told.score_after:.4f}"
    return f"{mode}: {gain}; {told.why}" if told.why else f"{mode}: {gain}."
