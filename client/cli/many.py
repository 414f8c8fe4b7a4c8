"""Commands on one guest or on many, and the summary of what became of each.

One guest that is named is followed as ever; of several, each ends in a line of a table, and the exit code is 1 when any failed.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

import typer
from gugus.cluster.v1.guest_pb2 import Guest
from gugus.cluster.v1.task_pb2 import Task

from client.bulk import (
    DEFAULT_PARALLEL,
    MAX_PARALLEL,
    Outcome,
    Result,
    Runner,
    Selection,
    in_boot_order,
    select,
)
from client.cli import failure
from client.cli.output import Output, say, table, write
from client.cli.session import complete_guest, run, run_task
from client.sdk import Gugus

Names = Annotated[list[str] | None, typer.Argument(metavar="[GUEST]...", autocompletion=complete_guest)]
Parallel = Annotated[int, typer.Option(min=1, max=MAX_PARALLEL, help="So many at a time.")]
Wait = Annotated[bool, typer.Option(help="Wait until it is done.")]

PARALLEL = DEFAULT_PARALLEL
COLUMNS = ("guest", "result", "task", "reason")


def run_many(
    ctx: typer.Context,
    output: Output,
    chosen: Selection,
    begin: Callable[[Gugus, str], Awaitable[Task]],
    done: str,
    *,
    parallel: int = PARALLEL,
    wait: bool = True,
    boot_order: bool | None = None,
) -> None:
    """Begin something with each guest that is selected, and follow it to the end.

    done: what is said of one, with "{}" for its name. boot_order: in the order of starting (True), of stopping (False), or by
    name (None). Raises GugusError; exits with 1 when it failed for any of several.
    """
    if name := chosen.single:
        run_task(ctx, output, lambda gugus: _began(begin(gugus, name)), done.format(name), wait=wait)
        return

    async def work(gugus: Gugus) -> list[Outcome]:
        guests = select(await gugus.guests.list(), chosen)
        groups, pauses_s = _groups(guests, boot_order)
        runner = Runner(gugus.tasks, lambda name: begin(gugus, name), parallel=parallel, wait=wait)
        return await followed(runner, groups, pauses_s, output)

    finish(run(ctx, work), output, none="no guests are selected.")


async def followed(
    runner: Runner, groups: Sequence[Sequence[str]], pauses_s: Sequence[float], output: Output
) -> list[Outcome]:
    """Run with a line on stderr for each that ends; an interruption leaves the summary of what is done and what goes on."""
    runner.on_change = _Lines()
    try:
        return await runner.run(groups, pauses_s)
    except asyncio.CancelledError:
        summary(list(runner.outcomes.values()), output)
        say(
            "interrupted; what goes on goes on by itself, `gugus task list --active` shows it. What was not begun will not be."
        )
        raise


def finish(outcomes: Sequence[Outcome], output: Output, *, none: str) -> None:
    """Write the summary. Exits with 1 when any failed."""
    if not outcomes and output is Output.TABLE:
        say(none)
        return
    summary(outcomes, output)
    failed = [outcome for outcome in outcomes if outcome.result is Result.FAILED]
    if output is Output.TABLE:
        counts = {result: sum(outcome.result is result for outcome in outcomes) for result in Result}
        say(", ".join(f"{count} {result}" for result, count in counts.items() if count) + ".")
    if failed:
        raise typer.Exit(failure.FAILED)


def summary(outcomes: Sequence[Outcome], output: Output) -> None:
    """Write what became of each: a table, or an array of objects."""
    if output is Output.TABLE:
        table(COLUMNS, [(item.name, item.result, item.task, item.reason) for item in outcomes])
    else:
        write([_plain(outcome) for outcome in outcomes], output)
        sys.stdout.flush()


class _Lines:
    """Tells on stderr when one is begun, goes on, and ends; nothing is told twice in a row."""

    def __init__(self) -> None:
        self._last = dict[str, str]()

    def __call__(self, outcome: Outcome, task: Task | None) -> None:
        words = task.log[-1].text if task is not None and task.log else ""
        if task is None and outcome.result is not Result.UNDER_WAY:
            words = outcome.result + (f": {outcome.reason}" if outcome.reason else "")
        if words and self._last.get(outcome.name) != words:
            self._last[outcome.name] = words
            print(f"{outcome.name}: {words}", file=sys.stderr, flush=True)


def _groups(guests: Sequence[Guest], boot_order: bool | None) -> tuple[list[list[str]], list[float]]:
    """Return the names in groups, and how long to wait after each: the longest delay of its guests, when they are started."""
    groups = [list(guests)] if boot_order is None else in_boot_order(guests, up=boot_order)
    pauses = [float(max((guest.spec.boot.delay_s for guest in group), default=0)) for group in groups]
    return [[guest.meta.name for guest in group] for group in groups], pauses if boot_order else []


async def _began(task: Awaitable[Task]) -> Task:
    return await task


def _plain(outcome: Outcome) -> dict[str, Any]:
    error = outcome.error
    return {
        "name": outcome.name,
        "result": outcome.result.value,
        "task": outcome.task,
        "error": {"reason": error.reason, "message": error.message, "remedy": error.remedy} if error else None,
    }
